//! Holds: while a reader or writer holds files of a table, cleaning keeps them.
//!
//! Within a process a hold is a guard. For other processes, a hold that lasts longer than [`LEASE_AFTER`] has a *lease*: an
//! object below the table's directory `_wye/leases` that says how long the files have been held. It is renewed until the
//! hold is dropped. A lease that was not renewed for [`LEASE_TIMEOUT`] has expired: its process has crashed. Shorter holds
//! need no lease, since cleaning keeps all files for a while.
//!
//! Clocks of machines are never compared: the age of a lease is the difference of two times of the store, and the content
//! of the lease is a duration. Cleaning by other engines skips names that begin with `_`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Deserialize;
use tokio::task::JoinSet;
use tracing::warn;

use crate::real_time::Stopwatch;
use crate::store::TableName;
use crate::unique;

/// The directory of leases and the clock, below a table's directory.
pub(crate) const DIRECTORY: &str = "_wye";
/// A hold that lasts longer gets a lease.
const LEASE_AFTER: Duration = Duration::from_secs(30);
/// How often a lease is renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// A lease that was not renewed for this time has expired.
const LEASE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The content of a lease.
///
/// Stability contract: JSON; fields are only ever added.
#[derive(Debug, Deserialize)]
struct Lease {
    /// How long the files had been held when this was written.
    held_ms: u64,
}

/// All holds of a process. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Holds {
    shared: Arc<Shared>,
    lease_after: Duration,
}

impl Default for Holds {
    fn default() -> Self {
        Self { shared: Arc::default(), lease_after: LEASE_AFTER }
    }
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    held: Mutex<HashMap<u64, (TableName, Stopwatch)>>,
}

/// Keeps files of a table until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    id: u64,
    /// Writes the lease; ends with the hold.
    _lease: JoinSet<()>,
}

impl Holds {
    /// Holds that get a lease at once.
    #[cfg(test)]
    pub(crate) fn leased_at_once() -> Self {
        Self { lease_after: Duration::ZERO, ..Self::default() }
    }

    /// Starts a hold on a table. The root of `store` is the table's directory.
    pub(crate) fn take(&self, table: TableName, store: Arc<dyn ObjectStore>) -> Hold {
        let since = Stopwatch::start();
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(id, (table, since));
        let mut lease = JoinSet::new();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            lease.spawn_on(keep_lease(store, table, since, self.lease_after), &runtime);
        }
        Hold { holds: self.clone(), id, _lease: lease }
    }

    /// How long the oldest hold of this process on a table has lasted.
    fn oldest(&self, table: TableName) -> Option<Duration> {
        self.held().values().filter(|(held, _)| *held == table).map(|(_, since)| since.elapsed()).max()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (TableName, Stopwatch)>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the oldest hold of any process on a table has lasted, at the store's time `now`. Removes expired leases.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn longest(
        &self,
        table: TableName,
        store: &dyn ObjectStore,
        now: DateTime<Utc>,
    ) -> object_store::Result<Option<Duration>> {
        let mut longest = self.oldest(table);
        let mut leases = store.list(Some(&leases()));
        while let Some(lease) = leases.try_next().await? {
            let age = (now - lease.last_modified).to_std().unwrap_or_default();
            if age > LEASE_TIMEOUT {
                remove(store, &lease.location).await;
                continue;
            }
            let held = match store.get(&lease.location).await {
                Ok(found) => held(&found.bytes().await?),
                Err(object_store::Error::NotFound { .. }) => continue,
                Err(error) => return Err(error),
            };
            longest = longest.max(Some(held.saturating_add(age)));
        }
        Ok(longest)
    }
}

/// The store's time: that of an object just written. S3 has whole seconds, rounded down, so files are kept for up to a second
/// longer there.
pub(crate) async fn store_time(store: &dyn ObjectStore) -> object_store::Result<DateTime<Utc>> {
    let clock = Path::from_iter([DIRECTORY, "clock"]);
    store.put(&clock, Vec::new().into()).await?;
    Ok(store.head(&clock).await?.last_modified)
}

/// How long files had been held when a lease was written; the longest duration where the lease cannot be read.
fn held(lease: &[u8]) -> Duration {
    serde_json::from_slice(lease).map_or(Duration::MAX, |lease: Lease| Duration::from_millis(lease.held_ms))
}

fn leases() -> Path {
    Path::from_iter([DIRECTORY, "leases"])
}

/// Writes a lease after `after`, and renews it until the task ends.
async fn keep_lease(store: Arc<dyn ObjectStore>, table: TableName, since: Stopwatch, after: Duration) {
    tokio::time::sleep(after).await;
    let location = leases().join(format!("{}.json", unique::name()));
    loop {
        if let Err(error) = write_lease(&*store, &location, since.elapsed()).await {
            warn!(%table, %error, "cannot write a lease for files in use; retrying");
        }
        tokio::time::sleep(RENEWAL).await;
    }
}

/// Writes a lease for files that have been held for `held`.
async fn write_lease(store: &dyn ObjectStore, location: &Path, held: Duration) -> object_store::Result<()> {
    let held_ms = u64::try_from(held.as_millis()).unwrap_or(u64::MAX);
    let lease = serde_json::json!({ "held_ms": held_ms }).to_string();
    store.put(location, lease.into()).await.map(|_| ())
}

async fn remove(store: &dyn ObjectStore, location: &Path) {
    match store.delete(location).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => warn!(lease = %location, %error, "cannot remove an expired lease"),
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.holds.held().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    async fn longest(store: &InMemory, ahead: Duration) -> Option<Duration> {
        let now = store_time(store).await.unwrap() + ahead;
        Holds::default().longest(TableName::Readings, store, now).await.unwrap()
    }

    #[tokio::test]
    async fn a_hold_is_for_one_table_until_it_is_dropped() {
        let (holds, store) = (Holds::default(), Arc::new(InMemory::new()));
        let hold = holds.take(TableName::Readings, store);
        let clone = holds.clone();
        assert!(clone.oldest(TableName::Readings).is_some() && clone.oldest(TableName::BatchViews).is_none());
        drop(hold);
        assert_eq!((holds.oldest(TableName::Readings), clone.oldest(TableName::Readings)), (None, None));
    }

    #[tokio::test]
    async fn other_processes_see_a_long_hold_until_its_lease_expires() {
        let store = Arc::new(InMemory::new());
        let unleased = Holds::default().take(TableName::Readings, store.clone());
        tokio::task::yield_now().await;
        assert_eq!(longest(&store, Duration::ZERO).await, None);
        let hold = Holds::leased_at_once().take(TableName::Readings, store.clone());
        let started = Stopwatch::start();
        while longest(&store, Duration::ZERO).await.is_none() {
            assert!(started.elapsed() < Duration::from_secs(30), "no lease");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop((unleased, hold));
        assert!(longest(&store, Duration::ZERO).await.is_some());
        assert_eq!(longest(&store, HOUR).await, None);
        // The expired lease was removed, not just ignored.
        assert_eq!(longest(&store, Duration::ZERO).await, None);
    }

    #[tokio::test]
    async fn a_lease_says_how_long_files_were_held() {
        let store = InMemory::new();
        write_lease(&store, &leases().join("a.json"), 2 * HOUR).await.unwrap();
        let found = longest(&store, Duration::from_secs(600)).await.unwrap().as_secs();
        assert!((7_800..7_860).contains(&found), "{found}");
        store.put(&leases().join("b.json"), "nonsense".into()).await.unwrap();
        assert_eq!(longest(&store, Duration::ZERO).await, Some(Duration::MAX));
    }
}

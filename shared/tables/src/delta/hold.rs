//! Holds: who works with files of a table says so, and cleaning leaves these files alone however long it takes.
//!
//! Within a process a hold is a guard. Other processes hear of holds that last longer than [`LEASE_AFTER`] by a
//! *lease*: an object below the table's directory `_wye/leases`, which says for how long its holder has been at work and
//! is written again and again until the hold is dropped. A lease that nobody has renewed for [`LEASE_LIFE`] is void:
//! its holder is dead. Shorter work needs no lease, since cleaning always keeps files for a while.
//!
//! All times are those of the store, so clocks of machines are not compared: a lease is as old as the store says, and
//! what it says is a duration. Other engines' cleaning passes over names that begin with `_`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tracing::warn;

use crate::store::TableName;

/// Where leases and the like are, below a table's directory.
pub(crate) const DIRECTORY: &str = "_wye";
/// Work that takes longer is told to other processes.
const LEASE_AFTER: Duration = Duration::from_secs(30);
/// How often a lease is renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// A lease that was not renewed for so long is void.
const LEASE_LIFE: Duration = Duration::from_secs(15 * 60);

/// What a lease says.
///
/// Stability contract: JSON; fields are only ever added.
#[derive(Debug, Serialize, Deserialize)]
struct Lease {
    /// For how long the holder had been at work when it wrote this.
    held_ms: u64,
}

/// All holds of a process. Clones are the same.
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
    held: Mutex<HashMap<u64, (TableName, Instant)>>,
}

/// Says that somebody works with files of a table, until it is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    holds: Holds,
    id: u64,
    /// Writes the lease; ends with the hold.
    _lease: JoinSet<()>,
}

impl Holds {
    /// Holds that are told to other processes at once.
    #[cfg(test)]
    pub(crate) fn told_at_once() -> Self {
        Self { lease_after: Duration::ZERO, ..Self::default() }
    }

    /// Starts a hold on a table, whose directory is the store's root.
    pub(crate) fn take(&self, table: TableName, store: Arc<dyn ObjectStore>) -> Hold {
        let since = Instant::now();
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.held().insert(id, (table, since));
        let mut lease = JoinSet::new();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            lease.spawn_on(keep_lease(store, table, since, self.lease_after), &runtime);
        }
        Hold { holds: self.clone(), id, _lease: lease }
    }

    /// For how long the oldest hold of this process on a table has lasted.
    fn oldest(&self, table: TableName) -> Option<Duration> {
        self.held().values().filter(|(held, _)| *held == table).map(|(_, since)| since.elapsed()).max()
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (TableName, Instant)>> {
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long the oldest hold of any process on a table has lasted, at the store's time `now` (ms). Removes
    /// leases that are void.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn longest(
        &self,
        table: TableName,
        store: &dyn ObjectStore,
        now: i64,
    ) -> object_store::Result<Option<Duration>> {
        let mut longest = self.oldest(table);
        let mut leases = store.list(Some(&leases()));
        while let Some(lease) = leases.try_next().await? {
            let age = u64::try_from(now - lease.last_modified.timestamp_millis()).unwrap_or_default();
            let age = Duration::from_millis(age);
            if age > LEASE_LIFE {
                forget(store, &lease.location).await;
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

/// The store's time in ms: that of an object just written.
pub(crate) async fn store_time(store: &dyn ObjectStore) -> object_store::Result<i64> {
    let clock = Path::from_iter([DIRECTORY, "clock"]);
    store.put(&clock, Vec::new().into()).await?;
    Ok(store.head(&clock).await?.last_modified.timestamp_millis())
}

/// For how long the holder of a lease had been at work; for ever where that cannot be read.
fn held(lease: &[u8]) -> Duration {
    serde_json::from_slice(lease).map_or(Duration::MAX, |lease: Lease| Duration::from_millis(lease.held_ms))
}

fn leases() -> Path {
    Path::from_iter([DIRECTORY, "leases"])
}

async fn keep_lease(store: Arc<dyn ObjectStore>, table: TableName, since: Instant, after: Duration) {
    tokio::time::sleep(after).await;
    let location = leases().join(format!("{:032x}.json", rand::random::<u128>()));
    loop {
        if let Err(error) = write_lease(&*store, &location, since).await {
            warn!(%table, %error, "cannot tell other processes which files are in use; trying again");
        }
        tokio::time::sleep(RENEWAL).await;
    }
}

async fn write_lease(store: &dyn ObjectStore, location: &Path, since: Instant) -> object_store::Result<()> {
    let held_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let lease = serde_json::to_vec(&Lease { held_ms }).expect("a number is JSON");
    store.put(location, lease.into()).await.map(|_| ())
}

async fn forget(store: &dyn ObjectStore, location: &Path) {
    match store.delete(location).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => warn!(lease = %location, %error, "cannot remove a lease that is void"),
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

    const HOUR: i64 = 3_600_000;

    async fn longest(store: &InMemory, ahead: i64) -> Option<Duration> {
        let now = store_time(store).await.unwrap() + ahead;
        Holds::default().longest(TableName::Readings, store, now).await.unwrap()
    }

    #[tokio::test]
    async fn a_hold_counts_for_its_own_table_until_it_is_dropped() {
        let (holds, store) = (Holds::default(), Arc::new(InMemory::new()));
        let hold = holds.take(TableName::Readings, store);
        let oldest = |table| holds.clone().oldest(table);
        assert!(oldest(TableName::Readings).is_some() && oldest(TableName::BatchViews).is_none());
        drop(hold);
        assert_eq!(oldest(TableName::Readings), None);
    }

    #[tokio::test]
    async fn other_processes_see_a_long_hold_until_nobody_renews_it() {
        let store = Arc::new(InMemory::new());
        let quiet = Holds::default().take(TableName::Readings, store.clone());
        tokio::task::yield_now().await;
        assert_eq!(longest(&store, 0).await, None);
        let hold = Holds::told_at_once().take(TableName::Readings, store.clone());
        let deadline = Instant::now() + Duration::from_secs(30);
        while longest(&store, 0).await.is_none() {
            assert!(Instant::now() < deadline, "no lease");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop((quiet, hold));
        assert!(longest(&store, 0).await.is_some());
        assert_eq!(longest(&store, HOUR).await, None);
        // It was removed, not passed over.
        assert_eq!(longest(&store, 0).await, None);
    }

    #[tokio::test]
    async fn a_lease_says_for_how_long_its_holder_works() {
        let store = InMemory::new();
        let since = Instant::now().checked_sub(Duration::from_secs(7_200)).unwrap();
        write_lease(&store, &leases().join("a.json"), since).await.unwrap();
        let found = longest(&store, 10 * 60_000).await.unwrap().as_secs();
        assert!((7_800..7_860).contains(&found), "{found}");
        store.put(&leases().join("b.json"), "nonsense".into()).await.unwrap();
        assert_eq!(longest(&store, 0).await, Some(Duration::MAX));
    }
}

//! Removes files that no readable version needs. Must not know what the files contain.
//!
//! A dry run of delta-rs's vacuum finds these files. The removal is done here, since vacuum would write two commits each
//! time, and readers take a new version for new content.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use deltalake::operations::vacuum::{Clock, VacuumMode};
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;

use crate::delta::hold::store_time;
use crate::delta::{DeltaLog, LogSnapshot};
use crate::error::TablesError;

mod partial;

/// The tables' `delta.deletedFileRetentionDuration`: after this time the log no longer has removed files.
pub(crate) const LONGEST_KEEP: Duration = Duration::from_secs(24 * 3600);

/// A file that no log entry names may belong to a commit that is being prepared, unless the file is older than this.
const LONGEST_PREPARATION: Duration = Duration::from_secs(6 * 3600);

/// The largest difference between the store's clock and the clock of a process that commits.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(300);

/// What a cleaning removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Files removed.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

impl std::ops::AddAssign for Cleaned {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// How long files are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keep {
    /// Files that left the table.
    pub(crate) left: Duration,
    /// Files that no log entry names.
    pub(crate) unnamed: Duration,
}

#[cfg(test)]
impl Keep {
    pub(crate) const NOTHING: Self = Self { left: Duration::ZERO, unnamed: Duration::ZERO };
}

impl DeltaLog {
    /// Removes files that left the table more than `keep` ago, and files of commits that were never made, complete or not.
    ///
    /// A version that was the newest at most `keep` ago keeps all of its files, and so does a version that a reader holds
    /// (see [`DeltaLog::hold`]).
    ///
    /// # Errors
    /// [`TablesError::Shape`] when `keep` is longer than the log has removed files (24 hours).
    pub(crate) async fn clean(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        if keep > LONGEST_KEEP {
            let reason =
                format!("files are kept for at most {} s after they left the table", LONGEST_KEEP.as_secs());
            return Err(TablesError::Shape { table: self.table(), reason });
        }
        self.clean_older(Keep { left: keep, unnamed: keep.max(LONGEST_PREPARATION) }).await
    }

    pub(crate) async fn clean_older(&self, keep: Keep) -> Result<Cleaned, TablesError> {
        let store = self.store();
        let now = store_time(&*store).await.map_err(|source| self.unreachable(source))?;
        // The listing comes first: a file that is committed after it was listed is in the snapshot read below. Holds
        // come before the snapshot too: a later one is for a version that is not older than that snapshot.
        let listed = store.list(None).map_ok(|file| (file.location, file.size)).try_collect();
        let listed: HashMap<Path, u64> = listed.await.map_err(|source| self.unreachable(source))?;
        let held = self.root().holds().longest(self.table(), &*store, now).await;
        let ages = Ages::new(keep, held.map_err(|source| self.unreachable(source))?);
        let Some(snapshot) = self.newest().await? else { return Ok(Cleaned::default()) };
        let mut removable = self.removable(&snapshot, VacuumMode::Lite, ages.left, now).await?;
        if let Some(age) = ages.unnamed {
            removable.extend(self.removable(&snapshot, VacuumMode::Full, age, now).await?);
        }
        removable.retain(|file| listed.contains_key(file));
        let mut cleaned = self.remove(removable, &listed).await?;
        if let Some(age) = ages.unnamed {
            cleaned += self.remove_partial(now, age).await?;
        }
        Ok(cleaned)
    }

    /// The files that delta-rs would remove.
    async fn removable(
        &self,
        snapshot: &LogSnapshot,
        mode: VacuumMode,
        age: Duration,
        now: DateTime<Utc>,
    ) -> Result<HashSet<Path>, TablesError> {
        let planned = snapshot
            .delta_table(self)
            .vacuum()
            .with_mode(mode)
            .with_dry_run(true)
            .with_retention_period(TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX))
            .with_enforce_retention_duration(false)
            // delta-rs keeps what is exactly as old as the retention period.
            .with_clock(Arc::new(StoreTime(now + TimeDelta::milliseconds(1))))
            .await;
        let (_, planned) = planned.map_err(|source| self.unreadable(source))?;
        let paths = planned.files_deleted.into_iter().map(Path::parse).collect::<Result<_, _>>();
        paths.map_err(|source| self.unreachable(source.into()))
    }

    async fn remove(&self, files: HashSet<Path>, sizes: &HashMap<Path, u64>) -> Result<Cleaned, TablesError> {
        let files = futures::stream::iter(files).map(Ok).boxed();
        let store = self.store();
        let mut removing = store.delete_stream(files);
        let mut cleaned = Cleaned::default();
        while let Some(removed) = removing.next().await {
            match removed {
                Ok(file) => {
                    cleaned.files += 1;
                    cleaned.bytes += sizes.get(&file).copied().unwrap_or_default();
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(self.unreachable(source)),
            }
        }
        Ok(cleaned)
    }
}

/// The time of the store, for delta-rs.
#[derive(Debug)]
struct StoreTime(DateTime<Utc>);

impl Clock for StoreTime {
    fn current_timestamp_millis(&self) -> i64 {
        self.0.timestamp_millis()
    }
}

/// How old files must be to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ages {
    /// Time since they left the table.
    left: Duration,
    /// Age of files that no log entry names; `None`: keep them all.
    unnamed: Option<Duration>,
}

impl Ages {
    /// `held` is how long the oldest hold has lasted.
    fn new(keep: Keep, held: Option<Duration>) -> Self {
        let Some(held) = held.map(|held| held.saturating_add(CLOCK_DIFFERENCE)) else {
            return Self { left: keep.left, unnamed: Some(keep.unnamed) };
        };
        Self {
            left: keep.left.max(held),
            // The log no longer has the files that left the table that long ago, so a reader may need any of them.
            unnamed: (held < LONGEST_KEEP).then_some(keep.unnamed.max(held)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn files_are_kept_longer_than_the_oldest_hold() {
        let keep = Keep { left: MINUTE, unnamed: 2 * MINUTE };
        assert_eq!(Ages::new(keep, None), Ages { left: MINUTE, unnamed: Some(2 * MINUTE) });
        let long = 600 * MINUTE + CLOCK_DIFFERENCE;
        assert_eq!(Ages::new(keep, Some(600 * MINUTE)), Ages { left: long, unnamed: Some(long) });
        assert_eq!(Ages::new(keep, Some(LONGEST_KEEP)).unnamed, None);
        assert_eq!(Ages::new(keep, Some(Duration::MAX)), Ages { left: Duration::MAX, unnamed: None });
    }
}

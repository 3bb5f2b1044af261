//! Gives back the disk space of files that no version in reach needs. Must not know what the files hold.
//!
//! delta-rs's own vacuum writes two commits each time; here the log stays as it is, since the number of the newest
//! version says to readers that there is something new.

use std::collections::HashSet;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::delta::DeltaLog;
use crate::delta::hold::{DIRECTORY, store_time};
use crate::error::TablesError;

/// What the tables' `delta.deletedFileRetentionDuration` says; the log forgets removed files after this long.
pub(crate) const LONGEST_KEEP: Duration = Duration::from_secs(24 * 3600);

/// A file that no log entry names may belong to a commit that is still being prepared; after this long it does not.
const LONGEST_PREPARATION: Duration = Duration::from_secs(6 * 3600);

/// What a cleaning removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Files removed.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// How far the clocks of those who commit may be apart from the store's.
const CLOCKS: Duration = Duration::from_secs(300);

impl DeltaLog {
    /// Removes files that left the table more than `keep` ago, and files of commits that never came.
    ///
    /// Whoever reads a version that was the newest at most `keep` ago still finds all of its files; so does whoever
    /// holds a version (see [`DeltaLog::hold`]), however long.
    ///
    /// # Errors
    /// [`TablesError::Shape`] when `keep` is longer than the log remembers removed files (24 hours).
    pub(crate) async fn clean(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.clean_unnamed(keep, keep.max(LONGEST_PREPARATION)).await
    }

    /// The same with an age of its own for files that no log entry names.
    pub(crate) async fn clean_unnamed(
        &self,
        keep: Duration,
        unnamed: Duration,
    ) -> Result<Cleaned, TablesError> {
        if keep > LONGEST_KEEP {
            let reason = format!("files are kept for at most {} s after they left", LONGEST_KEEP.as_secs());
            return Err(TablesError::Shape { table: self.table(), reason });
        }
        let unreachable = |source| TablesError::Store { table: self.table(), source };
        let store = self.store();
        let now = store_time(&*store).await.map_err(unreachable)?;
        // The listing comes first: a file that is committed after it was listed is in the snapshot read below. So does
        // the question who holds what: who comes later gets a version that is not older than that snapshot.
        let listed: Vec<_> = store.list(None).try_collect().await.map_err(unreachable)?;
        let held = self.root().holds().longest(self.table(), &*store, now).await.map_err(unreachable)?;
        let limits = Limits::new(now, keep, unnamed, held);
        let Some(snapshot) = self.newest().await? else { return Ok(Cleaned::default()) };
        let mut needed: HashSet<Path> =
            snapshot.files.iter().map(|file| Path::from(file.add.path.as_str())).collect();
        let mut left: HashSet<Path> = HashSet::new();
        let mut tombstones = snapshot.state().all_tombstones(self.log_store());
        while let Some(tombstone) = tombstones.try_next().await.map_err(|source| self.unreadable(source))? {
            let path = Path::from(tombstone.path().as_ref());
            match tombstone.deletion_timestamp() {
                Some(gone) if gone <= limits.left_until => left.insert(path),
                _ => needed.insert(path),
            };
        }
        let mut cleaned = Cleaned::default();
        for file in listed {
            let written = file.last_modified.timestamp_millis();
            let is_ours =
                ["_delta_log", DIRECTORY].iter().any(|name| file.location.prefix_matches(&Path::from(*name)));
            let is_old =
                left.contains(&file.location) || limits.unnamed_until.is_some_and(|until| written <= until);
            if is_ours || needed.contains(&file.location) || !is_old {
                continue;
            }
            match store.delete(&file.location).await {
                Ok(()) => {
                    cleaned.files += 1;
                    cleaned.bytes += file.size;
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(unreachable(source)),
            }
        }
        Ok(cleaned)
    }
}

/// How old a file must be to be removed. Times are those of the store, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Files that left the table until then.
    left_until: i64,
    /// Files that no log entry names and that were written until then; `None`: no such file.
    unnamed_until: Option<i64>,
}

impl Limits {
    /// `held` is for how long the oldest hold has lasted.
    fn new(now: i64, keep: Duration, unnamed: Duration, held: Option<Duration>) -> Self {
        let before = |age: Duration| now.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let Some(held) = held.map(|held| held.saturating_add(CLOCKS)) else {
            return Self { left_until: before(keep), unnamed_until: Some(before(unnamed)) };
        };
        Self {
            left_until: before(keep.max(held)),
            // The log has forgotten which files left it that long ago, so it cannot be told who needs them.
            unnamed_until: (held < LONGEST_KEEP).then(|| before(unnamed.max(held))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn holds_outlast_every_grace() {
        let now = 100 * 24 * 3_600_000;
        let ago = |age: Duration| now - age.as_millis() as i64;
        let limits = |held| Limits::new(now, MINUTE, 2 * MINUTE, held);
        assert_eq!(limits(None), Limits { left_until: ago(MINUTE), unnamed_until: Some(ago(2 * MINUTE)) });
        let long = ago(600 * MINUTE + CLOCKS);
        assert_eq!(limits(Some(600 * MINUTE)), Limits { left_until: long, unnamed_until: Some(long) });
        assert_eq!(limits(Some(LONGEST_KEEP)).unnamed_until, None);
        assert_eq!(limits(Some(Duration::MAX)), Limits { left_until: now - i64::MAX, unnamed_until: None });
    }
}

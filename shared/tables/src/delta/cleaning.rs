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

impl DeltaLog {
    /// Removes files that left the table more than `keep` ago, and files of commits that never came.
    ///
    /// Whoever reads a version that was the newest at most `keep` ago still finds all of its files.
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
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let (keep, unnamed) = (millis(keep), millis(unnamed));
        // The listing comes first: a file that is committed after it was listed is in the snapshot read below.
        let now = chrono::Utc::now().timestamp_millis();
        let listed: Vec<_> = self.store().list(None).try_collect().await.map_err(unreachable)?;
        let Some(snapshot) = self.newest().await? else { return Ok(Cleaned::default()) };
        let mut needed: HashSet<Path> =
            snapshot.files.iter().map(|file| Path::from(file.add.path.as_str())).collect();
        let mut left: HashSet<Path> = HashSet::new();
        let mut tombstones = snapshot.state().all_tombstones(self.log_store());
        while let Some(tombstone) = tombstones.try_next().await.map_err(|source| self.unreadable(source))? {
            let path = Path::from(tombstone.path().as_ref());
            match tombstone.deletion_timestamp() {
                Some(gone) if now - gone >= keep => left.insert(path),
                _ => needed.insert(path),
            };
        }
        let mut cleaned = Cleaned::default();
        for file in listed {
            let is_log = file.location.prefix_matches(&Path::from("_delta_log"));
            let is_old =
                left.contains(&file.location) || now - file.last_modified.timestamp_millis() >= unnamed;
            if is_log || needed.contains(&file.location) || !is_old {
                continue;
            }
            match self.store().delete(&file.location).await {
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

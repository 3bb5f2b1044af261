//! Removes partial files of local tables. Must not know what the files contain.
//!
//! The store of a local directory writes a large file as `<name>#<number>` until it is complete. A process that is killed
//! leaves the partial file. The store neither lists nor removes files with such names, so this uses the file system.

use std::io;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Cleaned;
use crate::delta::DeltaLog;
use crate::error::TablesError;

impl DeltaLog {
    /// Removes partial data files to which nothing was written for `age`, at the store's time `now`.
    pub(super) async fn remove_partial(
        &self,
        now: DateTime<Utc>,
        age: Duration,
    ) -> Result<Cleaned, TablesError> {
        let removed = self.root().in_directory(self.table(), move |directory| {
            let mut cleaned = Cleaned::default();
            remove_below(directory, now, age, &mut cleaned)?;
            Ok(cleaned)
        });
        Ok(removed.await?.unwrap_or_default())
    }
}

fn remove_below(
    directory: &Path,
    now: DateTime<Utc>,
    age: Duration,
    cleaned: &mut Cleaned,
) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let result = if is_partial(name) {
            remove_old(&entry.path(), now, age, cleaned)
        } else if name.contains('=') && entry.path().is_dir() {
            // A table partition, such as `ingest_date=2024-10-05`.
            remove_below(&entry.path(), now, age, cleaned)
        } else {
            Ok(())
        };
        match result {
            // Another process has completed or removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    Ok(())
}

/// Removes a file unless it is younger than `age`.
fn remove_old(path: &Path, now: DateTime<Utc>, age: Duration, cleaned: &mut Cleaned) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    let modified = DateTime::<Utc>::from(metadata.modified()?);
    if (now - modified).to_std().unwrap_or_default() >= age {
        std::fs::remove_file(path)?;
        cleaned.files += 1;
        cleaned.bytes += metadata.len();
    }
    Ok(())
}

/// Whether this is the name of a data file that is not complete.
fn is_partial(name: &str) -> bool {
    let Some((file, number)) = name.split_once(".parquet#") else { return false };
    file.starts_with("part-") && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};

    use super::super::{Keep, LONGEST_PREPARATION};
    use super::*;
    use crate::readings::Readings;
    use crate::store::TableRoot;
    use crate::testing::{archive, row};

    const MINUTE: Duration = Duration::from_secs(60);

    /// Makes a file that was written `age` ago.
    fn make(path: &Path, age: Duration) {
        let file = File::create(path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap() - age;
        file.set_times(FileTimes::new().set_modified(modified)).unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn partial_files_are_removed_when_they_are_old() {
        let directory = tempfile::tempdir().unwrap();
        let readings = Readings::open(&TableRoot::directory(directory.path()).unwrap()).await.unwrap();
        readings.append(vec![archive(0, 0, 1, &[row("a", 0, 0, 0)])]).await.unwrap();
        let table = directory.path().join("readings");
        let day = table.join("ingest_date=1970-01-01");
        make(&table.join("part-a.parquet#1"), LONGEST_PREPARATION + MINUTE);
        make(&day.join("part-b.parquet#12"), LONGEST_PREPARATION + MINUTE);
        make(&day.join("part-c.parquet#1"), MINUTE);
        make(&day.join("other#1"), 2 * LONGEST_PREPARATION);
        assert_eq!(readings.vacuum(Duration::ZERO).await.unwrap().files, 2);
        assert!(day.join("part-c.parquet#1").exists());
        let snapshot = readings.snapshot().await.unwrap();
        assert_eq!(readings.log().clean_older(Keep::NOTHING).await.unwrap().files, 0);
        drop(snapshot);
        assert_eq!(readings.log().clean_older(Keep::NOTHING).await.unwrap().files, 1);
        assert!(day.join("other#1").exists() && !day.join("part-c.parquet#1").exists());
        assert_eq!(readings.snapshot().await.unwrap().files(), 1);
    }
}

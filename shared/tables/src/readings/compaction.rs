//! Merges many small files of readings into few large ones, without a change to any reading. Must not know appends.
//!
//! Invariant: a compaction replaces files by files that have exactly their rows.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionConfig;
use deltalake::kernel::Add;
use futures::TryStreamExt;

use crate::columns::{INGEST_DATE, READING_ORDER, names, stored_schema};
use crate::delta::DataFile;
use crate::delta::cleaning::Cleaned;
use crate::delta::replacement::Compacted;
use crate::error::TablesError;
use crate::file_writer::{FileWriter, on_blocking_thread};
use crate::readings::file_tags::FileTags;
use crate::readings::{ROWS_PER_FILE, Readings, ReadingsSnapshot, TABLE, finish, format};
use crate::scan::SortedScan;

const COMPACTED: &str = "wye-compact/readings";
/// The memory for sorting files of other engines, in bytes; larger files are sorted on disk.
const SORT_MEMORY: usize = 512 << 20;

/// Which files are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionPolicy {
    /// Files with fewer rows than this are small.
    pub small_rows: u64,
    /// Small files of one ingest day are merged once there are this many.
    pub least_files: usize,
}

impl Default for CompactionPolicy {
    /// Eight files below a million rows: each row is rewritten a few times, and a day has a few dozen files at most.
    fn default() -> Self {
        Self { small_rows: 1 << 20, least_files: 8 }
    }
}

impl Readings {
    /// Merges the small files of each ingest day that has enough of them, those with late readings apart, and sorts files that
    /// another engine has written.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another compaction came first; nothing is lost then.
    pub async fn compact(&self, policy: CompactionPolicy) -> Result<Compacted, TablesError> {
        let mut done = Compacted::default();
        let snapshot = self.snapshot().await?;
        // Late readings stay apart, see `by_arrival`.
        let mut days: BTreeMap<(&str, bool), Vec<DataFile>> = BTreeMap::new();
        for file in snapshot.snapshot.files.iter() {
            let day = file.add.partition_values.get(INGEST_DATE).and_then(Option::as_deref);
            let Some(day) = day else { continue };
            if !file.is_sorted_by(&READING_ORDER) {
                done += self.merge(&snapshot, day, vec![file.clone()]).await?;
            } else if file.rows < policy.small_rows {
                let is_late = FileTags::of(file).is_some_and(|tags| tags.late == Some(true));
                days.entry((day, is_late)).or_default().push(file.clone());
            }
        }
        for ((day, _), files) in days {
            if files.len() >= policy.least_files.max(2) {
                done += self.merge(&snapshot, day, files).await?;
            }
        }
        Ok(done)
    }

    /// Removes files that left the table more than `keep` ago (at most 24 hours).
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.log().clean(keep).await
    }

    /// Replaces files of one ingest day by as few sorted files as possible.
    async fn merge(
        &self,
        snapshot: &ReadingsSnapshot,
        day: &str,
        files: Vec<DataFile>,
    ) -> Result<Compacted, TablesError> {
        let paths = files.iter().map(|file| file.add.path.clone()).collect();
        let merged = rewrite(snapshot.clone(), day.to_owned(), paths, ROWS_PER_FILE);
        let adds = on_blocking_thread(self.log(), merged).await?;
        self.log().replace(COMPACTED, &files, adds).await
    }
}

/// Reads files in order and writes their rows to as few files as the largest size of a file allows. After an error there are
/// no new files.
async fn rewrite(
    snapshot: ReadingsSnapshot,
    day: String,
    paths: HashSet<String>,
    rows_per_file: usize,
) -> Result<Vec<Add>, TablesError> {
    let mut adds = Vec::new();
    let written = write_merged(&snapshot, day, &paths, rows_per_file, &mut adds).await;
    if let Err(error) = written {
        snapshot.log.discard(&adds).await;
        return Err(error);
    }
    Ok(adds)
}

/// Adds each file to `adds` when it is complete.
async fn write_merged(
    snapshot: &ReadingsSnapshot,
    day: String,
    paths: &HashSet<String>,
    rows_per_file: usize,
    adds: &mut Vec<Add>,
) -> Result<(), TablesError> {
    let schema = stored_schema();
    let columns = names(&schema);
    let scan = SortedScan { horizon: None, window: None, columns: &columns, batch_size: Some(64 * 1024) };
    let plan = snapshot.plan(|file| paths.contains(&file.add.path), &scan)?;
    let pool = Arc::new(FairSpillPool::new(SORT_MEMORY));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(scan_error)?;
    let session = SessionContext::new_with_config_rt(SessionConfig::new(), runtime);
    snapshot.log.root().register(&session.runtime_env())?;
    let mut rows = execute_stream(plan, session.task_ctx()).map_err(scan_error)?;

    let format = format(day);
    let mut open: Option<(FileWriter, FileTags)> = None;
    while let Some(batch) = rows.try_next().await.map_err(scan_error)? {
        let (file, mut tags) = match open.take() {
            Some(open) => open,
            None => (FileWriter::new(snapshot.log.clone(), format.clone())?, FileTags::default()),
        };
        let file = file.write(&batch).await?;
        tags.add(&batch);
        if file.rows() < rows_per_file {
            open = Some((file, tags));
        } else {
            adds.push(finish(file, &tags).await?);
        }
    }
    if let Some((file, tags)) = open {
        adds.push(finish(file, &tags).await?);
    }
    Ok(())
}

fn scan_error(source: datafusion::error::DataFusionError) -> TablesError {
    TablesError::Scan { table: TABLE, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TableRoot;
    use crate::testing::{archive, row};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_compaction_that_fails_leaves_no_new_files() {
        let directory = tempfile::tempdir().unwrap();
        let readings = Readings::open(&TableRoot::directory(directory.path()).unwrap()).await.unwrap();
        for (offset, device) in (0..).zip(["a", "b", "damaged"]) {
            let rows = [row(device, 0, 0, offset)];
            readings.append(vec![archive(0, offset, offset + 1, &rows)]).await.unwrap();
        }
        let snapshot = readings.snapshot().await.unwrap();
        let files = Arc::clone(&snapshot.snapshot.files);
        // Files are read in the order of their devices.
        let damaged = files.iter().find(|file| file.add.stats.as_ref().unwrap().contains("damaged")).unwrap();
        let table = directory.path().join("readings");
        std::fs::OpenOptions::new()
            .write(true)
            .open(table.join(&damaged.add.path))
            .unwrap()
            .set_len(0)
            .unwrap();
        let paths = files.iter().map(|file| file.add.path.clone()).collect();
        rewrite(snapshot, "1970-01-01".to_owned(), paths, 1).await.unwrap_err();
        let stored = std::fs::read_dir(table.join("ingest_date=1970-01-01")).unwrap();
        assert_eq!(stored.count(), 3);
    }
}

//! Merges many small files of readings into few large ones, changing no reading. Must not know who appends.
//!
//! Invariant: a compaction puts files in the place of others that have exactly their rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::SessionConfig;
use futures::TryStreamExt;

use crate::columns::{INGEST_DATE, READING_ORDER, stored_schema};
use crate::delta::cleaning::Cleaned;
use crate::delta::replacement::Compacted;
use crate::delta::{DataFile, EncodedFile};
use crate::encode::{Encoder, readings_properties};
use crate::error::TablesError;
use crate::readings::file_tags::FileTags;
use crate::readings::{ROWS_PER_FILE, Readings, ReadingsSnapshot, finish_file};
use crate::scan::SortedScan;
use crate::store::TableName;

const TABLE: TableName = TableName::Readings;
const COMPACTED: &str = "wye-compact/readings";
/// What sorting the files of another engine may take, in bytes.
const SORT_MEMORY: usize = 512 << 20;

/// Which files are worth merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionPolicy {
    /// Files with fewer rows than this are small.
    pub small_rows: u64,
    /// Small files of one ingest day are merged once there are this many.
    pub least_files: usize,
}

impl Default for CompactionPolicy {
    /// Eight files below a million rows: each row is rewritten a few times in its life, and a day stays below a few
    /// dozen files.
    fn default() -> Self {
        Self { small_rows: 1 << 20, least_files: 8 }
    }
}

impl Readings {
    /// Merges the small files of each ingest day that has enough of them, one commit a day, and sorts files that another
    /// engine has written.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another compaction came first; nothing is lost then.
    pub async fn compact(&self, policy: CompactionPolicy) -> Result<Compacted, TablesError> {
        let mut done = Compacted::default();
        let snapshot = self.snapshot().await?;
        let mut days: BTreeMap<Option<String>, Vec<DataFile>> = BTreeMap::new();
        for file in snapshot.snapshot.files.iter() {
            if !file.is_sorted_by(&READING_ORDER) {
                done += self.merge(std::slice::from_ref(file)).await?;
                continue;
            }
            if file.stats.num_records >= policy.small_rows {
                continue;
            }
            let day = file.add.partition_values.get(INGEST_DATE).cloned().flatten();
            days.entry(day).or_default().push(file.clone());
        }
        for files in days.into_values().filter(|files| files.len() >= policy.least_files.max(2)) {
            done += self.merge(&files).await?;
        }
        Ok(done)
    }

    /// Removes files that left the table more than `keep` ago (at most 24 hours).
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: std::time::Duration) -> Result<Cleaned, TablesError> {
        self.log().clean(keep).await
    }

    /// Puts the readings of files of one ingest day into as few sorted files as possible.
    async fn merge(&self, files: &[DataFile]) -> Result<Compacted, TablesError> {
        let day = files.iter().find_map(|file| file.add.partition_values.get(INGEST_DATE)?.as_deref());
        let Some(day) = day else { return Ok(Compacted::default()) };
        let snapshot = self.snapshot().await?;
        let encoded = rewrite(&snapshot, day, files).await?;
        self.log().replace(COMPACTED, files, encoded).await
    }
}

/// Reads files in order and writes their rows into as few files as the size of a file allows.
async fn rewrite(
    snapshot: &ReadingsSnapshot,
    day: &str,
    files: &[DataFile],
) -> Result<Vec<EncodedFile>, TablesError> {
    let schema = stored_schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let scan =
        SortedScan { horizon: None, columns: &columns, plan_partitions: 1, batch_size: Some(64 * 1024) };
    let plan = snapshot.plan(files.iter(), &scan)?;
    let failed = |source| TablesError::Scan { table: TABLE, source };
    // Files of another engine are sorted, on disk where they are large.
    let pool = Arc::new(FairSpillPool::new(SORT_MEMORY));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(failed)?;
    let session = SessionContext::new_with_config_rt(SessionConfig::new(), runtime);
    snapshot.log.root().register(&session.runtime_env())?;
    let mut stream = datafusion::physical_plan::execute_stream(plan, session.task_ctx()).map_err(failed)?;

    let ingest_date = day.parse::<chrono::NaiveDate>().map_err(|error| TablesError::Corrupt {
        table: TABLE,
        reason: format!("ingest date {day:?}: {error}"),
    })?;
    let ingest_date =
        i32::try_from(ingest_date.signed_duration_since(chrono::NaiveDate::default()).num_days())
            .expect("chrono's dates are within 32-bit days");
    let new_encoder = || Encoder::new(TABLE, schema.clone(), readings_properties(&schema, &READING_ORDER));
    let mut encoded = Vec::new();
    let mut current: Option<(Encoder, FileTags)> = None;
    while let Some(batch) = stream.try_next().await.map_err(failed)? {
        let (mut encoder, mut tags) = match current.take() {
            Some(open) => open,
            None => (new_encoder()?, FileTags::default()),
        };
        let finished = tokio::task::spawn_blocking(move || {
            encoder.write(&batch)?;
            tags.add(&batch);
            let is_full = encoder.rows() >= ROWS_PER_FILE;
            Ok::<_, TablesError>(if is_full {
                (Some(finish_file(encoder, ingest_date, &tags)?), None)
            } else {
                (None, Some((encoder, tags)))
            })
        });
        let (file, open) =
            finished.await.map_err(|error| TablesError::Encode { table: TABLE, source: error.into() })??;
        encoded.extend(file);
        current = open;
    }
    if let Some((encoder, tags)) = current {
        encoded.push(finish_file(encoder, ingest_date, &tags)?);
    }
    Ok(encoded)
}

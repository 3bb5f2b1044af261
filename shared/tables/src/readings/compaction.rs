//! Merges many small files of readings into few large ones, changing no reading. Must not know who appends.
//!
//! Invariant: a compaction puts files in the place of others that have exactly their rows.

use std::collections::BTreeMap;

use datafusion::execution::context::SessionContext;
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
    /// Merges the small files of each ingest day that has enough of them, one commit a day.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another compaction came first; nothing is lost then.
    pub async fn compact(&self, policy: CompactionPolicy) -> Result<Compacted, TablesError> {
        let mut done = Compacted::default();
        let snapshot = self.snapshot().await?;
        let mut days: BTreeMap<Option<String>, Vec<DataFile>> = BTreeMap::new();
        for file in snapshot.snapshot.files.iter().filter(|file| file.stats.num_records < policy.small_rows) {
            let day = file.add.partition_values.get(INGEST_DATE).cloned().flatten();
            days.entry(day).or_default().push(file.clone());
        }
        for (day, files) in days {
            let Some(day) = day.filter(|_| files.len() >= policy.least_files.max(2)) else { continue };
            done += self.merge(&day, &files).await?;
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

    async fn merge(&self, day: &str, files: &[DataFile]) -> Result<Compacted, TablesError> {
        let snapshot = self.snapshot().await?;
        let encoded = rewrite(&snapshot, day, files).await?;
        self.log().replace(&snapshot.snapshot, COMPACTED, files, encoded).await
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
    let session = SessionContext::new();
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

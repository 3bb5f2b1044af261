//! Merges many small files of readings into few large ones, changing no reading. Must not know who appends.
//!
//! Invariant: a compaction removes files and adds files with exactly their rows, in one commit with
//! `dataChange = false`. Two compactions at once exclude each other by an application transaction of their own,
//! because delta-rs does not see a conflict between removals that change no data.

use std::collections::BTreeMap;

use datafusion::execution::context::SessionContext;
use deltalake::kernel::{Action, Remove, Transaction};
use deltalake::protocol::DeltaOperation;
use futures::TryStreamExt;

use crate::columns::{INGEST_DATE, READING_ORDER, stored_schema};
use crate::delta::cleaning::Cleaned;
use crate::delta::{AfterOthers, Commit, DataFile, EncodedFile};
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

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Files before.
    pub files_before: usize,
    /// Files after.
    pub files_after: usize,
    /// Readings rewritten.
    pub readings: u64,
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
            let after = self.merge(&day, &files).await?;
            done.files_before += files.len();
            done.files_after += after;
            done.readings += files.iter().map(|file| file.stats.num_records).sum::<u64>();
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

    async fn merge(&self, day: &str, files: &[DataFile]) -> Result<usize, TablesError> {
        let snapshot = self.snapshot().await?;
        let encoded = rewrite(&snapshot, day, files).await?;
        let adds = self.log().put(encoded).await?;
        let now = chrono::Utc::now().timestamp_millis();
        let removals = files.iter().map(|file| {
            Action::Remove(Remove {
                path: file.add.path.clone(),
                data_change: false,
                deletion_timestamp: Some(now),
                extended_file_metadata: Some(true),
                partition_values: Some(file.add.partition_values.clone()),
                size: Some(file.add.size),
                ..Remove::default()
            })
        });
        let additions = adds.iter().cloned().map(|mut add| {
            add.data_change = false;
            Action::Add(add)
        });
        let turn = snapshot.snapshot.transactions.get(COMPACTED).copied().unwrap_or_default() + 1;
        let committed = self
            .log()
            .commit(Commit {
                base: &snapshot.snapshot,
                actions: removals.chain(additions).collect(),
                transactions: vec![Transaction::new_with_last_update(COMPACTED, turn, Some(now))],
                operation: DeltaOperation::Optimize { predicate: None, target_size: 0 },
                info: serde_json::Map::new(),
                after_others: AfterOthers::Rebase,
            })
            .await;
        if let Err(TablesError::Conflict { .. }) = &committed {
            self.log().discard(&adds).await;
        }
        committed.map(|_| adds.len())
    }
}

/// Reads files in order and writes their rows into as few files as the size of a file allows.
async fn rewrite(
    snapshot: &ReadingsSnapshot,
    day: &str,
    files: &[DataFile],
) -> Result<Vec<EncodedFile>, TablesError> {
    let stale =
        |file: &DataFile| !snapshot.snapshot.files.iter().any(|known| known.add.path == file.add.path);
    if let Some(file) = files.iter().find(|file| stale(file)) {
        let reason = format!("file {} has been compacted by somebody else", file.add.path);
        return Err(TablesError::Conflict { table: TABLE, reason });
    }
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

//! The master dataset: every accepted reading, once, for good. Must not know windows, metrics or Kafka's client.
//!
//! Stability contract: the Delta table `readings` has the columns of [`crate::columns::stored_schema`] and
//! `ingest_date`, files sorted by [`READING_ORDER`] where their tags say so, and the application transaction
//! `wye-archive/readings/<kafka_partition>` at the offset up to which that Kafka partition is archived.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};

use crate::append::{Claim, PartitionTransactions, open_append_only};
use crate::columns::{INGEST_DATE, READING_ORDER, readings_table_schema, stored_schema};
use crate::delta::hold::Hold;
use crate::delta::{DeltaLog, EncodedFile, LogSnapshot};
use crate::encode::{Encoder, readings_properties};
use crate::error::TablesError;
use crate::sort::{SortedDay, sort_by_day};
use crate::store::{TableName, TableRoot};

pub(crate) mod compaction;
pub(crate) mod file_tags;

use file_tags::FileTags;

const ARCHIVED: PartitionTransactions = PartitionTransactions("wye-archive/readings/");
const TABLE: TableName = TableName::Readings;

/// The most rows that one file of readings holds.
pub(crate) const ROWS_PER_FILE: usize = 4 << 20;

/// What was read of one Kafka partition.
#[derive(Clone, Debug)]
pub struct ArchiveBatch {
    /// Which Kafka partition.
    pub kafka_partition: KafkaPartition,
    /// The offsets that were read, including those without a valid reading.
    pub offsets: Range<Offset>,
    /// Batches of [`crate::columns::archive_schema`].
    pub readings: Vec<RecordBatch>,
}

/// What an append has stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Readings appended.
    pub readings: u64,
    /// Bytes appended.
    pub bytes: u64,
}

/// The master dataset. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readings {
    log: DeltaLog,
}

/// One version of the master dataset.
#[derive(Clone, Debug)]
pub struct ReadingsSnapshot {
    pub(crate) log: DeltaLog,
    pub(crate) snapshot: LogSnapshot,
    /// While any clone of this is there, nobody removes the version's files.
    pub(crate) _hold: Arc<Hold>,
}

impl Readings {
    /// Opens the table, and makes it if it does not exist.
    ///
    /// # Errors
    /// [`TablesError::Store`], [`TablesError::Commit`] or [`TablesError::ReadLog`] when the store cannot be used.
    pub async fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: open_append_only(root, TABLE, readings_table_schema(), &[INGEST_DATE]).await? })
    }

    /// Per Kafka partition the offset up to which its readings are archived.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn archived(&self) -> Result<Horizon, TablesError> {
        Ok(ARCHIVED.read(&self.log.existing().await?))
    }

    /// Appends readings and their offsets in one commit: all of it or nothing.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when the offsets do not continue what is archived, or another writer archived the
    /// same Kafka partition meanwhile; then nothing was appended. Any other error leaves open whether it was: ask
    /// [`Readings::archived`].
    pub async fn append(&self, batches: Vec<ArchiveBatch>) -> Result<Appended, TablesError> {
        let ranges = batches.iter().map(|batch| (batch.kafka_partition, batch.offsets.clone())).collect();
        let claim = Claim::new(&self.log, ARCHIVED, ranges).await?;
        let parts: Vec<(KafkaPartition, RecordBatch)> = batches
            .into_iter()
            .flat_map(|batch| {
                batch.readings.into_iter().map(move |readings| (batch.kafka_partition, readings))
            })
            .collect();
        let readings = parts.iter().map(|(_, batch)| batch.num_rows() as u64).sum();
        let files = encode_parts(parts).await?;
        let bytes = files.iter().map(|file| file.bytes.len() as u64).sum();
        claim.append(&self.log, files, &[INGEST_DATE]).await?;
        Ok(Appended { readings, bytes })
    }

    /// The newest version. Its files stay while the snapshot or a clone of it is there.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn snapshot(&self) -> Result<ReadingsSnapshot, TablesError> {
        let hold = self.log.hold();
        Ok(ReadingsSnapshot { log: self.log.clone(), snapshot: self.log.existing().await?, _hold: hold })
    }

    pub(crate) fn log(&self) -> &DeltaLog {
        &self.log
    }
}

impl ReadingsSnapshot {
    /// The identity of the table, which it was given when it was made.
    pub fn table_id(&self) -> &str {
        self.snapshot.metadata().id()
    }

    /// Per Kafka partition the offset up to which this version has its readings.
    pub fn archived(&self) -> Horizon {
        ARCHIVED.read(&self.snapshot)
    }

    /// How many readings this version has.
    pub fn readings(&self) -> u64 {
        self.snapshot.files.iter().map(|file| file.stats.num_records).sum()
    }

    /// How many bytes the files of this version have.
    pub fn bytes(&self) -> u64 {
        self.snapshot.files.iter().map(|file| u64::try_from(file.add.size).unwrap_or_default()).sum()
    }

    /// How many files this version has.
    pub fn files(&self) -> usize {
        self.snapshot.files.len()
    }

    /// This version as an SQL table, all columns and `ingest_date`, skipping files by their statistics.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when the table cannot be planned.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.snapshot.delta_table(&self.log);
        table.table_provider().await.map_err(|source| TablesError::Scan { table: TABLE, source })
    }
}

/// Sorts and encodes, off the async threads; several ingest days at a time.
async fn encode_parts(parts: Vec<(KafkaPartition, RecordBatch)>) -> Result<Vec<EncodedFile>, TablesError> {
    let lost = |error: tokio::task::JoinError| TablesError::Encode { table: TABLE, source: error.into() };
    let sorted = tokio::task::spawn_blocking(move || sort_by_day(&parts)).await.map_err(lost)?;
    let days = sorted.map_err(|error| TablesError::Shape { table: TABLE, reason: error.to_string() })?;
    let mut encoding = Vec::new();
    for SortedDay { ingest_date, readings } in days {
        for start in (0..readings.num_rows()).step_by(ROWS_PER_FILE) {
            let rows = readings.slice(start, ROWS_PER_FILE.min(readings.num_rows() - start));
            encoding.push(tokio::task::spawn_blocking(move || encode_sorted(ingest_date, &rows)));
        }
    }
    let mut files = Vec::with_capacity(encoding.len());
    for file in encoding {
        files.push(file.await.map_err(lost)??);
    }
    Ok(files)
}

fn encode_sorted(ingest_date: i32, readings: &RecordBatch) -> Result<EncodedFile, TablesError> {
    let schema = stored_schema();
    let mut encoder = Encoder::new(TABLE, schema.clone(), readings_properties(&schema, &READING_ORDER))?;
    encoder.write(readings)?;
    let mut tags = FileTags::default();
    tags.add(readings);
    finish_file(encoder, ingest_date, &tags)
}

/// Closes a file of one ingest day.
pub(crate) fn finish_file(
    encoder: Encoder,
    ingest_date: i32,
    tags: &FileTags,
) -> Result<EncodedFile, TablesError> {
    let (bytes, stats) = encoder.finish()?;
    let day = chrono::DateTime::from_timestamp(i64::from(ingest_date) * 86_400, 0).unwrap_or_default();
    let day = day.date_naive().to_string();
    Ok(EncodedFile { bytes, stats, partition: Some((INGEST_DATE, day)), tags: tags.to_delta() })
}

#[cfg(test)]
mod tests;

//! The master dataset: every accepted reading, once, never changed. Must not know windows, metrics or Kafka's client.
//!
//! Stability contract: the Delta table `readings` has the columns of [`crate::columns::stored_schema`] and
//! `ingest_date`, files sorted by [`crate::columns::READING_ORDER`] where their tags say so, and the application
//! transaction `wye-archive/readings/<kafka_partition>` at the offset up to which that Kafka partition is archived.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use arrow::error::ArrowError;
use chrono::NaiveDate;
use datafusion::catalog::TableProvider;
use deltalake::kernel::Add;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};

use crate::append::{Claim, PartitionTransactions, open_append_only};
use crate::columns::{INGEST_DATE, readings_table_schema, stored_schema};
use crate::delta::hold::Hold;
use crate::delta::{DeltaLog, LogSnapshot};
use crate::error::TablesError;
use crate::file_writer::{FileFormat, FileWriter, on_blocking_thread};
use crate::parquet_properties::readings_properties;
use crate::sort::{SortedDay, sort_by_day};
use crate::store::{TableName, TableRoot};

pub(crate) mod compaction;
pub(crate) mod file_tags;

use file_tags::{FileTags, late_rows};

const ARCHIVED: PartitionTransactions = PartitionTransactions("wye-archive/readings/");
const TABLE: TableName = TableName::Readings;

/// The most rows that one file of readings holds.
const ROWS_PER_FILE: usize = 4 << 20;

/// Readings that were read from one Kafka partition.
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
    /// Cleaning keeps the version's files while any clone of this exists.
    _hold: Arc<Hold>,
}

impl Readings {
    /// Opens the table, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`TablesError::Store`], [`TablesError::Commit`] or [`TablesError::ReadLog`] when the store cannot be used.
    pub async fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: open_append_only(root, TABLE, readings_table_schema(), &[INGEST_DATE]).await? })
    }

    /// For each Kafka partition the offset up to which its readings are archived.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn archived(&self) -> Result<Horizon, TablesError> {
        Ok(ARCHIVED.read(&self.log.existing().await?))
    }

    /// Appends readings and their offsets in one commit.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when the offsets do not start where the archived ones end, or another writer has archived
    /// the same Kafka partition in the meantime; then nothing was appended. After any other error the readings may have been
    /// appended or not: [`Readings::archived`] says which.
    pub async fn append(&self, batches: Vec<ArchiveBatch>) -> Result<Appended, TablesError> {
        let ranges = batches.iter().map(|batch| (batch.kafka_partition, batch.offsets.clone())).collect();
        let claim = Claim::new(&self.log, ARCHIVED, ranges).await?;
        let mut parts: Vec<(KafkaPartition, RecordBatch)> = Vec::new();
        for batch in batches {
            parts.extend(batch.readings.into_iter().map(|readings| (batch.kafka_partition, readings)));
        }
        let readings = parts.iter().map(|(_, batch)| batch.num_rows() as u64).sum();
        let adds = self.write(parts).await?;
        let bytes = adds.iter().map(|add| u64::try_from(add.size).unwrap_or_default()).sum();
        claim.append(&self.log, adds, &[INGEST_DATE]).await?;
        Ok(Appended { readings, bytes })
    }

    /// Sorts readings and writes them to files, several ingest days at a time.
    async fn write(&self, parts: Vec<(KafkaPartition, RecordBatch)>) -> Result<Vec<Add>, TablesError> {
        let days = on_blocking_thread(&self.log, async move {
            sort_by_day(&parts)
                .map_err(|error| TablesError::Shape { table: TABLE, reason: error.to_string() })
        });
        let mut writing = Vec::new();
        for SortedDay { ingest_date, readings } in days.await? {
            for readings in by_arrival(readings)? {
                for start in (0..readings.num_rows()).step_by(ROWS_PER_FILE) {
                    let rows = readings.slice(start, ROWS_PER_FILE.min(readings.num_rows() - start));
                    let file = write_sorted(self.log.clone(), ingest_date, rows);
                    writing.push(on_blocking_thread(&self.log, file));
                }
            }
        }
        let (mut adds, mut failed) = (Vec::with_capacity(writing.len()), None);
        for written in futures::future::join_all(writing).await {
            match written {
                Ok(add) => adds.push(add),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) => {
                self.log.discard(&adds).await;
                Err(error)
            }
            None => Ok(adds),
        }
    }

    /// The newest version. Cleaning keeps its files while the snapshot or a clone of it exists.
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
    /// The ID of the table, assigned when it was created.
    pub fn table_id(&self) -> &str {
        self.snapshot.metadata().id()
    }

    /// For each Kafka partition the offset up to which this version has its readings.
    pub fn archived(&self) -> Horizon {
        ARCHIVED.read(&self.snapshot)
    }

    /// How many readings this version has.
    pub fn readings(&self) -> u64 {
        self.snapshot.rows()
    }

    /// How many bytes the files of this version have.
    pub fn bytes(&self) -> u64 {
        self.snapshot.bytes()
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

/// Readings that arrived in time, and late ones, apart: so the former are files of a short stretch of event time, and only
/// few bytes are read for the stretches that have nothing but late ones.
fn by_arrival(readings: RecordBatch) -> Result<Vec<RecordBatch>, TablesError> {
    let late = late_rows(&readings).unwrap_or_default();
    let count = late.iter().filter(|late| **late).count();
    if count == 0 || count == readings.num_rows() {
        return Ok(vec![readings]);
    }
    let late = BooleanArray::from(late);
    let failed = |error: ArrowError| TablesError::Shape { table: TABLE, reason: error.to_string() };
    let in_time = filter_record_batch(&readings, &not(&late).map_err(failed)?).map_err(failed)?;
    Ok(vec![in_time, filter_record_batch(&readings, &late).map_err(failed)?])
}

async fn write_sorted(
    log: DeltaLog,
    ingest_date: NaiveDate,
    readings: RecordBatch,
) -> Result<Add, TablesError> {
    let mut tags = FileTags::default();
    tags.add(&readings);
    let file = FileWriter::new(log, format(ingest_date.to_string()))?.write(&readings).await?;
    finish(file, &tags).await
}

/// The format of files of one ingest day.
fn format(ingest_date: String) -> FileFormat {
    FileFormat {
        schema: stored_schema(),
        properties: readings_properties(),
        table_partition: Some((INGEST_DATE, ingest_date)),
    }
}

async fn finish(file: FileWriter, tags: &FileTags) -> Result<Add, TablesError> {
    let tags = tags.to_delta().map_err(|error| TablesError::Encode { table: TABLE, source: error.into() })?;
    file.finish(tags).await
}

#[cfg(test)]
mod tests;

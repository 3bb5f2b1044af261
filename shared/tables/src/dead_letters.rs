//! The archive of the dead-letter topic: rejected items, each with its bytes and the reason. Must not know how readings
//! are parsed.
//!
//! The topic may have several letters about one rejected item, since each process that reads the item again rejects it
//! again. The table has one.
//!
//! Stability contract: the Delta table `dead_letters` has the columns of [`dead_letter_schema`], and the application
//! transaction `wye-archive/dead-letters/<kafka_partition>` at the offset up to which the topic is archived.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::execute_stream;
use deltalake::kernel::Add;
use futures::TryStreamExt;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};

use crate::append::{Claim, PartitionTransactions, open_append_only};
use crate::columns::dead_letter_schema;
use crate::delta::cleaning::Cleaned;
use crate::delta::replacement::Compacted;
use crate::delta::{DataFile, DeltaLog};
use crate::error::TablesError;
use crate::file_writer::{FileFormat, FileWriter, on_blocking_thread};
use crate::parquet_plan::all_rows;
use crate::parquet_properties::letter_properties;
use crate::store::{TableName, TableRoot};

pub use builder::LettersBuilder;

mod builder;
mod known;

const ARCHIVED: PartitionTransactions = PartitionTransactions("wye-archive/dead-letters/");
const COMPACTED: &str = "wye-compact/dead-letters";
const TABLE: TableName = TableName::DeadLetters;

/// A file below this many bytes is small.
const SMALL_BYTES: u64 = 16 << 20;
/// Small files are merged once there are this many.
const LEAST_FILES: usize = 8;
/// Files are merged up to about this many bytes.
const MERGED_BYTES: u64 = SMALL_BYTES * LEAST_FILES as u64;

/// What was read of one Kafka partition of the dead-letter topic.
#[derive(Clone, Debug)]
pub struct LetterBatch {
    /// Which Kafka partition of the dead-letter topic.
    pub kafka_partition: KafkaPartition,
    /// The offsets that were read.
    pub offsets: Range<Offset>,
    /// Batches of [`dead_letter_schema`], such as a [`LettersBuilder`] makes.
    pub letters: Vec<RecordBatch>,
}

/// The archive of dead letters. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    log: DeltaLog,
}

impl DeadLetters {
    /// Opens the table, and creates it if it does not exist.
    ///
    /// # Errors
    /// [`TablesError::Store`], [`TablesError::Commit`] or [`TablesError::ReadLog`] when the store cannot be used.
    pub async fn open(root: &TableRoot) -> Result<Self, TablesError> {
        Ok(Self { log: open_append_only(root, TABLE, dead_letter_schema(), &[]).await? })
    }

    /// For each Kafka partition of the dead-letter topic the offset up to which it is archived.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn archived(&self) -> Result<Horizon, TablesError> {
        Ok(ARCHIVED.read(&self.log.existing().await?))
    }

    /// Appends letters and their offsets in one commit, and returns how many letters it stored: a letter about an item
    /// that has a letter already is left out.
    ///
    /// # Errors
    /// As [`crate::readings::Readings::append`].
    pub async fn append(&self, batches: Vec<LetterBatch>) -> Result<u64, TablesError> {
        let ranges = batches.iter().map(|batch| (batch.kafka_partition, batch.offsets.clone())).collect();
        let claim = Claim::new(&self.log, ARCHIVED, ranges).await?;
        let letters: Vec<RecordBatch> = batches.into_iter().flat_map(|batch| batch.letters).collect();
        let new = known::without_known(&self.log, claim.base(), letters).await?;
        let rows = new.iter().map(|batch| batch.num_rows() as u64).sum();
        let adds = if rows == 0 {
            vec![]
        } else {
            vec![on_blocking_thread(&self.log, write(self.log.clone(), new)).await?]
        };
        claim.append(&self.log, adds, &[]).await?;
        Ok(rows)
    }

    /// Merges small files, where there are enough of them.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when another compaction came first; nothing is lost then.
    pub async fn compact(&self) -> Result<Compacted, TablesError> {
        let _hold = self.log.hold();
        let base = self.log.existing().await?;
        let (mut small, mut bytes) = (Vec::new(), 0);
        for file in base.files.iter().filter(|file| file.bytes() < SMALL_BYTES) {
            bytes += file.bytes();
            if bytes > MERGED_BYTES {
                break;
            }
            small.push(file.clone());
        }
        if small.len() < LEAST_FILES {
            return Ok(Compacted::default());
        }
        let merged = on_blocking_thread(&self.log, merge(self.log.clone(), small.clone())).await?;
        self.log.replace(COMPACTED, &small, vec![merged]).await
    }

    /// The newest version as an SQL table.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.log.existing().await?.delta_table(&self.log);
        table.table_provider().await.map_err(scan_error)
    }

    /// Removes files that left the table more than `keep` ago (at most 24 hours), and files of appends that failed.
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.log.clean(keep).await
    }
}

/// One file of all letters.
async fn write(log: DeltaLog, letters: Vec<RecordBatch>) -> Result<Add, TablesError> {
    let mut file = new_file(log)?;
    for batch in &letters {
        file = file.write(batch).await?;
    }
    file.finish(HashMap::new()).await
}

/// One file of the rows of several.
async fn merge(log: DeltaLog, files: Vec<DataFile>) -> Result<Add, TablesError> {
    let plan = all_rows(log.root(), TABLE, &files, &dead_letter_schema())?;
    let session = SessionContext::new();
    log.root().register(&session.runtime_env())?;
    let mut letters = execute_stream(plan, session.task_ctx()).map_err(scan_error)?;
    let mut file = new_file(log.clone())?;
    while let Some(batch) = letters.try_next().await.map_err(scan_error)? {
        file = file.write(&batch).await?;
    }
    file.finish(HashMap::new()).await
}

fn new_file(log: DeltaLog) -> Result<FileWriter, TablesError> {
    let (schema, properties) = (dead_letter_schema(), letter_properties());
    FileWriter::new(log, FileFormat { schema, properties, table_partition: None })
}

fn scan_error(source: DataFusionError) -> TablesError {
    TablesError::Scan { table: TABLE, source }
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use wye_domain::ErrorKind;

    use super::*;
    use crate::real_time::Stopwatch;
    use crate::testing::{Place, horizon, number};

    /// A letter at `offset` of its topic, about an item at offset `rejected` of the readings if it came from there.
    fn letter(offset: i64, rejected: Option<i64>) -> LetterBatch {
        let columns: Vec<arrow::array::ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_000_000]).with_timezone("UTC")),
            Arc::new(StringArray::from(vec!["not-json"])),
            Arc::new(StringArray::from(vec!["expected value at line 1"])),
            Arc::new(StringArray::from(vec!["kafka"])),
            Arc::new(StringArray::from(vec![rejected.map(|_| "readings")])),
            Arc::new(Int32Array::from(vec![rejected.map(|_| 3)])),
            Arc::new(Int64Array::from(vec![rejected])),
            Arc::new(Int32Array::from(vec![None])),
            Arc::new(BinaryArray::from(vec![&b"\xff{"[..]])),
            Arc::new(Int64Array::from(vec![offset])),
        ];
        LetterBatch {
            kafka_partition: KafkaPartition(0),
            offsets: Offset(offset)..Offset(offset + 1),
            letters: vec![RecordBatch::try_new(dead_letter_schema(), columns).unwrap()],
        }
    }

    async fn count(letters: &DeadLetters) -> i64 {
        let sql = "select count(*) from dead_letters where payload = X'ff7b' and item_index is null";
        number("dead_letters", letters.provider().await.unwrap(), sql).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_are_stored_once_with_their_bytes() {
        for place in Place::all() {
            let letters = DeadLetters::open(&place.root().await).await.unwrap();
            letters.append(vec![letter(0, Some(77))]).await.unwrap();
            let again = letters.append(vec![letter(0, Some(77))]).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::Conflict);
            letters.append(vec![letter(1, Some(78))]).await.unwrap();
            assert_eq!(letters.archived().await.unwrap(), horizon([(0, 2)]));
            assert_eq!(count(&letters).await, 2);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rejected_item_has_one_letter_even_if_the_topic_has_several() {
        for place in Place::all() {
            let letters = DeadLetters::open(&place.root().await).await.unwrap();
            let about = [Some(70), Some(80), Some(70), Some(75), None, None, Some(80)];
            let mut kept = Vec::new();
            for (offset, rejected) in (0..).zip(about) {
                kept.push(letters.append(vec![letter(offset, rejected)]).await.unwrap());
            }
            assert_eq!(kept, [1, 1, 0, 1, 1, 1, 0]);
            let mut twice = letter(7, Some(90));
            twice.offsets.end = Offset(9);
            twice.letters.extend(letter(8, Some(90)).letters);
            assert_eq!(letters.append(vec![twice]).await.unwrap(), 1);
            assert_eq!(letters.archived().await.unwrap(), horizon([(0, 9)]));
            assert_eq!(count(&letters).await, 6);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn small_files_are_merged_and_no_letter_is_lost() {
        for place in Place::all() {
            let letters = DeadLetters::open(&place.root().await).await.unwrap();
            for offset in 0..10 {
                letters.append(vec![letter(offset, Some(100 + offset))]).await.unwrap();
                if offset < 6 {
                    assert_eq!(letters.compact().await.unwrap(), Compacted::default());
                }
            }
            let done = letters.compact().await.unwrap();
            assert_eq!(done, Compacted { files_before: 10, files_after: 1, rows: 10 });
            assert_eq!(count(&letters).await, 10);
            assert_eq!(letters.append(vec![letter(10, Some(104))]).await.unwrap(), 0);
            // A file that has just left the table is as old as the store's clock is exact.
            let started = Stopwatch::start();
            let mut removed = 0;
            while removed < 10 && started.elapsed() < std::time::Duration::from_secs(30) {
                removed += letters.vacuum(std::time::Duration::ZERO).await.unwrap().files;
            }
            assert_eq!((removed, count(&letters).await), (10, 10));
        }
    }
}

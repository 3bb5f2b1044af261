//! The archive of the dead-letter topic: what could not become a reading, with its bytes and the reason. Must not know
//! how readings are parsed.
//!
//! Stability contract: the Delta table `dead_letters` has the columns of [`dead_letter_schema`], and the application
//! transaction `wye-archive/dead-letters/<kafka_partition>` at the offset up to which the topic is archived.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;

use crate::append::{Claim, OffsetRange, PartitionTransactions};
use crate::columns::dead_letter_schema;
use crate::delta::cleaning::Cleaned;
use crate::delta::{DeltaLog, EncodedFile, TableSpec};
use crate::encode::{Encoder, letter_properties};
use crate::error::TablesError;
use crate::store::{TableName, TableRoot};

const ARCHIVED: PartitionTransactions = PartitionTransactions("wye-archive/dead-letters/");
const TABLE: TableName = TableName::DeadLetters;

/// What was read of one Kafka partition of the dead-letter topic.
#[derive(Clone, Debug)]
pub struct LetterBatch {
    /// Which Kafka partition of the dead-letter topic.
    pub kafka_partition: i32,
    /// The offsets that were read.
    pub offsets: OffsetRange,
    /// Batches of [`dead_letter_schema`].
    pub letters: Vec<RecordBatch>,
}

/// The archive of dead letters. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    log: DeltaLog,
}

impl DeadLetters {
    /// Opens the table, and makes it if it does not exist.
    ///
    /// # Errors
    /// [`TablesError::Store`], [`TablesError::Commit`] or [`TablesError::ReadLog`] when the store cannot be used.
    pub async fn open(root: &TableRoot) -> Result<Self, TablesError> {
        let log = DeltaLog::new(root, TABLE)?;
        if log.newest().await?.is_none() {
            log.create(TableSpec {
                schema: dead_letter_schema(),
                partition_columns: &[],
                properties: &[
                    ("delta.appendOnly", "true"),
                    ("delta.logRetentionDuration", "interval 7 days"),
                    ("delta.deletedFileRetentionDuration", "interval 1 days"),
                ],
            })
            .await?;
        }
        Ok(Self { log })
    }

    /// Per Kafka partition of the dead-letter topic the offset up to which it is archived.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn archived(&self) -> Result<BTreeMap<i32, i64>, TablesError> {
        Ok(ARCHIVED.read(&self.log.existing().await?))
    }

    /// Appends letters and their offsets in one commit, and returns the new version.
    ///
    /// # Errors
    /// As [`crate::readings::Readings::append`].
    pub async fn append(&self, batches: Vec<LetterBatch>) -> Result<u64, TablesError> {
        let ranges = batches.iter().map(|batch| (batch.kafka_partition, batch.offsets)).collect();
        let claim = Claim::new(&self.log, ARCHIVED, ranges).await?;
        let letters: Vec<RecordBatch> = batches.into_iter().flat_map(|batch| batch.letters).collect();
        let encoded = tokio::task::spawn_blocking(move || encode(&letters)).await;
        let file = encoded.map_err(|error| TablesError::Encode { table: TABLE, source: error.into() })??;
        claim.append(&self.log, file.into_iter().collect(), &[]).await
    }

    /// The newest version as an SQL table.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.log.existing().await?.delta_table(&self.log);
        table.table_provider().await.map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    /// Removes files that left the table more than `keep` ago (at most 24 hours), and files of appends that failed.
    ///
    /// # Errors
    /// When the store or the log cannot be read.
    pub async fn vacuum(&self, keep: std::time::Duration) -> Result<Cleaned, TablesError> {
        self.log.clean(keep).await
    }
}

fn encode(letters: &[RecordBatch]) -> Result<Option<EncodedFile>, TablesError> {
    if letters.iter().all(|batch| batch.num_rows() == 0) {
        return Ok(None);
    }
    let mut encoder = Encoder::new(TABLE, dead_letter_schema(), letter_properties())?;
    for batch in letters {
        encoder.write(batch)?;
    }
    let (bytes, stats) = encoder.finish()?;
    Ok(Some(EncodedFile { bytes, stats, partition: None, tags: HashMap::new() }))
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
    use wye_domain::ErrorKind;

    use super::*;
    use crate::testing::number;

    fn letter(offset: i64) -> LetterBatch {
        let columns: Vec<arrow::array::ArrayRef> = vec![
            Arc::new(TimestampMicrosecondArray::from(vec![1_700_000_000_000_000]).with_timezone("UTC")),
            Arc::new(StringArray::from(vec!["not-json"])),
            Arc::new(StringArray::from(vec!["expected value at line 1"])),
            Arc::new(StringArray::from(vec!["kafka"])),
            Arc::new(StringArray::from(vec![Some("readings")])),
            Arc::new(Int32Array::from(vec![Some(3)])),
            Arc::new(Int64Array::from(vec![Some(77)])),
            Arc::new(Int32Array::from(vec![None])),
            Arc::new(BinaryArray::from(vec![&b"\xff{"[..]])),
            Arc::new(Int64Array::from(vec![offset])),
        ];
        LetterBatch {
            kafka_partition: 0,
            offsets: OffsetRange { from: offset, next: offset + 1 },
            letters: vec![RecordBatch::try_new(dead_letter_schema(), columns).unwrap()],
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_are_kept_once_with_their_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(directory.path()).unwrap();
        let letters = DeadLetters::open(&root).await.unwrap();
        letters.append(vec![letter(0)]).await.unwrap();
        assert_eq!(letters.append(vec![letter(0)]).await.unwrap_err().kind(), ErrorKind::Conflict);
        letters.append(vec![letter(1)]).await.unwrap();
        assert_eq!(letters.archived().await.unwrap(), BTreeMap::from([(0, 2)]));
        let sql = "select count(*) from dead_letters where payload = X'ff7b' and item_index is null";
        assert_eq!(number("dead_letters", letters.provider().await.unwrap(), sql).await, 2);
    }
}

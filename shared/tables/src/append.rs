//! Appending what was read from Kafka exactly once: rows and the offsets that they were read up to stand in one commit.
//! Must not know what the rows mean.

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use deltalake::kernel::{Action, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};

use crate::delta::{AfterOthers, Commit, DeltaLog, EncodedFile, LogSnapshot, TableSpec};
use crate::error::TablesError;
use crate::store::{TableName, TableRoot};

/// Opens a table that is only ever appended to, and makes it if it does not exist.
pub(crate) async fn open_append_only(
    root: &TableRoot,
    table: TableName,
    schema: SchemaRef,
    partition_columns: &'static [&'static str],
) -> Result<DeltaLog, TablesError> {
    let log = DeltaLog::new(root, table)?;
    if log.newest().await?.is_none() {
        let properties = &[
            ("delta.appendOnly", "true"),
            ("delta.logRetentionDuration", "interval 7 days"),
            ("delta.deletedFileRetentionDuration", "interval 1 days"),
        ];
        log.create(TableSpec { schema, partition_columns, properties }).await?;
    }
    Ok(log)
}

/// Offsets `[from, next)` of one Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// The first offset.
    pub from: i64,
    /// The offset after the last.
    pub next: i64,
}

/// Names the application transactions of a table after Kafka partitions: a prefix and the partition's number.
///
/// Stability contract: the names stand in the log of every table ever written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionTransactions(pub(crate) &'static str);

impl PartitionTransactions {
    pub(crate) fn set(self, kafka_partition: i32, offset: i64) -> Transaction {
        let now = chrono::Utc::now().timestamp_millis();
        Transaction::new_with_last_update(format!("{}{kafka_partition}", self.0), offset, Some(now))
    }

    /// The recorded offset of each Kafka partition.
    pub(crate) fn read(self, snapshot: &LogSnapshot) -> BTreeMap<i32, i64> {
        let offset = |(name, offset): (&String, &i64)| Some((self.kafka_partition(name)?, *offset));
        snapshot.transactions.iter().filter_map(offset).collect()
    }

    /// The Kafka partition that a transaction is named after, if it is one of these.
    pub(crate) fn kafka_partition(self, name: &str) -> Option<i32> {
        name.strip_prefix(self.0)?.parse().ok()
    }
}

/// The offsets that one append covers, checked against a version of the table.
#[derive(Debug)]
pub(crate) struct Claim {
    base: LogSnapshot,
    transactions: PartitionTransactions,
    ranges: Vec<(i32, OffsetRange)>,
}

impl Claim {
    /// Claims offset ranges, at most one per Kafka partition. A Kafka partition that was never appended may start
    /// anywhere, since the log's head may be gone.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when a range does not start where the table ends, [`TablesError::Shape`] when one
    /// runs backwards or a Kafka partition stands twice.
    pub(crate) async fn new(
        log: &DeltaLog,
        transactions: PartitionTransactions,
        ranges: Vec<(i32, OffsetRange)>,
    ) -> Result<Self, TablesError> {
        let table = log.table();
        let base = log.existing().await?;
        let recorded = transactions.read(&base);
        let mut seen = BTreeMap::new();
        for (kafka_partition, range) in &ranges {
            if range.next < range.from || seen.insert(kafka_partition, range).is_some() {
                let reason = format!(
                    "offsets {}..{} of Kafka partition {kafka_partition} cannot be appended",
                    range.from, range.next
                );
                return Err(TablesError::Shape { table, reason });
            }
            if let Some(end) = recorded.get(kafka_partition)
                && *end != range.from
            {
                let reason = format!(
                    "Kafka partition {kafka_partition} is archived up to offset {end}, so an append cannot start at {}",
                    range.from
                );
                return Err(TablesError::Conflict { table, reason });
            }
        }
        Ok(Self { base, transactions, ranges })
    }

    /// The version that the claim was checked against.
    pub(crate) fn base(&self) -> &LogSnapshot {
        &self.base
    }

    /// Stores the files and commits them together with the claimed offsets. Returns the new version.
    pub(crate) async fn append(
        self,
        log: &DeltaLog,
        files: Vec<EncodedFile>,
        partition_columns: &[&str],
    ) -> Result<u64, TablesError> {
        let transactions: Vec<Transaction> = self
            .ranges
            .iter()
            .filter(|(_, range)| range.next > range.from)
            .map(|(kafka_partition, range)| self.transactions.set(*kafka_partition, range.next))
            .collect();
        if files.is_empty() && transactions.is_empty() {
            return Ok(self.base.version);
        }
        let adds = log.put(files).await?;
        let partition_by = partition_columns.iter().map(ToString::to_string).collect::<Vec<_>>();
        let committed = log
            .commit(Commit {
                base: &self.base,
                actions: adds.iter().cloned().map(Action::Add).collect(),
                transactions,
                operation: DeltaOperation::Write {
                    mode: SaveMode::Append,
                    partition_by: (!partition_by.is_empty()).then_some(partition_by),
                    predicate: None,
                },
                info: serde_json::Map::new(),
                after_others: AfterOthers::Rebase,
            })
            .await;
        if let Err(TablesError::Conflict { .. }) = &committed {
            log.discard(&adds).await;
        }
        committed
    }
}

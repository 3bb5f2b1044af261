//! Appends records of Kafka exactly once: one commit has the rows and the offsets up to which they were read. Must not know
//! what the rows mean.

use std::collections::BTreeSet;
use std::ops::Range;

use arrow::datatypes::SchemaRef;
use deltalake::kernel::{Action, Add, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};

use crate::delta::{AfterOthers, Commit, DeltaLog, LogSnapshot, TableSpec};
use crate::error::TablesError;
use crate::real_time;
use crate::store::{TableName, TableRoot};

/// Opens a table that is only ever appended to; creates it if it does not exist.
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

/// The application transactions of a table that store one offset for each Kafka partition. The name of each is a prefix
/// and the number of the Kafka partition.
///
/// Stability contract: the names are in the logs of all existing tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionTransactions(pub(crate) &'static str);

impl PartitionTransactions {
    /// The action that records an offset.
    pub(crate) fn set(self, kafka_partition: KafkaPartition, offset: Offset) -> Transaction {
        let now = real_time::now().millis();
        Transaction::new_with_last_update(format!("{}{kafka_partition}", self.0), offset.0, Some(now))
    }

    /// The recorded offset of each Kafka partition.
    pub(crate) fn read(self, snapshot: &LogSnapshot) -> Horizon {
        let recorded = snapshot.transactions.iter();
        recorded.filter_map(|(name, version)| Some((self.kafka_partition(name)?, Offset(*version)))).collect()
    }

    /// The Kafka partition that a transaction is named after; `None` for other transactions.
    pub(crate) fn kafka_partition(self, name: &str) -> Option<KafkaPartition> {
        name.strip_prefix(self.0)?.parse().ok().map(KafkaPartition)
    }
}

/// The offsets that one append covers, checked against a version of the table.
#[derive(Debug)]
pub(crate) struct Claim {
    base: LogSnapshot,
    transactions: PartitionTransactions,
    ranges: Vec<(KafkaPartition, Range<Offset>)>,
}

impl Claim {
    /// Claims ranges of offsets, at most one for each Kafka partition. A Kafka partition that was never appended may
    /// start anywhere, since the head of the log may be deleted.
    ///
    /// # Errors
    /// [`TablesError::Conflict`] when a range does not start where the table ends, [`TablesError::Shape`] when a range
    /// ends before it starts or a Kafka partition is named twice.
    pub(crate) async fn new(
        log: &DeltaLog,
        transactions: PartitionTransactions,
        ranges: Vec<(KafkaPartition, Range<Offset>)>,
    ) -> Result<Self, TablesError> {
        let table = log.table();
        let base = log.existing().await?;
        let recorded = transactions.read(&base);
        let mut seen = BTreeSet::new();
        for (kafka_partition, Range { start, end }) in &ranges {
            if end < start {
                let reason = format!(
                    "offsets {start}..{end} of Kafka partition {kafka_partition} end before they start"
                );
                return Err(TablesError::Shape { table, reason });
            }
            if !seen.insert(kafka_partition) {
                let reason = format!("one append names Kafka partition {kafka_partition} twice");
                return Err(TablesError::Shape { table, reason });
            }
            if let Some(archived) = recorded.get(*kafka_partition)
                && archived != *start
            {
                let reason = format!(
                    "Kafka partition {kafka_partition} is archived up to offset {archived}, so an append cannot start at {start}"
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

    /// Commits files together with the claimed offsets.
    pub(crate) async fn append(
        self,
        log: &DeltaLog,
        adds: Vec<Add>,
        partition_columns: &[&str],
    ) -> Result<(), TablesError> {
        let transactions: Vec<Transaction> = self
            .ranges
            .iter()
            .filter(|(_, offsets)| !offsets.is_empty())
            .map(|(kafka_partition, offsets)| self.transactions.set(*kafka_partition, offsets.end))
            .collect();
        if adds.is_empty() && transactions.is_empty() {
            return Ok(());
        }
        let partition_by: Vec<String> = partition_columns.iter().map(ToString::to_string).collect();
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
        committed.map(drop)
    }
}

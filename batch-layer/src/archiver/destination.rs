//! What the archiver needs of a table that a topic is archived into. Must not know how topics are read.

use std::future::Future;

use wye_domain::horizon::Horizon;
use wye_runtime::telemetry::PartitionGauge;
use wye_tables::TablesError;

use crate::archiver::intake::{Collect, Filled};
use crate::error::BatchError;

/// A table that a topic is archived into.
pub(super) trait Destination: Send + Sync {
    /// The topic.
    const TOPIC: &'static str;
    /// What turns messages into rows.
    type Collector: Collect;

    /// How many Kafka partitions the topic has.
    fn kafka_partitions(&self) -> i32;

    /// Where the lag behind the log is shown, if it is.
    fn lag(&self) -> Option<&PartitionGauge>;

    /// For one Kafka partition, with nothing in it.
    fn collector(&self) -> Self::Collector;

    /// For each Kafka partition the first offset that is not archived.
    fn archived(&self) -> impl Future<Output = Result<Horizon, TablesError>> + Send;

    /// Appends in one commit.
    fn append(&mut self, filled: Filled) -> impl Future<Output = Result<(), BatchError>> + Send;
}

//! The log as a batch run uses it: the control topic, and the ends of the readings. Must not know how a horizon is chosen.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tracing::warn;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, READINGS};

use crate::error::BatchError;
use crate::run::ControlViews;

/// What the control records of one Kafka partition add up to, as far as they were read.
#[derive(Clone, Debug, Default)]
struct Followed {
    /// The next offset of the control topic to read; `None` before the first reading.
    next: Option<Offset>,
    view: ControlView,
}

/// Reads and writes the control topic.
pub struct ControlLog {
    log: Log,
    producer: Producer,
    followed: Arc<Mutex<BTreeMap<KafkaPartition, Followed>>>,
}

impl ControlLog {
    /// On this log; nothing is read yet.
    ///
    /// # Errors
    /// When the producer's settings are refused.
    pub fn new(log: Log) -> Result<Self, BatchError> {
        let producer =
            Producer::new(&log, Duration::ZERO).map_err(BatchError::log("write the control topic"))?;
        Ok(Self { log, producer, followed: Arc::default() })
    }

    /// What the control records of every Kafka partition add up to now. Only what is new since the last call is read.
    ///
    /// # Errors
    /// When the topic cannot be read.
    pub async fn views(&self) -> Result<ControlViews, BatchError> {
        let mut followed = Arc::clone(&self.followed).lock_owned().await;
        let log = self.log.clone();
        let read = tokio::task::spawn_blocking(move || {
            for kafka_partition in kafka_partitions(&log) {
                follow(&log, kafka_partition, followed.entry(kafka_partition).or_default())?;
            }
            let views = followed.iter();
            Ok(views.map(|(kafka_partition, followed)| (*kafka_partition, followed.view.clone())).collect())
        });
        read.await.map_err(|_| BatchError::Stopping)?
    }

    /// Where the readings of every Kafka partition end now: the next offset to come.
    ///
    /// # Errors
    /// When the log cannot be reached.
    pub async fn ends(&self) -> Result<Horizon, BatchError> {
        let mut ends = Horizon::default();
        for kafka_partition in kafka_partitions(&self.log) {
            let range = self.log.offsets(READINGS, kafka_partition).await;
            let range = range.map_err(BatchError::log("ask for the end of the readings"))?;
            ends.set(kafka_partition, range.high);
        }
        Ok(ends)
    }

    /// Appends a record about a Kafka partition, waits until it is acknowledged, and returns its offset.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn append(
        &self,
        kafka_partition: KafkaPartition,
        record: &ControlRecord,
    ) -> Result<Offset, BatchError> {
        let payload = record.encode();
        let outgoing =
            Outgoing { topic: CONTROL, kafka_partition, key: None, payload: &payload, headers: &[] };
        self.producer.send(outgoing).await.map_err(BatchError::log("write the control topic"))
    }
}

/// The Kafka partitions of the readings.
fn kafka_partitions(log: &Log) -> impl Iterator<Item = KafkaPartition> + use<> {
    KafkaPartition::all(log.config().kafka_partitions)
}

/// Reads one Kafka partition of the control topic from where it was last read to its end. Blocks.
fn follow(log: &Log, kafka_partition: KafkaPartition, followed: &mut Followed) -> Result<(), BatchError> {
    let Followed { next, view } = followed;
    let end = read_all(log, (CONTROL, kafka_partition), *next, |message| {
        // Set with each record: if the end is not reached, no record may be applied a second time.
        *next = Some(message.offset.next());
        match ControlRecord::decode(message.payload) {
            Ok(record) => view.apply(message.offset, &record),
            Err(error) => {
                warn!(%kafka_partition, offset = %message.offset, %error, "skipped an unknown control record");
            }
        }
    });
    *next = Some(end.map_err(BatchError::log("read the control topic"))?);
    Ok(())
}

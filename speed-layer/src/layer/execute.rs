//! Carries out the effects of an owner: writes to the log in the order that recovery depends on. Must not know why
//! something is written.

use std::time::Duration;

use arrow::array::RecordBatch;
use tokio::runtime::Handle;
use tracing::warn;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::realtime_row::{self, Header};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::topics::{CONTROL, REALTIME_VIEWS};

use super::Shared;
use crate::SpeedError;
use crate::owner::{Effect, Input, Owner};

/// The wait before a message is handed again to a producer whose queue was full.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(1);

/// Writes for the owner of one Kafka partition.
pub(super) struct Executor {
    log: Log,
    runtime: Handle,
    producer: Producer,
    kafka_partition: KafkaPartition,
    pending: Vec<Delivery>,
}

impl Executor {
    /// An executor that has written nothing yet.
    pub(super) fn new(shared: &Shared, producer: Producer, kafka_partition: KafkaPartition) -> Self {
        let (log, runtime) = (shared.parts.log.clone(), shared.runtime.clone());
        Self { log, runtime, producer, kafka_partition, pending: Vec::new() }
    }

    /// Carries effects out, in order. Blocks.
    ///
    /// # Errors
    /// When the log refuses a record, or has refused an earlier one. The owner must be dropped then.
    pub(super) fn carry_out(&mut self, owner: &mut Owner, effects: Vec<Effect>) -> Result<(), SpeedError> {
        for effect in effects {
            match effect {
                Effect::Append(header, rows) => self.append(owner, &header, rows.as_ref())?,
                Effect::Announce(record) => {
                    self.settle()?;
                    self.send(CONTROL, &record.encode())?;
                }
                Effect::Trim { topic, before } => self.trim(topic, before),
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        owner: &mut Owner,
        header: &Header,
        rows: Option<&RecordBatch>,
    ) -> Result<(), SpeedError> {
        let record = realtime_row::encode(header, rows);
        if !matches!(header, Header::Rows { complete: false, .. }) {
            self.settle()?;
        }
        match *header {
            Header::Rows { .. } => self.enqueue(&record),
            Header::Claim { .. } => self.send(REALTIME_VIEWS, &record).map(|_| ()),
            Header::Begin { epoch, .. } => {
                let offset = self.send(REALTIME_VIEWS, &record)?;
                let effects = owner.step(Input::Begun { epoch, offset })?;
                self.carry_out(owner, effects)
            }
        }
    }

    /// Writes a record, waits until it is acknowledged, and returns its offset.
    pub(super) fn send(&self, topic: &str, payload: &[u8]) -> Result<Offset, SpeedError> {
        Ok(self.runtime.block_on(self.producer.send(self.outgoing(topic, payload)))?)
    }

    /// Deletes the records below an offset. If that fails, they are deleted after the next batch run.
    fn trim(&self, topic: &str, before: Offset) {
        let kafka_partition = self.kafka_partition;
        let deleted = self.runtime.block_on(self.log.delete_records(topic, kafka_partition, before));
        if let Err(error) = deleted {
            warn!(
                %kafka_partition,
                topic,
                %before,
                %error,
                "cannot delete old records; trying again after the next batch run"
            );
        }
    }

    fn enqueue(&mut self, payload: &[u8]) -> Result<(), SpeedError> {
        loop {
            match self.producer.enqueue(self.outgoing(REALTIME_VIEWS, payload)) {
                Ok(delivery) => {
                    self.pending.push(delivery);
                    return Ok(());
                }
                Err(LogError::QueueFull) => {
                    self.settle()?;
                    std::thread::sleep(QUEUE_FULL_DELAY);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn outgoing<'a>(&self, topic: &'a str, payload: &'a [u8]) -> Outgoing<'a> {
        Outgoing { topic, kafka_partition: self.kafka_partition, key: None, payload, headers: &[] }
    }

    /// Waits until everything written is acknowledged.
    ///
    /// # Errors
    /// When the log has refused a record.
    pub(super) fn settle(&mut self) -> Result<(), SpeedError> {
        for delivery in std::mem::take(&mut self.pending) {
            self.runtime.block_on(delivery)?;
        }
        Ok(())
    }
}

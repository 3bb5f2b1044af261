//! Carries out the effects of an owner: writes to the log in the order that recovery rests on. Must not know why
//! something is written.

use std::time::Duration;

use arrow::array::RecordBatch;
use tokio::runtime::Handle;
use tracing::warn;
use wye_domain::realtime_row::{self, Header};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::topics::{CONTROL, REALTIME_VIEWS};

use crate::SpeedError;
use crate::owner::{Effect, Input, Owner, Rules};
use crate::telemetry::SpeedTelemetry;

/// How long to rest before a full producer queue is tried again.
const QUEUE_FULL_REST: Duration = Duration::from_millis(1);

/// What every owner of a process shares.
#[derive(Clone)]
pub struct Shared {
    /// The log.
    pub log: Log,
    /// The batching delay of the producer (linger).
    pub linger: Duration,
    /// Runs the writes.
    pub handle: Handle,
    /// What every owner computes by.
    pub rules: Rules,
    /// Instruments.
    pub telemetry: SpeedTelemetry,
    /// Makes the next step of an owner panic.
    #[cfg(test)]
    pub(crate) fault: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Shared {
    /// How this process names itself in the control topic, for people.
    pub(crate) fn name(&self) -> String {
        format!("pid {}", std::process::id())
    }
}

/// See the module.
pub(crate) struct Executor {
    log: Log,
    handle: Handle,
    producer: Producer,
    kafka_partition: i32,
    pending: Vec<Delivery>,
}

impl Executor {
    /// For one Kafka partition.
    pub(crate) fn new(shared: &Shared, producer: Producer, kafka_partition: i32) -> Self {
        let (log, handle) = (shared.log.clone(), shared.handle.clone());
        Self { log, handle, producer, kafka_partition, pending: Vec::new() }
    }

    /// Carries effects out, in order. Blocks.
    ///
    /// # Errors
    /// When the log does not take something, or did not take what was written before. The owner must be given up then.
    pub(crate) fn carry_out(&mut self, owner: &mut Owner, effects: Vec<Effect>) -> Result<(), SpeedError> {
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
        match *header {
            Header::Rows { complete: false, .. } => self.enqueue(&record),
            Header::Rows { complete: true, .. } => {
                self.settle()?;
                self.enqueue(&record)
            }
            Header::Claim { .. } => {
                self.settle().and_then(|()| self.send(REALTIME_VIEWS, &record)).map(|_| ())
            }
            Header::Begin { epoch, .. } => {
                self.settle()?;
                let offset = self.send(REALTIME_VIEWS, &record)?;
                let effects = owner.step(Input::Begun { epoch, offset })?;
                self.carry_out(owner, effects)
            }
        }
    }

    /// Writes a record and waits until it is acknowledged; returns its offset.
    pub(crate) fn send(&self, topic: &str, payload: &[u8]) -> Result<i64, SpeedError> {
        let message =
            Outgoing { topic, kafka_partition: self.kafka_partition, key: None, payload, headers: &[] };
        Ok(self.handle.block_on(self.producer.send(message))?)
    }

    /// What cannot be deleted now is deleted after the next batch run.
    fn trim(&self, topic: &str, before: i64) {
        let kafka_partition = self.kafka_partition;
        let deleted = self.handle.block_on(self.log.delete_records(topic, kafka_partition, before));
        if let Err(error) = deleted {
            warn!(kafka_partition, topic, before, %error, "cannot delete old records; trying again later");
        }
    }

    fn enqueue(&mut self, payload: &[u8]) -> Result<(), SpeedError> {
        let kafka_partition = self.kafka_partition;
        let message = Outgoing { topic: REALTIME_VIEWS, kafka_partition, key: None, payload, headers: &[] };
        loop {
            match self.producer.enqueue(message) {
                Ok(delivery) => {
                    self.pending.push(delivery);
                    return Ok(());
                }
                Err(LogError::QueueFull) => {
                    self.settle()?;
                    std::thread::sleep(QUEUE_FULL_REST);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until everything written is acknowledged.
    ///
    /// # Errors
    /// When the log did not take something.
    pub(crate) fn settle(&mut self) -> Result<(), SpeedError> {
        for delivery in std::mem::take(&mut self.pending) {
            self.handle.block_on(delivery)?;
        }
        Ok(())
    }
}

//! One thread of the speed layer: feeds the owners of some Kafka partitions with messages, control records and ticks. Must
//! not know what becomes of an owner that fails.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use wye_domain::control::ControlRecord;
use wye_domain::place::KafkaPartition;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::Producer;
use wye_log::reader::Reader;
use wye_log::topics::{CONTROL, READINGS};

use super::slot::Slot;
use super::{Shared, report};
use crate::SpeedError;
use crate::owner::{Due, Input};

/// The wait before the readers are started again after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The most messages that are read between two checks of the clock.
const POLL_MESSAGES: usize = 20_000;
/// How often the lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(5);

/// One thread.
pub(super) struct Worker {
    shared: Arc<Shared>,
    slots: Vec<Slot>,
}

/// When the next of each is due, as monotonic times.
struct Schedule {
    flush: Duration,
    epoch: Duration,
    lag: Duration,
}

/// The readers of one thread.
struct Readers {
    readings: Reader,
    control: Reader,
}

impl Worker {
    /// A worker for the given Kafka partitions.
    pub(super) fn new(
        shared: &Arc<Shared>,
        producer: &Producer,
        kafka_partitions: Vec<KafkaPartition>,
    ) -> Self {
        let slots = kafka_partitions.into_iter().map(|own| Slot::new(shared, producer, own)).collect();
        Self { shared: Arc::clone(shared), slots }
    }

    /// Works until the shutdown.
    pub(super) fn run(mut self) {
        while let Err(error) = self.follow() {
            report(&error, "the speed layer cannot read the log; trying again");
            if self.shared.is_shut_down_within(RETRY_DELAY) {
                break;
            }
        }
        self.slots.into_iter().for_each(Slot::join);
    }

    /// Feeds the owners until the shutdown.
    ///
    /// # Errors
    /// When new readers are needed.
    fn follow(&mut self) -> Result<(), SpeedError> {
        let mut readers = Readers::new(&self.shared.parts.log)?;
        readers.assign(&self.slots)?;
        let now = self.shared.parts.clock.monotonic();
        let epoch = now.saturating_add(self.shared.settings.epoch_interval);
        let mut next = Schedule { flush: now, epoch, lag: now };
        loop {
            let wait = next.flush.saturating_sub(self.shared.parts.clock.monotonic());
            let mut changed = self.read_readings(&mut readers.readings, wait)?;
            let now = self.shared.parts.clock.monotonic();
            if now >= next.flush {
                changed |= self.read_control(&mut readers.control)?;
                changed |= self.tick(now, &mut next);
            }
            if self.shared.shutdown.is_cancelled() {
                self.slots.iter_mut().for_each(Slot::finish);
                return Ok(());
            }
            if changed {
                readers.assign(&self.slots)?;
            }
        }
    }

    /// Feeds new readings. Returns whether some Kafka partition has lost its owner.
    fn read_readings(&mut self, readings: &mut Reader, wait: Duration) -> Result<bool, SpeedError> {
        let slots = &mut self.slots;
        if slots.iter().all(|slot| slot.owner().is_none()) {
            std::thread::sleep(wait);
            return Ok(false);
        }
        let mut changed = false;
        let polled = readings.poll_batch(POLL_MESSAGES, wait, &mut |message| {
            let Some(slot) = find(slots, message.kafka_partition) else { return };
            slot.placement.check(message.key);
            changed |= slot.step(Input::Message {
                offset: message.offset,
                ingest_time: message.ingest_time,
                payload: message.payload,
            });
        });
        if let Err(LogError::Unreadable { kafka_partition, offsets, .. }) = polled {
            // The archiver writes the dead letter.
            let skip = Input::Skip { next: offsets.end };
            return Ok(changed | find(slots, kafka_partition).is_some_and(|slot| slot.step(skip)));
        }
        changed |= give_up_on(polled, slots)?;
        for slot in slots {
            let Some(reached) = readings.position(slot.kafka_partition) else { continue };
            if slot.owner().is_some_and(|owner| reached > owner.next()) {
                changed |= slot.step(Input::Empty { next: reached });
            }
        }
        Ok(changed)
    }

    /// Feeds new records of the control topic. Returns whether some Kafka partition has lost its owner.
    fn read_control(&mut self, control: &mut Reader) -> Result<bool, SpeedError> {
        let slots = &mut self.slots;
        let mut changed = false;
        let polled = control.poll_batch(POLL_MESSAGES, Duration::ZERO, &mut |message| {
            let Some(slot) = find(slots, message.kafka_partition) else { return };
            // A record of a later version is skipped.
            if let Ok(record) = ControlRecord::decode(message.payload) {
                changed |= slot.step(Input::Control { offset: message.offset, record: &record });
            }
        });
        if let Err(error @ LogError::Unreadable { .. }) = &polled {
            warn!(%error, "control records are skipped");
            return Ok(changed);
        }
        Ok(changed | give_up_on(polled, slots)?)
    }

    /// Does what is due. Returns whether some Kafka partition has got or lost an owner.
    fn tick(&mut self, now: Duration, next: &mut Schedule) -> bool {
        let settings = &self.shared.settings;
        next.flush = now.saturating_add(settings.flush_interval);
        let due = if now >= next.epoch { Due::Epoch } else { Due::Flush };
        if due == Due::Epoch {
            next.epoch = now.saturating_add(settings.epoch_interval);
        }
        let mut changed = false;
        for slot in &mut self.slots {
            changed |= slot.step(Input::Tick(due));
            slot.measure();
            changed |= slot.acquire_if_vacant();
        }
        if now >= next.lag {
            next.lag = now.saturating_add(LAG_INTERVAL);
            self.slots.iter().for_each(Slot::measure_lag);
        }
        changed
    }
}

impl Readers {
    fn new(log: &Log) -> Result<Self, SpeedError> {
        Ok(Self { readings: Reader::new(log, READINGS)?, control: Reader::new(log, CONTROL)? })
    }

    /// Reads from now on what the owners need next.
    fn assign(&mut self, slots: &[Slot]) -> Result<(), SpeedError> {
        let (mut readings, mut control) = (Vec::new(), Vec::new());
        for slot in slots {
            if let Some(owner) = slot.owner() {
                readings.push((slot.kafka_partition, owner.next()));
                control.push((slot.kafka_partition, owner.next_control()));
            }
        }
        self.readings.assign(&readings)?;
        self.control.assign(&control)?;
        let kafka_partitions: Vec<i32> =
            readings.iter().map(|(kafka_partition, _)| kafka_partition.0).collect();
        info!(?kafka_partitions, "reading the kafka partitions that this process owns");
        Ok(())
    }
}

/// An error about one Kafka partition makes its slot give up the owner; any other error is returned. Returns whether an
/// owner was lost.
fn give_up_on(polled: Result<usize, LogError>, slots: &mut [Slot]) -> Result<bool, SpeedError> {
    match polled {
        Ok(_) => Ok(false),
        Err(
            error @ (LogError::OffsetGone { kafka_partition, .. }
            | LogError::OffsetAhead { kafka_partition, .. }),
        ) => {
            if let Some(slot) = find(slots, kafka_partition) {
                slot.give_up(&error.into());
            }
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

/// The slot of a Kafka partition.
fn find(slots: &mut [Slot], kafka_partition: KafkaPartition) -> Option<&mut Slot> {
    slots.iter_mut().find(|slot| slot.kafka_partition == kafka_partition)
}

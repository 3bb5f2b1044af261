//! Running owners: some threads, one reader each, for some Kafka partitions each.
//!
//! An owner that is fenced, fails or panics gives up its Kafka partition and only that; the partition is acquired again
//! when it may be, see `crate::acquire`. Must not know what an owner does with its inputs.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use wye_domain::ErrorKind;
use wye_domain::control::ControlRecord;
use wye_log::LogError;
use wye_log::producer::Producer;
use wye_log::reader::Reader;
use wye_log::topics::{CONTROL, READINGS};
use wye_runtime::telemetry::{KafkaPartitionLabel, ReasonLabel};

use crate::SpeedError;
use crate::acquire::{Acquisition, Owned, Vacancy};
use crate::execute::Shared;
use crate::owner::{Due, Input};
use crate::placement::Placement;

/// How long a thread rests after its readers failed.
const REST: Duration = Duration::from_secs(1);
/// Most messages between two looks at the clock.
const POLL_MESSAGES: usize = 20_000;
/// How often the lag is measured.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// An owner that was not fenced for so long is not in a fight with another process.
const PEACE: Duration = Duration::from_secs(60);

/// How often things happen.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// Changed rows go out.
    pub flush_interval: Duration,
    /// A new epoch starts.
    pub epoch_interval: Duration,
    /// How long an owner may take to answer before its Kafka partition is taken over by a process that was fenced.
    pub answer_patience: Duration,
}

/// What this process is to a Kafka partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It is taking it over, for the first time or after a failure.
    Acquiring,
    /// It owns it.
    Owned,
    /// Another process owns it; this one takes it once no owner answers.
    Elsewhere,
}

/// What this process is to each Kafka partition. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ownerships {
    by_partition: Arc<Mutex<BTreeMap<i32, Ownership>>>,
}

impl Ownerships {
    /// What it is to each Kafka partition now.
    pub fn get(&self) -> BTreeMap<i32, Ownership> {
        self.by_partition.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, kafka_partition: i32, ownership: Ownership) {
        self.by_partition.lock().unwrap_or_else(PoisonError::into_inner).insert(kafka_partition, ownership);
    }
}

/// The running speed layer.
pub struct SpeedLayer {
    threads: Vec<JoinHandle<()>>,
    ownerships: Ownerships,
}

impl SpeedLayer {
    /// Starts `threads` threads that own the given Kafka partitions until `cancel` fires.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        shared: &Shared,
        rhythm: Rhythm,
        kafka_partitions: &[i32],
        threads: usize,
        cancel: &CancellationToken,
    ) -> Result<Self, SpeedError> {
        let threads = threads.clamp(1, kafka_partitions.len().max(1));
        let ownerships = Ownerships::default();
        let mut running = Vec::with_capacity(threads);
        for thread in 0..threads {
            let own: Vec<i32> = kafka_partitions.iter().copied().skip(thread).step_by(threads).collect();
            let producer = Producer::new(&shared.log, shared.linger)?;
            let worker = Worker {
                shared: shared.clone(),
                rhythm,
                producer,
                cancel: cancel.clone(),
                ownerships: ownerships.clone(),
            };
            let spawned = std::thread::Builder::new()
                .name(format!("wye-speed-{thread}"))
                .spawn(move || worker.run(&own))
                .map_err(SpeedError::Thread)?;
            running.push(spawned);
        }
        Ok(Self { threads: running, ownerships })
    }

    /// What this process is to each Kafka partition, at any time from now on.
    pub fn ownerships(&self) -> Ownerships {
        self.ownerships.clone()
    }

    /// Waits for all threads, which end once cancelled, with everything flushed. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                error!(panic = panic_text(&*panic), "a thread of the speed layer has panicked");
            }
        }
    }
}

/// One thread.
struct Worker {
    shared: Shared,
    rhythm: Rhythm,
    producer: Producer,
    cancel: CancellationToken,
    ownerships: Ownerships,
}

/// One Kafka partition of a thread.
struct Slot {
    kafka_partition: i32,
    state: State,
    placement: Placement,
    /// How many times in a row it was lost to another process.
    fenced: u32,
    owned_since: Instant,
}

enum State {
    Acquiring(JoinHandle<Result<Owned, SpeedError>>),
    Owned(Owned),
    /// The system gave no thread; tried again at the next tick.
    Vacant(Vacancy),
}

/// The readers of one thread.
struct Readers {
    readings: Reader,
    control: Reader,
}

impl Worker {
    fn run(&self, kafka_partitions: &[i32]) {
        let vacant = |kafka_partition: &i32| Slot {
            kafka_partition: *kafka_partition,
            state: State::Vacant(Vacancy::New),
            placement: Placement::new(*kafka_partition, self.shared.log.config().kafka_partitions),
            fenced: 0,
            owned_since: Instant::now(),
        };
        let mut slots: Vec<Slot> = kafka_partitions.iter().map(vacant).collect();
        while let Err(error) = self.follow(&mut slots) {
            report(&error, "the speed layer cannot read the log; trying again");
            let rested = async { tokio::time::timeout(REST, self.cancel.cancelled()).await };
            if self.shared.handle.block_on(rested).is_ok() {
                break;
            }
        }
        for slot in slots {
            if let State::Acquiring(acquiring) = slot.state {
                // It ends soon by itself, and what it says concerns nobody any more.
                let _ = acquiring.join();
            }
        }
    }

    /// Feeds the owners until it is cancelled.
    ///
    /// # Errors
    /// When new readers are needed.
    fn follow(&self, slots: &mut [Slot]) -> Result<(), SpeedError> {
        let log = &self.shared.log;
        let mut readers =
            Readers { readings: Reader::new(log, READINGS)?, control: Reader::new(log, CONTROL)? };
        assign(&mut readers, slots)?;
        let mut next_flush = Instant::now();
        let mut next_epoch = Instant::now() + self.rhythm.epoch_interval;
        let mut next_lag = Instant::now();
        loop {
            let wait = next_flush.saturating_duration_since(Instant::now());
            let mut changed = self.read(&mut readers, slots, wait)?;
            let now = Instant::now();
            if now >= next_flush {
                next_flush = now + self.rhythm.flush_interval;
                changed |= self.listen(&mut readers, slots)?;
                let due = if now >= next_epoch { Due::Epoch } else { Due::Flush };
                if due == Due::Epoch {
                    next_epoch = now + self.rhythm.epoch_interval;
                }
                for slot in slots.iter_mut() {
                    changed |= self.step(slot, Input::Tick(due));
                    self.measure(slot);
                    changed |= self.tend(slot);
                }
                if now >= next_lag {
                    next_lag = now + LAG_INTERVAL;
                    self.measure_lag(slots);
                }
            }
            if self.cancel.is_cancelled() {
                for slot in slots.iter_mut() {
                    self.finish(slot);
                }
                return Ok(());
            }
            if changed {
                assign(&mut readers, slots)?;
            }
        }
    }

    /// Feeds what there is of the readings; whether some Kafka partition has lost its owner.
    fn read(&self, readers: &mut Readers, slots: &mut [Slot], wait: Duration) -> Result<bool, SpeedError> {
        if !slots.iter().any(Slot::is_owned) {
            std::thread::sleep(wait);
            return Ok(false);
        }
        let mut changed = false;
        let polled = readers.readings.poll_batch(POLL_MESSAGES, wait, &mut |message| {
            let Some(slot) = find(slots, message.kafka_partition) else { return };
            slot.placement.look_at(message.key);
            let ingest_time = message.timestamp_ms.saturating_mul(1_000);
            let input = Input::Message { offset: message.offset, ingest_time, payload: message.payload };
            changed |= self.step(slot, input);
        });
        if let Err(LogError::Unreadable { kafka_partition, next, .. }) = polled {
            // The archiver writes the dead letter.
            let lost = find(slots, kafka_partition).is_some_and(|slot| self.step(slot, Input::Skip { next }));
            return Ok(changed | lost);
        }
        changed |= self.give_up_on(polled, slots)?;
        for slot in slots {
            let State::Owned(Owned { owner, .. }) = &slot.state else { continue };
            let next = readers.readings.position(slot.kafka_partition).unwrap_or(0);
            if next > owner.next() {
                changed |= self.step(slot, Input::Empty { next });
            }
        }
        Ok(changed)
    }

    /// Feeds what is new in the control topic; whether some Kafka partition has lost its owner.
    fn listen(&self, readers: &mut Readers, slots: &mut [Slot]) -> Result<bool, SpeedError> {
        let mut changed = false;
        let polled = readers.control.poll_batch(POLL_MESSAGES, Duration::ZERO, &mut |message| {
            let Some(slot) = find(slots, message.kafka_partition) else { return };
            // A record of a later version is skipped.
            if let Ok(record) = ControlRecord::decode(message.payload) {
                changed |= self.step(slot, Input::Control { offset: message.offset, record: &record });
            }
        });
        if let Err(error @ LogError::Unreadable { .. }) = &polled {
            warn!(%error, "control records are skipped");
            return Ok(changed);
        }
        Ok(changed | self.give_up_on(polled, slots)?)
    }

    /// An error of a reader that concerns one Kafka partition ends its owner; any other is returned.
    fn give_up_on(&self, polled: Result<usize, LogError>, slots: &mut [Slot]) -> Result<bool, SpeedError> {
        match polled {
            Ok(_) => Ok(false),
            Err(
                error @ (LogError::OffsetGone { kafka_partition, .. }
                | LogError::OffsetAhead { kafka_partition, .. }),
            ) => {
                if let Some(slot) = find(slots, kafka_partition) {
                    self.give_up(slot, &error.into());
                }
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One step of an owner, if the slot has one; whether the Kafka partition has lost it.
    fn step(&self, slot: &mut Slot, input: Input<'_>) -> bool {
        let State::Owned(Owned { owner, executor }) = &mut slot.state else { return false };
        let kafka_partition = slot.kafka_partition;
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            assert!(!self.shared.fault.swap(false, std::sync::atomic::Ordering::Relaxed), "a fault");
            let effects = owner.step(input)?;
            executor.carry_out(owner, effects)
        }));
        let message = |panic: Box<dyn Any + Send>| panic_text(&*panic).to_owned();
        let stepped = stepped
            .unwrap_or_else(|panic| Err(SpeedError::Panicked { kafka_partition, message: message(panic) }));
        match stepped {
            Ok(()) => false,
            Err(error) => {
                self.give_up(slot, &error);
                true
            }
        }
    }

    /// Drops the owner of a Kafka partition, and says why.
    fn give_up(&self, slot: &mut Slot, error: &SpeedError) {
        let label = KafkaPartitionLabel { kafka_partition: slot.kafka_partition };
        self.shared.telemetry.owned.get_or_create(&label).set(0);
        let State::Owned(Owned { owner, .. }) = &slot.state else { return };
        let generation = owner.generation();
        let vacancy = match error {
            SpeedError::Fenced { .. } => {
                slot.fenced = if slot.owned_since.elapsed() < PEACE { slot.fenced + 1 } else { 0 };
                Vacancy::Fenced { times: slot.fenced }
            }
            SpeedError::Overtaken { .. } => Vacancy::Overtaken { generation },
            _ => Vacancy::Failed { generation: Some(generation) },
        };
        let is_elsewhere = matches!(vacancy, Vacancy::Fenced { .. });
        let ownership = if is_elsewhere { Ownership::Elsewhere } else { Ownership::Acquiring };
        self.ownerships.set(slot.kafka_partition, ownership);
        if is_elsewhere {
            warn!(%error, "this process takes it again once no owner answers");
        } else {
            report(error, "taking the kafka partition again");
        }
        self.shared.telemetry.given_up.get_or_create(&label).inc();
        slot.state = State::Vacant(vacancy);
    }

    /// Starts to acquire a Kafka partition that is vacant, and takes one that was acquired; whether it has an owner now
    /// and had none before.
    fn tend(&self, slot: &mut Slot) -> bool {
        let kafka_partition = slot.kafka_partition;
        match &slot.state {
            State::Owned(_) => return false,
            State::Acquiring(acquiring) if !acquiring.is_finished() => return false,
            State::Acquiring(_) => {}
            State::Vacant(vacancy) => {
                let vacancy = *vacancy;
                if !matches!(vacancy, Vacancy::Fenced { .. }) {
                    self.ownerships.set(kafka_partition, Ownership::Acquiring);
                }
                let acquisition = Acquisition {
                    shared: self.shared.clone(),
                    producer: self.producer.clone(),
                    kafka_partition,
                    patience: self.rhythm.answer_patience,
                    cancel: self.cancel.clone(),
                };
                match acquisition.spawn(vacancy) {
                    Ok(acquiring) => slot.state = State::Acquiring(acquiring),
                    Err(error) => report(&error, "trying again"),
                }
                return false;
            }
        }
        let vacant = State::Vacant(Vacancy::Failed { generation: None });
        let State::Acquiring(acquiring) = std::mem::replace(&mut slot.state, vacant) else { return false };
        let acquired = acquiring.join().unwrap_or_else(|panic| {
            Err(SpeedError::Panicked { kafka_partition, message: panic_text(&*panic).to_owned() })
        });
        match acquired {
            Ok(owned) => {
                slot.state = State::Owned(owned);
                slot.owned_since = Instant::now();
                self.ownerships.set(kafka_partition, Ownership::Owned);
                let label = KafkaPartitionLabel { kafka_partition };
                self.shared.telemetry.owned.get_or_create(&label).set(1);
                return true;
            }
            Err(SpeedError::Stopping) => {}
            Err(error) => report(&error, "taking the kafka partition again"),
        }
        false
    }

    /// Flushes what was taken in, at the end.
    fn finish(&self, slot: &mut Slot) {
        let kafka_partition = slot.kafka_partition;
        if !slot.is_owned() || self.step(slot, Input::Tick(Due::Flush)) {
            return;
        }
        self.measure(slot);
        if let State::Owned(Owned { executor, .. }) = &mut slot.state {
            match executor.settle() {
                Ok(()) => info!(kafka_partition, "flushed; the kafka partition is given up"),
                Err(error) => report(&error, "the last flush may be read again after the next start"),
            }
        }
    }

    /// Shows what an owner has done.
    fn measure(&self, slot: &mut Slot) {
        let State::Owned(Owned { owner, .. }) = &mut slot.state else { return };
        let kafka_partition = slot.kafka_partition;
        let label = KafkaPartitionLabel { kafka_partition };
        let telemetry = &self.shared.telemetry;
        slot.placement.report(&telemetry.misplaced);
        let tally = owner.take_tally();
        telemetry.readings.get_or_create(&label).inc_by(tally.counts.readings);
        telemetry.duplicates.get_or_create(&label).inc_by(tally.counts.duplicates);
        telemetry.conflicts.get_or_create(&label).inc_by(tally.counts.conflicts);
        telemetry.rows.get_or_create(&label).inc_by(tally.rows);
        telemetry.epochs.get_or_create(&label).inc_by(tally.epochs);
        for (reason, count) in tally.rejected {
            telemetry.rejected.get_or_create(&ReasonLabel { reason: reason.name() }).inc_by(count);
        }
        if let Some(newest) = owner.newest_event_time() {
            telemetry.watermark.get_or_create(&label).set(newest / 1_000_000);
        }
        if let Some(horizon) = owner.horizon() {
            telemetry.horizon.get_or_create(&label).set(horizon);
        }
        telemetry.remembered.get_or_create(&label).set(i64::try_from(owner.remembered()).unwrap_or(i64::MAX));
        for (definition, failure) in tally.failures.iter() {
            telemetry.failed.inc_by(failure.readings);
            let example = &failure.example;
            debug!(
                definition,
                readings = failure.readings,
                message = example.message,
                device_id = example.device_id,
                metric = example.metric,
                "a metric definition cannot compute readings; GET /v1/metrics shows an example after the next batch run"
            );
        }
        if tally.forgotten_early > 0 {
            telemetry.forgotten_early.get_or_create(&label).inc_by(tally.forgotten_early);
            warn!(
                kafka_partition,
                forgotten = tally.forgotten_early,
                "the duplicate window is full; raise speed.duplicate_entries or run the batch layer more often"
            );
        }
    }

    fn measure_lag(&self, slots: &[Slot]) {
        for slot in slots {
            let kafka_partition = slot.kafka_partition;
            if let State::Owned(Owned { owner, .. }) = &slot.state
                && let Ok(range) = self.shared.log.offsets_blocking(READINGS, kafka_partition)
            {
                let label = KafkaPartitionLabel { kafka_partition };
                self.shared.telemetry.log_lag.get_or_create(&label).set((range.high - owner.next()).max(0));
            }
        }
    }
}

impl Slot {
    fn is_owned(&self) -> bool {
        matches!(self.state, State::Owned(_))
    }
}

fn find(slots: &mut [Slot], kafka_partition: i32) -> Option<&mut Slot> {
    slots.iter_mut().find(|slot| slot.kafka_partition == kafka_partition)
}

/// Reads from now on what the owners need next.
fn assign(readers: &mut Readers, slots: &[Slot]) -> Result<(), SpeedError> {
    let (mut readings, mut control) = (Vec::new(), Vec::new());
    for slot in slots {
        if let State::Owned(Owned { owner, .. }) = &slot.state {
            readings.push((slot.kafka_partition, owner.next()));
            control.push((slot.kafka_partition, owner.next_control()));
        }
    }
    readers.readings.assign(&readings)?;
    readers.control.assign(&control)?;
    let kafka_partitions: Vec<i32> = readings.iter().map(|(kafka_partition, _)| *kafka_partition).collect();
    info!(?kafka_partitions, "the speed layer reads");
    Ok(())
}

fn report(error: &SpeedError, consequence: &str) {
    match error.kind() {
        ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::NotFound => warn!(%error, "{consequence}"),
        ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::Internal => error!(%error, "{consequence}"),
    }
}

/// What a panic says, where it says it in words.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests;

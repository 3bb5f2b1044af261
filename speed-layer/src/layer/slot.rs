//! One Kafka partition of a worker: its owner, or how one is acquired. Must not know where inputs come from.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{info, warn};
use wye_domain::place::KafkaPartition;
use wye_log::producer::Producer;
use wye_log::topics::READINGS;

use super::acquire::{Acquisition, Owned, Vacancy};
use super::ownership::Ownership;
use super::placement::Placement;
use super::{Shared, report};
use crate::SpeedError;
use crate::owner::{Due, Input, Owner};
use crate::telemetry::label;

/// An owner that is fenced after this long was stable: no other process competes for the Kafka partition, and earlier
/// fencings no longer count.
const STABLE_OWNERSHIP: Duration = Duration::from_secs(60);

/// One Kafka partition of a worker.
pub(super) struct Slot {
    pub(super) kafka_partition: KafkaPartition,
    pub(super) placement: Placement,
    shared: Arc<Shared>,
    producer: Producer,
    state: State,
    /// How many times in a row it was lost to another process.
    fenced: u32,
}

enum State {
    Owned(Owned),
    Acquiring(JoinHandle<Result<Owned, SpeedError>>),
    Vacant(Vacancy),
}

impl Slot {
    /// A Kafka partition that has no owner yet.
    pub(super) fn new(shared: &Arc<Shared>, producer: &Producer, kafka_partition: KafkaPartition) -> Self {
        Self {
            kafka_partition,
            placement: Placement::new(kafka_partition, shared.parts.log.config().kafka_partitions),
            shared: Arc::clone(shared),
            producer: producer.clone(),
            state: State::Vacant(Vacancy::New),
            fenced: 0,
        }
    }

    /// The owner, if there is one in this process.
    pub(super) fn owner(&self) -> Option<&Owner> {
        match &self.state {
            State::Owned(Owned { owner, .. }) => Some(owner),
            State::Acquiring(_) | State::Vacant(_) => None,
        }
    }

    /// One step of the owner, if there is one. Returns whether the owner was lost.
    pub(super) fn step(&mut self, input: Input<'_>) -> bool {
        let State::Owned(Owned { owner, executor, .. }) = &mut self.state else { return false };
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            #[cfg(test)]
            assert!(
                !self.shared.next_step_panics.swap(false, std::sync::atomic::Ordering::Relaxed),
                "a test"
            );
            let effects = owner.step(input)?;
            executor.carry_out(owner, effects)
        }));
        let stepped =
            stepped.unwrap_or_else(|panic| Err(SpeedError::panicked(self.kafka_partition, &*panic)));
        match stepped {
            Ok(()) => false,
            Err(error) => {
                self.give_up(&error);
                true
            }
        }
    }

    /// Drops the owner, which has failed.
    pub(super) fn give_up(&mut self, error: &SpeedError) {
        let State::Owned(Owned { owner, since, .. }) = &self.state else { return };
        let generation = owner.generation();
        let vacancy = match error {
            SpeedError::Fenced { .. } => {
                let owned_for = self.shared.parts.clock.monotonic().saturating_sub(*since);
                self.fenced = if owned_for < STABLE_OWNERSHIP { self.fenced + 1 } else { 0 };
                Vacancy::Fenced { times: self.fenced }
            }
            SpeedError::Overtaken { .. } => Vacancy::Overtaken { generation },
            _ => Vacancy::Failed { generation: Some(generation) },
        };
        if matches!(vacancy, Vacancy::Fenced { .. }) {
            self.shared.ownerships.set(self.kafka_partition, Ownership::Elsewhere);
            warn!(%error, "this process takes the kafka partition over once no owner answers");
        } else {
            self.shared.ownerships.set(self.kafka_partition, Ownership::Acquiring);
            report(error, "taking the kafka partition over again");
        }
        let label = label(self.kafka_partition);
        self.shared.parts.telemetry.owned.get_or_create(&label).set(0);
        self.shared.parts.telemetry.given_up.get_or_create(&label).inc();
        self.state = State::Vacant(vacancy);
    }

    /// Acquires the Kafka partition if it has no owner. Returns whether a new owner was acquired.
    pub(super) fn acquire_if_vacant(&mut self) -> bool {
        match std::mem::replace(&mut self.state, State::Vacant(Vacancy::Failed { generation: None })) {
            State::Vacant(vacancy) => {
                self.state = self.acquire(vacancy);
                false
            }
            State::Acquiring(acquiring) if acquiring.is_finished() => self.take(acquiring),
            unchanged @ (State::Owned(_) | State::Acquiring(_)) => {
                self.state = unchanged;
                false
            }
        }
    }

    /// Starts to acquire the Kafka partition. Where the system gives no thread, it stays vacant until the next tick.
    fn acquire(&self, vacancy: Vacancy) -> State {
        if !matches!(vacancy, Vacancy::Fenced { .. }) {
            self.shared.ownerships.set(self.kafka_partition, Ownership::Acquiring);
        }
        let acquisition = Acquisition {
            shared: Arc::clone(&self.shared),
            producer: self.producer.clone(),
            kafka_partition: self.kafka_partition,
        };
        match acquisition.spawn(vacancy) {
            Ok(acquiring) => State::Acquiring(acquiring),
            Err(error) => {
                report(&error, "trying again");
                State::Vacant(vacancy)
            }
        }
    }

    /// Takes what a finished thread has acquired. Returns whether that is an owner; after a failure the slot stays vacant.
    fn take(&mut self, acquiring: JoinHandle<Result<Owned, SpeedError>>) -> bool {
        let acquired = acquiring.join();
        match acquired.unwrap_or_else(|panic| Err(SpeedError::panicked(self.kafka_partition, &*panic))) {
            Ok(owned) => {
                self.state = State::Owned(owned);
                self.shared.ownerships.set(self.kafka_partition, Ownership::Owned);
                self.shared.parts.telemetry.owned.get_or_create(&label(self.kafka_partition)).set(1);
                return true;
            }
            Err(SpeedError::ShuttingDown) => {}
            Err(error) => report(&error, "taking the kafka partition over again"),
        }
        false
    }

    /// Flushes at the shutdown.
    pub(super) fn finish(&mut self) {
        if self.owner().is_none() || self.step(Input::Tick(Due::Flush)) {
            return;
        }
        self.measure();
        if let State::Owned(Owned { executor, .. }) = &mut self.state {
            match executor.settle() {
                Ok(()) => info!(kafka_partition = %self.kafka_partition, "flushed at the shutdown"),
                Err(error) => report(&error, "the next owner reads again what the last flush had"),
            }
        }
    }

    /// Waits for the thread that acquires the Kafka partition. It ends at the shutdown, and its owner is not needed then.
    pub(super) fn join(self) {
        if let State::Acquiring(acquiring) = self.state {
            let _ = acquiring.join();
        }
    }

    /// Updates the instruments.
    pub(super) fn measure(&mut self) {
        let State::Owned(Owned { owner, .. }) = &mut self.state else { return };
        let telemetry = &self.shared.parts.telemetry;
        telemetry.observe(self.kafka_partition, owner);
        let misplaced = self.placement.report(self.shared.parts.clock.monotonic());
        if misplaced > 0 {
            telemetry.misplaced.get_or_create(&label(self.kafka_partition)).inc_by(misplaced);
        }
    }

    /// Updates how many messages the owner still has to read.
    pub(super) fn measure_lag(&self) {
        let Some(owner) = self.owner() else { return };
        if let Ok(range) = self.shared.parts.log.offsets_blocking(READINGS, self.kafka_partition) {
            let lag = i64::try_from(range.high.since(owner.next())).unwrap_or(i64::MAX);
            self.shared.parts.telemetry.log_lag.get_or_create(&label(self.kafka_partition)).set(lag);
        }
    }
}

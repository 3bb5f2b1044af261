//! Acquires a Kafka partition for this process: at once at the start; later only if its last owner was of this process too,
//! or if no owner answers. Must not know what an owner does.
//!
//! A request for a cut on the control topic, which any epoch start satisfies, asks whether there is an owner. No clock of
//! another machine counts, and a wrong guess does no harm: a claim fences the owner that is there. Two processes that are
//! both too slow to answer must not take the Kafka partition from each other for ever. So a process that was fenced waits,
//! for longer each time, and for a different time than others.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{debug, info};
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::Producer;
use wye_log::reader::read_all;
use wye_log::topics::CONTROL;

use super::Shared;
use super::claim::take_over;
use super::execute::Executor;
use crate::SpeedError;
use crate::owner::Owner;

/// How often the control topic is read while a request waits for its answer.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// About how long the wait after a failure is.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The most times that the wait after being fenced is doubled.
const DOUBLINGS: u32 = 4;

/// An owner with what carries out its effects.
pub(super) struct Owned {
    pub(super) owner: Box<Owner>,
    pub(super) executor: Executor,
    /// Since when, as a monotonic time.
    pub(super) since: Duration,
}

/// Why a Kafka partition has no owner in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vacancy {
    /// This process has just started.
    New,
    /// The owner of this generation has failed in this process; `None` where it failed before it had claimed. The next one
    /// may follow at once, unless another process has claimed since.
    Failed { generation: Option<Generation> },
    /// A batch run has pinned a start inside its open epoch. As `Failed`, without a wait.
    Overtaken { generation: Generation },
    /// Another process has claimed it, this many times in a row without a stable ownership in between.
    Fenced { times: u32 },
}

/// What is needed to acquire a Kafka partition.
pub(super) struct Acquisition {
    pub(super) shared: Arc<Shared>,
    pub(super) producer: Producer,
    pub(super) kafka_partition: KafkaPartition,
}

impl Acquisition {
    /// Acquires on a thread of its own, so that other Kafka partitions are not held up.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn spawn(self, vacancy: Vacancy) -> Result<JoinHandle<Result<Owned, SpeedError>>, SpeedError> {
        std::thread::Builder::new()
            .name(format!("wye-acquire-{}", self.kafka_partition))
            .spawn(move || self.acquire(vacancy))
            .map_err(SpeedError::Thread)
    }

    fn acquire(self, vacancy: Vacancy) -> Result<Owned, SpeedError> {
        let Self { shared, producer, kafka_partition } = &self;
        let mut executor = Executor::new(shared, producer.clone(), *kafka_partition);
        self.wait_until_free(&executor, vacancy)?;
        let owner = Box::new(take_over(shared, &mut executor, *kafka_partition)?);
        Ok(Owned { owner, executor, since: shared.parts.clock.monotonic() })
    }

    fn wait_until_free(&self, executor: &Executor, vacancy: Vacancy) -> Result<(), SpeedError> {
        let patience = self.shared.settings.answer_patience;
        let (last, delay) = match vacancy {
            Vacancy::New => return Ok(()),
            Vacancy::Overtaken { generation } => (Some(generation), Duration::ZERO),
            Vacancy::Failed { generation } => (generation, RETRY_DELAY),
            Vacancy::Fenced { times } => (None, patience.saturating_mul(1 << times.min(DOUBLINGS))),
        };
        let mut control = Control::default();
        self.sleep_about(delay)?;
        loop {
            control.read(&self.shared.parts.log, self.kafka_partition)?;
            if control.view.generation == last {
                return Ok(());
            }
            let kafka_partition = self.kafka_partition;
            if !self.an_owner_answers(executor, &mut control)? {
                info!(%kafka_partition, "no owner answers; taking the kafka partition over");
                return Ok(());
            }
            debug!(%kafka_partition, "another process owns the kafka partition");
            self.sleep_about(patience)?;
        }
    }

    /// Whether an owner answers within the patience, or another process claims meanwhile.
    fn an_owner_answers(&self, executor: &Executor, control: &mut Control) -> Result<bool, SpeedError> {
        let asked_by = self.shared.parts.name.clone();
        let request = ControlRecord::CutRequest { asked_by, through: Offset::START };
        let request = executor.send(CONTROL, &request.encode())?;
        let clock = &self.shared.parts.clock;
        let deadline = clock.monotonic().saturating_add(self.shared.settings.answer_patience);
        loop {
            control.read(&self.shared.parts.log, self.kafka_partition)?;
            if control.newest_answer() >= Some(request) {
                return Ok(true);
            }
            if clock.monotonic() >= deadline {
                return Ok(false);
            }
            self.sleep(POLL_INTERVAL)?;
        }
    }

    /// Waits between half of `duration` and one and a half times as long. The name of the process and the time of its clock
    /// decide, so that no two processes wait equally long again and again.
    fn sleep_about(&self, duration: Duration) -> Result<(), SpeedError> {
        let mut hasher = DefaultHasher::new();
        let parts = &self.shared.parts;
        (&parts.name, self.kafka_partition, parts.clock.monotonic()).hash(&mut hasher);
        let share = hasher.finish() % 1_000;
        self.sleep((duration / 2).saturating_add(duration.mul_f64(share as f64 / 1_000.0)))
    }

    /// Waits for a duration.
    ///
    /// # Errors
    /// `ShuttingDown` at a shutdown, at once.
    fn sleep(&self, duration: Duration) -> Result<(), SpeedError> {
        if self.shared.is_shut_down_within(duration) { Err(SpeedError::ShuttingDown) } else { Ok(()) }
    }
}

/// One Kafka partition of the control topic, as far as it was read.
#[derive(Default)]
struct Control {
    next: Option<Offset>,
    view: ControlView,
}

impl Control {
    fn read(&mut self, log: &Log, kafka_partition: KafkaPartition) -> Result<(), LogError> {
        let Self { next, view } = self;
        let end = read_all(log, (CONTROL, kafka_partition), *next, |message| {
            // A record of a later version is skipped.
            if let Ok(record) = ControlRecord::decode(message.payload) {
                view.apply(message.offset, &record);
            }
        })?;
        self.next = Some(end);
        Ok(())
    }

    /// The newest request that an owner has answered, or the newest claim: a new owner answers all requests before it.
    fn newest_answer(&self) -> Option<Offset> {
        self.view.answered.max(self.view.generation.map(Generation::claim))
    }
}

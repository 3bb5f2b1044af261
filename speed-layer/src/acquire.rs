//! Gets a Kafka partition an owner in this process: at once at the start; later only when it may, which is when its
//! last owner was of this process too, or when no owner answers. Must not know what an owner does.
//!
//! Whether there is an owner is asked on the control topic, by a request for a cut that any start satisfies. Nobody's
//! clock counts, and a wrong guess does no harm: a claim fences whoever is there. So that two processes that are both
//! too slow to answer do not take the Kafka partition from each other for ever, a process that was fenced rests, for
//! longer each time, and no two rest equally long.

use std::hash::{BuildHasher, RandomState};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use wye_domain::control::{ControlRecord, ControlView};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::Producer;
use wye_log::reader::read_all;
use wye_log::topics::CONTROL;

use crate::SpeedError;
use crate::execute::{Executor, Shared};
use crate::owner::Owner;
use crate::takeover::take_over;

/// How often an answer is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// How long to rest after a failure that was nobody's claim.
const REST: Duration = Duration::from_secs(1);
/// The rest after being fenced doubles so many times at most.
const DOUBLINGS: u32 = 4;

/// An owner with what carries out its effects.
pub(crate) struct Owned {
    pub(crate) owner: Box<Owner>,
    pub(crate) executor: Executor,
}

/// Why a Kafka partition has no owner in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vacancy {
    /// This process has just started.
    New,
    /// The owner of this generation failed here; where nobody has claimed since, the next one may follow at once.
    Failed { generation: Option<i64> },
    /// A batch run has pinned a start inside its open epoch. As `Failed`, without a rest.
    Overtaken { generation: i64 },
    /// Another process has claimed; for so many times now without a long ownership between.
    Fenced { times: u32 },
}

/// What is needed to acquire a Kafka partition.
pub(crate) struct Acquisition {
    pub(crate) shared: Shared,
    pub(crate) producer: Producer,
    pub(crate) kafka_partition: i32,
    /// How long an owner may take to answer.
    pub(crate) patience: Duration,
    pub(crate) cancel: CancellationToken,
}

impl Acquisition {
    /// Acquires on a thread of its own, so that other Kafka partitions are not held up.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(self, vacancy: Vacancy) -> Result<JoinHandle<Result<Owned, SpeedError>>, SpeedError> {
        std::thread::Builder::new()
            .name(format!("wye-acquire-{}", self.kafka_partition))
            .spawn(move || self.acquire(vacancy))
            .map_err(SpeedError::Thread)
    }

    fn acquire(self, vacancy: Vacancy) -> Result<Owned, SpeedError> {
        let kafka_partition = self.kafka_partition;
        let mut executor = Executor::new(&self.shared, self.producer.clone(), kafka_partition);
        self.wait_until_free(&executor, vacancy)?;
        let owner = Box::new(take_over(&self.shared, &mut executor, kafka_partition, &self.cancel)?);
        Ok(Owned { owner, executor })
    }

    fn wait_until_free(&self, executor: &Executor, vacancy: Vacancy) -> Result<(), SpeedError> {
        let (last, rest) = match vacancy {
            Vacancy::New => return Ok(()),
            Vacancy::Overtaken { generation } => (Some(generation), Duration::ZERO),
            Vacancy::Failed { generation } => (generation, REST),
            Vacancy::Fenced { times } => (None, self.patience * (1u32 << times.min(DOUBLINGS))),
        };
        let mut control = Control::default();
        let mut asked = 0;
        self.rest(rest, asked)?;
        loop {
            control.read(&self.shared.log, self.kafka_partition)?;
            if control.view.generation == last {
                return Ok(());
            }
            if !self.somebody_answers(executor, &mut control)? {
                info!(kafka_partition = self.kafka_partition, "no owner answers; taking the kafka partition");
                return Ok(());
            }
            asked += 1;
            debug!(kafka_partition = self.kafka_partition, asked, "another process owns the kafka partition");
            self.rest(self.patience, asked)?;
        }
    }

    /// Whether an owner answers within the patience, or somebody claims meanwhile.
    fn somebody_answers(&self, executor: &Executor, control: &mut Control) -> Result<bool, SpeedError> {
        let request = ControlRecord::CutRequest { asked_by: self.shared.name(), through: 0 };
        let request = executor.send(CONTROL, &request.encode())?;
        let deadline = Instant::now() + self.patience;
        loop {
            control.read(&self.shared.log, self.kafka_partition)?;
            if control.view.answered.max(control.view.generation) >= Some(request) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.sleep(LOOK)?;
        }
    }

    /// Rests for `around`, give or take a half: another share each time.
    fn rest(&self, around: Duration, turn: u32) -> Result<(), SpeedError> {
        let place = (self.kafka_partition, turn);
        let share = RandomState::new().hash_one(place) % 1_000;
        self.sleep(around / 2 + around.mul_f64(share as f64 / 1_000.0))
    }

    fn sleep(&self, duration: Duration) -> Result<(), SpeedError> {
        let cancelled = async { tokio::time::timeout(duration, self.cancel.cancelled()).await };
        if self.cancel.is_cancelled() || self.shared.handle.block_on(cancelled).is_ok() {
            return Err(SpeedError::Stopping);
        }
        Ok(())
    }
}

/// One Kafka partition of the control topic, as far as it was read.
#[derive(Default)]
struct Control {
    next: Option<i64>,
    view: ControlView,
}

impl Control {
    fn read(&mut self, log: &Log, kafka_partition: i32) -> Result<(), LogError> {
        let Self { next, view } = self;
        let end = read_all(log, (CONTROL, kafka_partition), *next, |message| {
            *next = Some(message.offset + 1);
            // A record of a later version is skipped.
            if let Ok(record) = ControlRecord::decode(message.payload) {
                view.apply(message.offset, &record);
            }
        })?;
        self.next = Some(end);
        Ok(())
    }
}

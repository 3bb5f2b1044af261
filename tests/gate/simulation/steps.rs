//! The generator: a seed makes a setup and a list of steps, without looking at the world. Each step carries a seed of its
//! own for its details, so that a history can be run again with some of its steps left out.

use std::fmt;

use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::versions::{DAY, SECOND, VERSIONS};

/// What holds for all of a history.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) kafka_partitions: usize,
    /// How far back duplicates are detected, in µs of ingest time.
    pub(crate) duplicate_window: i64,
    /// Whether readings before 1990 are accepted.
    pub(crate) accepts_early: bool,
    /// Whether some producer sends devices to any Kafka partition.
    pub(crate) is_spread: bool,
    /// Whether records are damaged on their way into the log.
    pub(crate) is_damaged: bool,
    /// How probable it is that a reading was sent before.
    pub(crate) resent: f64,
    /// The version that the processes start with.
    pub(crate) version: usize,
    /// How probable it is that a step ends with a pause or a crash.
    pub(crate) disturbance: f64,
}

/// One step of a history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// Which Kafka partition, where it is about one.
    pub(crate) kafka_partition: usize,
    pub(crate) action: Action,
    /// For the details.
    pub(crate) seed: u64,
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// So many messages are sent.
    Send(usize),
    /// An offset that holds nothing, or nothing readable.
    Hole,
    /// So many seconds pass.
    Wait(i64),
    /// A process takes the Kafka partition over, or continues with it.
    TakeOver(Slot, Extent),
    /// A process claims the Kafka partition, another one that owns it works on, and the first continues.
    Overlap(Slot, Task, Extent),
    /// The owners and a serving process bring everything into answers, and these are compared.
    CatchUp(Slot),
    /// A process that owns the Kafka partition, or owned it, works.
    Work(Who, Task, Extent),
    /// A process of the speed layer crashes.
    Crash(Slot),
    /// Processes that start from now on have this configuration.
    Deploy(usize),
    /// The archiver archives.
    Archive,
    /// A batch run starts, or continues.
    Batch(Slot, Extent),
    /// A batch run crashes.
    CrashBatch(Slot),
    /// A serving process follows the realtime views.
    Tail(Slot, Extent),
    /// A serving process asks the log for its ends.
    AskEnds(Slot),
    /// A serving process looks for a new batch view.
    LookForView(Slot),
    /// A serving process starts again.
    RestartServing(Slot),
    /// The answers of a serving process are compared.
    Compare(Slot),
    /// The next record of the realtime views is damaged.
    Damage,
    /// Somebody with a later version writes a control record.
    LaterControlRecord,
}

/// Which of two processes of a kind.
pub(crate) type Slot = usize;

/// Which process of the speed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The newest owner.
    Owner,
    /// One that was replaced and does not know it.
    Replaced,
}

/// What an owner does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Reads up to so many offsets.
    Read(usize),
    Flush,
    Epoch,
    /// Reads the control topic.
    Listen,
}

/// How far a process gets in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    All,
    /// It stops after so many effects and continues later.
    Paused(usize),
    /// It crashes after so many effects.
    Crashed(usize),
}

/// The history of a seed.
pub(crate) fn history(seed: u64) -> (Setup, Vec<Step>) {
    let mut random = StdRng::seed_from_u64(seed);
    let setup = Setup {
        kafka_partitions: [1, 1, 2, 3][random.random_range(0..4)],
        duplicate_window: if random.random_bool(0.6) {
            30 * DAY
        } else {
            random.random_range(0..90) * SECOND
        },
        accepts_early: random.random_bool(0.5),
        is_spread: random.random_bool(0.12),
        is_damaged: random.random_bool(0.25),
        resent: [0.05, 0.2, 0.5][random.random_range(0..3)],
        version: random.random_range(0..VERSIONS.len()),
        // Some histories have no crashes and no pauses, so that long undisturbed ones are among them too.
        disturbance: [0.0, 0.2, 0.5][random.random_range(0..3)],
    };
    let mix = Mix::new(&mut random, &setup);
    let count = random.random_range(10..80);
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        let kafka_partition = random.random_range(0..setup.kafka_partitions);
        let action = mix.action(&mut random, setup.disturbance);
        steps.push(Step { kafka_partition, action, seed: random.random() });
    }
    (setup, steps)
}

/// The kinds of actions.
#[derive(Clone, Copy)]
enum Kind {
    Send,
    Hole,
    Wait,
    LongWait,
    Work,
    TakeOver,
    Overlap,
    Crash,
    Deploy,
    Archive,
    Batch,
    CrashBatch,
    Tail,
    AskEnds,
    LookForView,
    RestartServing,
    Compare,
    CatchUp,
    Damage,
    LaterControlRecord,
}

/// How often each kind happens in an ordinary history, beside the others.
const KINDS: [(Kind, f64); 20] = [
    (Kind::Send, 180.0),
    (Kind::Hole, 10.0),
    (Kind::Wait, 20.0),
    (Kind::LongWait, 5.0),
    (Kind::Work, 295.0),
    (Kind::TakeOver, 30.0),
    (Kind::Overlap, 10.0),
    (Kind::Crash, 8.0),
    (Kind::Deploy, 10.0),
    (Kind::Archive, 62.0),
    (Kind::Batch, 90.0),
    (Kind::CrashBatch, 6.0),
    (Kind::Tail, 94.0),
    (Kind::AskEnds, 40.0),
    (Kind::LookForView, 40.0),
    (Kind::RestartServing, 6.0),
    (Kind::Compare, 44.0),
    (Kind::CatchUp, 30.0),
    (Kind::Damage, 5.0),
    (Kind::LaterControlRecord, 2.0),
];

/// How often each task happens in an ordinary history, beside the others.
const TASKS: [(Task, f64); 4] =
    [(Task::Read(0), 40.0), (Task::Flush, 24.0), (Task::Epoch, 12.0), (Task::Listen, 24.0)];

/// How often each kind and each task happens in one history. Most histories differ much from the ordinary one: what is rare
/// with all kinds together is frequent without some of them. Source: Groce et al., "Swarm Testing", ISSTA 2012.
struct Mix {
    kinds: WeightedIndex<f64>,
    tasks: WeightedIndex<f64>,
}

impl Mix {
    fn new(random: &mut StdRng, setup: &Setup) -> Self {
        let is_ordinary = random.random_bool(0.3);
        let deploys = random.random_bool(0.5);
        let mut factor = || if is_ordinary { 1.0 } else { [0.0, 0.3, 1.0, 3.0][random.random_range(0..4)] };
        let kinds = KINDS.map(|(kind, weight)| {
            let is_possible = match kind {
                Kind::Deploy => deploys,
                Kind::Damage | Kind::LaterControlRecord => setup.is_damaged,
                Kind::Crash | Kind::CrashBatch => setup.disturbance > 0.0,
                _ => true,
            };
            match kind {
                // Without these nothing happens.
                Kind::Send | Kind::Work => weight * f64::max(factor(), 0.3),
                _ if is_possible => weight * factor(),
                _ => 0.0,
            }
        });
        let tasks = TASKS.map(|(_, weight)| weight * f64::max(factor(), 0.3));
        Self { kinds: weighted(&kinds), tasks: weighted(&tasks) }
    }

    fn action(&self, random: &mut StdRng, disturbance: f64) -> Action {
        let slot = random.random_range(0..2);
        let extent = extent(random, disturbance);
        match KINDS[self.kinds.sample(random)].0 {
            Kind::Send => Action::Send(random.random_range(1..4)),
            Kind::Hole => Action::Hole,
            Kind::Wait => Action::Wait(random.random_range(1..60)),
            Kind::LongWait => Action::Wait(random.random_range(60..4_000)),
            Kind::Work => {
                let who = if random.random_bool(0.75) { Who::Owner } else { Who::Replaced };
                Action::Work(who, self.task(random), extent)
            }
            Kind::TakeOver => Action::TakeOver(slot, extent),
            Kind::Overlap => Action::Overlap(slot, self.task(random), extent),
            Kind::Crash => Action::Crash(slot),
            Kind::Deploy => Action::Deploy(random.random_range(0..VERSIONS.len())),
            Kind::Archive => Action::Archive,
            Kind::Batch => Action::Batch(slot, extent),
            Kind::CrashBatch => Action::CrashBatch(slot),
            Kind::Tail => Action::Tail(slot, extent),
            Kind::AskEnds => Action::AskEnds(slot),
            Kind::LookForView => Action::LookForView(slot),
            Kind::RestartServing => Action::RestartServing(slot),
            Kind::Compare => Action::Compare(slot),
            Kind::CatchUp => Action::CatchUp(slot),
            Kind::Damage => Action::Damage,
            Kind::LaterControlRecord => Action::LaterControlRecord,
        }
    }

    fn task(&self, random: &mut StdRng) -> Task {
        match TASKS[self.tasks.sample(random)].0 {
            Task::Read(_) => Task::Read(random.random_range(1..8)),
            other => other,
        }
    }
}

fn weighted(weights: &[f64]) -> WeightedIndex<f64> {
    WeightedIndex::new(weights).expect("sending and working are always possible")
}

fn extent(random: &mut StdRng, disturbance: f64) -> Extent {
    if !random.random_bool(disturbance) {
        return Extent::All;
    }
    // Most steps have few effects.
    let effects = random.random_range(0..6).min(random.random_range(1..6));
    if random.random_bool(0.6) { Extent::Paused(effects) } else { Extent::Crashed(effects) }
}

impl Extent {
    /// How many effects are carried out.
    pub(crate) fn effects(self) -> usize {
        match self {
            Self::All => usize::MAX,
            Self::Paused(effects) | Self::Crashed(effects) => effects,
        }
    }

    pub(crate) fn is_crash(self) -> bool {
        matches!(self, Self::Crashed(_))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.kafka_partition;
        match self.action {
            Action::Send(count) => write!(f, "{count} messages are sent to Kafka partition {p}"),
            Action::Hole => write!(f, "an offset of Kafka partition {p} holds no message"),
            Action::Wait(seconds) => write!(f, "{seconds} s pass"),
            Action::TakeOver(slot, extent) => {
                write!(f, "speed process {slot} takes Kafka partition {p} over{extent}")
            }
            Action::Overlap(slot, task, extent) => {
                write!(
                    f,
                    "speed process {slot} takes Kafka partition {p} over while another one {task}{extent}"
                )
            }
            Action::CatchUp(slot) => write!(f, "owners and serving process {slot} catch up"),
            Action::Work(who, task, extent) => {
                let who = if who == Who::Owner { "the owner" } else { "a replaced owner" };
                write!(f, "{who} of Kafka partition {p} {task}{extent}")
            }
            Action::Crash(slot) => write!(f, "speed process {slot} of Kafka partition {p} crashes"),
            Action::Deploy(version) => write!(f, "processes that start from now on have version {version}"),
            Action::Archive => write!(f, "the archiver archives some of Kafka partition {p}"),
            Action::Batch(slot, extent) => write!(f, "batch run {slot} works{extent}"),
            Action::CrashBatch(slot) => write!(f, "batch run {slot} crashes"),
            Action::Tail(slot, extent) => {
                write!(f, "serving process {slot} follows the realtime views{extent}")
            }
            Action::AskEnds(slot) => write!(f, "serving process {slot} asks the log for its ends"),
            Action::LookForView(slot) => write!(f, "serving process {slot} looks for a new batch view"),
            Action::RestartServing(slot) => write!(f, "serving process {slot} starts again"),
            Action::Compare(slot) => write!(f, "the answers of serving process {slot} are compared"),
            Action::Damage => write!(f, "the next record of realtime-views {p} is damaged"),
            Action::LaterControlRecord => write!(f, "a later version writes a record to control {p}"),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(count) => write!(f, "reads up to {count} offsets"),
            Self::Flush => f.write_str("flushes"),
            Self::Epoch => f.write_str("starts an epoch if it may"),
            Self::Listen => f.write_str("reads the control topic"),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Paused(effects) => write!(f, ", paused after {effects} effects"),
            Self::Crashed(effects) => write!(f, ", crashing after {effects} effects"),
        }
    }
}

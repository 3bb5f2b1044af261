//! What an answer covers of the log: up to which offset, what is missing, and why. Pure.
//!
//! `complete` is strict: it is false as soon as a reading is known to be in the log and not in the answer. Under a
//! steady stream the last flush is always on its way, so every answer also says how far behind it is.

mod log_end;

use wye_domain::horizon::Horizon;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::position::Position;
use wye_domain::time::{Micros, Span};
use wye_tables::views::ViewVersion;

pub use log_end::{Asked, LogEnd};

use crate::realtime::Flaw;

/// Why an answer does not hold everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The realtime views are still being read after the start.
    Starting,
    /// Rows were made with other metric definitions and are left out.
    OtherDefinitions,
    /// Realtime rows are not what they should be.
    Flawed(Flaw),
    /// The log does not answer where it ends.
    LogEndUnknown,
    /// Readings of the log are not in the answer yet.
    Behind,
}

impl Reason {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::OtherDefinitions => "other_definitions",
            Self::Flawed(Flaw::Gap) => "gap",
            Self::Flawed(Flaw::Damaged) => "damaged",
            Self::Flawed(Flaw::Rebuilding) => "rebuilding",
            Self::LogEndUnknown => "log_end_unknown",
            Self::Behind => "behind",
        }
    }
}

/// What an answer covers of one Kafka partition. Offsets are those of `readings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionCoverage {
    /// Which one.
    pub kafka_partition: KafkaPartition,
    /// Readings below are from the batch view; `None` without one.
    pub horizon: Option<Offset>,
    /// Readings below are in the answer.
    pub covered: Offset,
    /// The offset that the next record gets; `None` where the log does not answer.
    pub log_end: Option<Offset>,
    /// Since when the oldest missing record has been in the log; `None` where nothing is missing.
    pub lacking_since: Option<Micros>,
    /// The owner that writes its realtime rows; `None` before the first.
    pub generation: Option<Generation>,
    /// Why it is incomplete.
    pub reason: Option<Reason>,
}

impl PartitionCoverage {
    /// How many records of the log are not in the answer; a record may hold many readings.
    pub fn lacking(&self) -> Option<u64> {
        self.log_end.map(|end| end.since(self.covered))
    }

    /// How long the oldest missing record has been in the log at `now`; nothing where none is missing.
    pub fn lacking_for(&self, now: Micros) -> Span {
        self.lacking_since.map_or(Span::ZERO, |since| (now - since).max(Span::ZERO))
    }
}

/// What an answer covers of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The version of the batch view; `None` without one.
    pub version: Option<ViewVersion>,
    /// The batch view's horizon; `None` without one.
    pub horizon: Option<Horizon>,
    /// Ascending.
    pub kafka_partitions: Vec<PartitionCoverage>,
    /// The time of the answer.
    pub now: Micros,
}

impl Coverage {
    /// Whether the answer holds every reading that is known to be in the log, by one batch view and all epochs from
    /// its horizon on (**HOR-3**).
    pub fn complete(&self) -> bool {
        self.reason().is_none()
    }

    /// Why it does not.
    pub fn reason(&self) -> Option<Reason> {
        self.kafka_partitions.iter().find_map(|partition| partition.reason)
    }

    /// Up to where the answer holds everything.
    pub fn covered(&self) -> Position {
        self.kafka_partitions.iter().map(|partition| (partition.kafka_partition, partition.covered)).collect()
    }

    /// What the answer covers of a Kafka partition; `None` where the log does not have it.
    pub fn of(&self, kafka_partition: KafkaPartition) -> Option<&PartitionCoverage> {
        self.kafka_partitions.iter().find(|known| known.kafka_partition == kafka_partition)
    }

    /// Whether the answer holds everything below a position.
    pub fn covers(&self, position: &Position) -> bool {
        position.iter().all(|(kafka_partition, next)| {
            self.of(kafka_partition).is_some_and(|partition| partition.covered >= next)
        })
    }

    /// The horizon as a position; empty without a batch view.
    pub fn horizon_position(&self) -> Position {
        self.horizon.iter().flat_map(Horizon::iter).collect()
    }

    /// How many records of the log are not in the answer; `None` where the log does not answer.
    pub fn lacking(&self) -> Option<u64> {
        self.kafka_partitions.iter().map(PartitionCoverage::lacking).sum()
    }

    /// The answer holds everything that was in the log at this time; `None` where that is not known.
    pub fn held_at(&self) -> Option<Micros> {
        let is_known = |partition: &PartitionCoverage| {
            matches!(partition.reason, None | Some(Reason::Behind | Reason::Flawed(Flaw::Rebuilding)))
        };
        self.kafka_partitions.iter().all(is_known).then(|| self.now - self.lacking_for())
    }

    /// Whether the batch view alone holds everything that is known to be in the log.
    pub fn is_all_in_batch_view(&self) -> bool {
        let mut partitions = self.kafka_partitions.iter();
        self.complete() && partitions.all(|partition| partition.horizon == partition.log_end)
    }

    /// How long the oldest missing record has been in the log; nothing where none is missing.
    pub fn lacking_for(&self) -> Span {
        let each = self.kafka_partitions.iter().map(|partition| partition.lacking_for(self.now));
        each.max().unwrap_or(Span::ZERO)
    }
}

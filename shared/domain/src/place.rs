//! Places in the log: Kafka partitions, offsets and generations. Must not know what records contain.
//!
//! Stability contract: stored and shown as plain numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a Kafka partition of the readings; the other topics that are split by it use the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KafkaPartition(pub i32);

impl KafkaPartition {
    /// All Kafka partitions of a topic that has this many.
    pub fn all(count: i32) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator + Clone {
        (0..count).map(Self)
    }
}

/// An offset in one Kafka partition of one topic: of a record, or of the record that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl Offset {
    /// The first offset that a log ever has.
    pub const START: Self = Self(0);

    /// The offset after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// How many offsets there are from `start` on below this one; 0 where it lies before `start`.
    #[must_use]
    pub const fn since(self, start: Self) -> u64 {
        if self.0 > start.0 { self.0.abs_diff(start.0) } else { 0 }
    }
}

/// The n-th owner of a Kafka partition: the offset of its claim in the control topic. The newest one fences the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub Offset);

impl Generation {
    /// The offset of the claim in the control topic.
    #[must_use]
    pub const fn claim(self) -> Offset {
        self.0
    }
}

impl fmt::Display for KafkaPartition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

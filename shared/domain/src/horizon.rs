//! The horizon: how far a batch view covers the readings. Must not know how a horizon is chosen ([`crate::epoch`]).
//!
//! Laws: a horizon never goes back, and never loses a Kafka partition ([`Horizon::follows`]). A Kafka partition that it
//! does not name is not covered at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::place::{KafkaPartition, Offset};

/// For each Kafka partition of the readings, the offset below which everything is covered.
///
/// Stability contract: stored as a map of plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Horizon(BTreeMap<KafkaPartition, Offset>);

impl Horizon {
    /// The offset below which a Kafka partition is covered; `None` where the horizon does not name it.
    #[must_use]
    pub fn get(&self, kafka_partition: KafkaPartition) -> Option<Offset> {
        self.0.get(&kafka_partition).copied()
    }

    /// The same; the start of the log where the horizon does not name it.
    #[must_use]
    pub fn offset(&self, kafka_partition: KafkaPartition) -> Offset {
        self.get(kafka_partition).unwrap_or(Offset::START)
    }

    /// Sets the offset of one Kafka partition.
    pub fn set(&mut self, kafka_partition: KafkaPartition, offset: Offset) {
        self.0.insert(kafka_partition, offset);
    }

    /// Each Kafka partition that it names with its offset, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (KafkaPartition, Offset)> + '_ {
        self.0.iter().map(|(kafka_partition, offset)| (*kafka_partition, *offset))
    }

    /// Whether it names no Kafka partition.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether everything below `other` is covered.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(kafka_partition, offset)| self.offset(kafka_partition) >= offset)
    }

    /// Whether it may come after `previous`: it goes back in no Kafka partition and loses none.
    #[must_use]
    pub fn follows(&self, previous: &Self) -> bool {
        previous
            .iter()
            .all(|(kafka_partition, offset)| self.get(kafka_partition).is_some_and(|own| own >= offset))
    }
}

impl FromIterator<(KafkaPartition, Offset)> for Horizon {
    fn from_iter<T: IntoIterator<Item = (KafkaPartition, Offset)>>(offsets: T) -> Self {
        Self(offsets.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn horizons() -> impl Strategy<Value = Horizon> {
        let offsets = prop::collection::btree_map(0..4, 0..6i64, 0..4);
        offsets.prop_map(|offsets| {
            let typed = offsets.into_iter();
            typed.map(|(kafka_partition, offset)| (KafkaPartition(kafka_partition), Offset(offset))).collect()
        })
    }

    proptest! {
        #[test]
        fn following_is_an_order(a in horizons(), b in horizons(), c in horizons()) {
            prop_assert!(a.follows(&a));
            prop_assert!(!(a.follows(&b) && b.follows(&a)) || a == b);
            prop_assert!(!(a.follows(&b) && b.follows(&c)) || a.follows(&c));
            prop_assert!(!a.follows(&b) || a.covers(&b));
        }
    }

    #[test]
    fn an_unnamed_kafka_partition_is_not_covered() {
        let horizon = Horizon::from_iter([(KafkaPartition(1), Offset(5))]);
        assert_eq!(horizon.offset(KafkaPartition(0)), Offset::START);
        assert!(!horizon.covers(&Horizon::from_iter([(KafkaPartition(0), Offset(1))])));
        assert!(!Horizon::default().follows(&horizon));
        assert_eq!(serde_json::to_string(&horizon).unwrap(), r#"{"1":5}"#);
        assert_eq!(serde_json::from_str::<Horizon>(r#"{"1":5}"#).unwrap(), horizon);
    }
}

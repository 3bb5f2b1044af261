//! Which Kafka partitions this process owns, for readiness checks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wye_domain::place::KafkaPartition;

/// Whether this process owns a Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It is taking it over, for the first time or after a failure.
    Acquiring,
    /// It owns it.
    Owned,
    /// Another process owns it; this one takes it over once no owner answers.
    Elsewhere,
}

/// Whether this process owns each Kafka partition. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Ownerships {
    by_partition: Arc<Mutex<BTreeMap<KafkaPartition, Ownership>>>,
}

impl Ownerships {
    /// The state now.
    pub fn get(&self) -> BTreeMap<KafkaPartition, Ownership> {
        self.locked().clone()
    }

    pub(super) fn set(&self, kafka_partition: KafkaPartition, ownership: Ownership) {
        self.locked().insert(kafka_partition, ownership);
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<KafkaPartition, Ownership>> {
        self.by_partition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

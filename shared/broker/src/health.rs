//! Whether the storage of the embedded broker takes what it is given, and gives back what it took.
//!
//! This file only looks; what happens is decided in [`crate::partition_log`] and [`crate::storage`].

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;

/// How often a disk that was full is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Something that a person must see to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing can be written until there is room. Writes resume by themselves.
    Full {
        /// What the system says.
        reason: String,
    },
    /// A Kafka partition takes no more writes until the broker is started again, or has records that cannot be read.
    Partition {
        /// The topic.
        topic: String,
        /// The Kafka partition.
        kafka_partition: usize,
        /// What happened.
        reason: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { reason } => {
                write!(f, "the log takes no writes until there is room on its disk: {reason}")
            }
            Self::Partition { topic, kafka_partition, reason } => {
                write!(f, "Kafka partition {kafka_partition} of topic {topic}: {reason}")
            }
        }
    }
}

/// Tells what is wrong with a broker. It does not keep the broker alive.
#[derive(Clone, Debug)]
pub struct HealthWatch(Weak<Catalog>);

impl HealthWatch {
    pub(crate) fn new(catalog: &Arc<Catalog>) -> Self {
        Self(Arc::downgrade(catalog))
    }

    /// What is wrong now; nothing in good times. Never waits for the disk.
    pub fn troubles(&self) -> Vec<Trouble> {
        let Some(catalog) = self.0.upgrade() else { return Vec::new() };
        let full = catalog.shortage().map(|reason| Trouble::Full { reason });
        let partitions = catalog.troubles().into_iter().map(|trouble| Trouble::Partition {
            topic: trouble.topic,
            kafka_partition: trouble.kafka_partition,
            reason: trouble.reason,
        });
        full.into_iter().chain(partitions).collect()
    }
}

/// Looks for room while there is none, so that [`HealthWatch`] sees it without a write.
pub(crate) async fn look_for_room(catalog: Arc<Catalog>, cancel: CancellationToken) {
    while cancel.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if catalog.shortage().is_some() {
            let catalog = Arc::clone(&catalog);
            // A panic in there shows in the log; the next look is a second away.
            let _ = tokio::task::spawn_blocking(move || catalog.look_for_room()).await;
        }
    }
}

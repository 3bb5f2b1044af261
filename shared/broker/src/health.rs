//! The health of the storage: whether writes are possible, and whether stored records can be read.
//!
//! It only reports; [`crate::partition_log`] and [`crate::storage`] decide what happens.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wye_domain::place::KafkaPartition;

use crate::catalog::Catalog;

/// How often a full disk is checked for free space.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A problem that a person must solve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing can be written until the disk has free space. Writes resume by themselves.
    Full {
        /// The error of the operating system.
        reason: String,
    },
    /// A Kafka partition accepts no more writes until the broker is restarted, or has records that cannot be read.
    Partition {
        /// The topic.
        topic: String,
        /// The Kafka partition.
        kafka_partition: KafkaPartition,
        /// What happened.
        reason: String,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { reason } => {
                write!(f, "the log accepts no writes until its disk has free space: {reason}")
            }
            Self::Partition { topic, kafka_partition, reason } => {
                write!(f, "Kafka partition {kafka_partition} of topic {topic}: {reason}")
            }
        }
    }
}

/// Reports the problems of a broker. It does not keep the broker open.
#[derive(Clone, Debug)]
pub struct HealthWatch(Weak<Catalog>);

impl HealthWatch {
    pub(crate) fn new(catalog: &Arc<Catalog>) -> Self {
        Self(Arc::downgrade(catalog))
    }

    /// The problems now; empty while there are none. Never waits for the disk.
    pub fn troubles(&self) -> Vec<Trouble> {
        let Some(catalog) = self.0.upgrade() else { return Vec::new() };
        let full = catalog.shortage().map(|reason| Trouble::Full { reason });
        full.into_iter().chain(catalog.troubles()).collect()
    }
}

/// Checks a full disk for free space until shutdown, so that [`HealthWatch`] recovers without a write.
pub(crate) async fn watch_for_space(catalog: Arc<Catalog>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await.is_some() {
        if catalog.shortage().is_some() {
            let catalog = Arc::clone(&catalog);
            // A panic in the task is logged; the next check follows a second later.
            let _ = tokio::task::spawn_blocking(move || catalog.check_for_space()).await;
        }
    }
}

//! The error of the speed layer, by operation.

use datafusion::error::DataFusionError;
use wye_domain::{DomainError, ErrorKind};
use wye_log::LogError;

/// What can go wrong in the speed layer.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A batch of readings cannot be evaluated.
    #[error("cannot evaluate the metric definitions: {0}")]
    Evaluate(#[from] DataFusionError),
    /// A stored record does not decode.
    #[error("kafka partition {kafka_partition} of {topic}: {source}")]
    Stored {
        /// Which topic.
        topic: &'static str,
        /// Which Kafka partition.
        kafka_partition: i32,
        /// What is wrong with it.
        source: DomainError,
    },
    /// Another owner has taken the Kafka partition over.
    #[error("another speed layer has taken kafka partition {kafka_partition}")]
    Fenced {
        /// Which one.
        kafka_partition: i32,
    },
    /// A batch run has pinned a start inside of what an epoch holds; the epoch must be rebuilt.
    #[error("kafka partition {kafka_partition}: a batch run has pinned {start}, inside of an epoch")]
    Overtaken {
        /// Which one.
        kafka_partition: i32,
        /// The start that was announced by somebody else.
        start: i64,
    },
    /// The owner of a Kafka partition has panicked.
    #[error("the owner of kafka partition {kafka_partition} has panicked: {message}")]
    Panicked {
        /// Which one.
        kafka_partition: i32,
        /// What the panic says.
        message: String,
    },
    /// The speed layer stops.
    #[error("the speed layer stops")]
    Stopping,
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl SpeedError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Log(error) => error.kind(),
            Self::Evaluate(_) | Self::Thread(_) | Self::Panicked { .. } => ErrorKind::Internal,
            Self::Stopping => ErrorKind::Unavailable,
            Self::Stored { .. } => ErrorKind::Corrupt,
            Self::Fenced { .. } | Self::Overtaken { .. } => ErrorKind::Conflict,
        }
    }
}

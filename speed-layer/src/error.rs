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
    #[error(
        "another speed layer has taken over kafka partition {kafka_partition}; this one stops reading it"
    )]
    Fenced {
        /// Which one.
        kafka_partition: i32,
    },
    /// The batch layer went on past the open epoch; the owner must rebuild from the horizon.
    #[error("kafka partition {kafka_partition}: a start at {start} lies inside the open epoch; rebuilding")]
    Overtaken {
        /// Which one.
        kafka_partition: i32,
        /// The start that was announced by somebody else.
        start: i64,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl SpeedError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Log(error) => error.kind(),
            Self::Evaluate(_) | Self::Thread(_) => ErrorKind::Internal,
            Self::Stored { .. } => ErrorKind::Corrupt,
            Self::Fenced { .. } | Self::Overtaken { .. } => ErrorKind::Conflict,
        }
    }
}

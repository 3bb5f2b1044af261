//! The error of the speed layer, by operation.

use std::any::Any;

use datafusion::error::DataFusionError;
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};
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
    /// Another process has claimed the Kafka partition, so that this owner is fenced.
    #[error("another process owns kafka partition {kafka_partition} now")]
    Fenced {
        /// Which one.
        kafka_partition: KafkaPartition,
    },
    /// A batch run has pinned an epoch start below the position of the owner, so that the epoch must be rebuilt.
    #[error("a batch run has pinned offset {start} of kafka partition {kafka_partition}, inside an epoch")]
    Overtaken {
        /// Which one.
        kafka_partition: KafkaPartition,
        /// The start that was pinned.
        start: Offset,
    },
    /// The owner of a Kafka partition has panicked.
    #[error("the owner of kafka partition {kafka_partition} has panicked: {message}")]
    Panicked {
        /// Which one.
        kafka_partition: KafkaPartition,
        /// The message of the panic.
        message: String,
    },
    /// The speed layer is shutting down.
    #[error("the speed layer is shutting down")]
    ShuttingDown,
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl SpeedError {
    /// The error of an owner that has panicked.
    pub(crate) fn panicked(kafka_partition: KafkaPartition, panic: &(dyn Any + Send)) -> Self {
        Self::Panicked { kafka_partition, message: panic_message(panic).to_owned() }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Log(error) => error.kind(),
            Self::Evaluate(_) | Self::Thread(_) | Self::Panicked { .. } => ErrorKind::Internal,
            Self::ShuttingDown => ErrorKind::Unavailable,
            Self::Fenced { .. } | Self::Overtaken { .. } => ErrorKind::Conflict,
        }
    }
}

/// The message of a panic, where it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

//! The error of this crate, by operation, and what a caller can do about it.

use std::ops::Range;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};

/// What can go wrong between Wye and its log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The Kafka client rejects its settings.
    #[error("cannot set up the Kafka client: {source}")]
    Configure {
        /// The error of librdkafka.
        source: Box<KafkaError>,
    },
    /// A property of the Kafka client is unknown, has an invalid value, or may not be set.
    #[error("{property:?} in [log] client: {problem}")]
    Setting {
        /// The property.
        property: String,
        /// What is wrong. Never the value, which may be a secret.
        problem: String,
    },
    /// Kafka rejects the connection: encryption or authentication is not set up as Kafka expects.
    #[error("Kafka at {bootstrap_servers} rejects the connection: {reason}; check {check} in [log] client")]
    Refused {
        /// The address of Kafka.
        bootstrap_servers: String,
        /// The error of librdkafka.
        reason: String,
        /// The properties that may be the cause.
        check: &'static str,
    },
    /// The broker does not answer a request for metadata or offsets, or answers with an error.
    #[error("cannot ask Kafka at {bootstrap_servers} for {what}: {source}")]
    Ask {
        /// The address of Kafka.
        bootstrap_servers: String,
        /// What was asked for.
        what: String,
        /// The error of librdkafka.
        source: Box<KafkaError>,
    },
    /// A topic cannot be created or changed, or records cannot be deleted.
    #[error("cannot {what}: {reason}")]
    Administer {
        /// The operation with its topic.
        what: String,
        /// The broker's answer.
        reason: String,
        /// What the caller can do about it.
        kind: ErrorKind,
    },
    /// A topic exists with another number of Kafka partitions than configured.
    #[error(
        "topic {topic:?} has {found} Kafka partitions, but the configuration says {expected}; set the configured \
         number to {found}, or delete the topic if its records are not needed"
    )]
    PartitionCount {
        /// Which topic.
        topic: String,
        /// How many it has.
        found: i32,
        /// How many were configured.
        expected: i32,
    },
    /// An existing topic has settings with which readings are lost or times are wrong.
    #[error("topic {topic:?} cannot be used: {problems}; change it with: {command}")]
    TopicSettings {
        /// Which topic.
        topic: String,
        /// Each setting with its value, the required value, and why.
        problems: String,
        /// The Apache Kafka command that changes them.
        command: String,
    },
    /// The producer's queue is full: await deliveries, then retry.
    #[error("the producer queue is full")]
    QueueFull,
    /// A message was not acknowledged.
    #[error("cannot write to {destination}: {source}")]
    Write {
        /// Topic and Kafka partition, as far as they are known.
        destination: String,
        /// The error of librdkafka.
        source: Box<KafkaError>,
    },
    /// Records cannot be read, and a retry would not help.
    #[error("cannot read topic {topic:?}: {source}")]
    Read {
        /// Which topic.
        topic: String,
        /// The error of librdkafka.
        source: Box<KafkaError>,
    },
    /// A small topic was not read to its end in time: the broker is unreachable, or too slow.
    #[error(
        "no records from {topic:?} partition {kafka_partition} for {seconds} s; check that Kafka at \
         {bootstrap_servers} is running"
    )]
    Stalled {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: KafkaPartition,
        /// How long no record arrived.
        seconds: u64,
        /// The address of Kafka.
        bootstrap_servers: String,
    },
    /// The wanted offset has been deleted. The log now starts at `low`.
    #[error(
        "offset {wanted} of {topic:?} partition {kafka_partition} has been deleted; the log starts at {low}"
    )]
    OffsetGone {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: KafkaPartition,
        /// The offset that was to be read.
        wanted: Offset,
        /// The first offset that can still be read.
        low: Offset,
    },
    /// The wanted offset is past the end of the log: it was taken from another log.
    #[error(
        "offset {wanted} of {topic:?} partition {kafka_partition} is past the end of the log at {high}; \
         was the log deleted or replaced?"
    )]
    OffsetAhead {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: KafkaPartition,
        /// The offset that was to be read.
        wanted: Offset,
        /// The end of the log.
        high: Offset,
    },
    /// The broker has records that no client can decode. The reader skips them: the next call reads from the end of
    /// `offsets` on.
    #[error(
        "the records of {topic:?} partition {kafka_partition} from offset {} to {} cannot be decoded: {reason}",
        offsets.start, offsets.end.0.saturating_sub(1)
    )]
    Unreadable {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: KafkaPartition,
        /// Their offsets; never empty.
        offsets: Range<Offset>,
        /// What is wrong, as the client reports it.
        reason: String,
    },
    /// A wait for the broker was cancelled.
    #[error("cancelled while waiting for Kafka")]
    Cancelled,
}

impl LogError {
    /// What the caller can do about it. Only `Unavailable` is worth a retry.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Configure { .. } | Self::Setting { .. } | Self::Refused { .. } => ErrorKind::Invalid,
            Self::Ask { source, .. } | Self::Write { source, .. } | Self::Read { source, .. } => {
                kind_of(source)
            }
            Self::Administer { kind, .. } => *kind,
            Self::PartitionCount { .. } | Self::TopicSettings { .. } => ErrorKind::Invalid,
            Self::QueueFull | Self::Stalled { .. } | Self::Cancelled => ErrorKind::Unavailable,
            Self::OffsetGone { .. } => ErrorKind::NotFound,
            Self::OffsetAhead { .. } | Self::Unreadable { .. } => ErrorKind::Corrupt,
        }
    }
}

/// The kind of an error of librdkafka.
fn kind_of(error: &KafkaError) -> ErrorKind {
    match error.rdkafka_error_code() {
        Some(code) => kind_of_code(code),
        None => ErrorKind::Internal,
    }
}

/// The kind of a Kafka error code. `Unavailable` where the cause may go away without any change.
pub(crate) fn kind_of_code(code: RDKafkaErrorCode) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match code {
        Code::MessageSizeTooLarge
        | Code::InvalidMessage
        | Code::InvalidMessageSize
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidRequest
        | Code::InvalidArgument
        | Code::PolicyViolation
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::SaslAuthenticationFailed => ErrorKind::Invalid,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => ErrorKind::NotFound,
        Code::OffsetOutOfRange => ErrorKind::NotFound,
        Code::TopicAlreadyExists => ErrorKind::Conflict,
        Code::Fatal | Code::UnknownGroup | Code::NotImplemented | Code::UnsupportedFeature => {
            ErrorKind::Internal
        }
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};
    use wye_domain::ErrorKind;

    use super::LogError;

    #[test]
    fn a_full_queue_and_an_unreachable_broker_are_worth_a_retry() {
        assert_eq!(LogError::QueueFull.kind(), ErrorKind::Unavailable);
        let timed_out = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
        assert_eq!(
            LogError::Write { destination: "readings".to_owned(), source: timed_out.into() }.kind(),
            ErrorKind::Unavailable
        );
    }

    #[test]
    fn a_message_that_is_too_large_is_invalid() {
        let large = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        assert_eq!(
            LogError::Write { destination: "readings".to_owned(), source: large.into() }.kind(),
            ErrorKind::Invalid
        );
    }
}

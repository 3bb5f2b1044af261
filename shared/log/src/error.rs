//! The error of this crate, by operation, and what a caller can do about it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use wye_domain::ErrorKind;

/// What can go wrong between Wye and its log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The Kafka client does not accept its settings.
    #[error("cannot set up the Kafka client: {source}")]
    Configure {
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// A property of the Kafka client is not known, has a value that cannot be used, or may not be set.
    #[error("{property:?} in [log] client: {problem}")]
    Setting {
        /// The property.
        property: String,
        /// What is wrong. Never the value, which may be a secret.
        problem: String,
    },
    /// Kafka and this client do not agree on encryption or on who the client is.
    #[error("Kafka at {bootstrap_servers} refuses the connection: {reason}; check {check} in [log] client")]
    Refused {
        /// Where Kafka was looked for.
        bootstrap_servers: String,
        /// What librdkafka says.
        reason: String,
        /// The properties that it may be due to.
        check: &'static str,
    },
    /// Metadata or offsets cannot be had from the broker.
    #[error("cannot ask Kafka at {bootstrap_servers} for {what}: {source}")]
    Ask {
        /// Where Kafka was looked for.
        bootstrap_servers: String,
        /// What was asked for.
        what: String,
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// A topic is not there and cannot be created, or records cannot be deleted.
    #[error("cannot {what}: {reason}")]
    Administer {
        /// The operation with its topic.
        what: String,
        /// What the broker says.
        reason: String,
        /// What the caller can do about it.
        kind: ErrorKind,
    },
    /// A topic exists with another number of Kafka partitions than configured.
    #[error(
        "topic {topic:?} has {found} Kafka partitions, but the configuration wants {expected}; set the configured \
         number to {found}, or delete the topic if nothing in it is needed"
    )]
    PartitionCount {
        /// Which topic.
        topic: String,
        /// How many it has.
        found: i32,
        /// How many were configured.
        expected: i32,
    },
    /// A topic that is there already has settings that lose readings or mislead.
    #[error("topic {topic:?} cannot be used: {problems}; change it with: {command}")]
    TopicSettings {
        /// Which topic.
        topic: String,
        /// Each setting with what it is, what it must be, and why.
        problems: String,
        /// The command of Apache Kafka that changes them.
        command: String,
    },
    /// The producer's queue is full: await deliveries, then try again.
    #[error("the producer queue is full")]
    QueueFull,
    /// A message was not acknowledged.
    #[error("cannot write to {place}: {source}")]
    Write {
        /// Topic and Kafka partition, as far as known.
        place: String,
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// Records cannot be read, and trying again would not help.
    #[error("cannot read topic {topic:?}: {source}")]
    Read {
        /// Which topic.
        topic: String,
        /// What librdkafka says.
        source: Box<KafkaError>,
    },
    /// A small topic was not read to its end in time: the broker is away, or too slow.
    #[error(
        "no records from {topic:?} partition {kafka_partition} for {seconds} s; is Kafka at {bootstrap_servers} up?"
    )]
    Stalled {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: i32,
        /// How long nothing came.
        seconds: u64,
        /// Where Kafka was looked for.
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
        kafka_partition: i32,
        /// The offset that was to be read.
        wanted: i64,
        /// The first offset that can still be read.
        low: i64,
    },
    /// The wanted offset lies past the end: the log is not the one that the offset was taken from.
    #[error(
        "offset {wanted} of {topic:?} partition {kafka_partition} lies past the end of the log at {high}; \
         was the log deleted or replaced?"
    )]
    OffsetAhead {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: i32,
        /// The offset that was to be read.
        wanted: i64,
        /// The end of the log.
        high: i64,
    },
    /// Records that no client can decode, though the broker has them. The reader has gone past them: what comes from
    /// `next` on is read by the next call.
    #[error("the records of {topic:?} partition {kafka_partition} from offset {from} to {} cannot be decoded: {reason}", next - 1)]
    Unreadable {
        /// Which topic.
        topic: String,
        /// Which Kafka partition.
        kafka_partition: i32,
        /// The first offset of them.
        from: i64,
        /// The first offset after them.
        next: i64,
        /// What is wrong, in the client's words.
        reason: String,
    },
    /// The wait for the broker was called off.
    #[error("stopped while waiting for Kafka")]
    Cancelled,
}

impl LogError {
    /// What the caller can do about it. Only `Unavailable` is worth a retry as it stands.
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

fn kind_of(error: &KafkaError) -> ErrorKind {
    match error.rdkafka_error_code() {
        Some(code) => kind_of_code(code),
        None => ErrorKind::Internal,
    }
}

/// Sorts a Kafka error code. What may pass by itself is `Unavailable`.
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
    fn a_full_queue_and_a_broker_that_is_away_are_worth_a_retry() {
        assert_eq!(LogError::QueueFull.kind(), ErrorKind::Unavailable);
        let away = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
        assert_eq!(
            LogError::Write { place: "readings".to_owned(), source: away.into() }.kind(),
            ErrorKind::Unavailable
        );
    }

    #[test]
    fn a_message_that_is_too_large_stays_so() {
        let large = KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge);
        assert_eq!(
            LogError::Write { place: "readings".to_owned(), source: large.into() }.kind(),
            ErrorKind::Invalid
        );
    }
}

//! The topics of Wye: their names and their settings, in one place.
//!
//! No other file of the project spells a topic name. This file must not know how a topic is created.

use crate::topic_settings;

/// Readings as they were accepted; key = device identity. Any Kafka producer may write here.
pub const READINGS: &str = "readings";
/// Rejected readings, each with its bytes, its source and the reason.
pub const DEAD_LETTER: &str = "readings.dead-letter";
/// Rows of the realtime view, in the Kafka partition with the number of their readings' Kafka partition.
pub const REALTIME_VIEWS: &str = "realtime-views";
/// Epoch announcements and other messages between the layers, in the Kafka partition with the number of the readings'.
pub const CONTROL: &str = "control";
/// The parts of bulk loads that are already in the log, so that a repeated load adds nothing.
pub const LEDGER: &str = "ingest-ledger";

/// The largest record batch that every topic accepts, in bytes, compressed, with its headers.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// The largest payload that always fits into [`MAX_MESSAGE_BYTES`] together with its key and a few small headers.
pub const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES - 16 * 1024;

/// The name and the settings of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// The name.
    pub name: &'static str,
    /// How many Kafka partitions it has.
    pub kafka_partitions: i32,
    /// Topic settings by their Kafka names.
    pub config: Vec<(&'static str, String)>,
}

/// All topics, for a log with `kafka_partitions` partitions of readings, on `replication_factor` brokers each.
///
/// Brokers must not delete records by age or size: Wye deletes the head of a log itself, once its records are archived.
/// Ingest time is set by the broker, never by a producer's clock.
pub fn specs(kafka_partitions: i32, replication_factor: i32) -> Vec<TopicSpec> {
    let topics = [
        (READINGS, kafka_partitions),
        (REALTIME_VIEWS, kafka_partitions),
        (CONTROL, kafka_partitions),
        (DEAD_LETTER, 1),
        (LEDGER, 1),
    ];
    topics
        .into_iter()
        .map(|(name, kafka_partitions)| TopicSpec {
            name,
            kafka_partitions,
            config: topic_settings::of_new_topic(replication_factor),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{CONTROL, READINGS, REALTIME_VIEWS, specs};

    #[test]
    fn topics_that_are_split_like_the_readings_have_as_many_kafka_partitions() {
        for spec in specs(7, 1) {
            let is_split = [READINGS, REALTIME_VIEWS, CONTROL].contains(&spec.name);
            assert_eq!(spec.kafka_partitions, if is_split { 7 } else { 1 }, "{}", spec.name);
            assert!(spec.config.contains(&("retention.ms", "-1".to_owned())));
        }
    }
}

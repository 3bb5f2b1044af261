//! The topics of Wye: their names and their settings, in one place.
//!
//! Nothing else in the project spells a topic name. This file does not know how a topic is created.

use crate::topic_settings;

/// Readings as they were accepted; key = device identity. Any Kafka producer may write here.
pub const READINGS: &str = "readings";
/// What could not be accepted as a reading, with its bytes, its source and the reason.
pub const DEAD_LETTER: &str = "readings.dead-letter";
/// Rows of the realtime view; the same Kafka partition number as the readings that they are made of.
pub const REALTIME_VIEWS: &str = "realtime-views";
/// Epoch announcements and what else the layers tell each other; same Kafka partition number as the readings.
pub const CONTROL: &str = "control";
/// What bulk loads have already given to the log, so that a repeated load adds nothing.
pub const LEDGER: &str = "ingest-ledger";

/// The largest record batch that every topic takes, in bytes, compressed, with its headers.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// The largest payload that is sure to fit into [`MAX_MESSAGE_BYTES`] beside its key and a few small headers.
pub const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES - 16 * 1024;

/// One topic as Wye wants it.
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
/// Brokers must not delete anything by age or size: Wye deletes the heads itself, once what they held is archived. And
/// they stamp what they take: a producer's clock decides nothing.
pub fn specs(kafka_partitions: i32, replication_factor: i32) -> Vec<TopicSpec> {
    let spec = |name, kafka_partitions| TopicSpec {
        name,
        kafka_partitions,
        config: topic_settings::of_new_topic(replication_factor),
    };
    vec![
        spec(READINGS, kafka_partitions),
        spec(REALTIME_VIEWS, kafka_partitions),
        spec(CONTROL, kafka_partitions),
        spec(DEAD_LETTER, 1),
        spec(LEDGER, 1),
    ]
}

#[cfg(test)]
mod tests {
    use super::{CONTROL, READINGS, REALTIME_VIEWS, specs};

    #[test]
    fn what_goes_together_has_the_same_number_of_partitions() {
        for spec in specs(7, 1) {
            let together = [READINGS, REALTIME_VIEWS, CONTROL].contains(&spec.name);
            assert_eq!(spec.kafka_partitions, if together { 7 } else { 1 }, "{}", spec.name);
            assert!(spec.config.contains(&("retention.ms", "-1".to_owned())));
        }
    }
}

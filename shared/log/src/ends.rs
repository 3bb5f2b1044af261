//! The ends of a topic's Kafka partitions, asked for again and again: one request per broker for all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::client::Log;
use crate::error::LogError;
use crate::kafka_logs::TracingContext;

/// Asks for the ends of one topic. Blocks; give it a thread.
pub struct Ends {
    log: Log,
    topic: String,
    consumer: BaseConsumer<TracingContext>,
    kafka_partitions: i32,
}

impl Ends {
    /// Prepares the client for the first `kafka_partitions` Kafka partitions of `topic`; nothing is sent yet.
    ///
    /// # Errors
    /// `Configure` when librdkafka refuses a property.
    pub fn new(log: &Log, topic: &str, kafka_partitions: i32) -> Result<Self, LogError> {
        // Nothing is read by this client, so it needs no group and no buffers.
        let mut config = log.config().client(&[("group.id", "wye-ends"), ("enable.auto.commit", "false")]);
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let consumer = config
            .create_with_context(TracingContext)
            .map_err(|source| LogError::Configure { source: source.into() })?;
        Ok(Self { log: log.clone(), topic: topic.to_owned(), consumer, kafka_partitions })
    }

    /// By Kafka partition, the offset that the next record gets. Blocks for up to `timeout`.
    ///
    /// # Errors
    /// `Ask` when a broker cannot be reached, or does not know the topic.
    pub fn ask(&self, timeout: Duration) -> Result<BTreeMap<i32, i64>, LogError> {
        let asked =
            |source: KafkaError| self.log.ask_error(format!("the end of topic {:?}", self.topic), source);
        let mut list = TopicPartitionList::new();
        for kafka_partition in 0..self.kafka_partitions {
            list.add_partition_offset(&self.topic, kafka_partition, Offset::End).map_err(asked)?;
        }
        // What the client says of lost connections waits in a queue that would grow.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        let found = self.consumer.offsets_for_times(list, timeout).map_err(asked)?;
        let mut ends = BTreeMap::new();
        for element in found.elements() {
            element.error().map_err(asked)?;
            if let Offset::Offset(end) = element.offset() {
                ends.insert(element.partition(), end);
            }
        }
        Ok(ends)
    }
}

//! The end offsets of a topic, asked for repeatedly: one request per broker for all its Kafka partitions.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use wye_domain::place::{KafkaPartition, Offset};

use crate::client::Log;
use crate::error::LogError;
use crate::kafka_logs::TracingContext;
use crate::properties::configure;

/// Asks for the end offsets of one topic. Blocks; run it on a thread of its own.
pub struct EndOffsets {
    log: Log,
    topic: String,
    consumer: BaseConsumer<TracingContext>,
    kafka_partitions: i32,
}

impl EndOffsets {
    /// Prepares the client for the first `kafka_partitions` Kafka partitions of `topic`. Sends nothing yet.
    ///
    /// # Errors
    /// `Configure` when librdkafka rejects a property.
    pub fn new(log: &Log, topic: &str, kafka_partitions: i32) -> Result<Self, LogError> {
        // This client reads no records, so it needs no buffers. librdkafka wants a group name all the same.
        let mut config = log.config().client(&[("group.id", "wye-ends"), ("enable.auto.commit", "false")]);
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let consumer = config.create_with_context(TracingContext).map_err(configure)?;
        Ok(Self { log: log.clone(), topic: topic.to_owned(), consumer, kafka_partitions })
    }

    /// The offset that the next record gets, by Kafka partition. Blocks for up to `timeout`.
    ///
    /// # Errors
    /// `Ask` when a broker cannot be reached, or does not have the topic.
    pub fn fetch(&self, timeout: Duration) -> Result<BTreeMap<KafkaPartition, Offset>, LogError> {
        self.fetch_raw(timeout).map_err(|source| {
            self.log.ask_error(format!("the end offsets of topic {:?}", self.topic), source)
        })
    }

    fn fetch_raw(&self, timeout: Duration) -> KafkaResult<BTreeMap<KafkaPartition, Offset>> {
        let mut list = TopicPartitionList::new();
        for kafka_partition in KafkaPartition::all(self.kafka_partitions) {
            list.add_partition_offset(&self.topic, kafka_partition.0, rdkafka::Offset::End)?;
        }
        // Events about lost connections wait in the consumer's queue; it would grow without limit.
        while self.consumer.poll(Duration::ZERO).is_some() {}
        let found = self.consumer.offsets_for_times(list, timeout)?;
        let mut ends = BTreeMap::new();
        for element in found.elements() {
            element.error()?;
            if let rdkafka::Offset::Offset(end) = element.offset() {
                ends.insert(KafkaPartition(element.partition()), Offset(end));
            }
        }
        Ok(ends)
    }
}

//! Whether producers put a device into the Kafka partition where Wye puts it. A device in two Kafka partitions has two
//! owners, and neither sees the duplicates of the other. Must not know what a message holds.

use std::time::{Duration, Instant};

use tracing::warn;
use wye_log::partitioner::partition_of;
use wye_runtime::telemetry::{KafkaPartitionLabel, PartitionCounter};

/// How often it is said.
const NOTICE: Duration = Duration::from_secs(60);

/// The keys of one Kafka partition's messages.
#[derive(Debug)]
pub struct Placement {
    kafka_partition: i32,
    kafka_partitions: i32,
    /// Messages that belong elsewhere, and the key of the last one, since they were last counted.
    misplaced: u64,
    example: Vec<u8>,
    noticed: Option<Instant>,
}

impl Placement {
    /// Of a topic with so many Kafka partitions.
    pub fn new(kafka_partition: i32, kafka_partitions: i32) -> Self {
        Self { kafka_partition, kafka_partitions, misplaced: 0, example: Vec::new(), noticed: None }
    }

    /// Looks at the key of a message. One without a key may be anywhere.
    #[inline]
    pub fn look_at(&mut self, key: Option<&[u8]>) {
        if let Some(key) = key
            && partition_of(key, self.kafka_partitions) != self.kafka_partition
        {
            self.misplaced += 1;
            key.clone_into(&mut self.example);
        }
    }

    /// Counts what was seen, and says so now and then.
    pub fn report(&mut self, counter: &PartitionCounter) {
        let misplaced = std::mem::take(&mut self.misplaced);
        if misplaced == 0 {
            return;
        }
        let kafka_partition = self.kafka_partition;
        counter.get_or_create(&KafkaPartitionLabel { kafka_partition }).inc_by(misplaced);
        if self.noticed.is_none_or(|last| last.elapsed() >= NOTICE) {
            self.noticed = Some(Instant::now());
            let device = String::from_utf8_lossy(&self.example);
            warn!(
                kafka_partition,
                belongs_to = partition_of(&self.example, self.kafka_partitions),
                misplaced,
                "a producer writes device {device:?} into another Kafka partition than Wye does, so its duplicates are \
                 not seen at once; set partitioner=murmur2_random in producers that use librdkafka"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_belong_elsewhere_are_counted() {
        let counter = PartitionCounter::default();
        let count = || counter.get_or_create(&KafkaPartitionLabel { kafka_partition: 1 }).get();
        let mut placement = Placement::new(1, 4);
        let (here, elsewhere): (Vec<String>, Vec<String>) =
            (0..100).map(|n| format!("pump-{n}")).partition(|key| partition_of(key.as_bytes(), 4) == 1);
        placement.look_at(None);
        here.iter().for_each(|key| placement.look_at(Some(key.as_bytes())));
        placement.report(&counter);
        assert_eq!(count(), 0);
        elsewhere.iter().for_each(|key| placement.look_at(Some(key.as_bytes())));
        placement.report(&counter);
        placement.report(&counter);
        assert_eq!(count(), elsewhere.len() as u64);
        assert!(!here.is_empty() && !elsewhere.is_empty());
    }
}

//! Whether producers put a device into the Kafka partition where Wye puts it. A device in two Kafka partitions has two
//! owners, and neither sees the duplicates of the other. Must not know what a message holds.

use std::time::Duration;

use tracing::warn;
use wye_domain::place::KafkaPartition;
use wye_log::partitioner::partition_of;

/// The least time between two warnings.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The keys of one Kafka partition's messages.
#[derive(Debug)]
pub(super) struct Placement {
    kafka_partition: KafkaPartition,
    /// How many Kafka partitions the topic has.
    kafka_partitions: i32,
    /// Messages that belong elsewhere, and the key of the last one, since the last report.
    misplaced: u64,
    example: Vec<u8>,
    /// When it was last warned about, as a monotonic time.
    noticed: Option<Duration>,
}

impl Placement {
    /// Of a topic with so many Kafka partitions.
    pub(super) fn new(kafka_partition: KafkaPartition, kafka_partitions: i32) -> Self {
        Self { kafka_partition, kafka_partitions, misplaced: 0, example: Vec::new(), noticed: None }
    }

    /// Checks the key of a message. A message without a key may be in any Kafka partition.
    #[inline]
    pub(super) fn check(&mut self, key: Option<&[u8]>) {
        if let Some(key) = key
            && partition_of(key, self.kafka_partitions) != self.kafka_partition
        {
            self.misplaced += 1;
            key.clone_into(&mut self.example);
        }
    }

    /// How many messages were misplaced since the last report. Warns of them from time to time. `now` is a monotonic time.
    pub(super) fn report(&mut self, now: Duration) -> u64 {
        let misplaced = std::mem::take(&mut self.misplaced);
        if misplaced > 0 && self.noticed.is_none_or(|last| now.saturating_sub(last) >= WARNING_INTERVAL) {
            self.noticed = Some(now);
            let device = String::from_utf8_lossy(&self.example);
            warn!(
                kafka_partition = %self.kafka_partition,
                belongs_to = %partition_of(&self.example, self.kafka_partitions),
                misplaced,
                "a producer writes device {device:?} into another Kafka partition than Wye does, so its duplicates are \
                 not detected until the next batch run; set partitioner=murmur2_random in producers that use librdkafka"
            );
        }
        misplaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_belong_elsewhere_are_counted() {
        let mut placement = Placement::new(KafkaPartition(1), 4);
        let (here, elsewhere): (Vec<String>, Vec<String>) = (0..100)
            .map(|n| format!("pump-{n}"))
            .partition(|key| partition_of(key.as_bytes(), 4) == KafkaPartition(1));
        placement.check(None);
        here.iter().for_each(|key| placement.check(Some(key.as_bytes())));
        assert_eq!(placement.report(Duration::ZERO), 0);
        elsewhere.iter().for_each(|key| placement.check(Some(key.as_bytes())));
        assert_eq!(placement.report(Duration::ZERO), elsewhere.len() as u64);
        assert_eq!(placement.report(Duration::ZERO), 0);
        assert!(!here.is_empty() && !elsewhere.is_empty());
    }
}

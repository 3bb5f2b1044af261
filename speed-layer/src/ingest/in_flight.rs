//! Which messages wait for their acknowledgement, and since when. While one to a Kafka partition has waited for too long,
//! that Kafka partition gets no more messages: clients send their readings again and again, and each request would add
//! to the messages that wait.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wye_domain::place::KafkaPartition;

use wye_runtime::clock::Clock;

/// Messages to the same queue wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// A Kafka partition of the readings.
    Readings(KafkaPartition),
    /// The ledger and the dead letters.
    OwnTopics,
}

/// All messages that wait.
pub(super) struct InFlight {
    clock: Arc<dyn Clock>,
    messages: Mutex<Messages>,
}

#[derive(Default)]
struct Messages {
    /// By queue and number, ascending in both: when the message was handed to the producer, as a monotonic time.
    since: BTreeMap<(Queue, u64), Duration>,
    next_number: u64,
}

/// A message that waits, until this is dropped.
pub(super) struct Waiting<'a> {
    all: &'a InFlight,
    key: (Queue, u64),
}

impl InFlight {
    /// No message waits.
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, messages: Mutex::default() }
    }

    /// A message waits from now on.
    pub(super) fn begin(&self, queue: Queue) -> Waiting<'_> {
        let mut messages = self.messages();
        let key = (queue, messages.next_number);
        messages.next_number += 1;
        messages.since.insert(key, self.clock.monotonic());
        Waiting { all: self, key }
    }

    /// Whether a message to this queue has waited for longer than `patience`.
    pub(super) fn is_overdue(&self, queue: Queue, patience: Duration) -> bool {
        let oldest =
            self.messages().since.range((queue, 0)..=(queue, u64::MAX)).next().map(|(_, since)| *since);
        oldest.is_some_and(|since| self.clock.monotonic().saturating_sub(since) > patience)
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.messages().since.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::time::Micros;

    use super::*;
    use wye_runtime::clock::ManualClock;

    #[test]
    fn only_the_oldest_message_to_the_queue_counts() {
        let clock = Arc::new(ManualClock::new(Micros::EPOCH));
        let all = InFlight::new(clock.clone());
        let [one, two] = [1, 2].map(|number| Queue::Readings(KafkaPartition(number)));
        let second = Duration::from_secs(1);
        let old = all.begin(one);
        clock.advance(second * 2);
        let _young = all.begin(one);
        let _other = all.begin(two);
        assert!(all.is_overdue(one, second) && !all.is_overdue(one, second * 2));
        assert!(!all.is_overdue(two, second) && !all.is_overdue(Queue::OwnTopics, second));
        drop(old);
        assert!(!all.is_overdue(one, second));
    }
}

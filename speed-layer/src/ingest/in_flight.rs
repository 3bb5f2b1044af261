//! Which messages wait for their acknowledgement, and since when: a Kafka partition that does not acknowledge gets no
//! more copies of what clients send again and again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Default)]
pub(super) struct InFlight {
    messages: Mutex<Messages>,
}

#[derive(Default)]
struct Messages {
    /// By Kafka partition and number, ascending in both: when the message was handed over.
    since: BTreeMap<(i32, u64), Instant>,
    next_number: u64,
}

/// A message that waits; dropped when it does no longer.
pub(super) struct Waiting<'a> {
    all: &'a InFlight,
    place: (i32, u64),
}

impl InFlight {
    /// Takes note of a message that is handed over now.
    pub(super) fn begin(&self, kafka_partition: i32) -> Waiting<'_> {
        let mut messages = self.messages();
        let place = (kafka_partition, messages.next_number);
        messages.next_number += 1;
        messages.since.insert(place, Instant::now());
        Waiting { all: self, place }
    }

    /// Whether a message to this Kafka partition has waited for longer than `patience`.
    pub(super) fn is_overdue(&self, kafka_partition: i32, patience: Duration) -> bool {
        let messages = self.messages();
        let oldest = messages.since.range((kafka_partition, 0)..=(kafka_partition, u64::MAX)).next();
        oldest.is_some_and(|(_, since)| since.elapsed() > patience)
    }

    fn messages(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.messages().since.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_oldest_of_its_own_partition_counts() {
        let all = InFlight::default();
        let old = all.begin(1);
        let _young = all.begin(2);
        assert!(all.is_overdue(1, Duration::ZERO));
        assert!(!all.is_overdue(1, Duration::from_secs(60)));
        assert!(!all.is_overdue(0, Duration::ZERO) && !all.is_overdue(3, Duration::ZERO));
        drop(old);
        assert!(!all.is_overdue(1, Duration::ZERO));
    }
}

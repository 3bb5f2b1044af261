//! The last batches of each idempotent producer in a Kafka partition, by which a retry is detected.
//!
//! Source: Kafka's `ProducerStateManager` (KIP-98, KIP-360). Pure: no clock, no files.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use wye_domain::place::Offset;

use crate::record_batch::Sequence;

/// How many batches of a producer are remembered: as many as a client may have in flight.
const REMEMBERED_BATCHES: usize = 5;
/// How many producers are remembered; beyond that, those with the oldest last batch are forgotten.
const REMEMBERED_PRODUCERS: usize = 1000;

/// The state of all producers of one Kafka partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequences {
    producers: HashMap<i64, Producer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: i16,
    /// Oldest first, never empty.
    batches: Vec<Written>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    first: i32,
    last: i32,
    base_offset: Offset,
}

/// What to do with a batch of an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next one: write it.
    Append,
    /// It was written already, at this offset: acknowledge it again.
    Repeated { base_offset: Offset },
    /// A batch before it is missing.
    OutOfOrder,
    /// A producer with a newer epoch has replaced this one.
    Fenced,
}

impl Sequences {
    /// Decides about a batch; changes nothing.
    pub(crate) fn judge(&self, sequence: &Sequence) -> Verdict {
        let Some(producer) = self.producers.get(&sequence.producer_id) else {
            // The producer is new here, or was forgotten. As in Kafka, it may start with any number.
            return Verdict::Append;
        };
        if sequence.producer_epoch < producer.epoch {
            return Verdict::Fenced;
        }
        if sequence.producer_epoch > producer.epoch {
            return if sequence.first == 0 { Verdict::Append } else { Verdict::OutOfOrder };
        }
        if let Some(written) = producer.batches.iter().find(|written| written.is(sequence)) {
            return Verdict::Repeated { base_offset: written.base_offset };
        }
        let next = producer.batches.last().map(|written| written.last.wrapping_add(1) & i32::MAX);
        if next == Some(sequence.first) { Verdict::Append } else { Verdict::OutOfOrder }
    }

    /// Remembers a batch that was written at `base_offset`.
    pub(crate) fn remember(&mut self, sequence: &Sequence, base_offset: Offset) {
        let producer = self
            .producers
            .entry(sequence.producer_id)
            .or_insert_with(|| Producer { epoch: sequence.producer_epoch, batches: Vec::new() });
        if producer.epoch != sequence.producer_epoch {
            producer.epoch = sequence.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == REMEMBERED_BATCHES {
            producer.batches.remove(0);
        }
        producer.batches.push(Written { first: sequence.first, last: sequence.last, base_offset });
        if self.producers.len() > REMEMBERED_PRODUCERS {
            self.forget_oldest();
        }
    }

    /// Forgets the tenth of the producers whose last batch is oldest; so many at once, since it is slow.
    fn forget_oldest(&mut self) {
        let mut offsets: Vec<_> = self.producers.values().map(Producer::last_offset).collect();
        offsets.sort_unstable();
        let limit = offsets[REMEMBERED_PRODUCERS / 10];
        self.producers.retain(|_, producer| producer.last_offset() > limit);
    }
}

impl Producer {
    /// The base offset of its last batch.
    fn last_offset(&self) -> Option<Offset> {
        self.batches.last().map(|written| written.base_offset)
    }
}

impl Written {
    /// Whether it is the batch with these sequence numbers.
    fn is(&self, sequence: &Sequence) -> bool {
        self.first == sequence.first && self.last == sequence.last
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::place::Offset;

    use super::{Sequence, Sequences, Verdict};

    fn sequence(producer_epoch: i16, first: i32, last: i32) -> Sequence {
        Sequence { producer_id: 1, producer_epoch, first, last }
    }

    #[test]
    fn a_repeated_batch_gets_its_old_offset() {
        let mut sequences = Sequences::default();
        for batch in 0..6 {
            let next = sequence(0, batch * 10, batch * 10 + 9);
            assert_eq!(sequences.judge(&next), Verdict::Append);
            sequences.remember(&next, Offset(100 + i64::from(batch)));
        }
        assert_eq!(sequences.judge(&sequence(0, 50, 59)), Verdict::Repeated { base_offset: Offset(105) });
        assert_eq!(sequences.judge(&sequence(0, 10, 19)), Verdict::Repeated { base_offset: Offset(101) });
        assert_eq!(
            sequences.judge(&sequence(0, 0, 9)),
            Verdict::OutOfOrder,
            "older than the five remembered"
        );
        assert_eq!(sequences.judge(&sequence(0, 70, 79)), Verdict::OutOfOrder, "60..69 is missing");
        assert_eq!(sequences.judge(&sequence(0, 60, 69)), Verdict::Append);
    }

    #[test]
    fn a_new_epoch_starts_at_zero_and_fences_the_old_one() {
        let mut sequences = Sequences::default();
        sequences.remember(&sequence(3, 0, 9), Offset(0));
        assert_eq!(sequences.judge(&sequence(4, 5, 9)), Verdict::OutOfOrder);
        assert_eq!(sequences.judge(&sequence(4, 0, 9)), Verdict::Append);
        sequences.remember(&sequence(4, 0, 9), Offset(10));
        assert_eq!(sequences.judge(&sequence(3, 10, 19)), Verdict::Fenced);
    }

    #[test]
    fn the_number_of_producers_is_bounded() {
        let mut sequences = Sequences::default();
        for producer_id in 0..5000 {
            sequences.remember(&Sequence { producer_id, ..sequence(0, 0, 0) }, Offset(producer_id));
        }
        assert!(sequences.producers.len() <= super::REMEMBERED_PRODUCERS);
        let newest = Sequence { producer_id: 4999, ..sequence(0, 0, 0) };
        assert_eq!(sequences.judge(&newest), Verdict::Repeated { base_offset: Offset(4999) });
    }
}

//! Which batches of which producer a Kafka partition has already: what makes a retry harmless.
//!
//! Source: Kafka's `ProducerStateManager` (KIP-98, KIP-360). Pure: no clock, no files.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::record_batch::Sequence;

/// How many batches of a producer are remembered: as many as a client may have in flight.
const REMEMBERED_BATCHES: usize = 5;
/// How many producers are remembered; beyond, the ones that have been silent for longest are forgotten.
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
    base_offset: i64,
}

/// What to do with a numbered batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is the next one: write it.
    Append,
    /// It is here already, at this offset: acknowledge it again.
    Repeated { base_offset: i64 },
    /// Something before it is missing.
    OutOfOrder,
    /// The producer has a successor.
    Fenced,
}

impl Sequences {
    /// Decides about a batch without changing anything.
    pub(crate) fn judge(&self, sequence: &Sequence) -> Verdict {
        let Some(producer) = self.producers.get(&sequence.producer_id) else {
            // Nothing is known of it: it is new here, or was forgotten. As in Kafka, any number is a start.
            return Verdict::Append;
        };
        if sequence.producer_epoch < producer.epoch {
            return Verdict::Fenced;
        }
        if sequence.producer_epoch > producer.epoch {
            return if sequence.first == 0 { Verdict::Append } else { Verdict::OutOfOrder };
        }
        let repeated = |written: &&Written| written.first == sequence.first && written.last == sequence.last;
        if let Some(written) = producer.batches.iter().find(repeated) {
            return Verdict::Repeated { base_offset: written.base_offset };
        }
        let next = producer.batches.last().map(|written| written.last.wrapping_add(1) & i32::MAX);
        if next == Some(sequence.first) { Verdict::Append } else { Verdict::OutOfOrder }
    }

    /// Remembers a batch that was written at `base_offset`.
    pub(crate) fn remember(&mut self, sequence: &Sequence, base_offset: i64) {
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
            self.forget_silent();
        }
    }

    /// Forgets the tenth of the producers whose last batch is oldest, so that this is rarely done.
    fn forget_silent(&mut self) {
        let last_offset = |producer: &Producer| producer.batches.last().map(|written| written.base_offset);
        let mut offsets: Vec<_> = self.producers.values().map(last_offset).collect();
        offsets.sort_unstable();
        let limit = offsets[REMEMBERED_PRODUCERS / 10];
        self.producers.retain(|_, producer| last_offset(producer) > limit);
    }
}

#[cfg(test)]
mod tests {
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
            sequences.remember(&next, 100 + i64::from(batch));
        }
        assert_eq!(sequences.judge(&sequence(0, 50, 59)), Verdict::Repeated { base_offset: 105 });
        assert_eq!(sequences.judge(&sequence(0, 10, 19)), Verdict::Repeated { base_offset: 101 });
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
        sequences.remember(&sequence(3, 0, 9), 0);
        assert_eq!(sequences.judge(&sequence(4, 5, 9)), Verdict::OutOfOrder);
        assert_eq!(sequences.judge(&sequence(4, 0, 9)), Verdict::Append);
        sequences.remember(&sequence(4, 0, 9), 10);
        assert_eq!(sequences.judge(&sequence(3, 10, 19)), Verdict::Fenced);
    }

    #[test]
    fn the_number_of_producers_is_bounded() {
        let mut sequences = Sequences::default();
        for producer_id in 0..5000 {
            sequences.remember(&Sequence { producer_id, ..sequence(0, 0, 0) }, producer_id);
        }
        assert!(sequences.producers.len() <= super::REMEMBERED_PRODUCERS);
        let newest = Sequence { producer_id: 4999, ..sequence(0, 0, 0) };
        assert_eq!(sequences.judge(&newest), Verdict::Repeated { base_offset: 4999 });
    }
}

//! The rows of one epoch: the summary of each series and window, held small.
//!
//! Most windows of a real stream hold a single reading, which takes 32 bytes and its entry in the index; only what needs
//! more gets a whole summary. This file does not know which epochs count.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;

/// One epoch of one Kafka partition.
#[derive(Clone, Debug)]
pub struct EpochView {
    kafka_partition: KafkaPartition,
    start: Offset,
    definitions: u64,
    rows: Vec<Slot>,
    full: Vec<Summary>,
    index: HashTable<u32>,
    hasher: foldhash::fast::FixedState,
    windows: Option<(Micros, Micros)>,
}

/// A row, packed; see [`Slot::content`].
#[derive(Clone, Copy, Debug)]
struct Slot {
    window_start: Micros,
    value: f64,
    event_time: Micros,
    series: SeriesId,
    kind: u32,
}

/// What a row holds.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// One reading, and whether it fails a check (0 or 1).
    Single { value: f64, event_time: Micros, invalid: u64 },
    /// The summary with this number.
    Full(usize),
}

/// [`Slot::kind`] of a single valid reading.
const SINGLE: u32 = u32::MAX;
/// [`Slot::kind`] of a single reading that fails a check; smaller values are numbers of summaries.
const SINGLE_INVALID: u32 = u32::MAX - 1;

impl Slot {
    #[inline]
    fn content(&self) -> Content {
        let (value, event_time) = (self.value, self.event_time);
        match self.kind {
            SINGLE => Content::Single { value, event_time, invalid: 0 },
            SINGLE_INVALID => Content::Single { value, event_time, invalid: 1 },
            number => Content::Full(number as usize),
        }
    }
}

impl EpochView {
    /// An epoch without rows, whose rows are made with the definitions of this fingerprint.
    pub fn new(kafka_partition: KafkaPartition, start: Offset, definitions: u64) -> Self {
        Self {
            kafka_partition,
            start,
            definitions,
            rows: Vec::new(),
            full: Vec::new(),
            index: HashTable::new(),
            hasher: foldhash::fast::FixedState::default(),
            windows: None,
        }
    }

    /// The Kafka partition of its readings.
    pub fn kafka_partition(&self) -> KafkaPartition {
        self.kafka_partition
    }

    /// Its first readings offset.
    pub fn start(&self) -> Offset {
        self.start
    }

    /// The fingerprint of the definitions that its rows are made with.
    pub fn definitions(&self) -> u64 {
        self.definitions
    }

    /// How many rows it has.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The earliest and the latest window start; `None` without rows.
    pub fn windows(&self) -> Option<(Micros, Micros)> {
        self.windows
    }

    /// The number, the series and the window start of each row.
    #[inline]
    pub fn keys(&self) -> impl Iterator<Item = (u32, SeriesId, Micros)> + '_ {
        (0..).zip(&self.rows).map(|(row, slot)| (row, slot.series, slot.window_start))
    }

    /// The summary of a row.
    pub fn summary(&self, row: u32) -> Summary {
        match self.rows[row as usize].content() {
            Content::Single { value, event_time, invalid } => single(value, event_time, invalid),
            Content::Full(number) => self.full[number].clone(),
        }
    }

    /// Whether a row has readings.
    pub fn has_readings(&self, row: u32) -> bool {
        match self.rows[row as usize].content() {
            Content::Single { .. } => true,
            Content::Full(number) => self.full[number].count > 0,
        }
    }

    /// The row of a series and window.
    pub fn find(&self, series: SeriesId, window_start: Micros) -> Option<u32> {
        let hash = self.hash(series, window_start);
        let found = self.index.find(hash, |row| {
            let slot = &self.rows[*row as usize];
            slot.series == series && slot.window_start == window_start
        });
        found.copied()
    }

    /// Merges the summary of a series and window into `into`, if there is one.
    pub fn merge_into(&self, series: SeriesId, window_start: Micros, into: &mut Summary) {
        if let Some(row) = self.find(series, window_start) {
            self.merge_row(row, into);
        }
    }

    /// Merges the summary of a row into `into`.
    pub fn merge_row(&self, row: u32, into: &mut Summary) {
        match self.rows[row as usize].content() {
            Content::Single { value, event_time, invalid } => into.merge(&single(value, event_time, invalid)),
            Content::Full(number) => into.merge(&self.full[number]),
        }
    }

    /// Sets the summary of a series and window.
    ///
    /// # Panics
    /// At 2^32 - 2 rows, which take more than 128 GiB.
    pub fn upsert(&mut self, series: SeriesId, window_start: Micros, summary: &Summary) {
        let row = match self.find(series, window_start) {
            Some(row) => row,
            None => self.insert(series, window_start),
        };
        let slot = &mut self.rows[row as usize];
        if let Content::Full(number) = slot.content() {
            self.full[number].clone_from(summary);
            return;
        }
        let (invalid, last) = (summary.invalid, summary.last);
        if summary.count == 1 && invalid <= 1 && *summary == single(last.value, last.event_time, invalid) {
            slot.value = last.value;
            slot.event_time = last.event_time;
            slot.kind = if invalid == 0 { SINGLE } else { SINGLE_INVALID };
        } else {
            slot.kind = row_number(self.full.len());
            self.full.push(summary.clone());
        }
    }

    /// Gives back the memory that was kept for growing.
    pub fn shrink(&mut self) {
        self.rows.shrink_to_fit();
        self.full.shrink_to_fit();
    }

    fn insert(&mut self, series: SeriesId, window_start: Micros) -> u32 {
        let row = row_number(self.rows.len());
        let hash = self.hash(series, window_start);
        self.rows.push(Slot { window_start, value: 0.0, event_time: Micros::EPOCH, series, kind: SINGLE });
        let (rows, hasher) = (&self.rows, &self.hasher);
        self.index.insert_unique(hash, row, |row| {
            let slot = &rows[*row as usize];
            hash_of(hasher, slot.series, slot.window_start)
        });
        let (low, high) = self.windows.unwrap_or((window_start, window_start));
        self.windows = Some((low.min(window_start), high.max(window_start)));
        row
    }

    #[inline]
    fn hash(&self, series: SeriesId, window_start: Micros) -> u64 {
        hash_of(&self.hasher, series, window_start)
    }
}

#[inline]
fn hash_of(hasher: &foldhash::fast::FixedState, series: SeriesId, window_start: Micros) -> u64 {
    hasher.hash_one((series.0, window_start.0))
}

/// The number of the next row, or of the next summary, of which there are no more.
fn row_number(rows: usize) -> u32 {
    let number = u32::try_from(rows).ok().filter(|number| *number < SINGLE_INVALID);
    number.expect("an epoch with 2^32 - 2 rows of 32 bytes would take more than 128 GiB")
}

/// The summary of one reading.
fn single(value: f64, event_time: Micros, invalid: u64) -> Summary {
    let mut summary = Summary { invalid, ..Summary::EMPTY };
    summary.add(value, event_time);
    summary
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_give_back_what_was_set(
            sets in prop::collection::vec((0u32..4, 0i64..5, prop::collection::vec((-9i64..9, 0i64..9), 0..3), 0u64..2, 0u64..2), 1..60),
        ) {
            let mut view = EpochView::new(KafkaPartition(0), Offset(0), 0);
            let mut expected = std::collections::BTreeMap::new();
            for (series, window, readings, invalid, conflicts) in sets {
                let mut summary = Summary { invalid, conflicts, ..Summary::EMPTY };
                for (value, time) in readings {
                    summary.add(value as f64 / 4.0, Micros(time));
                }
                view.upsert(SeriesId(series), Micros(window), &summary);
                expected.insert((SeriesId(series), Micros(window)), summary);
            }
            prop_assert_eq!(view.len(), expected.len());
            prop_assert_eq!(view.keys().count(), expected.len());
            for (row, series, window) in view.keys() {
                prop_assert_eq!(view.find(series, window), Some(row));
                prop_assert_eq!(&view.summary(row), &expected[&(series, window)]);
                prop_assert_eq!(view.has_readings(row), view.summary(row).count > 0);
            }
            prop_assert!(view.find(SeriesId(9), Micros(0)).is_none());
        }
    }

    #[test]
    fn a_single_reading_is_small() {
        assert_eq!(std::mem::size_of::<Slot>(), 32);
    }
}

//! The rows of one epoch: the summary of each series and window, held small.
//!
//! Most windows of a real stream hold a single reading, which takes 32 bytes and its place in the index; only what
//! needs more gets a whole summary. This file does not know which epochs count.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;

/// One epoch of one Kafka partition.
#[derive(Clone, Debug)]
pub struct EpochView {
    kafka_partition: i32,
    start: i64,
    definitions: u64,
    rows: Vec<Slot>,
    full: Vec<Summary>,
    index: HashTable<u32>,
    hasher: foldhash::fast::FixedState,
    windows: Option<(i64, i64)>,
}

/// A row: a single reading, or the place of a whole summary.
#[derive(Clone, Copy, Debug)]
struct Slot {
    window_start: i64,
    value: f64,
    event_time: i64,
    series: SeriesId,
    kind: u32,
}

/// A single valid reading.
const SINGLE: u32 = u32::MAX;
/// A single reading that fails a check.
const SINGLE_INVALID: u32 = u32::MAX - 1;

impl EpochView {
    /// An epoch without rows, whose rows are made with the definitions of this fingerprint.
    pub fn new(kafka_partition: i32, start: i64, definitions: u64) -> Self {
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
    pub fn kafka_partition(&self) -> i32 {
        self.kafka_partition
    }

    /// Its first readings offset.
    pub fn start(&self) -> i64 {
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

    /// The earliest and the latest window start (µs).
    pub fn windows(&self) -> Option<(i64, i64)> {
        self.windows
    }

    /// The series and window start (µs) of a row.
    #[inline]
    pub fn key(&self, row: u32) -> (SeriesId, i64) {
        let slot = &self.rows[row as usize];
        (slot.series, slot.window_start)
    }

    /// The summary of a row.
    pub fn summary(&self, row: u32) -> Summary {
        let slot = &self.rows[row as usize];
        match slot.kind {
            SINGLE => single(slot.value, slot.event_time, 0),
            SINGLE_INVALID => single(slot.value, slot.event_time, 1),
            place => self.full[place as usize].clone(),
        }
    }

    /// The row of a series and window.
    pub fn find(&self, series: SeriesId, window_start: i64) -> Option<u32> {
        let hash = self.hasher.hash_one((series.0, window_start));
        self.index.find(hash, |row| self.key(*row) == (series, window_start)).copied()
    }

    /// Merges the summary of a series and window into `into`, if there is one.
    pub fn merge_into(&self, series: SeriesId, window_start: i64, into: &mut Summary) -> bool {
        let Some(row) = self.find(series, window_start) else { return false };
        self.merge_row(row, into);
        true
    }

    /// Merges the summary of a row into `into`.
    pub fn merge_row(&self, row: u32, into: &mut Summary) {
        match self.rows[row as usize].kind {
            SINGLE | SINGLE_INVALID => into.merge(&self.summary(row)),
            place => into.merge(&self.full[place as usize]),
        }
    }

    /// Sets the summary of a series and window.
    pub fn upsert(&mut self, series: SeriesId, window_start: i64, summary: &Summary) {
        let row = match self.find(series, window_start) {
            Some(row) => row,
            None => self.insert(series, window_start),
        };
        let slot = &mut self.rows[row as usize];
        if slot.kind < SINGLE_INVALID {
            self.full[slot.kind as usize].clone_from(summary);
            return;
        }
        let invalid = summary.invalid;
        if summary.count == 1
            && invalid <= 1
            && *summary == single(summary.last.value, summary.last.event_time, invalid)
        {
            slot.value = summary.last.value;
            slot.event_time = summary.last.event_time;
            slot.kind = if invalid == 0 { SINGLE } else { SINGLE_INVALID };
        } else {
            slot.kind = u32::try_from(self.full.len()).expect("an epoch has fewer than 2^32 rows");
            self.full.push(summary.clone());
        }
    }

    /// Gives back the memory that was kept for growing.
    pub fn shrink(&mut self) {
        self.rows.shrink_to_fit();
        self.full.shrink_to_fit();
    }

    fn insert(&mut self, series: SeriesId, window_start: i64) -> u32 {
        let row = u32::try_from(self.rows.len()).expect("an epoch has fewer than 2^32 rows");
        self.rows.push(Slot { window_start, value: 0.0, event_time: 0, series, kind: SINGLE });
        let (rows, hasher) = (&self.rows, &self.hasher);
        let hash = |row: &u32| {
            let slot = &rows[*row as usize];
            hasher.hash_one((slot.series.0, slot.window_start))
        };
        self.index.insert_unique(hash(&row), row, hash);
        let (low, high) = self.windows.unwrap_or((window_start, window_start));
        self.windows = Some((low.min(window_start), high.max(window_start)));
        row
    }
}

/// The summary of one reading.
fn single(value: f64, event_time: i64, invalid: u64) -> Summary {
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
            let mut view = EpochView::new(0, 0, 0);
            let mut expected = std::collections::BTreeMap::new();
            for (series, window, readings, invalid, conflicts) in sets {
                let mut summary = Summary { invalid, conflicts, ..Summary::EMPTY };
                for (value, time) in readings {
                    summary.add(value as f64 / 4.0, time);
                }
                view.upsert(SeriesId(series), window, &summary);
                expected.insert((SeriesId(series), window), summary);
            }
            prop_assert_eq!(view.len(), expected.len());
            for ((series, window), summary) in expected {
                let row = view.find(series, window).unwrap();
                prop_assert_eq!(view.key(row), (series, window));
                prop_assert_eq!(view.summary(row), summary);
            }
            prop_assert!(view.find(SeriesId(9), 0).is_none());
        }
    }

    #[test]
    fn a_single_reading_is_small() {
        assert_eq!(std::mem::size_of::<Slot>(), 32);
    }
}

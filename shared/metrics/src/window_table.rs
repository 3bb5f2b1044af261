//! The summaries of many windows and series, found by (series, window start). Changed entries are marked until they are
//! taken.
//!
//! Both layers fold readings into it, see [`crate::fold`].

use std::hash::BuildHasher;

use hashbrown::HashTable;
use wye_domain::place::Offset;
use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;

/// One series in one window.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which series.
    pub series: SeriesId,
    /// Window start.
    pub window_start: Micros,
    /// Its summary.
    pub summary: Summary,
    changed: bool,
}

/// The place of an entry in a [`WindowTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// The entries of an epoch or a batch run.
#[derive(Debug, Default)]
pub struct WindowTable {
    entries: Vec<Entry>,
    index: HashTable<Indexed>,
    hasher: foldhash::fast::FixedState,
    /// By series: the entry used last, since readings mostly stay in one window for a while.
    latest: Vec<Option<Slot>>,
    changed: Vec<Slot>,
    /// By slot: below which offset readings are in the summary already, from before a restart. Empty where nothing was
    /// restored, as mostly.
    restored_through: Vec<Option<Offset>>,
}

/// A slot with the hash of its entry's key, so that a growing index does not visit the entries.
#[derive(Clone, Copy, Debug)]
struct Indexed {
    hash: u32,
    slot: Slot,
}

impl Indexed {
    /// The hash for the index, which uses the low bits and the seven high ones.
    #[inline]
    fn spread(hash: u32) -> u64 {
        u64::from(hash) | u64::from(hash) << 32
    }
}

impl WindowTable {
    /// The entry of a series and window, new or known, not marked as changed.
    ///
    /// # Panics
    /// When there are 2³² entries already.
    #[inline]
    pub fn entry(&mut self, series: SeriesId, window_start: Micros) -> Slot {
        let at = series.0 as usize;
        if at >= self.latest.len() {
            self.latest.resize(at + 1, None);
        }
        if let Some(latest) = self.latest[at]
            && self.get(latest).window_start == window_start
        {
            return latest;
        }
        let hash = self.hasher.hash_one((series.0, window_start.0)) as u32;
        let entries = &self.entries;
        let found = self.index.find(Indexed::spread(hash), |candidate| {
            let entry = &entries[candidate.slot.0 as usize];
            candidate.hash == hash && entry.series == series && entry.window_start == window_start
        });
        let slot = match found {
            Some(found) => found.slot,
            None => self.insert(series, window_start, hash),
        };
        self.latest[at] = Some(slot);
        slot
    }

    fn insert(&mut self, series: SeriesId, window_start: Micros, hash: u32) -> Slot {
        let slot = Slot(u32::try_from(self.entries.len()).expect("memory holds fewer than 2^32 windows"));
        self.entries.push(Entry { series, window_start, summary: Summary::EMPTY, changed: false });
        self.index.insert_unique(Indexed::spread(hash), Indexed { hash, slot }, |other| {
            Indexed::spread(other.hash)
        });
        slot
    }

    /// The entry in a slot.
    #[inline]
    pub fn get(&self, slot: Slot) -> &Entry {
        &self.entries[slot.0 as usize]
    }

    /// The summary in a slot, to be changed; its entry will be among the changed ones.
    #[inline]
    pub fn change(&mut self, slot: Slot) -> &mut Summary {
        let entry = &mut self.entries[slot.0 as usize];
        if !entry.changed {
            entry.changed = true;
            self.changed.push(slot);
        }
        &mut entry.summary
    }

    /// The summary in a slot, to be changed without a mark.
    #[inline]
    pub fn change_unmarked(&mut self, slot: Slot) -> &mut Summary {
        &mut self.entries[slot.0 as usize].summary
    }

    /// Puts back the summary of a series and window from before a restart, which holds all its readings below `through`.
    /// It does not count as changed.
    pub fn restore(&mut self, series: SeriesId, window_start: Micros, summary: Summary, through: Offset) {
        let slot = self.entry(series, window_start);
        *self.change_unmarked(slot) = summary;
        let at = slot.0 as usize;
        if at >= self.restored_through.len() {
            self.restored_through.resize(at + 1, None);
        }
        self.restored_through[at] = Some(through);
    }

    /// Whether the reading at an offset is in a restored summary already.
    #[inline]
    pub fn holds(&self, slot: Slot, offset: Offset) -> bool {
        self.through(slot).is_some_and(|through| offset < through)
    }

    /// Below which offset readings are in the summary already, from before a restart.
    #[inline]
    pub fn through(&self, slot: Slot) -> Option<Offset> {
        self.restored_through.get(slot.0 as usize).copied().flatten()
    }

    /// How many entries changed since they were last taken.
    pub fn changed_len(&self) -> usize {
        self.changed.len()
    }

    /// Visits every changed entry once and removes the marks.
    pub fn take_changed(&mut self, mut each: impl FnMut(&Entry)) {
        for slot in std::mem::take(&mut self.changed) {
            let entry = &mut self.entries[slot.0 as usize];
            entry.changed = false;
            each(entry);
        }
    }

    /// All entries, in the order in which they were made.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Takes out all entries; the table is empty again and keeps no memory.
    pub fn take_entries(&mut self) -> Vec<Entry> {
        std::mem::take(self).entries
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_visited_once() {
        let mut table = WindowTable::default();
        for i in 0..1_000i64 {
            let slot = table.entry(SeriesId((i % 7) as u32), Micros((i % 13) * 60));
            table.change(slot).add(i as f64, Micros(i));
        }
        assert_eq!(table.len(), 7 * 13);
        let mut count = 0;
        table.take_changed(|entry| count += entry.summary.count);
        assert_eq!(count, 1_000);
        table.take_changed(|_| panic!("nothing has changed"));
        let slot = table.entry(SeriesId(3), Micros::EPOCH);
        assert_eq!(table.get(slot).series, SeriesId(3));
    }

    #[test]
    fn restored_summaries_hold_what_is_below_their_offset_and_are_not_changes() {
        let mut table = WindowTable::default();
        let mut summary = Summary::EMPTY;
        summary.add(1.0, Micros(5));
        table.restore(SeriesId(2), Micros(0), summary, Offset(20));
        let (restored, new) = (table.entry(SeriesId(2), Micros(0)), table.entry(SeriesId(2), Micros(60)));
        assert_eq!((table.get(restored).summary.count, table.changed_len()), (1, 0));
        assert!(table.holds(restored, Offset(19)) && !table.holds(restored, Offset(20)));
        assert!(!table.holds(new, Offset::START));
    }
}

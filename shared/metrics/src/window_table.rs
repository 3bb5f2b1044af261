//! The summaries of many windows and series, found by (series, window start) and remembered as changed until taken.
//!
//! Both layers fold readings into this table: the speed layer per epoch, the batch layer per run.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;

/// One series in one window.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which series.
    pub series: SeriesId,
    /// Window start in µs.
    pub window_start: i64,
    /// Its summary.
    pub summary: Summary,
    /// Readings below this offset are already in the summary, from before a restart; 0 when nothing is.
    pub through: i64,
    changed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct WindowTable {
    entries: Vec<Entry>,
    index: HashTable<Indexed>,
    hasher: foldhash::fast::FixedState,
    /// The entry that each series touched last: readings mostly stay in one window for a while.
    latest: Vec<u32>,
    changed: Vec<u32>,
}

/// A slot with the hash of its entry's key: a growing index must not visit the entries, which are all over memory.
#[derive(Clone, Copy, Debug)]
struct Indexed {
    hash: u32,
    slot: u32,
}

impl Indexed {
    /// The hash as the index wants it, which looks at the low bits and at the seven high ones.
    #[inline]
    fn spread(hash: u32) -> u64 {
        u64::from(hash) | u64::from(hash) << 32
    }
}

const NONE: u32 = u32::MAX;

impl WindowTable {
    /// The entry of a series and window, new or known, not marked as changed.
    #[inline]
    pub fn entry(&mut self, series: SeriesId, window_start: i64) -> u32 {
        let at = series.0 as usize;
        if at >= self.latest.len() {
            self.latest.resize(at + 1, NONE);
        }
        let latest = self.latest[at];
        if latest != NONE && self.entries[latest as usize].window_start == window_start {
            return latest;
        }
        let hash = self.hasher.hash_one((series.0, window_start)) as u32;
        let entries = &self.entries;
        let found = self.index.find(Indexed::spread(hash), |candidate| {
            let entry = &entries[candidate.slot as usize];
            candidate.hash == hash && entry.series == series && entry.window_start == window_start
        });
        let slot = match found {
            Some(found) => found.slot,
            None => {
                let slot = u32::try_from(self.entries.len()).expect("fewer than 2^32 windows");
                self.entries.push(Entry {
                    series,
                    window_start,
                    summary: Summary::EMPTY,
                    through: 0,
                    changed: false,
                });
                self.index.insert_unique(Indexed::spread(hash), Indexed { hash, slot }, |other| {
                    Indexed::spread(other.hash)
                });
                slot
            }
        };
        self.latest[at] = slot;
        slot
    }

    /// The entry in a slot.
    #[inline]
    pub fn get(&self, slot: u32) -> &Entry {
        &self.entries[slot as usize]
    }

    /// The entry in a slot, to be changed; it will be among the changed ones.
    #[inline]
    pub fn change(&mut self, slot: u32) -> &mut Entry {
        let entry = &mut self.entries[slot as usize];
        if !entry.changed {
            entry.changed = true;
            self.changed.push(slot);
        }
        entry
    }

    /// The entry in a slot, to be set up without counting as changed.
    pub fn restore(&mut self, slot: u32) -> &mut Entry {
        &mut self.entries[slot as usize]
    }

    /// How many entries changed since they were last taken.
    pub fn changed_len(&self) -> usize {
        self.changed.len()
    }

    /// Hands out every changed entry once and forgets that they changed.
    pub fn take_changed(&mut self, mut each: impl FnMut(&Entry)) {
        for slot in std::mem::take(&mut self.changed) {
            let entry = &mut self.entries[slot as usize];
            entry.changed = false;
            each(entry);
        }
    }

    /// All entries, in the order in which they were made.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All entries, owned; the table is empty again but keeps no memory.
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
    fn changes_are_handed_out_once() {
        let mut table = WindowTable::default();
        for i in 0..1_000i64 {
            let slot = table.entry(SeriesId((i % 7) as u32), (i % 13) * 60);
            table.change(slot).summary.add(i as f64, i);
        }
        assert_eq!(table.len(), 7 * 13);
        let mut count = 0;
        table.take_changed(|entry| count += entry.summary.count);
        assert_eq!(count, 1_000);
        table.take_changed(|_| panic!("nothing has changed"));
        let slot = table.entry(SeriesId(3), 0);
        assert_eq!(table.get(slot).series, SeriesId(3));
    }
}

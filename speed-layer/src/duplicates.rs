//! The duplicate window: the identities of the readings of one Kafka partition since the horizon and at least the
//! last hours of the log, in bounded memory (20 bytes each and the table's spare room).
//!
//! Identities are kept in segments by ingest time; whole segments are forgotten.

use hashbrown::HashTable;
use wye_domain::identity::{Fingerprint, Novelty, copy_of};

/// How many segments the window's duration is cut into.
const SEGMENTS: i64 = 8;

/// Packed, since there are millions of them.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Known {
    fingerprint: u64,
    /// The value that counts.
    value: f64,
    segment: u32,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    number: u32,
    next_offset: i64,
}

/// See the module.
#[derive(Debug)]
pub struct DuplicateWindow {
    known: HashTable<Known>,
    segments: Vec<Segment>,
    segment_micros: i64,
    capacity: usize,
    forgotten_early: u64,
}

impl DuplicateWindow {
    /// A window of `duration` µs that remembers at most `capacity` readings.
    pub fn new(duration: i64, capacity: usize) -> Self {
        Self {
            known: HashTable::new(),
            segments: Vec::new(),
            // Not below a second, so that segment numbers stay small.
            segment_micros: (duration / SEGMENTS).max(wye_domain::time::SECOND),
            capacity: capacity.max(1),
            forgotten_early: 0,
        }
    }

    /// Prepares for readings of an ingest time (µs) and offset; call it when either goes on.
    pub fn advance(&mut self, ingest_time: i64, kafka_offset: i64) {
        let number = u32::try_from(ingest_time.max(0) / self.segment_micros).unwrap_or(u32::MAX);
        match self.segments.last_mut() {
            Some(last) if last.number >= number => last.next_offset = kafka_offset + 1,
            _ => self.segments.push(Segment { number, next_offset: kafka_offset + 1 }),
        }
    }

    /// What a reading is against those before it; the first of its identity is remembered.
    #[inline]
    pub fn observe(&mut self, fingerprint: Fingerprint, value: f64) -> Novelty {
        let segment = self.segments.last().map_or(0, |segment| segment.number);
        let Fingerprint(fingerprint) = fingerprint;
        let entry = self.known.entry(
            fingerprint,
            |known| known.fingerprint == fingerprint,
            |known| known.fingerprint,
        );
        match entry {
            hashbrown::hash_table::Entry::Occupied(known) => copy_of(known.get().value, value),
            hashbrown::hash_table::Entry::Vacant(place) => {
                place.insert(Known { fingerprint, value, segment });
                Novelty::First
            }
        }
    }

    /// Forgets what is older than the window at `ingest_time` (µs) and below the horizon, and, where memory is short,
    /// the oldest segments however young. Cheap when there is nothing to forget.
    pub fn forget(&mut self, ingest_time: i64, horizon: i64) {
        let oldest_kept = ((ingest_time.max(0) / self.segment_micros) - SEGMENTS).max(0);
        let expired = self
            .segments
            .iter()
            .take_while(|segment| i64::from(segment.number) < oldest_kept && segment.next_offset <= horizon)
            .count();
        let expired = expired.min(self.segments.len().saturating_sub(1));
        if expired > 0 {
            self.drop_segments(expired);
        }
        while self.known.len() > self.capacity && self.segments.len() > 1 {
            let before = self.known.len();
            self.drop_segments(1);
            self.forgotten_early += (before - self.known.len()) as u64;
        }
        if self.known.len() > self.capacity {
            // A single segment outgrew the memory: half of the identities go, whichever they are.
            let before = self.known.len();
            let mut keep = false;
            self.known.retain(|_| {
                keep = !keep;
                keep
            });
            self.forgotten_early += (before - self.known.len()) as u64;
        }
    }

    fn drop_segments(&mut self, count: usize) {
        let oldest_kept = self.segments[count].number;
        self.segments.drain(..count);
        self.known.retain(|known| known.segment >= oldest_kept);
        self.known.shrink_to(0, |known| known.fingerprint);
    }

    /// How many identities are remembered.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// How many identities were dropped for lack of memory since this was last asked.
    pub fn take_forgotten_early(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten_early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(i: u64) -> Fingerprint {
        Fingerprint(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    #[test]
    fn the_first_counts_and_others_are_told_apart() {
        let mut window = DuplicateWindow::new(1_000, 100);
        window.advance(0, 0);
        assert_eq!(window.observe(print(1), 1.0), Novelty::First);
        assert_eq!(window.observe(print(1), 1.0), Novelty::Duplicate);
        assert_eq!(window.observe(print(1), 2.0), Novelty::Conflict);
        assert_eq!(window.observe(print(1), 1.0), Novelty::Duplicate);
    }

    #[test]
    fn any_two_values_are_told_apart() {
        assert_eq!(size_of::<Known>(), 20);
        let mut window = DuplicateWindow::new(1_000, 1_000_000);
        window.advance(0, 0);
        // Far more pairs than a digest of 32 bits could tell apart.
        let values = (0..300_000u64).map(|i| f64::from_bits(i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 2));
        for (i, value) in values.enumerate() {
            let i = i as u64;
            window.observe(print(i), value);
            let other = f64::from_bits(value.to_bits() ^ (1 << 32) ^ 1);
            assert_eq!(window.observe(print(i), other), Novelty::Conflict, "{value} {other}");
        }
        assert_eq!(window.observe(print(1 << 40), 0.0), Novelty::First);
        assert_eq!(window.observe(print(1 << 40), -0.0), Novelty::Duplicate);
    }

    #[test]
    fn what_is_old_is_kept_while_it_is_above_the_horizon() {
        let mut window = DuplicateWindow::new(8_000_000, 100);
        window.advance(0, 10);
        window.observe(print(1), 1.0);
        window.advance(20_000_000, 11);
        window.observe(print(2), 1.0);
        window.forget(20_000_000, 5);
        assert_eq!(window.observe(print(1), 1.0), Novelty::Duplicate);
        window.forget(20_000_000, 11);
        assert_eq!(window.len(), 1);
        assert_eq!(window.observe(print(2), 1.0), Novelty::Duplicate);
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = DuplicateWindow::new(8_000_000, 100);
        for i in 0..1_000 {
            window.advance(i * 10_000, i);
            window.observe(print(i as u64), 1.0);
            window.forget(i * 10_000, 0);
            assert!(window.len() <= 100);
        }
        assert!(window.take_forgotten_early() >= 900 && window.take_forgotten_early() == 0);
    }
}

//! The duplicate window: the identities of the readings of one Kafka partition since the horizon and at least the
//! last hours of the log, in bounded memory (20 bytes each, and the table's spare room).
//!
//! Identities are kept in segments by ingest time. Whole segments are forgotten.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use wye_domain::identity::{Fingerprint, Novelty, copy_of};
use wye_domain::place::Offset;
use wye_domain::time::{Micros, Span};

/// How many segments the window is divided into.
const SEGMENTS: i64 = 8;

/// A remembered identity. Packed, since there are millions of them.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(4))]
struct Remembered {
    fingerprint: u64,
    /// The value that counts.
    value: f64,
    segment: u32,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    number: u32,
    next_offset: Offset,
}

/// The identities of the readings of one Kafka partition.
#[derive(Debug)]
pub(super) struct DuplicateWindow {
    identities: HashTable<Remembered>,
    segments: Vec<Segment>,
    segment_length: Span,
    capacity: usize,
    forgotten_early: u64,
}

impl DuplicateWindow {
    /// A window of `duration` that remembers at most `capacity` readings.
    pub(super) fn new(duration: Span, capacity: usize) -> Self {
        Self {
            identities: HashTable::new(),
            segments: Vec::new(),
            // A second at least, so that segment numbers stay small.
            segment_length: (duration / SEGMENTS).max(Span::from_secs(1)),
            capacity: capacity.max(1),
            forgotten_early: 0,
        }
    }

    /// Must be called before readings of a later ingest time or offset are observed.
    pub(super) fn advance(&mut self, ingest_time: Micros, kafka_offset: Offset) {
        let number = u32::try_from(self.segment_number(ingest_time)).unwrap_or(u32::MAX);
        let next_offset = kafka_offset.next();
        match self.segments.last_mut() {
            Some(last) if last.number >= number => last.next_offset = next_offset,
            _ => self.segments.push(Segment { number, next_offset }),
        }
    }

    fn segment_number(&self, ingest_time: Micros) -> i64 {
        ingest_time.0.max(0) / self.segment_length.0
    }

    /// Compares a reading with those before it. The first one of its identity is remembered.
    #[inline]
    pub(super) fn observe(&mut self, fingerprint: Fingerprint, value: f64) -> Novelty {
        let segment = self.segments.last().map_or(0, |segment| segment.number);
        let Fingerprint(fingerprint) = fingerprint;
        let entry = self.identities.entry(
            fingerprint,
            |identity| identity.fingerprint == fingerprint,
            |identity| identity.fingerprint,
        );
        match entry {
            Entry::Occupied(first) => copy_of(first.get().value, value),
            Entry::Vacant(entry) => {
                entry.insert(Remembered { fingerprint, value, segment });
                Novelty::First
            }
        }
    }

    /// Forgets what is older than the window at `now` (ingest time) and below the horizon. Where memory is short, forgets
    /// the oldest segments whatever their age. Cheap when there is nothing to forget.
    pub(super) fn forget(&mut self, now: Micros, horizon: Option<Offset>) {
        let oldest_kept = self.segment_number(now) - SEGMENTS;
        let expired = self
            .segments
            .iter()
            .take_while(|segment| {
                i64::from(segment.number) < oldest_kept && Some(segment.next_offset) <= horizon
            })
            .count();
        let expired = expired.min(self.segments.len().saturating_sub(1));
        if expired > 0 {
            self.drop_segments(expired);
        }
        while self.identities.len() > self.capacity && self.segments.len() > 1 {
            let before = self.identities.len();
            self.drop_segments(1);
            self.forgotten_early += (before - self.identities.len()) as u64;
        }
        if self.identities.len() > self.capacity {
            // One segment is too large for the memory: every second identity of the table is forgotten.
            let before = self.identities.len();
            let mut keep = false;
            self.identities.retain(|_| {
                keep = !keep;
                keep
            });
            self.forgotten_early += (before - self.identities.len()) as u64;
        }
    }

    fn drop_segments(&mut self, count: usize) {
        let oldest_kept = self.segments[count].number;
        self.segments.drain(..count);
        self.identities.retain(|identity| identity.segment >= oldest_kept);
        self.identities.shrink_to(0, |identity| identity.fingerprint);
    }

    /// How many identities are remembered.
    pub(super) fn len(&self) -> usize {
        self.identities.len()
    }

    /// How many identities were dropped for lack of memory since the last call.
    pub(super) fn take_forgotten_early(&mut self) -> u64 {
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
    fn duplicates_and_conflicts_are_distinguished() {
        let mut window = DuplicateWindow::new(Span(1_000), 100);
        window.advance(Micros(0), Offset(0));
        assert_eq!(window.observe(print(1), 1.0), Novelty::First);
        assert_eq!(window.observe(print(1), 1.0), Novelty::Duplicate);
        assert_eq!(window.observe(print(1), 2.0), Novelty::Conflict);
        assert_eq!(window.observe(print(1), 1.0), Novelty::Duplicate);
    }

    #[test]
    fn any_two_values_are_distinguished() {
        assert_eq!(size_of::<Remembered>(), 20);
        let mut window = DuplicateWindow::new(Span(1_000), 1_000_000);
        window.advance(Micros(0), Offset(0));
        // Far more pairs than a digest of 32 bits could distinguish.
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
    fn old_readings_are_remembered_while_they_are_above_the_horizon() {
        let later = Micros(20_000_000);
        let mut window = DuplicateWindow::new(Span::from_secs(8), 100);
        window.advance(Micros(0), Offset(10));
        window.observe(print(1), 1.0);
        window.advance(later, Offset(11));
        window.observe(print(2), 1.0);
        window.forget(later, Some(Offset(5)));
        assert_eq!(window.observe(print(1), 1.0), Novelty::Duplicate);
        window.forget(later, Some(Offset(11)));
        assert_eq!(window.len(), 1);
        assert_eq!(window.observe(print(2), 1.0), Novelty::Duplicate);
    }

    #[test]
    fn memory_is_bounded() {
        let mut window = DuplicateWindow::new(Span::from_secs(8), 100);
        for i in 0..1_000 {
            let now = Micros(i * 10_000);
            window.advance(now, Offset(i));
            window.observe(print(i as u64), 1.0);
            window.forget(now, None);
            assert!(window.len() <= 100);
        }
        assert!(window.take_forgotten_early() >= 900 && window.take_forgotten_early() == 0);
    }
}

//! How many readings there are by event time, in few numbers. Must not know files or cells.
//!
//! Readings are counted in slots of one length. The lengths form a chain in which each one is a multiple of the one before.
//! Where there are too many slots, those with hardly any reading become one *rest*, so that a few wrong clocks do not make
//! all slots long; if that does not help, the slots become longer.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use wye_domain::time::{Micros, Span, Window};

const DAY: i64 = 86_400;

/// The lengths of slots, shortest first. The longest ones cover all times with a few slots.
pub const LENGTHS: [Span; 17] = {
    let seconds = [
        1,
        5,
        15,
        60,
        300,
        900,
        3_600,
        21_600,
        DAY,
        DAY << 3,
        DAY << 6,
        DAY << 9,
        DAY << 12,
        DAY << 15,
        DAY << 18,
        DAY << 21,
        DAY << 24,
    ];
    let mut lengths = [Span::ZERO; 17];
    let mut at = 0;
    while at < lengths.len() {
        lengths[at] = Span::from_secs(seconds[at]);
        at += 1;
    }
    lengths
};

/// The most slots of one file.
pub(crate) const OF_FILE: usize = 128;
/// The most slots of a table.
pub(crate) const OF_TABLE: usize = 1 << 16;
/// Slots are left to the rest where all of them together have at most one reading in this many.
const RARE: u64 = 64;

/// How many readings there are by event time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct EventTimes {
    /// The place of the slots' length in [`LENGTHS`].
    level: usize,
    /// Readings by the number of their slot, counted from 1970.
    slots: HashMap<i64, u64, foldhash::fast::FixedState>,
    /// The readings that are in no slot.
    rest: Option<Rest>,
}

/// The readings of all files of a table by event time: in slots of the length of each file, so that a file of a long stretch of
/// time does not make the slots of all others long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableTimes {
    /// By the place of the slots' length in [`LENGTHS`].
    by_level: BTreeMap<usize, EventTimes>,
}

impl From<EventTimes> for TableTimes {
    fn from(times: EventTimes) -> Self {
        let mut all = Self::default();
        all.merge(&times);
        all
    }
}

impl TableTimes {
    /// Adds readings by their event times, in microseconds.
    pub(crate) fn add(&mut self, times: &[i64]) {
        let mut own = EventTimes::default();
        own.add(times, OF_FILE);
        self.merge(&own);
    }

    /// Adds the readings of a file.
    pub(crate) fn merge(&mut self, file: &EventTimes) {
        let own = self.by_level.entry(file.level).or_default();
        own.merge(file, OF_TABLE);
        // Where a level has too many slots, they have become longer.
        if own.level > file.level
            && let Some(longer) = self.by_level.remove(&file.level)
        {
            self.merge(&longer);
        }
    }

    /// The stretches of time that have readings, earliest first. They may overlap.
    #[must_use]
    pub fn stretches(&self) -> Vec<Window> {
        let each = self.by_level.values().flat_map(EventTimes::stretches);
        let mut stretches: Vec<Window> = each.map(|(window, _)| window).collect();
        stretches.sort_unstable_by_key(|window| (window.start, window.end));
        stretches
    }

    /// About how many readings there are in a stretch of time; 0 only if there is none.
    #[must_use]
    pub fn within(&self, window: Window) -> u64 {
        self.by_level.values().map(|times| times.within(window)).sum()
    }

    /// How many readings there are.
    #[must_use]
    pub fn readings(&self) -> u64 {
        self.by_level.values().map(EventTimes::readings).sum()
    }
}

/// Few readings, anywhere between two times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Rest {
    /// The earliest.
    first: Micros,
    /// The latest.
    last: Micros,
    readings: u64,
}

/// The stored form.
///
/// Stability contract: it is in the tags of files of readings.
#[derive(Serialize, Deserialize)]
struct Stored {
    slot: Span,
    /// Number of the slot, and how many readings it has.
    rows: Vec<(i64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rest: Option<Rest>,
}

impl From<EventTimes> for Stored {
    fn from(times: EventTimes) -> Self {
        let slot = times.length();
        let mut rows: Vec<(i64, u64)> = times.slots.into_iter().collect();
        rows.sort_unstable();
        Self { slot, rows, rest: times.rest }
    }
}

impl From<Stored> for EventTimes {
    fn from(Stored { slot, rows, rest }: Stored) -> Self {
        // An unknown length is between two known ones: the longer one has room for its slots.
        let level = LENGTHS.iter().position(|length| *length >= slot).unwrap_or(LENGTHS.len() - 1);
        let mut times = Self { level, rest, ..Self::default() };
        for (number, readings) in rows {
            *times.slots.entry(times.number(Micros(number.saturating_mul(slot.0)))).or_default() += readings;
        }
        times
    }
}

impl EventTimes {
    /// Adds readings by their event times, in microseconds. At most `most` slots are kept.
    pub(crate) fn add(&mut self, times: &[i64], most: usize) {
        let mut times = times.iter().copied().peekable();
        while let Some(time) = times.next() {
            let number = self.number(Micros(time));
            let Window { start, end } = self.slot(number);
            let mut readings = 1;
            while times.next_if(|next| (start.0..end.0).contains(next)).is_some() {
                readings += 1;
            }
            *self.slots.entry(number).or_default() += readings;
            if self.slots.len() > 8 * most {
                self.shrink(most);
            }
        }
        self.shrink(most);
    }

    /// Adds other readings. At most `most` slots are kept.
    pub(crate) fn merge(&mut self, other: &Self, most: usize) {
        while self.level < other.level {
            self.lengthen();
        }
        for (number, readings) in &other.slots {
            let start = other.slot(*number).start;
            *self.slots.entry(self.number(start)).or_default() += readings;
        }
        self.rest = match (self.rest, other.rest) {
            (Some(mine), Some(theirs)) => Some(mine.and(theirs)),
            (mine, theirs) => mine.or(theirs),
        };
        self.shrink(most);
    }

    /// How many readings there are.
    #[must_use]
    pub fn readings(&self) -> u64 {
        self.slots.values().sum::<u64>() + self.rest.map_or(0, |rest| rest.readings)
    }

    /// The stretches of time that have readings, earliest first, each with about how many. They may overlap.
    #[must_use]
    pub fn stretches(&self) -> Vec<(Window, u64)> {
        let slots = self.slots.iter().map(|(number, readings)| (self.slot(*number), *readings));
        let rest = self.rest.map(|rest| (rest.window(), rest.readings));
        let mut stretches: Vec<(Window, u64)> = slots.chain(rest).collect();
        stretches.sort_unstable_by_key(|(window, _)| (window.start, window.end));
        stretches
    }

    /// About how many readings there are in a stretch of time; 0 only if there is none.
    #[must_use]
    pub fn within(&self, window: Window) -> u64 {
        let rest = self.rest.map_or(0, |rest| share(rest.window(), rest.readings, window));
        let span = i128::from(window.end.0) - i128::from(window.start.0);
        let in_slots = if span / i128::from(self.length().0) < self.slots.len() as i128 {
            let numbers = self.number(window.start)..=self.number(Micros(window.end.0.saturating_sub(1)));
            numbers
                .filter_map(|number| Some(share(self.slot(number), *self.slots.get(&number)?, window)))
                .sum()
        } else {
            let slots = self.slots.iter();
            slots.map(|(number, readings)| share(self.slot(*number), *readings, window)).sum::<u64>()
        };
        rest + in_slots
    }

    fn length(&self) -> Span {
        LENGTHS[self.level]
    }

    fn number(&self, time: Micros) -> i64 {
        time.0.div_euclid(self.length().0)
    }

    fn slot(&self, number: i64) -> Window {
        let start = Micros(number.saturating_mul(self.length().0));
        Window { start, end: start + self.length() }
    }

    /// Leaves at most `most` slots, where the longest length allows it.
    fn shrink(&mut self, most: usize) {
        while self.slots.len() > most && self.level + 1 < LENGTHS.len() {
            if !self.leave_rare(most) {
                self.lengthen();
            }
        }
    }

    fn lengthen(&mut self) {
        let factor = LENGTHS[self.level + 1].0 / self.length().0;
        let shorter = std::mem::take(&mut self.slots);
        self.level += 1;
        for (number, readings) in shorter {
            *self.slots.entry(number.div_euclid(factor)).or_default() += readings;
        }
    }

    /// Moves all but the fullest slots to the rest, if these have hardly any reading.
    fn leave_rare(&mut self, most: usize) -> bool {
        let mut fullest: Vec<(u64, i64)> = self.slots.iter().map(|(number, rows)| (*rows, *number)).collect();
        fullest.sort_unstable_by(|a, b| b.cmp(a));
        let rare = fullest.split_off(most / 2);
        let readings: u64 = rare.iter().map(|(readings, _)| readings).sum();
        let others: u64 = fullest.iter().map(|(readings, _)| readings).sum();
        if readings.saturating_mul(RARE) > others {
            return false;
        }
        for (readings, number) in rare {
            self.slots.remove(&number);
            let Window { start, end } = self.slot(number);
            let rest = Rest { first: start, last: Micros(end.0.saturating_sub(1)), readings };
            self.rest = Some(self.rest.map_or(rest, |known| known.and(rest)));
        }
        true
    }
}

impl Rest {
    fn and(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            readings: self.readings + other.readings,
        }
    }

    fn window(self) -> Window {
        Window { start: self.first, end: self.last + Span(1) }
    }
}

/// The share of readings that are evenly spread over `whole` that lies in `part`, rounded up.
fn share(whole: Window, readings: u64, part: Window) -> u64 {
    let (start, end) = (whole.start.max(part.start), whole.end.min(part.end));
    if end <= start || readings == 0 {
        return 0;
    }
    let length = |from: Micros, to: Micros| i128::from(to.0) - i128::from(from.0);
    let (common, all) = (length(start, end), length(whole.start, whole.end));
    let share = (i128::from(readings) * common + all - 1) / all;
    u64::try_from(share).unwrap_or(readings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn of(times: &[i64], most: usize) -> EventTimes {
        let mut all = EventTimes::default();
        all.add(times, most);
        all
    }

    fn window(start: i64, end: i64) -> Window {
        Window { start: Micros(start), end: Micros(end) }
    }

    #[test]
    fn lengths_are_multiples_of_each_other_and_cover_all_times() {
        assert!(LENGTHS.windows(2).all(|pair| pair[0] < pair[1] && pair[1].0 % pair[0].0 == 0));
        let ends = of(&[i64::MIN, -1, 0, i64::MAX], 2);
        assert_eq!((ends.readings(), ends.within(window(i64::MIN, i64::MAX))), (4, 4));
    }

    #[test]
    fn counts_are_exact_where_slots_fit() {
        let times: Vec<i64> = (0..7_200).map(|second| second * 1_000_000 - HOUR).collect();
        let all = of(&times, 128);
        assert_eq!((all.length(), all.readings()), (Span::from_mins(1), 7_200));
        assert_eq!(all.within(window(0, HOUR)), 3_600);
        assert_eq!(all.within(window(-HOUR, -HOUR / 2)), 1_800);
        assert_eq!(all.within(window(HOUR, 2 * HOUR)), 0);
        assert_eq!(all.stretches().len(), 120);
        // Any order and any split give the same.
        let mut merged = of(&times.iter().copied().rev().step_by(2).collect::<Vec<_>>(), 128);
        merged.merge(&of(&times.iter().copied().step_by(2).collect::<Vec<_>>(), 128), 128);
        assert_eq!(merged, all);
    }

    #[test]
    fn wrong_clocks_do_not_make_slots_long() {
        let mut times: Vec<i64> = (0..100_000).map(|reading| reading * 36_000).collect();
        times.extend((0..500).map(|odd| odd * 4_000 * HOUR));
        let all = of(&times, 128);
        assert!(all.length() <= Span::from_mins(5), "{:?}", all.length());
        assert_eq!(all.readings(), 100_500);
        assert!(all.within(window(0, HOUR)).abs_diff(100_001) < 2_000);
        // No stretch that has readings looks empty.
        for time in &times {
            assert!(all.within(window(*time, *time + 1)) > 0, "{time}");
            assert!(
                all.stretches().iter().any(|(stretch, _)| (stretch.start.0..stretch.end.0).contains(time))
            );
        }
    }

    #[test]
    fn a_file_of_years_does_not_blur_the_others() {
        let seconds = |range: std::ops::Range<i64>, step: i64| -> Vec<i64> {
            range.map(|place| place * step * 1_000_000).collect()
        };
        let (day, years) = (of(&seconds(0..86_400, 1), OF_FILE), of(&seconds(-9_000..0, 36_000), OF_FILE));
        let mut all = TableTimes::from(years.clone());
        all.merge(&day);
        assert_eq!(all.readings(), 95_400);
        assert_eq!(all.within(window(0, HOUR)), 3_600);
        assert!(all.within(window(-24 * HOUR, 0)) < 100);
        let slots: u64 = day.stretches().len() as u64 + years.stretches().len() as u64;
        assert_eq!(all.stretches().len() as u64, slots);
        assert!(all.stretches().is_sorted_by_key(|window| window.start));
        // A level that has too many slots becomes a longer one.
        let mut many = TableTimes::default();
        for part in 0..OF_TABLE as i64 / 64 {
            many.merge(&of(&seconds(part * 128..part * 128 + 128, 1), OF_FILE));
        }
        assert_eq!((many.readings(), many.by_level.len()), (2 * OF_TABLE as u64, 2));
        assert_eq!(many.within(window(0, HOUR)), 3_600);
    }

    #[test]
    fn the_stored_form_is_pinned() {
        let times = of(&[-1, 0, 1, 5_000_000], 128);
        let stored = r#"{"slot":1000000,"rows":[[-1,1],[0,2],[5,1]]}"#;
        assert_eq!(serde_json::to_string(&times).unwrap(), stored);
        assert_eq!(serde_json::from_str::<EventTimes>(stored).unwrap(), times);
        let rest = r#"{"slot":60000000,"rows":[[0,2]],"rest":{"first":-9,"last":-3,"readings":2}}"#;
        let read: EventTimes = serde_json::from_str(rest).unwrap();
        assert_eq!((read.readings(), read.within(window(-6, 0))), (4, 2));
        assert_eq!(serde_json::to_string(&read).unwrap(), rest);
    }
}

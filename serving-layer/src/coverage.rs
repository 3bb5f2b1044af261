//! What an answer covers of the log: from where on numbers are realtime, up to which offset, and what is missing. Pure.
//!
//! `complete` is strict: it is false as soon as a reading is known to be in the log and not in the answer. Under a
//! steady stream the last flush is always on its way, so how far behind an answer is stands beside it. This file does
//! not know how the log is asked.

use std::collections::{BTreeMap, VecDeque};

use wye_domain::position::Position;
use wye_domain::time::SECOND;

use crate::realtime::Flaw;

/// For so long (µs) what is known of the log's end may be used.
const LOG_END_LASTS: i64 = SECOND;
/// How long (µs) readings may be missing without any progress before an owner is taken to be missing.
const STALLED_AFTER: i64 = 10 * SECOND;
/// How many steps of the log's end are remembered.
const STEPS: usize = 512;

/// Why an answer does not hold everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The realtime views are still being read after the start.
    Starting,
    /// Rows were made with other metric definitions and are left out.
    OtherDefinitions,
    /// Realtime rows are not what they should be.
    Flawed(Flaw),
    /// The log cannot be asked for its end.
    LogEndUnknown,
    /// Readings of the log are not in the answer yet.
    Behind,
}

impl Reason {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::OtherDefinitions => "other_definitions",
            Self::Flawed(Flaw::Gap) => "gap",
            Self::Flawed(Flaw::Damaged) => "damaged",
            Self::Flawed(Flaw::Rebuilding) => "rebuilding",
            Self::LogEndUnknown => "log_end_unknown",
            Self::Behind => "behind",
        }
    }
}

/// What an answer covers of one Kafka partition. Offsets are those of `readings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionCoverage {
    /// Which one.
    pub kafka_partition: i32,
    /// Readings below are from the batch view; `None` without one.
    pub horizon: Option<i64>,
    /// Readings below are in the answer.
    pub covered: i64,
    /// The offset that the next record gets; `None` where the log cannot be asked.
    pub log_end: Option<i64>,
    /// Since when (µs) the oldest missing record has been in the log; `None` where nothing is missing.
    pub lacking_since: Option<i64>,
    /// The owner that writes its realtime rows; `None` before the first.
    pub generation: Option<i64>,
    /// Why it is incomplete.
    pub reason: Option<Reason>,
}

impl PartitionCoverage {
    /// How many records of the log are not in the answer; a record may hold many readings.
    pub fn lacking(&self) -> Option<i64> {
        self.log_end.map(|end| (end - self.covered).max(0))
    }
}

/// What an answer covers of the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The version of the batch view; `None` without one.
    pub version: Option<u64>,
    /// The batch view's horizon, by Kafka partition.
    pub horizon: Option<BTreeMap<i32, i64>>,
    /// Ascending.
    pub kafka_partitions: Vec<PartitionCoverage>,
    /// When this was (µs).
    pub now: i64,
}

impl Coverage {
    /// Whether the answer holds every reading that is known to be in the log, by one batch view and all epochs from
    /// its horizon on (**HOR-3**).
    pub fn complete(&self) -> bool {
        self.reason().is_none()
    }

    /// Why it does not.
    pub fn reason(&self) -> Option<Reason> {
        self.kafka_partitions.iter().find_map(|partition| partition.reason)
    }

    /// Up to where the answer holds everything.
    pub fn covered(&self) -> Position {
        position(self.kafka_partitions.iter().map(|partition| (partition.kafka_partition, partition.covered)))
    }

    /// The offset of a Kafka partition below which the answer holds everything; 0 where there is no such partition.
    pub fn covered_of(&self, kafka_partition: i32) -> i64 {
        let known = self.kafka_partitions.iter().find(|known| known.kafka_partition == kafka_partition);
        known.map_or(0, |known| known.covered)
    }

    /// The horizon as a position; empty without a batch view.
    pub fn horizon_position(&self) -> Position {
        position(self.horizon.iter().flatten().map(|(kafka_partition, offset)| (*kafka_partition, *offset)))
    }

    /// How many records of the log are not in the answer; `None` where the log cannot be asked.
    pub fn lacking(&self) -> Option<i64> {
        self.kafka_partitions.iter().map(PartitionCoverage::lacking).sum()
    }

    /// How long (µs) the oldest missing record has been in the log; 0 where nothing is missing.
    pub fn lacking_for(&self) -> i64 {
        let since = self.kafka_partitions.iter().filter_map(|partition| partition.lacking_since).min();
        since.map_or(0, |since| self.now.saturating_sub(since).max(0))
    }
}

/// A position from Kafka partitions and next offsets.
fn position(places: impl Iterator<Item = (i32, i64)>) -> Position {
    let mut position = Position::default();
    places.for_each(|(kafka_partition, next)| position.include(kafka_partition, next.saturating_sub(1)));
    position
}

/// What is known of the end of one Kafka partition of `readings`.
#[derive(Clone, Debug, Default)]
pub struct LogEnd {
    /// When it was last asked (µs).
    asked_at: Option<i64>,
    /// The end, with when (µs) it was first seen there; ascending in both. The oldest step still says since when what
    /// lies below it has been there.
    steps: VecDeque<(i64, i64)>,
    /// When (µs) it was last seen to grow.
    grown_at: i64,
    /// How far apart (µs) steps are at least; it grows with the time that they span.
    spacing: i64,
    /// The offset covered when it was last asked, and since when (µs) that has not moved.
    covered: (i64, i64),
}

impl LogEnd {
    /// Notes the end that the broker told when it was asked at `now` (µs), with what answers cover.
    pub fn asked(&mut self, end: i64, covered: i64, now: i64) {
        self.asked_at = Some(now);
        // What was acknowledged while the question was under way is not in its answer; else the topic was replaced.
        if self.grown_at < now && self.steps.back().is_some_and(|(last, _)| *last > end) {
            self.steps.clear();
        }
        self.step(end, now);
        if covered != self.covered.0 || end <= covered {
            self.covered = (covered, now);
        }
        while self.steps.len() > 1 && self.steps[0].0 <= covered {
            self.steps.pop_front();
        }
        if self.steps.len() == 1 {
            self.spacing = 0;
        }
    }

    /// Notes that the log has acknowledged everything below `next` at `now` (µs).
    pub fn written(&mut self, next: i64, now: i64) {
        if self.asked_at.is_some() {
            self.step(next, now);
        }
    }

    fn step(&mut self, end: i64, now: i64) {
        match self.steps.back_mut() {
            Some((last, _)) if *last >= end => {}
            // Two steps in one say that the newer record has been there as long as the older one.
            Some((last, at)) if now.saturating_sub(*at) < self.spacing => {
                *last = end;
                self.grown_at = self.grown_at.max(now);
            }
            _ => {
                self.steps.push_back((end, now));
                self.grown_at = self.grown_at.max(now);
            }
        }
        if self.steps.len() > STEPS {
            let oldest = self.steps[0].1;
            self.spacing = now.saturating_sub(oldest) / (STEPS as i64 / 2);
            let all = std::mem::take(&mut self.steps);
            all.into_iter().for_each(|(end, at)| self.step(end, at));
        }
    }

    /// The offset that the next record gets, where it is known at `now` (µs).
    pub fn end(&self, now: i64) -> Option<i64> {
        let age = now.saturating_sub(self.asked_at?);
        (age.abs() <= LOG_END_LASTS).then(|| self.steps.back().map(|(end, _)| *end)).flatten()
    }

    /// Since when (µs) the oldest record at or past `covered` has been there; `None` where there is none.
    pub fn lacking_since(&self, covered: i64) -> Option<i64> {
        self.steps.iter().find(|(end, _)| *end > covered).map(|(_, at)| *at)
    }

    /// Whether records are missing for long, and nothing moves.
    pub fn stalled(&self, covered: i64, now: i64) -> bool {
        let since = self.lacking_since(covered);
        since.is_some_and(|since| now.saturating_sub(since.max(self.covered.1)) > STALLED_AFTER)
            && self.covered.0 == covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_missing_record_says_how_long_something_is_missing() {
        let mut end = LogEnd::default();
        assert_eq!(end.end(0), None);
        end.asked(10, 10, SECOND);
        assert_eq!((end.end(SECOND), end.lacking_since(10)), (Some(10), None));
        end.asked(20, 10, 2 * SECOND);
        end.asked(30, 10, 3 * SECOND);
        assert_eq!(end.lacking_since(10), Some(2 * SECOND));
        assert_eq!(end.lacking_since(20), Some(3 * SECOND));
        end.asked(30, 20, 4 * SECOND);
        assert_eq!((end.lacking_since(20), end.lacking_since(30)), (Some(3 * SECOND), None));
        end.written(31, 4 * SECOND);
        assert_eq!((end.end(4 * SECOND), end.lacking_since(30)), (Some(31), Some(4 * SECOND)));
        // Old knowledge is none.
        assert_eq!(end.end(6 * SECOND), None);
    }

    #[test]
    fn an_answer_of_the_log_does_not_take_back_what_was_written_meanwhile() {
        let mut end = LogEnd::default();
        end.asked(10, 10, SECOND);
        end.written(12, 3 * SECOND);
        end.asked(10, 10, 2 * SECOND);
        assert_eq!(end.end(2 * SECOND), Some(12));
        end.asked(4, 0, 4 * SECOND);
        assert_eq!(end.end(4 * SECOND), Some(4));
    }

    #[test]
    fn a_long_lag_is_remembered_in_bounded_steps() {
        let mut end = LogEnd::default();
        for second in 0..100_000 {
            end.asked(10 + second, 5, second * SECOND);
        }
        assert!(end.steps.len() <= STEPS);
        assert_eq!(end.lacking_since(5), Some(0));
        let late = end.lacking_since(50_010).unwrap() / SECOND;
        assert!((49_000..=50_001).contains(&late), "{late}");
        assert_eq!(end.end(99_999 * SECOND), Some(100_009));
    }

    #[test]
    fn a_stall_is_a_lack_without_progress() {
        let mut end = LogEnd::default();
        for second in 0..30 {
            end.asked(10, 10, second * SECOND);
        }
        assert!(!end.stalled(10, 30 * SECOND));
        end.asked(20, 10, 31 * SECOND);
        assert!(!end.stalled(10, 32 * SECOND));
        assert!(end.stalled(10, 42 * SECOND));
        end.asked(30, 15, 43 * SECOND);
        assert!(!end.stalled(15, 44 * SECOND));
    }
}

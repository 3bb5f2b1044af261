//! What is known of the end of one Kafka partition of `readings`: where it is, and since when records have been there.
//! This file does not know how the log is asked.

use std::collections::VecDeque;

use wye_domain::place::Offset;
use wye_domain::time::{Micros, Span};

/// How long the log's last answer may be used.
const LASTS: Span = Span::from_secs(1);
/// How long readings may be missing without any progress until the Kafka partition counts as stalled.
const STALLED_AFTER: Span = Span::from_secs(10);
/// How many steps of the log's end are remembered.
const STEPS: usize = 512;

/// The end of one Kafka partition.
#[derive(Clone, Debug, Default)]
pub struct LogEnd {
    /// When it was last asked.
    asked_at: Option<Micros>,
    /// The end as it grew; ascending. The oldest step still says since when the records below it have been there.
    steps: VecDeque<Step>,
    /// When it was last seen to grow.
    grown_at: Option<Micros>,
    /// How far apart steps are at least; it grows with the time that they span.
    spacing: Span,
    /// What answers covered when it was last asked.
    progress: Option<Progress>,
}

/// One step of the end.
#[derive(Clone, Copy, Debug)]
struct Step {
    end: Offset,
    /// When the end was first seen there.
    since: Micros,
}

/// How far answers are.
#[derive(Clone, Copy, Debug)]
struct Progress {
    covered: Offset,
    /// Since when that has not moved.
    since: Micros,
}

/// The broker's answer to the question for the end.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The offset that the next record gets.
    pub end: Offset,
    /// What answers covered when it was asked.
    pub covered: Offset,
}

impl LogEnd {
    /// Notes the broker's answer to a question asked at `now`.
    pub fn asked(&mut self, Asked { end, covered }: Asked, now: Micros) {
        self.asked_at = Some(now);
        // A record that was acknowledged after the question is not in its answer. Otherwise the topic was replaced.
        if self.grown_at < Some(now) && self.steps.back().is_some_and(|last| last.end > end) {
            self.steps.clear();
        }
        self.step(end, now);
        if end <= covered || self.progress.is_none_or(|progress| progress.covered != covered) {
            self.progress = Some(Progress { covered, since: now });
        }
        while self.steps.len() > 1 && self.steps[0].end <= covered {
            self.steps.pop_front();
        }
        if self.steps.len() == 1 {
            self.spacing = Span::ZERO;
        }
    }

    /// Notes that the log has acknowledged everything below `next` at `now`.
    pub fn written(&mut self, next: Offset, now: Micros) {
        if self.asked_at.is_some() {
            self.step(next, now);
        }
    }

    fn step(&mut self, end: Offset, now: Micros) {
        match self.steps.back_mut() {
            Some(last) if last.end >= end => {}
            // Two steps in one: the newer record counts as being there as long as the older one.
            Some(last) if now - last.since < self.spacing => {
                last.end = end;
                self.grown_at = self.grown_at.max(Some(now));
            }
            _ => {
                self.steps.push_back(Step { end, since: now });
                self.grown_at = self.grown_at.max(Some(now));
            }
        }
        if self.steps.len() > STEPS {
            let spanned = now - self.steps[0].since;
            self.spacing = Span((spanned.0 / (STEPS as i64 / 2)).max(1));
            for step in std::mem::take(&mut self.steps) {
                self.step(step.end, step.since);
            }
        }
    }

    /// The offset that the next record gets; `None` where the log has not answered for too long at `now`.
    pub fn end(&self, now: Micros) -> Option<Offset> {
        let age = now - self.asked_at?;
        self.steps.back().filter(|_| age.0.abs() <= LASTS.0).map(|last| last.end)
    }

    /// Since when the oldest record at or past `covered` has been there; `None` where there is none.
    pub fn lacking_since(&self, covered: Offset) -> Option<Micros> {
        self.steps.iter().find(|step| step.end > covered).map(|step| step.since)
    }

    /// Whether records have been missing for long, without any progress.
    pub fn stalled(&self, covered: Offset, now: Micros) -> bool {
        let (Some(since), Some(progress)) = (self.lacking_since(covered), self.progress) else {
            return false;
        };
        progress.covered == covered && now - since.max(progress.since) > STALLED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Micros {
        Micros::EPOCH + Span::from_secs(seconds)
    }

    fn ask(log_end: &mut LogEnd, end: i64, covered: i64, seconds: i64) {
        log_end.asked(Asked { end: Offset(end), covered: Offset(covered) }, at(seconds));
    }

    fn lacking_since(log_end: &LogEnd, covered: i64) -> Option<i64> {
        log_end.lacking_since(Offset(covered)).map(Micros::seconds)
    }

    fn end(log_end: &LogEnd, seconds: i64) -> Option<i64> {
        log_end.end(at(seconds)).map(|end| end.0)
    }

    #[test]
    fn the_oldest_missing_record_says_how_long_something_is_missing() {
        let mut log_end = LogEnd::default();
        assert_eq!(end(&log_end, 0), None);
        ask(&mut log_end, 10, 10, 1);
        assert_eq!((end(&log_end, 1), lacking_since(&log_end, 10)), (Some(10), None));
        ask(&mut log_end, 20, 10, 2);
        ask(&mut log_end, 30, 10, 3);
        assert_eq!(lacking_since(&log_end, 10), Some(2));
        assert_eq!(lacking_since(&log_end, 20), Some(3));
        ask(&mut log_end, 30, 20, 4);
        assert_eq!((lacking_since(&log_end, 20), lacking_since(&log_end, 30)), (Some(3), None));
        log_end.written(Offset(31), at(4));
        assert_eq!((end(&log_end, 4), lacking_since(&log_end, 30)), (Some(31), Some(4)));
        // An old answer says nothing.
        assert_eq!(end(&log_end, 6), None);
    }

    #[test]
    fn any_number_of_steps_fits_into_one_moment() {
        let mut log_end = LogEnd::default();
        ask(&mut log_end, 1, 0, 1);
        for next in 2..2_000 {
            log_end.written(Offset(next), at(1));
        }
        assert_eq!((end(&log_end, 1), lacking_since(&log_end, 0)), (Some(1_999), Some(1)));
    }

    #[test]
    fn an_answer_of_the_log_does_not_take_back_a_write_after_the_question() {
        let mut log_end = LogEnd::default();
        ask(&mut log_end, 10, 10, 1);
        log_end.written(Offset(12), at(3));
        ask(&mut log_end, 10, 10, 2);
        assert_eq!(end(&log_end, 2), Some(12));
        ask(&mut log_end, 4, 0, 4);
        assert_eq!(end(&log_end, 4), Some(4));
    }

    #[test]
    fn a_long_lag_is_remembered_in_bounded_steps() {
        let mut log_end = LogEnd::default();
        for second in 0..100_000 {
            ask(&mut log_end, 10 + second, 5, second);
        }
        assert!(log_end.steps.len() <= STEPS);
        assert_eq!(lacking_since(&log_end, 5), Some(0));
        let late = lacking_since(&log_end, 50_010).unwrap();
        assert!((49_000..=50_001).contains(&late), "{late}");
        assert_eq!(end(&log_end, 99_999), Some(100_009));
    }

    #[test]
    fn a_stall_is_a_lack_without_progress() {
        let mut log_end = LogEnd::default();
        for second in 0..30 {
            ask(&mut log_end, 10, 10, second);
        }
        assert!(!log_end.stalled(Offset(10), at(30)));
        ask(&mut log_end, 20, 10, 31);
        assert!(!log_end.stalled(Offset(10), at(32)));
        assert!(log_end.stalled(Offset(10), at(42)));
        ask(&mut log_end, 30, 15, 43);
        assert!(!log_end.stalled(Offset(15), at(44)));
    }
}

//! The merge itself: from the summaries of both layers to one answer with its confidence. Pure.
//!
//! `served(window) = batch(offsets < horizon) ⊕ realtime(offsets >= horizon)`: the parts never overlap, so merging their
//! summaries is exact. A longer window is a merge of the summaries in it; its confidence is worked out anew from what
//! was expected, received and valid, and never as a mean of scores.

use crate::confidence::{Confidence, ExpectedSource, LatenessHistogram, State, score};
use crate::expectation::Expectation;
use wye_domain::summary::Summary;
use wye_domain::time::WindowSize;

/// What the merge must know of a series.
#[derive(Clone, Copy, Debug)]
pub struct SeriesFacts<'a> {
    /// The length of its windows.
    pub window: WindowSize,
    /// What it should get; `None` where nothing says.
    pub expectation: Option<&'a Expectation>,
}

/// Which layers an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The batch view alone.
    Batch,
    /// Realtime views alone.
    Realtime,
    /// Both.
    Merged,
}

impl Source {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Realtime => "realtime",
            Self::Merged => "merged",
        }
    }
}

/// How far an answer can be trusted, with where the expectation comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// The score and its factors.
    pub confidence: Confidence,
    /// Where the number of expected readings comes from.
    pub expected_source: ExpectedSource,
}

/// One row of the batch view, with the confidence that the batch layer stored.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRow {
    /// Window start in µs.
    pub window_start: i64,
    /// The summary of the readings below the horizon.
    pub summary: Summary,
    /// The confidence as of the batch run.
    pub scored: Scored,
    /// The state as of the batch run.
    pub state: State,
}

/// One answer: a series in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Window start in µs.
    pub window_start: i64,
    /// Window end in µs.
    pub window_end: i64,
    /// The merged summary; never empty.
    pub summary: Summary,
    /// Which layers it comes from.
    pub source: Source,
    /// How far it can be trusted.
    pub scored: Scored,
    /// How far along it is.
    pub state: State,
}

/// What confidence is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// How late readings come, as the last batch run has seen.
    pub lateness: &'a LatenessHistogram,
    /// Now, in µs.
    pub now: i64,
    /// The newest ingest time (µs) that the batch view has seen.
    pub as_of: i64,
}

impl Judge<'_> {
    /// Scores a summary of the window `[start, end)` that holds everything up to `at` (µs).
    pub fn score(
        &self,
        expectation: Option<&Expectation>,
        (start, end): (i64, i64),
        summary: &Summary,
        at: i64,
    ) -> Scored {
        let elapsed = at.min(end).saturating_sub(start).max(0);
        let settledness = self.lateness.settledness(at.saturating_sub(end));
        let known = expectation.is_some();
        Scored {
            confidence: score(summary, expectation, elapsed, settledness),
            expected_source: if known { ExpectedSource::Registry } else { ExpectedSource::Unknown },
        }
    }
}

/// Merges the two sides of one window; `None` when there is no reading in it.
pub fn merge(
    series: SeriesFacts<'_>,
    window_start: i64,
    sides: Sides<'_>,
    judge: Judge<'_>,
) -> Option<Answer> {
    let window_end = window_start.saturating_add(series.window.micros());
    let (summary, source, scored, state) = match sides {
        Sides { batch: None, realtime: None } => return None,
        Sides { batch: Some(batch), realtime: None } => {
            (batch.summary.clone(), Source::Batch, batch.scored, batch.state)
        }
        Sides { batch, realtime: Some(mut summary) } => {
            let mut source = Source::Realtime;
            if let Some(batch) = batch {
                summary.merge(&batch.summary);
                source = Source::Merged;
            }
            let scored = judge.score(series.expectation, (window_start, window_end), &summary, judge.now);
            (summary, source, scored, State::Live)
        }
    };
    (summary.count > 0).then_some(Answer { window_start, window_end, summary, source, scored, state })
}

/// What the two layers have of one window.
#[derive(Debug)]
pub struct Sides<'a> {
    /// The batch view's row.
    pub batch: Option<&'a BatchRow>,
    /// The merged rows of all realtime epochs from the horizon on.
    pub realtime: Option<Summary>,
}

/// Merges any number of windows into a longer one.
#[derive(Clone, Debug, Default)]
pub struct Rollup {
    summary: Summary,
    batch_rows: usize,
    /// Of the only batch row so far.
    stored: Option<(Scored, State, i64)>,
    preliminary: bool,
    realtime: bool,
}

impl Rollup {
    /// Takes in a row of the batch view.
    pub fn add_batch(&mut self, row: &BatchRow) {
        self.summary.merge(&row.summary);
        self.batch_rows += 1;
        self.stored = (self.batch_rows == 1).then_some((row.scored, row.state, row.window_start));
        self.preliminary |= row.state != State::Settled;
    }

    /// Takes in rows of realtime epochs.
    pub fn add_realtime(&mut self, summary: &Summary) {
        self.summary.merge(summary);
        self.realtime = true;
    }

    /// Takes in another part of the same window.
    pub fn add(&mut self, other: &Self) {
        self.summary.merge(&other.summary);
        self.batch_rows += other.batch_rows;
        self.stored = match (self.batch_rows, other.batch_rows) {
            (1, 1) => other.stored,
            (1, 0) => self.stored,
            _ => None,
        };
        self.preliminary |= other.preliminary;
        self.realtime |= other.realtime;
    }

    /// The answer for the window `[start, end)`; `None` when there is no reading in it.
    pub fn finish(
        self,
        series: SeriesFacts<'_>,
        (start, end): (i64, i64),
        judge: Judge<'_>,
    ) -> Option<Answer> {
        if self.summary.count == 0 {
            return None;
        }
        let source = match (self.batch_rows > 0, self.realtime) {
            (_, false) => Source::Batch,
            (false, true) => Source::Realtime,
            (true, true) => Source::Merged,
        };
        let at = if self.realtime { judge.now } else { judge.as_of };
        let same_window = end.saturating_sub(start) == series.window.micros();
        let (scored, state) = match self.stored {
            // A batch row that is the whole window has been judged already.
            Some((scored, state, window_start)) if !self.realtime && same_window && window_start == start => {
                (scored, state)
            }
            _ => {
                let state = match (self.realtime, self.preliminary) {
                    (true, _) => State::Live,
                    (false, true) => State::Preliminary,
                    (false, false) => State::Settled,
                };
                (judge.score(series.expectation, (start, end), &self.summary, at), state)
            }
        };
        Some(Answer { window_start: start, window_end: end, summary: self.summary, source, scored, state })
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::time::SECOND;

    use super::*;
    use crate::expectation::ExpectedDevice;
    use wye_domain::registry::DeviceNumber;

    fn every_second() -> Option<Expectation> {
        Expectation::new(vec![ExpectedDevice { device: DeviceNumber(0), interval: SECOND, metrics: 1 }])
    }

    fn minutes(expectation: &Option<Expectation>) -> SeriesFacts<'_> {
        let window = WindowSize::parse("1m").unwrap();
        SeriesFacts { window, expectation: expectation.as_ref() }
    }

    fn summary(readings: std::ops::Range<i64>) -> Summary {
        let mut summary = Summary::EMPTY;
        for time in readings {
            summary.add(time as f64, time * SECOND);
        }
        summary
    }

    fn row(readings: std::ops::Range<i64>, judge: Judge<'_>, series: SeriesFacts<'_>) -> BatchRow {
        let window_start = readings.start / 60 * 60 * SECOND;
        let summary = summary(readings);
        let scored = judge.score(
            series.expectation,
            (window_start, window_start + 60 * SECOND),
            &summary,
            judge.as_of,
        );
        BatchRow { window_start, summary, scored, state: State::Settled }
    }

    #[test]
    fn both_sides_make_one_window() {
        let lateness = LatenessHistogram::default();
        let judge = Judge { lateness: &lateness, now: 90 * SECOND, as_of: 30 * SECOND };
        let expectation = every_second();
        let series = minutes(&expectation);
        let batch = row(0..30, judge, series);
        assert_eq!(batch.scored.confidence.expected, Some(30.0));
        let merged =
            merge(series, 0, Sides { batch: Some(&batch), realtime: Some(summary(30..45)) }, judge).unwrap();
        assert_eq!((merged.summary.count, merged.source, merged.state), (45, Source::Merged, State::Live));
        assert_eq!(merged.summary.sum.value(), summary(0..45).sum.value());
        assert_eq!((merged.scored.confidence.expected, merged.scored.confidence.score), (Some(60.0), 0.75));
        let alone = merge(series, 0, Sides { batch: Some(&batch), realtime: None }, judge).unwrap();
        assert_eq!((alone.source, alone.state, alone.scored), (Source::Batch, State::Settled, batch.scored));
        assert!(merge(series, 0, Sides { batch: None, realtime: Some(Summary::EMPTY) }, judge).is_none());
    }

    #[test]
    fn rolling_up_sums_and_never_averages() {
        let lateness = LatenessHistogram::default();
        let judge = Judge { lateness: &lateness, now: 7_200 * SECOND, as_of: 7_200 * SECOND };
        let expectation = every_second();
        let series = minutes(&expectation);
        let mut rollup = Rollup::default();
        rollup.add_batch(&row(0..60, judge, series));
        rollup.add_batch(&row(60..120, judge, series));
        let hour = rollup.finish(series, (0, 3_600 * SECOND), judge).unwrap();
        // Two full minutes of sixty: not one, which the mean of their scores would be.
        assert_eq!(hour.scored.confidence.completeness, 120.0 / 3_600.0);
        assert_eq!((hour.state, hour.summary.count), (State::Settled, 120));
    }
}

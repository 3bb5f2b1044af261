//! The merge itself: from the summaries of both layers to one answer with its confidence. Pure.
//!
//! `served(window) = batch(offsets < horizon) ⊕ realtime(offsets >= horizon)`: the parts never overlap, so merging their
//! summaries is exact. A longer window is a merge of the summaries in it; its confidence is
//! computed again from the expected, received and valid readings, never as a mean of scores.

use crate::confidence::{Confidence, Evidence, Judged, LatenessHistogram, State, judge};
use crate::expectation::Expectation;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Window, WindowSize};

/// What the merge needs to know about a series.
#[derive(Clone, Copy, Debug)]
pub struct SeriesFacts<'a> {
    /// The length of its windows.
    pub window: WindowSize,
    /// The readings that it should receive; `None` where unknown.
    pub expectation: Option<&'a Expectation>,
}

impl SeriesFacts<'_> {
    fn judge(self, window: Window, summary: &Summary, at: Micros, lateness: &LatenessHistogram) -> Judged {
        judge(Evidence { summary, expectation: self.expectation, window }, at, lateness)
    }
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

/// One row of the batch view, as the batch layer judged it.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRow {
    /// Window start.
    pub window_start: Micros,
    /// The summary of the readings below the horizon.
    pub summary: Summary,
    /// The confidence and state as of the batch run.
    pub judged: Judged,
}

/// One answer: a series in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Window start.
    pub window_start: Micros,
    /// Window end.
    pub window_end: Micros,
    /// The merged summary; never empty.
    pub summary: Summary,
    /// Which layers it comes from.
    pub source: Source,
    /// How far it can be trusted.
    pub confidence: Confidence,
    /// How far along it is.
    pub state: State,
}

impl Answer {
    /// The answer for a window; `None` when there is no reading in it.
    fn new(window: Window, summary: Summary, source: Source, judged: Judged) -> Option<Self> {
        let Judged { confidence, state } = judged;
        let Window { start: window_start, end: window_end } = window;
        (summary.count > 0).then_some(Self { window_start, window_end, summary, source, confidence, state })
    }
}

/// What confidence is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// How late readings are, measured by the last batch run.
    pub lateness: &'a LatenessHistogram,
    /// Now.
    pub now: Micros,
    /// The newest ingest time of the readings in the batch view.
    pub as_of: Micros,
}

/// Merges the two sides of one window; `None` when there is no reading in it.
pub fn merge(
    series: SeriesFacts<'_>,
    window_start: Micros,
    sides: Sides<'_>,
    judge: Judge<'_>,
) -> Option<Answer> {
    let window = series.window.window_at(window_start);
    match sides {
        Sides { batch: None, realtime: None } => None,
        Sides { batch: Some(batch), realtime: None } => {
            Answer::new(window, batch.summary.clone(), Source::Batch, batch.judged)
        }
        Sides { batch, realtime: Some(mut summary) } => {
            let mut source = Source::Realtime;
            if let Some(batch) = batch {
                summary.merge(&batch.summary);
                source = Source::Merged;
            }
            let judged = series.judge(window, &summary, judge.now, judge.lateness);
            Answer::new(window, summary, source, Judged { state: State::Live, ..judged })
        }
    }
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
    stored: Option<(Judged, Micros)>,
    preliminary: bool,
    realtime: bool,
}

impl Rollup {
    /// Adds a row of the batch view.
    pub fn add_batch(&mut self, row: &BatchRow) {
        self.summary.merge(&row.summary);
        self.batch_rows += 1;
        self.stored = (self.batch_rows == 1).then_some((row.judged, row.window_start));
        self.preliminary |= row.judged.state != State::Settled;
    }

    /// Adds rows of realtime epochs.
    pub fn add_realtime(&mut self, summary: &Summary) {
        self.summary.merge(summary);
        self.realtime = true;
    }

    /// Adds another part of the same window.
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

    /// The answer for a window; `None` when there is no reading in it.
    pub fn finish(self, series: SeriesFacts<'_>, window: Window, judge: Judge<'_>) -> Option<Answer> {
        if self.summary.count == 0 {
            return None;
        }
        let source = match (self.batch_rows > 0, self.realtime) {
            (_, false) => Source::Batch,
            (false, true) => Source::Realtime,
            (true, true) => Source::Merged,
        };
        let judged = match self.stored {
            // A batch row that is the whole window has been judged already.
            Some((judged, start)) if !self.realtime && series.window.window_at(start) == window => judged,
            _ => {
                let at = if self.realtime { judge.now } else { judge.as_of };
                let state = match (self.realtime, self.preliminary) {
                    (true, _) => State::Live,
                    (false, true) => State::Preliminary,
                    (false, false) => State::Settled,
                };
                Judged { state, ..series.judge(window, &self.summary, at, judge.lateness) }
            }
        };
        Answer::new(window, self.summary, source, judged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expectation::ExpectedDevice;
    use wye_domain::registry::DeviceNumber;
    use wye_domain::time::Span;

    const fn at(seconds: i64) -> Micros {
        Micros::from_secs(seconds)
    }

    fn every_second() -> Option<Expectation> {
        Expectation::new(vec![ExpectedDevice {
            device: DeviceNumber(0),
            interval: Span::from_secs(1),
            metrics: 1,
        }])
    }

    fn minutes(expectation: &Option<Expectation>) -> SeriesFacts<'_> {
        let window = WindowSize::parse("1m").unwrap();
        SeriesFacts { window, expectation: expectation.as_ref() }
    }

    fn summary(readings: std::ops::Range<i64>) -> Summary {
        let mut summary = Summary::EMPTY;
        for time in readings {
            summary.add(time as f64, at(time));
        }
        summary
    }

    fn row(readings: std::ops::Range<i64>, judge: Judge<'_>, series: SeriesFacts<'_>) -> BatchRow {
        let window_start = series.window.start_of(at(readings.start));
        let window = series.window.window_at(window_start);
        let summary = summary(readings);
        let judged = series.judge(window, &summary, judge.as_of, judge.lateness);
        BatchRow { window_start, summary, judged: Judged { state: State::Settled, ..judged } }
    }

    #[test]
    fn both_sides_make_one_window() {
        let lateness = LatenessHistogram::default();
        let judge = Judge { lateness: &lateness, now: at(90), as_of: at(30) };
        let expectation = every_second();
        let series = minutes(&expectation);
        let batch = row(0..30, judge, series);
        assert_eq!(batch.judged.confidence.expected, Some(30.0));
        let merged =
            merge(series, at(0), Sides { batch: Some(&batch), realtime: Some(summary(30..45)) }, judge)
                .unwrap();
        assert_eq!((merged.summary.count, merged.source, merged.state), (45, Source::Merged, State::Live));
        assert_eq!(merged.summary.sum.value(), summary(0..45).sum.value());
        assert_eq!((merged.confidence.expected, merged.confidence.score), (Some(60.0), 0.75));
        let alone = merge(series, at(0), Sides { batch: Some(&batch), realtime: None }, judge).unwrap();
        assert_eq!(
            (alone.source, alone.state, alone.confidence),
            (Source::Batch, State::Settled, batch.judged.confidence)
        );
        assert!(merge(series, at(0), Sides { batch: None, realtime: Some(Summary::EMPTY) }, judge).is_none());
    }

    #[test]
    fn rolling_up_sums_and_never_averages() {
        let lateness = LatenessHistogram::default();
        let judge = Judge { lateness: &lateness, now: at(7_200), as_of: at(7_200) };
        let expectation = every_second();
        let series = minutes(&expectation);
        let mut rollup = Rollup::default();
        rollup.add_batch(&row(0..60, judge, series));
        rollup.add_batch(&row(60..120, judge, series));
        let hour = rollup.finish(series, Window { start: at(0), end: at(3_600) }, judge).unwrap();
        // Two full minutes of sixty: not one, which the mean of their scores would be.
        assert_eq!(hour.confidence.completeness, 120.0 / 3_600.0);
        assert_eq!((hour.state, hour.summary.count), (State::Settled, 120));
    }
}

//! The merge itself: from the summaries of both layers to one answer with its confidence. Pure.
//!
//! `served(window) = batch(offsets < horizon) ⊕ realtime(offsets >= horizon)`: the parts never overlap, so merging their
//! summaries is exact. A longer window is a merge of the summaries in it; its confidence is
//! computed again from the expected, received and valid readings, never as a mean of scores.

use crate::confidence::{
    Confidence, Evidence, Judged, Settling, State, is_silent, judge, lacks_data, settled,
};
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
    fn judge(self, window: Window, summary: &Summary, at: Micros, settling: &Settling) -> Judged {
        judge(Evidence { summary, expectation: self.expectation, window }, at, settling)
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

/// One row of the batch view.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchRow {
    /// Window start.
    pub window_start: Micros,
    /// The summary of the readings below the horizon.
    pub summary: Summary,
}

/// One answer: a series in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Window start.
    pub window_start: Micros,
    /// Window end.
    pub window_end: Micros,
    /// The merged summary; empty where there is no reading and there should be some ([`missing`]).
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

    /// The event time of its last reading; `None` without one.
    pub fn last_updated(&self) -> Option<Micros> {
        (self.summary.count > 0).then_some(self.summary.last.event_time)
    }
}

/// What confidence is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// When readings arrive, measured by the last batch run.
    pub settling: &'a Settling,
    /// Windows with realtime rows are judged as of this time: now.
    pub now: Micros,
    /// Other windows are judged as of this time: all that was in the log then is in the answer.
    pub as_of: Micros,
}

impl Judge<'_> {
    /// Whether readings of a window of the batch view may be on their way, so that less is expected than of all of it.
    pub fn is_open(&self, window: Window) -> bool {
        window.end > self.settling.due(self.as_of)
    }
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
            let judged = series.judge(window, &batch.summary, judge.as_of, judge.settling);
            Answer::new(window, batch.summary.clone(), Source::Batch, judged)
        }
        Sides { batch, realtime: Some(mut summary) } => {
            let mut source = Source::Realtime;
            if let Some(batch) = batch {
                summary.merge(&batch.summary);
                source = Source::Merged;
            }
            let judged = series.judge(window, &summary, judge.now, judge.settling);
            Answer::new(window, summary, source, Judged { state: State::Live, ..judged })
        }
    }
}

/// The answer for a window without a reading, if it should have some.
pub fn missing(series: SeriesFacts<'_>, window: Window, judge: Judge<'_>) -> Option<Answer> {
    if !lacks_data(series.expectation?, window, judge.as_of, judge.settling) {
        return None;
    }
    let evidence = Evidence { summary: &Summary::EMPTY, expectation: series.expectation, window };
    Some(Answer {
        window_start: window.start,
        window_end: window.end,
        summary: Summary::EMPTY,
        source: Source::Merged,
        confidence: settled(evidence),
        state: State::InsufficientData,
    })
}

/// The newest answer of a series as its current value. Where the series has fallen silent since, the number is not to be trusted.
/// Where nothing is due yet of the newest window, it is as complete as the window `before`.
pub fn current(
    series: SeriesFacts<'_>,
    newest: Answer,
    before: impl FnOnce() -> Option<Answer>,
    judge: Judge<'_>,
) -> Answer {
    let Some(expectation) = series.expectation else { return newest };
    let confidence = newest.confidence;
    if is_silent(expectation, newest.window_end, judge.as_of, judge.settling) {
        let confidence = Confidence { completeness: 0.0, score: 0.0, ..confidence };
        return Answer { confidence, state: State::InsufficientData, ..newest };
    }
    if confidence.expected.is_some_and(|expected| expected > 0.0) {
        return newest;
    }
    let Some(before) = before() else { return newest };
    let completeness = before.confidence.completeness;
    let score = completeness * confidence.validity * confidence.precision;
    Answer { confidence: Confidence { completeness, score, ..confidence }, ..newest }
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
    batch: bool,
    realtime: bool,
}

impl Rollup {
    /// Adds a row of the batch view.
    pub fn add_batch(&mut self, row: &BatchRow) {
        self.summary.merge(&row.summary);
        self.batch = true;
    }

    /// Adds rows of realtime epochs.
    pub fn add_realtime(&mut self, summary: &Summary) {
        self.summary.merge(summary);
        self.realtime = true;
    }

    /// Adds another part of the same window.
    pub fn add(&mut self, other: &Self) {
        self.summary.merge(&other.summary);
        self.batch |= other.batch;
        self.realtime |= other.realtime;
    }

    /// The answer for a window; `None` when there is no reading in it.
    pub fn finish(self, series: SeriesFacts<'_>, window: Window, judge: Judge<'_>) -> Option<Answer> {
        let source = match (self.batch, self.realtime) {
            (_, false) => Source::Batch,
            (false, true) => Source::Realtime,
            (true, true) => Source::Merged,
        };
        let at = if self.realtime { judge.now } else { judge.as_of };
        let mut judged = series.judge(window, &self.summary, at, judge.settling);
        if self.realtime {
            judged.state = State::Live;
        }
        Answer::new(window, self.summary, source, judged)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::confidence::LatenessHistogram;
    use crate::expectation::ExpectedDevice;
    use wye_domain::registry::DeviceNumber;
    use wye_domain::schedule::Schedule;
    use wye_domain::time::Span;

    const fn at(seconds: i64) -> Micros {
        Micros::from_secs(seconds)
    }

    fn every_second() -> Option<Expectation> {
        let schedule = Arc::new(Schedule::always(Span::from_secs(1)));
        Expectation::new(vec![ExpectedDevice { device: DeviceNumber(0), schedule, metrics: 1 }])
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

    fn row(readings: std::ops::Range<i64>, series: SeriesFacts<'_>) -> BatchRow {
        let window_start = series.window.start_of(at(readings.start));
        BatchRow { window_start, summary: summary(readings) }
    }

    #[test]
    fn both_sides_make_one_window() {
        let settling = Settling::default();
        let judge = Judge { settling: &settling, now: at(90), as_of: at(30) };
        let expectation = every_second();
        let series = minutes(&expectation);
        let batch = row(0..30, series);
        let merged =
            merge(series, at(0), Sides { batch: Some(&batch), realtime: Some(summary(30..45)) }, judge)
                .unwrap();
        assert_eq!((merged.summary.count, merged.source, merged.state), (45, Source::Merged, State::Live));
        assert_eq!(merged.summary.sum.value(), summary(0..45).sum.value());
        assert_eq!((merged.confidence.expected, merged.confidence.score), (Some(60.0), 0.75));
        let alone = merge(series, at(0), Sides { batch: Some(&batch), realtime: None }, judge).unwrap();
        assert_eq!((alone.source, alone.state), (Source::Batch, State::Preliminary));
        // Of the open window, half a minute has passed.
        assert_eq!((alone.confidence.expected, alone.confidence.score), (Some(30.0), 1.0));
        let later = Judge { as_of: at(60) + LatenessHistogram::BACKLOG, ..judge };
        let alone = merge(series, at(0), Sides { batch: Some(&batch), realtime: None }, later).unwrap();
        assert_eq!((alone.state, alone.confidence.score), (State::Settled, 0.5));
        assert!(merge(series, at(0), Sides { batch: None, realtime: Some(Summary::EMPTY) }, judge).is_none());
    }

    #[test]
    fn windows_without_readings_are_answered_where_there_should_be_some() {
        let mut lateness = LatenessHistogram::default();
        lateness.add(Span::from_millis(100));
        let settling = lateness.settling();
        let judge = Judge { settling: &settling, now: at(200), as_of: at(121) };
        let expectation = every_second();
        let series = minutes(&expectation);
        let window = |start| Window { start: at(start), end: at(start + 60) };
        let answer = missing(series, window(60), judge).unwrap();
        assert_eq!((answer.summary.count, answer.state), (0, State::InsufficientData));
        assert_eq!((answer.confidence.expected, answer.confidence.score), (Some(60.0), 0.0));
        // A window that has not ended, and one of which nobody knows what to expect.
        assert!(missing(series, window(120), judge).is_none());
        assert!(missing(minutes(&None), window(60), judge).is_none());
    }

    #[test]
    fn the_current_value_of_a_silent_series_is_not_trusted() {
        let mut lateness = LatenessHistogram::default();
        lateness.add(Span::from_millis(100));
        let settling = lateness.settling();
        let expectation = every_second();
        let series = minutes(&expectation);
        let state = |as_of, series| {
            let judge = Judge { settling: &settling, now: as_of, as_of };
            let batch = row(0..60, minutes(&None));
            let newest = merge(series, at(0), Sides { batch: Some(&batch), realtime: None }, judge).unwrap();
            let current = current(series, newest, || None, judge);
            (current.state, current.confidence.score, current.summary.count)
        };
        assert_eq!(state(at(61), series), (State::Settled, 1.0, 60));
        assert_eq!(state(at(63), series), (State::InsufficientData, 0.0, 60));
        assert_eq!(state(at(63), minutes(&None)), (State::Settled, 0.9, 60));
    }

    #[test]
    fn a_window_of_which_nothing_is_due_is_as_complete_as_the_one_before() {
        let settling = Settling::default();
        let schedule = Arc::new(Schedule::always(Span::from_secs(10)));
        let device = ExpectedDevice { device: DeviceNumber(0), schedule, metrics: 1 };
        let expectation = Expectation::new(vec![device]);
        let series = minutes(&expectation);
        let score = |now| {
            let judge = Judge { settling: &settling, now: at(now), as_of: at(now) };
            let live = |window, readings| {
                merge(series, at(window), Sides { batch: None, realtime: Some(summary(readings)) }, judge)
            };
            // Three of six readings, then one in the first seconds of the next minute.
            let newest = live(60, 62..63).unwrap();
            current(series, newest, || live(0, 0..3), judge).confidence.score
        };
        assert_eq!([65, 71, 85].map(score), [0.5, 1.0, 0.5]);
    }

    #[test]
    fn rolling_up_sums_and_never_averages() {
        let settling = Settling::default();
        let at_end = at(3_600) + LatenessHistogram::BACKLOG;
        let judge = Judge { settling: &settling, now: at_end, as_of: at_end };
        let expectation = every_second();
        let series = minutes(&expectation);
        let mut rollup = Rollup::default();
        rollup.add_batch(&row(0..60, series));
        rollup.add_batch(&row(60..120, series));
        let hour = rollup.finish(series, Window { start: at(0), end: at(3_600) }, judge).unwrap();
        // Two full minutes of sixty: not one, which the mean of their scores would be.
        assert_eq!(hour.confidence.completeness, 120.0 / 3_600.0);
        assert_eq!((hour.state, hour.summary.count), (State::Settled, 120));
    }
}

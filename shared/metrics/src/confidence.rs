//! How far a number can be trusted: completeness, validity and precision, and the score from these.
//!
//! `confidence = completeness · validity · precision`, at most 0.9 where the number of expected readings is unknown.

use serde::{Deserialize, Serialize};

use crate::expectation::{Expectation, Stretch};
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span, Window};

/// The largest score where the number of expected readings is unknown.
pub const UNKNOWN_EXPECTATION_CAP: f64 = 0.9;
/// The share of readings that have arrived by half of the usual age. One outage after which many readings come late does not
/// change it.
const USUAL: f64 = 0.5;
/// From this settledness on a batch number is settled.
pub const SETTLED: f64 = 0.999;

/// Where the expectation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectedSource {
    /// The registry's reporting intervals.
    Registry,
    /// The number of expected readings is unknown.
    Unknown,
}

impl ExpectedSource {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Registry, Self::Unknown];

    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Unknown => "unknown",
        }
    }
}

/// How far along a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Has readings that no batch run has computed.
    Live,
    /// Recomputed by the batch layer; late readings may still arrive.
    Preliminary,
    /// Recomputed by the batch layer; hardly any reading is still missing.
    Settled,
    /// There is no reading, and there should be some.
    InsufficientData,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Live, Self::Preliminary, Self::Settled, Self::InsufficientData];

    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Preliminary => "PRELIMINARY",
            Self::Settled => "SETTLED",
            Self::InsufficientData => "INSUFFICIENT_DATA",
        }
    }
}

/// A score with its factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence {
    /// Expected readings; `None` where unknown.
    pub expected: Option<f64>,
    /// Where the number of expected readings comes from.
    pub expected_source: ExpectedSource,
    /// `min(1, received / expected)` with no more of a device than it can send (see [`Expectation::received`]), or the
    /// settledness where the expectation is unknown.
    pub completeness: f64,
    /// Valid share of what was received.
    pub validity: f64,
    /// 1 − relative half-width of the confidence interval; 1 without sampling.
    pub precision: f64,
    /// The product, capped where the expectation is unknown.
    pub score: f64,
}

/// A summary with what is known of its window.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The summary.
    pub summary: &'a Summary,
    /// The readings that its series should receive; `None` where unknown.
    pub expectation: Option<&'a Expectation>,
    /// The window.
    pub window: Window,
}

/// How far a summary can be trusted, and how far along it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// How far it can be trusted.
    pub confidence: Confidence,
    /// How far along it is.
    pub state: State,
}

/// Judges a summary that has all readings received up to `at`, with the distribution of lateness. Of a window that is still
/// open, only the readings are expected that are due, and have had the usual time to arrive.
///
/// The state is that of a number of the batch layer: preliminary or settled. Without a reading it is insufficient data.
#[inline]
pub fn judge(evidence: Evidence<'_>, at: Micros, settling: &Settling) -> Judged {
    let Evidence { summary, expectation, window } = evidence;
    let settledness = settling.settledness(at - window.end);
    Judged {
        confidence: score(summary, expectation, Stretch::of(window, settling.due(at)), settledness),
        state: if summary.count == 0 { State::InsufficientData } else { batch_state(settledness) },
    }
}

/// The score of a summary once all readings of its window have arrived: what a batch view stores, since it does not change
/// with time.
#[inline]
pub fn settled(evidence: Evidence<'_>) -> Confidence {
    score(evidence.summary, evidence.expectation, Stretch::Whole(evidence.window), 1.0)
}

/// The state of a number of the batch layer at a settledness.
#[inline]
pub(crate) fn batch_state(settledness: f64) -> State {
    if settledness >= SETTLED { State::Settled } else { State::Preliminary }
}

/// Whether a window that has no reading should have some by `at`: at least one expected reading should have arrived, or the
/// window is settled.
pub fn lacks_data(expectation: &Expectation, window: Window, at: Micros, settling: &Settling) -> bool {
    let settledness = settling.settledness(at - window.end);
    let expected = expectation.readings(Stretch::Whole(window));
    let arrived = if settledness >= SETTLED { 1.0 } else { settledness };
    arrived > 0.0 && expected * arrived >= 1.0
}

/// Whether a series that has had no reading since a time is silent at `at`: two readings that should have arrived by then are
/// missing.
pub fn is_silent(expectation: &Expectation, since: Micros, at: Micros, settling: &Settling) -> bool {
    let usual = settling.usual().unwrap_or(LatenessHistogram::BACKLOG);
    expectation.readings(Stretch::Whole(Window { start: since, end: at - usual })) >= 2.0
}

/// Scores a summary that holds the readings of a stretch of time, against what was expected of it, at a `settledness`
/// in `[0, 1]`. Where nothing is expected, nothing is missing.
fn score(
    summary: &Summary,
    expectation: Option<&Expectation>,
    stretch: Stretch,
    settledness: f64,
) -> Confidence {
    let validity = if summary.count == 0 { 0.0 } else { summary.valid() as f64 / summary.count as f64 };
    let expected = expectation.map(|expectation| expectation.readings(stretch));
    let completeness = expectation.zip(expected).map(|(expectation, expected)| match expected > 0.0 {
        true => (expectation.received(summary, stretch) as f64 / expected).min(1.0),
        false => 1.0,
    });
    let expected_source =
        if expectation.is_some() { ExpectedSource::Registry } else { ExpectedSource::Unknown };
    let precision = 1.0;
    let (completeness, score) = product(completeness, settledness, validity, precision);
    Confidence { expected, expected_source, completeness, validity, precision, score }
}

/// The completeness and the score. Where the number of expected readings is unknown, so is the completeness: the settledness
/// stands for it, and the score is capped.
#[inline]
pub(crate) fn product(known: Option<f64>, settledness: f64, validity: f64, precision: f64) -> (f64, f64) {
    let (completeness, cap) = match known {
        Some(completeness) => (completeness, 1.0),
        None => (settledness.clamp(0.0, 1.0), UNKNOWN_EXPECTATION_CAP),
    };
    (completeness, (completeness * validity * precision).min(cap))
}

/// The distribution of lateness, ingest time minus event time, in powers of two of a millisecond.
///
/// Readings later than [`LatenessHistogram::BACKLOG`] are replayed backlogs and are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatenessHistogram {
    /// `buckets[i]` counts readings with lateness below `2^i` ms and not below `2^(i-1)` ms.
    buckets: Vec<u64>,
}

impl Default for LatenessHistogram {
    fn default() -> Self {
        Self { buckets: vec![0; 40] }
    }
}

impl LatenessHistogram {
    /// Lateness from which a reading counts as part of a replayed backlog.
    pub const BACKLOG: Span = Span::from_days(1);

    /// Adds the lateness of one reading.
    #[inline]
    pub fn add(&mut self, lateness: Span) {
        if lateness < Self::BACKLOG {
            self.buckets[bucket(lateness)] += 1;
        }
    }

    /// Adds another distribution.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }

    /// The share of readings that have arrived by each age.
    pub fn settling(&self) -> Settling {
        let total: u64 = self.buckets.iter().sum();
        let mut arrived = 0;
        let shares = self.buckets.iter().map(|readings| {
            let share = if total == 0 { 0.0 } else { arrived as f64 / total as f64 };
            arrived += readings;
            share
        });
        Settling { shares: shares.collect() }
    }
}

/// Which share of the readings of a window has arrived, by the time since its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settling {
    /// By bucket of age: the share of readings in lower buckets of lateness.
    shares: Vec<f64>,
}

impl Settling {
    /// The share of readings that have arrived when a window closed `age` ago. Before the first reading: 1 for an age of a
    /// backlog or more, else 0.
    #[inline]
    pub fn settledness(&self, age: Span) -> f64 {
        if age >= LatenessHistogram::BACKLOG {
            return 1.0;
        }
        if age < Span::ZERO {
            return 0.0;
        }
        self.shares.get(bucket(age)).copied().unwrap_or(0.0)
    }

    /// Windows that have ended by then are settled at `at`.
    pub fn settled_until(&self, at: Micros) -> Micros {
        let bucket = self.shares.iter().position(|share| *share >= SETTLED);
        let age = bucket.map(|bucket| Span::from_millis(1 << bucket.saturating_sub(1)));
        at - age.unwrap_or(LatenessHistogram::BACKLOG).min(LatenessHistogram::BACKLOG)
    }

    /// Readings that were sent before this time have usually arrived at `at`.
    pub fn due(&self, at: Micros) -> Micros {
        at - self.usual().unwrap_or_default()
    }

    /// An age by which readings have usually arrived: twice the median, rounded up to a power of two of a millisecond; `None`
    /// where nothing is known.
    pub fn usual(&self) -> Option<Span> {
        let bucket = self.shares.iter().position(|share| *share >= USUAL)?;
        Some(Span::from_millis(1 << bucket).min(LatenessHistogram::BACKLOG))
    }
}

/// When readings have arrived.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The oldest ingest time; `None` without readings, and where it was not stored.
    #[serde(default)]
    pub oldest: Option<Micros>,
    /// The newest ingest time; `None` without readings.
    pub newest: Option<Micros>,
    /// How late they were.
    pub lateness: LatenessHistogram,
}

impl Arrival {
    /// Adds a reading.
    #[inline]
    pub fn add(&mut self, event_time: Micros, ingest_time: Micros) {
        self.oldest = Some(self.oldest.map_or(ingest_time, |oldest| oldest.min(ingest_time)));
        self.newest = self.newest.max(Some(ingest_time));
        self.lateness.add(ingest_time - event_time);
    }

    /// Adds other readings.
    pub fn merge(&mut self, other: &Self) {
        self.oldest = self.oldest.into_iter().chain(other.oldest).min();
        self.newest = self.newest.max(other.newest);
        self.lateness.merge(&other.lateness);
    }
}

/// The bucket of a lateness: the number of bits of its milliseconds.
#[inline]
fn bucket(lateness: Span) -> usize {
    (i64::BITS - lateness.max(Span::ZERO).millis().leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::expectation::ExpectedDevice;
    use wye_domain::registry::DeviceNumber;
    use wye_domain::schedule::Schedule;

    const MINUTE: Window = Window { start: Micros::EPOCH, end: Micros::from_secs(60) };

    fn received(count: u64, invalid: u64) -> Summary {
        Summary { count, invalid, ..Summary::EMPTY }
    }

    #[test]
    fn scores_multiply_and_are_capped() {
        let schedule = Arc::new(Schedule::always(Span::from_secs(1)));
        let device = ExpectedDevice { device: DeviceNumber(0), schedule, metrics: 1 };
        let expectation = Expectation::new(vec![device]);
        for (count, invalid, expected) in [(60, 0, 1.0), (30, 15, 0.25), (90, 0, 1.0), (0, 0, 0.0)] {
            let summary = received(count, invalid);
            assert_eq!(score(&summary, expectation.as_ref(), Stretch::Whole(MINUTE), 0.0).score, expected);
        }
        assert_eq!(score(&received(1, 0), None, Stretch::Whole(MINUTE), 1.0).score, UNKNOWN_EXPECTATION_CAP);
    }

    #[test]
    fn settledness_grows_with_age() {
        let mut histogram = LatenessHistogram::default();
        for _ in 0..99 {
            histogram.add(Span::from_millis(3));
        }
        histogram.add(Span::from_secs(5));
        histogram.add(LatenessHistogram::BACKLOG * 400);
        let settling = histogram.settling();
        assert_eq!(settling.settledness(Span(-1)), 0.0);
        assert_eq!(settling.settledness(Span::from_secs(1)), 0.99);
        assert_eq!(settling.settledness(Span::from_secs(10)), 1.0);
        let usual = settling.usual().unwrap();
        assert!(settling.settledness(usual) >= 0.99 && usual == Span::from_millis(8));
        assert_eq!(Settling::default().usual(), None);
        let until = settling.settled_until(Micros::EPOCH);
        assert!(
            settling.settledness(Micros::EPOCH - until) >= SETTLED
                && Micros::EPOCH - until < Span::from_secs(9)
        );
        for none in [LatenessHistogram::default().settling(), Settling::default()] {
            assert_eq!(none.settledness(LatenessHistogram::BACKLOG), 1.0);
            assert_eq!(none.settledness(LatenessHistogram::BACKLOG - Span(1)), 0.0);
        }
    }

    #[test]
    fn a_window_lacks_data_once_a_reading_should_have_arrived() {
        let mut histogram = LatenessHistogram::default();
        [1, 1, 1, 7].into_iter().for_each(|seconds| histogram.add(Span::from_secs(seconds)));
        let settling = histogram.settling();
        let lacks = |interval, age| {
            let schedule = Arc::new(Schedule::always(Span::from_secs(interval)));
            let device = ExpectedDevice { device: DeviceNumber(0), schedule, metrics: 1 };
            let expectation = Expectation::new(vec![device]).unwrap();
            lacks_data(&expectation, MINUTE, MINUTE.end + Span::from_secs(age), &settling)
        };
        assert_eq!([-1, 0, 3, 60].map(|age| lacks(10, age)), [false, false, true, true]);
        // One reading is expected, which may still come.
        assert_eq!([3, 60].map(|age| lacks(60, age)), [false, true]);
        // A device that reports less than once a window.
        assert!(!lacks(61, 3_600));
    }
}

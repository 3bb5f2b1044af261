//! How far a number can be trusted: completeness, validity and precision, and the score from these.
//!
//! `confidence = completeness · validity · precision`, at most 0.9 where the number of expected readings is unknown.

use serde::{Deserialize, Serialize};

use crate::expectation::Expectation;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span, Window};

/// The largest score where the number of expected readings is unknown.
pub const UNKNOWN_EXPECTATION_CAP: f64 = 0.9;
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
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Live, Self::Preliminary, Self::Settled];

    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Preliminary => "PRELIMINARY",
            Self::Settled => "SETTLED",
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
/// open, only the readings of the part that has passed are expected.
///
/// The state is that of a number of the batch layer: preliminary or settled.
#[inline]
pub fn judge(evidence: Evidence<'_>, at: Micros, lateness: &LatenessHistogram) -> Judged {
    let Evidence { summary, expectation, window } = evidence;
    let settledness = lateness.settledness(at - window.end);
    let state = if settledness >= SETTLED { State::Settled } else { State::Preliminary };
    Judged { confidence: score(summary, expectation, window.elapsed_at(at), settledness), state }
}

/// Scores a summary that holds the readings of a time of `elapsed`, against what was expected of it, at a `settledness`
/// in `[0, 1]`.
fn score(
    summary: &Summary,
    expectation: Option<&Expectation>,
    elapsed: Span,
    settledness: f64,
) -> Confidence {
    let validity = if summary.count == 0 { 0.0 } else { summary.valid() as f64 / summary.count as f64 };
    let expected = expectation.map(|expectation| expectation.readings(elapsed));
    let (completeness, cap) = match (expectation, expected) {
        (Some(expectation), Some(expected)) if expected > 0.0 => {
            ((expectation.received(summary, elapsed) as f64 / expected).min(1.0), 1.0)
        }
        _ => (settledness.clamp(0.0, 1.0), UNKNOWN_EXPECTATION_CAP),
    };
    let expected_source =
        if expectation.is_some() { ExpectedSource::Registry } else { ExpectedSource::Unknown };
    let precision = 1.0;
    Confidence {
        expected,
        expected_source,
        completeness,
        validity,
        precision,
        score: (completeness * validity * precision).min(cap),
    }
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

    /// The age from which a window is settled: readings later than that are rarer than one in a thousand.
    pub fn settling_age(&self) -> Span {
        (0..self.buckets.len())
            .map(|bucket| Span::from_millis(1 << bucket.saturating_sub(1)))
            .find(|age| self.settledness(*age) >= SETTLED)
            .unwrap_or(Self::BACKLOG)
            .min(Self::BACKLOG)
    }

    /// The share of readings that have arrived when a window closed `age` ago. Before the first reading: 1 for an age of a
    /// backlog or more, else 0.
    #[inline]
    pub fn settledness(&self, age: Span) -> f64 {
        if age >= Self::BACKLOG {
            return 1.0;
        }
        let total: u64 = self.buckets.iter().sum();
        if total == 0 || age < Span::ZERO {
            return 0.0;
        }
        let arrived: u64 = self.buckets.iter().take(bucket(age)).sum();
        arrived as f64 / total as f64
    }
}

/// When readings have arrived.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The newest ingest time; `None` without readings.
    pub newest: Option<Micros>,
    /// How late they were.
    pub lateness: LatenessHistogram,
}

impl Arrival {
    /// Adds a reading.
    #[inline]
    pub fn add(&mut self, event_time: Micros, ingest_time: Micros) {
        self.newest = self.newest.max(Some(ingest_time));
        self.lateness.add(ingest_time - event_time);
    }

    /// Adds other readings.
    pub fn merge(&mut self, other: &Self) {
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
    use crate::expectation::ExpectedDevice;
    use wye_domain::registry::DeviceNumber;

    fn received(count: u64, invalid: u64) -> Summary {
        Summary { count, invalid, ..Summary::EMPTY }
    }

    #[test]
    fn scores_multiply_and_are_capped() {
        let device = ExpectedDevice { device: DeviceNumber(0), interval: Span::from_secs(1), metrics: 1 };
        let expectation = Expectation::new(vec![device]);
        for (count, invalid, expected) in [(60, 0, 1.0), (30, 15, 0.25), (90, 0, 1.0), (0, 0, 0.0)] {
            let summary = received(count, invalid);
            assert_eq!(score(&summary, expectation.as_ref(), Span::from_mins(1), 0.0).score, expected);
        }
        assert_eq!(score(&received(1, 0), None, Span::from_mins(1), 1.0).score, UNKNOWN_EXPECTATION_CAP);
    }

    #[test]
    fn settledness_grows_with_age() {
        let mut histogram = LatenessHistogram::default();
        for _ in 0..99 {
            histogram.add(Span::from_millis(3));
        }
        histogram.add(Span::from_secs(5));
        histogram.add(LatenessHistogram::BACKLOG * 400);
        assert_eq!(histogram.settledness(Span(-1)), 0.0);
        assert_eq!(histogram.settledness(Span::from_secs(1)), 0.99);
        assert_eq!(histogram.settledness(Span::from_secs(10)), 1.0);
        assert_eq!(LatenessHistogram::default().settledness(LatenessHistogram::BACKLOG), 1.0);
    }
}

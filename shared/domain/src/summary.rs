//! The summary: the mergeable aggregate state of one group in one window, and the answers that it gives.
//!
//! A commutative monoid: [`Summary::EMPTY`] is the identity, [`Summary::add`] adds a reading, [`Summary::merge`] adds
//! another summary. **AGG-1**: for any split and order, merging the summaries of the parts equals
//! the summary of the whole: exactly for count, min, max, first, last, the quality counts and the sketches' state;
//! within [`sum_error_bound`] for the sum; within rounding of the same order for the variance.
//!
//! Two readings with one event time are ordered by value, so that `first` and `last` do not depend on arrival.

use crate::device_counts::DeviceCounts;
use crate::sketches::Sketches;
use crate::time::Micros;

/// A value and the event time at which it was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed {
    /// The value.
    pub value: f64,
    /// The event time.
    pub event_time: Micros,
}

/// A sum that keeps its rounding error.
///
/// Source: Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen" (1974), with Knuth's
/// branch-free two-sum. Merging adds both halves, so the order of readings moves the result by no more than
/// [`sum_error_bound`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompensatedSum {
    /// The running sum.
    pub high: f64,
    /// What rounding has taken from it.
    pub low: f64,
}

impl CompensatedSum {
    /// Adds one number.
    #[inline]
    pub fn add(&mut self, x: f64) {
        let sum = self.high + x;
        let of_x = sum - self.high;
        self.low += (self.high - (sum - of_x)) + (x - of_x);
        self.high = sum;
    }

    /// Adds another sum.
    #[inline]
    pub fn merge(&mut self, other: &Self) {
        self.add(other.high);
        self.low += other.low;
    }

    /// The sum as one number.
    #[inline]
    pub fn value(&self) -> f64 {
        self.high + self.low
    }
}

/// How far a served sum of `count` readings with `absolute_sum` = Σ|x| can lie from the exact sum:
/// one unit in the last place, and the second-order term `count² · 2⁻¹⁰⁵ · Σ|x|`.
pub fn sum_error_bound(count: u64, absolute_sum: f64) -> f64 {
    let count = count as f64;
    absolute_sum * f64::EPSILON + count * count * absolute_sum * 2f64.powi(-105)
}

/// The aggregate state of one group in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Distinct readings.
    pub count: u64,
    /// Of these, how many failed a check (unit, range, clock).
    pub invalid: u64,
    /// Further readings with a known identity but another value; in no aggregate.
    pub conflicts: u64,
    /// Sum of values.
    pub sum: CompensatedSum,
    /// Sum of squared distances from the mean.
    pub m2: f64,
    /// Smallest value; +∞ when empty.
    pub min: f64,
    /// Largest value; −∞ when empty.
    pub max: f64,
    /// The earliest reading by event time.
    pub first: Timed,
    /// The latest reading by event time.
    pub last: Timed,
    /// Quantile and distinct sketches and counts of devices, where the metric needs them.
    pub sketches: Option<Box<Sketches>>,
}

impl Default for Summary {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Summary {
    /// The identity of [`Summary::merge`].
    pub const EMPTY: Self = Self {
        count: 0,
        invalid: 0,
        conflicts: 0,
        sum: CompensatedSum { high: 0.0, low: 0.0 },
        m2: 0.0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        first: Timed { value: f64::INFINITY, event_time: Micros::MAX },
        last: Timed { value: f64::NEG_INFINITY, event_time: Micros::MIN },
        sketches: None,
    };

    /// Adds one reading: a finite value and its event time.
    ///
    /// The variance follows Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    /// Variances" (1979), with a second part of one reading.
    #[inline]
    pub fn add(&mut self, value: f64, event_time: Micros) {
        if self.count > 0 {
            let count = self.count as f64;
            let distance = value - self.sum.value() / count;
            self.m2 += distance * distance * (count / (count + 1.0));
        }
        self.count += 1;
        self.sum.add(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let timed = Timed { value, event_time };
        if earlier(&timed, &self.first) {
            self.first = timed;
        }
        if earlier(&self.last, &timed) {
            self.last = timed;
        }
    }

    /// Adds the summary of other readings of the same group and window.
    pub fn merge(&mut self, other: &Self) {
        self.invalid += other.invalid;
        self.conflicts += other.conflicts;
        if other.count > 0 {
            if self.count > 0 {
                let (mine, theirs) = (self.count as f64, other.count as f64);
                let distance = other.sum.value() / theirs - self.sum.value() / mine;
                self.m2 += other.m2 + distance * distance * (mine * theirs / (mine + theirs));
            } else {
                self.m2 = other.m2;
            }
            self.count += other.count;
            self.sum.merge(&other.sum);
            self.min = self.min.min(other.min);
            self.max = self.max.max(other.max);
            if earlier(&other.first, &self.first) {
                self.first = other.first;
            }
            if earlier(&self.last, &other.last) {
                self.last = other.last;
            }
        }
        match (&mut self.sketches, &other.sketches) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
    }

    /// The mean; `None` when empty.
    pub fn avg(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum.value() / self.count as f64)
    }

    /// The sample standard deviation (n − 1); `None` below two readings.
    pub fn stddev(&self) -> Option<f64> {
        (self.count > 1).then(|| (self.m2.max(0.0) / (self.count - 1) as f64).sqrt())
    }

    /// The q-quantile, see [`crate::sketches`], kept inside `[min, max]`; `None` where the metric has no quantile sketch.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.sketches.as_ref()?.quantile(q).map(|value| value.clamp(self.min, self.max))
    }

    /// The estimated number of distinct devices; `None` where the metric does not count them.
    pub fn distinct_devices(&self) -> Option<u64> {
        self.sketches.as_ref()?.distinct()
    }

    /// How many readings each registered device has; `None` where the metric does not need it.
    pub fn device_counts(&self) -> Option<&DeviceCounts> {
        self.sketches.as_ref()?.devices()
    }

    /// Distinct readings that are valid: neither failing a check nor contradicted by a conflict.
    pub fn valid(&self) -> u64 {
        self.count.saturating_sub(self.invalid + self.conflicts)
    }
}

/// Whether `a` comes before `b` by event time, then by value.
#[inline]
fn earlier(a: &Timed, b: &Timed) -> bool {
    a.event_time < b.event_time || (a.event_time == b.event_time && a.value < b.value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::registry::DeviceNumber;
    use crate::sketches::Needs;

    fn summary(readings: &[(f64, i64)]) -> Summary {
        let mut summary = Summary {
            sketches: Sketches::new(Needs { quantiles: true, distinct: true, devices: true }),
            ..Summary::EMPTY
        };
        for (value, time) in readings {
            summary.add(*value, Micros(*time));
            if let Some(sketches) = &mut summary.sketches {
                let device = time.rem_euclid(7);
                let number = u32::try_from(device).ok().filter(|number| *number > 0).map(DeviceNumber);
                sketches.add(*value, &format!("device-{device}"), number);
            }
        }
        summary
    }

    fn close(a: Option<f64>, b: Option<f64>, tolerance: f64) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= tolerance,
            (a, b) => a == b,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_024))]

        /// AGG-1, for random splits into up to five parts merged in a random order.
        #[test]
        fn merging_parts_equals_the_whole(
            readings in prop::collection::vec((-1e9f64..1e9, -50i64..50, 0usize..5), 0..60),
            order in Just([0usize, 1, 2, 3, 4]).prop_shuffle(),
        ) {
            let whole = summary(&readings.iter().map(|(v, t, _)| (*v, *t)).collect::<Vec<_>>());
            let mut merged = Summary::EMPTY;
            for part in order {
                let part: Vec<_> = readings.iter().filter(|r| r.2 == part).map(|(v, t, _)| (*v, *t)).collect();
                merged.merge(&summary(&part));
            }
            prop_assert_eq!(merged.count, whole.count);
            if whole.count > 0 {
                prop_assert_eq!((merged.min, merged.max, merged.first, merged.last), (whole.min, whole.max, whole.first, whole.last));
                let absolute: f64 = readings.iter().map(|r| r.0.abs()).sum();
                prop_assert!((merged.sum.value() - whole.sum.value()).abs() <= sum_error_bound(whole.count, absolute));
                prop_assert!(close(merged.stddev(), whole.stddev(), 1e-3));
                prop_assert_eq!(&merged.sketches, &whole.sketches);
            }
        }

        /// For values of all 53 bits that are up to 2^60 apart, so that almost every addition is rounded; added one by
        /// one, and as sums of parts merged in a random order.
        #[test]
        fn the_sum_is_within_its_bound_of_the_exact_sum(
            values in prop::collection::vec((-(1i64 << 53)..1 << 53, 0u32..60, 0usize..5), 0..200),
            order in Just([0usize, 1, 2, 3, 4]).prop_shuffle(),
        ) {
            let mut parts = [CompensatedSum::default(); 5];
            let mut whole = CompensatedSum::default();
            let (mut exact, mut absolute) = (0i128, 0f64);
            for (digits, exponent, part) in &values {
                let value = *digits as f64 * 2f64.powi(*exponent as i32);
                whole.add(value);
                parts[*part].add(value);
                exact += i128::from(*digits) << exponent;
                absolute += value.abs();
            }
            let mut merged = CompensatedSum::default();
            order.iter().for_each(|part| merged.merge(&parts[*part]));
            let bound = sum_error_bound(values.len() as u64, absolute);
            for sum in [whole, merged] {
                // All values are whole numbers, and so is every sum of them, rounded or not.
                let error = (sum.value() as i128 - exact).unsigned_abs() as f64;
                prop_assert!(error <= bound, "{error} > {bound}");
            }
        }
    }

    /// The bound is tight enough to tell a compensated sum from a plain one.
    #[test]
    fn a_plain_sum_is_outside_of_the_bound() {
        let large = 2f64.powi(60);
        let (mut plain, mut compensated) = (large, CompensatedSum { high: large, low: 0.0 });
        for _ in 0..10_000 {
            plain += 1.0;
            compensated.add(1.0);
        }
        let bound = sum_error_bound(10_001, large + 10_000.0);
        assert!(large + 10_000.0 - plain > bound);
        assert!((large + 10_000.0 - compensated.value()).abs() <= bound);
    }

    #[test]
    fn a_large_number_does_not_swallow_small_ones() {
        let mut sum = CompensatedSum::default();
        for x in [1e16, 1.0, -1e16, 1.0] {
            sum.add(x);
        }
        assert_eq!(sum.value(), 2.0);
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        let readings: Vec<_> = (1..=1000).map(|i| (f64::from(i), i64::from(i))).collect();
        let summary = summary(&readings);
        for (q, exact) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0)] {
            let found = summary.quantile(q).unwrap();
            assert!((found / exact - 1.0).abs() < 0.02, "p{q}: {found}");
        }
        assert_eq!(summary.distinct_devices(), Some(7));
    }
}

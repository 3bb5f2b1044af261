//! Mergeable sketches inside a summary: quantiles by DDSketch, distinct devices by HyperLogLog.
//!
//! Sources: Masson, Rim, Lee, "DDSketch" (VLDB 2019), relative accuracy 1 %; Flajolet et al., "HyperLogLog" (2007), in
//! the Apache DataSketches form, 2^12 registers, standard error 1.6 %. Both merges are commutative and associative on
//! the sketch's state; the composite estimator is used because it does not depend on the order of updates.
//!
//! The q-quantile of n readings is the one at rank `ceil(q * n)` of them in ascending order, as SQL's `percentile_disc`. It
//! is within 1 % of that reading, negative ones too, for values between 1e-150 and 1e150 in magnitude; a smaller one counts
//! as 0. The sketch has 2,048 bins for each sign: where values of one sign span more than a factor of 10^17 within a window,
//! those nearest to 0 count as the smallest value that still has a bin.
//!
//! With the sketches a summary has the exact [`DeviceCounts`], where completeness needs them.
//!
//! Stability: the stored bytes are the DataSketches HLL format, the DDSketch format of the Java library over values
//! times 2^500, and the form that [`DeviceCounts`] describes.

use datasketches::hll::{HllSketch, HllType, HllUnion};
use sketches_ddsketch::{Config, DDSketch};

use crate::DomainError;
use crate::device_counts::DeviceCounts;
use crate::registry::DeviceNumber;

mod quantile_bytes;

/// 2^12 registers.
const LG_K: u8 = 12;
/// The library counts values below 1e-9 as 0, so values are stored times 2^500, which is exact.
const SCALE: f64 = f64::from_bits((1023 + 500) << 52);

/// Which sketches a metric's aggregates ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// p50, p95 or p99 is asked for.
    pub quantiles: bool,
    /// `distinct_devices` is asked for.
    pub distinct: bool,
    /// Completeness is counted device by device.
    pub devices: bool,
}

impl Needs {
    /// Whether a summary carries any of these.
    pub fn any(self) -> bool {
        self.quantiles || self.distinct || self.devices
    }
}

/// The sketches of one group in one window.
#[derive(Clone)]
pub struct Sketches {
    quantiles: Option<DDSketch>,
    distinct: Option<HllSketch>,
    devices: Option<DeviceCounts>,
}

/// The stored bytes of [`Sketches`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored<B> {
    /// The quantile sketch.
    pub quantiles: Option<B>,
    /// The sketch of distinct devices.
    pub distinct: Option<B>,
    /// The counts of devices.
    pub devices: Option<B>,
}

impl std::fmt::Debug for Sketches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let distinct = self.distinct.as_ref().map(HllSketch::composite_estimate);
        let devices = &self.devices;
        write!(
            f,
            "Sketches {{ p50: {:?}, distinct: {distinct:?}, devices: {devices:?} }}",
            self.quantile(0.5)
        )
    }
}

impl PartialEq for Sketches {
    fn eq(&self, other: &Self) -> bool {
        self.answers() == other.answers() && self.devices == other.devices
    }
}

impl Sketches {
    /// Empty sketches of the kinds that are needed; `None` when none is.
    pub fn new(needs: Needs) -> Option<Box<Self>> {
        needs.any().then(|| {
            Box::new(Self {
                quantiles: needs.quantiles.then(|| DDSketch::new(Config::defaults())),
                distinct: needs.distinct.then(empty_hll),
                devices: needs.devices.then(DeviceCounts::default),
            })
        })
    }

    /// Adds one value of one device; `number` is the device's in the registry.
    pub fn add(&mut self, value: f64, device_id: &str, number: Option<DeviceNumber>) {
        if let Some(quantiles) = &mut self.quantiles {
            quantiles.add((value * SCALE).clamp(f64::MIN, f64::MAX));
        }
        if let Some(distinct) = &mut self.distinct {
            distinct.update(device_id);
        }
        if let (Some(devices), Some(number)) = (&mut self.devices, number) {
            devices.add(number);
        }
    }

    /// Adds another summary's sketches.
    pub fn merge(&mut self, other: &Self) {
        match (&mut self.quantiles, &other.quantiles) {
            (Some(mine), Some(theirs)) => {
                mine.merge(theirs).expect("every sketch is made with one configuration");
            }
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
        match (&mut self.distinct, &other.distinct) {
            (Some(mine), Some(theirs)) => {
                let mut union = HllUnion::new(LG_K).expect("the number of registers is in range");
                union.update(mine);
                union.update(theirs);
                *mine = union.to_sketch(HllType::Hll8);
            }
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
        match (&mut self.devices, &other.devices) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (mine @ None, Some(theirs)) => *mine = Some(theirs.clone()),
            _ => {}
        }
    }

    /// What two equal sketches have in common.
    fn answers(&self) -> ([Option<f64>; 5], Option<u64>) {
        ([0.0, 0.5, 0.95, 0.99, 1.0].map(|q| self.quantile(q)), self.distinct())
    }

    /// The q-quantile, within the bound that the module states; `None` without a quantile sketch.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let sketch = self.quantiles.as_ref()?;
        // The library takes the reading at floor(q * (count - 1)), so the 99th percentile of 50 readings would not be the
        // largest. Half a place above the wanted rank cannot be rounded to another rank.
        let last = sketch.count().saturating_sub(1) as f64;
        let rank = (q * sketch.count() as f64).ceil() - 1.0;
        let asked = if last > 0.0 { ((rank.clamp(0.0, last) + 0.5) / last).min(1.0) } else { 0.0 };
        sketch.quantile(asked).ok().flatten().map(|scaled| scaled / SCALE)
    }

    /// How many readings each registered device has; `None` where they are not counted.
    pub fn devices(&self) -> Option<&DeviceCounts> {
        self.devices.as_ref()
    }

    /// The estimated number of distinct devices; `None` without that sketch.
    pub fn distinct(&self) -> Option<u64> {
        self.distinct.as_ref().map(|sketch| sketch.composite_estimate().round() as u64)
    }

    /// The stored bytes.
    pub fn encode(&self) -> Stored<Vec<u8>> {
        Stored {
            quantiles: self.quantiles.as_ref().map(DDSketch::to_java_bytes),
            distinct: self.distinct.as_ref().map(HllSketch::serialize),
            devices: self.devices.as_ref().map(DeviceCounts::encode),
        }
    }

    /// Reads stored bytes; `None` when all are absent.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when bytes are not what they should be.
    pub fn decode(stored: Stored<&[u8]>) -> Result<Option<Box<Self>>, DomainError> {
        if stored == Stored::default() {
            return Ok(None);
        }
        if stored.quantiles.is_some_and(|bytes| !quantile_bytes::are_ours(bytes)) {
            let reason = "Wye writes no such sketch".to_owned();
            return Err(DomainError::Decode { what: "quantile sketch", reason });
        }
        if stored.distinct.is_some_and(|bytes| !distinct_bytes_are_ours(bytes)) {
            let reason = "Wye writes no such sketch".to_owned();
            return Err(DomainError::Decode { what: "distinct sketch", reason });
        }
        let quantiles = stored.quantiles.map(DDSketch::from_java_bytes).transpose();
        let distinct = stored.distinct.map(HllSketch::deserialize).transpose();
        Ok(Some(Box::new(Self {
            quantiles: quantiles.map_err(|error| corrupt("quantile sketch", &error))?,
            distinct: distinct.map_err(|error| corrupt("distinct sketch", &error))?,
            devices: stored.devices.map(DeviceCounts::decode).transpose()?,
        })))
    }
}

/// Whether stored bytes can be a sketch of distinct devices as this crate writes it: with our number of registers, a
/// byte each. The library trusts the registers, and shifts by what they say.
fn distinct_bytes_are_ours(bytes: &[u8]) -> bool {
    const HEADER: usize = 40;
    const LARGEST: u8 = 63;
    let [_, _, _, lg_k, _, _, _, form, ..] = bytes else { return false };
    let registers = match (form & 3, (form >> 2) & 3) {
        // A list or a set of hashes.
        (0 | 1, 2) => Some(&[][..]),
        (2, 2) => bytes.get(HEADER..),
        _ => None,
    };
    *lg_k == LG_K && registers.is_some_and(|registers| registers.iter().all(|value| *value <= LARGEST))
}

fn corrupt(what: &'static str, error: &dyn std::error::Error) -> DomainError {
    DomainError::Decode { what, reason: error.to_string() }
}

fn empty_hll() -> HllSketch {
    HllSketch::new(LG_K, HllType::Hll8).expect("the number of registers is in range")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUANTILES: Needs = Needs { quantiles: true, distinct: false, devices: false };

    fn sketch(values: &[f64]) -> Box<Sketches> {
        let mut sketch = Sketches::new(QUANTILES).unwrap();
        values.iter().for_each(|value| sketch.add(*value, "", None));
        sketch
    }

    fn stored_and_read(sketch: &Sketches) -> Box<Sketches> {
        let Stored { quantiles, .. } = sketch.encode();
        let stored = Stored { quantiles: quantiles.as_deref(), ..Stored::default() };
        Sketches::decode(stored).unwrap().unwrap()
    }

    fn is_refused(distinct: &[u8]) -> bool {
        Sketches::decode(Stored { distinct: Some(distinct), ..Stored::default() }).is_err()
    }

    fn check_near(q: f64, values: &[f64], expected: f64) {
        let found = sketch(values).quantile(q).unwrap();
        assert!((found - expected).abs() <= 0.01 * expected, "{q} of {values:?}: {found}");
    }

    /// The reading at the rank of a quantile.
    fn exact(values: &[f64], q: f64) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted[rank.max(1) - 1]
    }

    fn check(values: &[f64], sketch: &Sketches) {
        for q in [0.0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0] {
            let (exact, found) = (exact(values, q), sketch.quantile(q).unwrap());
            let bound = exact.abs() * 0.010_000_1;
            assert!((found - exact).abs() <= bound, "q {q}: {found} for {exact} of {values:?}");
        }
    }

    #[test]
    fn every_magnitude_keeps_the_bound() {
        for exponent in (-150..=150).chain([-12, -10, -9, -8, 0, 12]) {
            for sign in [1.0, -1.0] {
                let values: Vec<f64> =
                    (1..100).map(|i| sign * f64::from(i) * 10f64.powi(exponent.min(148))).collect();
                check(&values, &sketch(&values));
            }
        }
        // What is smaller counts as 0, and nothing overflows.
        assert_eq!(sketch(&[1e-200, 1e-300, 5e-324]).quantile(0.5), Some(0.0));
        assert!(sketch(&[f64::MAX, f64::MIN, f64::MAX]).quantile(0.75).unwrap() > 1e150);
    }

    #[test]
    fn values_too_far_apart_count_as_the_smallest_that_has_a_bin() {
        let values = [1e-12, 1e12, 1e12, 1e12];
        let sketch = sketch(&values);
        assert!((sketch.quantile(0.5).unwrap() - 1e12).abs() <= 1e10);
        assert!(sketch.quantile(0.1).unwrap() <= 1e-5);
    }

    #[test]
    fn high_percentiles_of_few_readings_are_the_largest() {
        for q in [0.51, 0.95, 0.99, 1.0] {
            check_near(q, &[1.0, 100.0], 100.0);
        }
        check_near(0.5, &[1.0, 100.0], 1.0);
        let tens: Vec<f64> = (1..=10).map(|i| f64::from(i) * 10.0).collect();
        for (q, expected) in [(0.0, 10.0), (0.1, 10.0), (0.5, 50.0), (0.9, 90.0), (0.95, 100.0)] {
            check_near(q, &tens, expected);
        }
    }

    #[test]
    fn distinct_sketches_of_any_size_come_back() {
        let mut sketches = Sketches::new(Needs { quantiles: false, distinct: true, devices: false }).unwrap();
        for device in 0..20_000 {
            if [0, 1, 7, 8, 9, 100, 1_000, 19_999].contains(&device) {
                let Stored { distinct, .. } = sketches.encode();
                let stored = Stored { distinct: distinct.as_deref(), ..Stored::default() };
                let again = Sketches::decode(stored).unwrap().unwrap();
                assert_eq!(again.distinct(), sketches.distinct(), "{device}");
                let mut merged = again.clone();
                merged.merge(&again);
                let Stored { distinct, .. } = merged.encode();
                let stored = Stored { distinct: distinct.as_deref(), ..Stored::default() };
                assert!(Sketches::decode(stored).is_ok(), "{device}");
            }
            sketches.add(0.0, &format!("device-{device}"), None);
        }
        let Stored { distinct, .. } = sketches.encode();
        let mut bytes = distinct.unwrap();
        assert!(!is_refused(&bytes));
        bytes[100] = 64;
        assert!(is_refused(&bytes) && is_refused(&bytes[..3]) && is_refused(&[]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Magnitudes from 1e-12 to 1e12 of both signs and 0, each window within 16 of them; split, stored and merged.
        #[test]
        fn quantiles_are_within_one_percent(
            lowest in -12i32..-4,
            values in prop::collection::vec((1.0f64..10.0, 0i32..16, -1i8..=1), 1..80),
            split in 0usize..80,
        ) {
            let values: Vec<f64> = values
                .iter()
                .map(|(digits, exponent, sign)| f64::from(*sign) * digits * 10f64.powi(lowest + exponent))
                .collect();
            check(&values, &sketch(&values));
            let (head, tail) = values.split_at(split.min(values.len()));
            let mut merged = stored_and_read(&sketch(tail));
            merged.merge(&stored_and_read(&sketch(head)));
            prop_assert_eq!(&merged, &sketch(&values));
            check(&values, &merged);
        }
    }
}

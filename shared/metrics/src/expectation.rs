//! How many readings a series should receive, and how many of the received ones are among those. Pure; the caller passes the
//! registry's intervals.
//!
//! A group that spans devices is counted device by device: extra readings of one device do not make up for missing ones
//! of another.

use std::collections::BTreeMap;

use wye_domain::registry::DeviceNumber;
use wye_domain::summary::Summary;
use wye_domain::time::Span;

/// What one device should send to a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpectedDevice {
    /// The device.
    pub device: DeviceNumber,
    /// Its reporting interval, positive.
    pub interval: Span,
    /// How many of its reading names go into the series.
    pub metrics: u32,
}

impl ExpectedDevice {
    /// The most readings that a device can send in a time if it keeps to its interval.
    fn most(&self, elapsed: Span) -> u64 {
        let elapsed = elapsed.0.max(0).unsigned_abs();
        u64::from(self.metrics) * elapsed.div_ceil(self.interval.0.max(1).unsigned_abs())
    }
}

/// What all devices of a series should send; never without a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    devices: Vec<ExpectedDevice>,
    /// How many readings are expected in each interval, by its length: added up before they are divided, so that
    /// devices with one interval make a round number.
    by_interval: BTreeMap<Span, u64>,
}

impl Expectation {
    /// Of these devices, each named once; `None` when there is none.
    pub fn new(devices: Vec<ExpectedDevice>) -> Option<Self> {
        let mut by_interval: BTreeMap<Span, u64> = BTreeMap::new();
        for device in &devices {
            *by_interval.entry(device.interval.max(Span(1))).or_default() += u64::from(device.metrics);
        }
        (!devices.is_empty()).then_some(Self { devices, by_interval })
    }

    /// Expected readings in a time.
    pub fn readings(&self, elapsed: Span) -> f64 {
        let elapsed = elapsed.0.max(0) as f64;
        let each = self.by_interval.iter();
        each.map(|(interval, readings)| *readings as f64 * elapsed / interval.0 as f64).sum()
    }

    /// How many of a summary's readings meet the expectation: of each device no more than it can send in that time,
    /// where the summary counts them by device, else all.
    pub fn received(&self, summary: &Summary, elapsed: Span) -> u64 {
        let Some(counts) = summary.device_counts() else { return summary.count };
        self.devices
            .iter()
            .map(|expected| u64::from(counts.of(expected.device)).min(expected.most(elapsed)))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wye_domain::sketches::{Needs, Sketches};
    use wye_domain::time::Micros;

    const MINUTE: Span = Span::from_mins(1);

    fn summary(readings: &[(u32, u32)]) -> Summary {
        let needs = Needs { devices: true, ..Needs::default() };
        let mut summary = Summary { sketches: Sketches::new(needs), ..Summary::EMPTY };
        for (device, count) in readings {
            for time in 0..i64::from(*count) {
                summary.add(1.0, Micros(time));
                summary.sketches.as_mut().unwrap().add(1.0, "", Some(DeviceNumber(*device)));
            }
        }
        summary
    }

    fn every(seconds: i64, devices: std::ops::Range<u32>) -> Expectation {
        let (interval, metrics) = (Span::from_secs(seconds), 1);
        let devices =
            devices.map(|number| ExpectedDevice { device: DeviceNumber(number), interval, metrics });
        Expectation::new(devices.collect()).unwrap()
    }

    #[test]
    fn extra_readings_of_one_device_do_not_replace_those_of_another() {
        let expectation = every(10, 0..2);
        assert_eq!(expectation.readings(MINUTE), 12.0);
        assert_eq!(expectation.received(&summary(&[(0, 12)]), MINUTE), 6);
        assert_eq!(expectation.received(&summary(&[(0, 6), (1, 5)]), MINUTE), 11);
        // A device that is not expected does not count either.
        assert_eq!(expectation.received(&summary(&[(0, 6), (7, 6)]), MINUTE), 6);
    }

    #[test]
    fn a_device_that_reports_less_than_once_a_window_counts_when_it_does() {
        let expectation = every(3_600, 0..60);
        assert_eq!(expectation.readings(MINUTE), 1.0);
        assert_eq!(expectation.received(&summary(&[(17, 1)]), MINUTE), 1);
    }

    #[test]
    fn without_counts_by_device_all_readings_count() {
        let mut plain = Summary::EMPTY;
        plain.add(1.0, Micros::EPOCH);
        assert_eq!(every(10, 0..1).received(&plain, MINUTE), 1);
    }
}

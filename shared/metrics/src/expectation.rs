//! How many readings a series should receive, and how many of the received ones are among those. Pure; the caller passes the
//! registry's intervals.
//!
//! A group that spans devices is counted device by device: extra readings of one device do not make up for missing ones
//! of another.

use std::collections::BTreeMap;
use std::sync::Arc;

use wye_domain::registry::DeviceNumber;
use wye_domain::schedule::Schedule;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span, Window};

/// What one device should send to a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedDevice {
    /// The device.
    pub device: DeviceNumber,
    /// When it reports.
    pub schedule: Arc<Schedule>,
    /// How many of its reading names go into the series.
    pub metrics: u32,
}

impl ExpectedDevice {
    /// The most readings that a device can send in a stretch of time if it keeps to its schedule.
    fn most(&self, time: Window) -> u64 {
        let parts = self.schedule.within(time);
        let each = parts.map(|(length, interval)| {
            length.0.unsigned_abs().div_ceil(interval.max(Span(1)).0.unsigned_abs())
        });
        u64::from(self.metrics) * each.sum::<u64>()
    }
}

/// What all devices of a series should send; never without a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    devices: Vec<ExpectedDevice>,
    /// How many reading names of all devices have a schedule: added up before they are divided, so that devices with one
    /// interval make a round number.
    by_schedule: BTreeMap<Arc<Schedule>, u64>,
}

impl Expectation {
    /// Of these devices, each named once; `None` when there is none.
    pub fn new(devices: Vec<ExpectedDevice>) -> Option<Self> {
        let mut by_schedule: BTreeMap<Arc<Schedule>, u64> = BTreeMap::new();
        for device in &devices {
            *by_schedule.entry(Arc::clone(&device.schedule)).or_default() += u64::from(device.metrics);
        }
        (!devices.is_empty()).then_some(Self { devices, by_schedule })
    }

    /// Expected readings in a stretch of time.
    pub fn readings(&self, time: Window) -> f64 {
        let each = self.by_schedule.iter().flat_map(|(schedule, names)| {
            let parts = schedule.within(time);
            parts.map(|(length, interval)| *names as f64 * length.0 as f64 / interval.0.max(1) as f64)
        });
        each.sum()
    }

    /// How many of a summary's readings meet the expectation in a stretch of time: of each device no more than it can send,
    /// where the summary counts them by device, else all.
    pub fn received(&self, summary: &Summary, time: Window) -> u64 {
        let Some(counts) = summary.device_counts() else { return summary.count };
        self.devices
            .iter()
            .map(|expected| u64::from(counts.of(expected.device)).min(expected.most(time)))
            .sum()
    }

    /// From when on the first device is expected to report; `None` where that is not known.
    pub fn since(&self) -> Option<Micros> {
        let each = self.by_schedule.keys().map(|schedule| schedule.since());
        each.min().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wye_domain::schedule::ScheduleParts;
    use wye_domain::sketches::{Needs, Sketches};

    const MINUTE: Window = Window { start: Micros::EPOCH, end: Micros::from_secs(60) };

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
        let schedule = Arc::new(Schedule::always(Span::from_secs(seconds)));
        let devices = devices.map(|number| ExpectedDevice {
            device: DeviceNumber(number),
            schedule: Arc::clone(&schedule),
            metrics: 1,
        });
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
    fn a_new_interval_does_not_rescale_history() {
        let schedule = Arc::new(Schedule::new(ScheduleParts {
            since: Micros::from_secs(60),
            until: Micros::MAX,
            interval: Span::from_secs(10),
            changes: vec![(Micros::from_secs(150), Span::from_secs(1))],
            maintenance: vec![],
        }));
        let device = ExpectedDevice { device: DeviceNumber(0), schedule, metrics: 2 };
        let expectation = Expectation::new(vec![device]).unwrap();
        let starts = (0..4).map(|minute| Micros::from_secs(60 * minute));
        let minutes = starts.map(|start| Window { start, end: start + Span::from_mins(1) });
        let expected: Vec<f64> = minutes.map(|minute| expectation.readings(minute)).collect();
        assert_eq!(expected, [0.0, 12.0, 6.0 + 60.0, 120.0]);
        assert_eq!(expectation.since(), Some(Micros::from_secs(60)));
    }

    #[test]
    fn without_counts_by_device_all_readings_count() {
        let mut plain = Summary::EMPTY;
        plain.add(1.0, Micros::EPOCH);
        assert_eq!(every(10, 0..1).received(&plain, MINUTE), 1);
    }
}

//! How many readings a series should receive, and how many of the received ones are among those. Pure; the caller passes the
//! registry's intervals.
//!
//! A group that spans devices is counted device by device: extra readings of one device do not make up for missing ones
//! of another. Nobody knows at which moment of its interval a device reports, so in a window that is still open only the
//! readings of whole intervals are due.

use std::collections::BTreeMap;
use std::sync::Arc;

use wye_domain::registry::DeviceNumber;
use wye_domain::schedule::Schedule;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Window, WindowSize};

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

/// The stretch of a window for which readings are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// All of it.
    Whole(Window),
    /// The first part of a window that is open.
    Begun(Window),
}

impl Stretch {
    /// The stretch of a window of which readings have arrived at a time.
    pub fn of(window: Window, at: Micros) -> Self {
        if window.end <= at {
            return Self::Whole(window);
        }
        Self::Begun(Window { start: window.start, end: at.max(window.start) })
    }
}

impl ExpectedDevice {
    /// The most readings that count of a device.
    fn most(&self, stretch: Stretch) -> u64 {
        u64::from(self.metrics)
            * match stretch {
                Stretch::Whole(time) => intervals(&self.schedule, time, u64::div_ceil),
                Stretch::Begun(time) => intervals(&self.schedule, time, |length, interval| length / interval),
            }
    }
}

/// How many intervals of a schedule are in a stretch of time, each part rounded.
fn intervals(schedule: &Schedule, time: Window, rounded: impl Fn(u64, u64) -> u64) -> u64 {
    let parts = schedule.within(time);
    parts.map(|(length, interval)| rounded(length.0.unsigned_abs(), interval.0.unsigned_abs().max(1))).sum()
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

    /// Readings that are expected: of a whole window by the length of the intervals, of a window that has begun those that
    /// are due, whatever the moment at which a device reports.
    pub fn readings(&self, stretch: Stretch) -> f64 {
        let each = self.by_schedule.iter().map(|(schedule, names)| match stretch {
            Stretch::Whole(time) => {
                let parts = schedule.within(time);
                parts
                    .map(|(length, interval)| *names as f64 * length.0 as f64 / interval.0.max(1) as f64)
                    .sum()
            }
            Stretch::Begun(time) => {
                (names * intervals(schedule, time, |length, interval| length / interval)) as f64
            }
        });
        each.sum()
    }

    /// How many of a summary's readings meet the expectation: of each device no more than it can send, or than are due, where
    /// the summary counts them by device, else all.
    pub fn received(&self, summary: &Summary, stretch: Stretch) -> u64 {
        let Some(counts) = summary.device_counts() else { return summary.count };
        self.devices
            .iter()
            .map(|expected| u64::from(counts.of(expected.device)).min(expected.most(stretch)))
            .sum()
    }

    /// Whether some window of a length should have a reading: one is expected in each, at the shortest intervals.
    pub fn may_lack(&self, window: WindowSize) -> bool {
        let most = self.by_schedule.iter().filter_map(|(schedule, names)| {
            Some(*names as f64 * window.span().0 as f64 / schedule.shortest_interval()?.0.max(1) as f64)
        });
        most.sum::<f64>() >= 1.0
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
    use wye_domain::time::Span;

    const MINUTE: Stretch = Stretch::Whole(Window { start: Micros::EPOCH, end: Micros::from_secs(60) });

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
        assert!(expectation.may_lack(WindowSize::MINUTE) && !every(61, 0..1).may_lack(WindowSize::MINUTE));
    }

    #[test]
    fn of_a_window_that_has_begun_whole_intervals_are_due() {
        let expectation = every(10, 0..2);
        let begun = |seconds| {
            Stretch::of(
                Window { start: Micros::EPOCH, end: Micros::from_secs(60) },
                Micros::from_secs(seconds),
            )
        };
        assert_eq!(
            [-9, 0, 9, 10, 29, 59].map(|at| expectation.readings(begun(at))),
            [0.0, 0.0, 0.0, 2.0, 4.0, 10.0]
        );
        assert_eq!(begun(60), MINUTE);
        // One device has sent its third reading already, the other is silent since its first one.
        assert_eq!(expectation.received(&summary(&[(0, 3), (1, 1)]), begun(29)), 3);
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
        let expected: Vec<f64> = minutes.map(|minute| expectation.readings(Stretch::Whole(minute))).collect();
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

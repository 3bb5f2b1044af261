//! The path of readings from device to platform: delay, disorder, duplicates, and outages with a backlog after them. It
//! must not know values or count anything.

use chrono::TimeDelta;
use wye_domain::time::{Micros, Span};

use super::{Setup, dice};

/// The least delay of every reading.
const LATENCY: Span = Span::from_millis(20);

/// The faults of a path. A share is in `[0, 1]`.
#[derive(Clone, Debug)]
pub struct PathFaults {
    /// The share of readings that are delayed, and so arrive after later ones.
    pub disorder: f64,
    /// The longest of these delays.
    pub disorder_by: TimeDelta,
    /// The share of readings that arrive twice, the same in every field.
    pub duplicates: f64,
    /// The longest time between the first arrival and the second.
    pub duplicates_by: TimeDelta,
    /// The share of periods in which a device goes offline once. When it is online again, it sends its backlog, oldest
    /// reading first.
    pub outages: f64,
    /// The length of a period. An outage lasts at most half of it, and ends within it.
    pub outage_period: TimeDelta,
}

impl PathFaults {
    /// A path without faults: only the constant latency remains.
    pub fn none() -> Self {
        let zero = TimeDelta::zero();
        Self {
            disorder: 0.0,
            disorder_by: zero,
            duplicates: 0.0,
            duplicates_by: zero,
            outages: 0.0,
            outage_period: TimeDelta::minutes(10),
        }
    }
}

impl Default for PathFaults {
    /// A realistic path: 5 % of readings are delayed by up to 5 s, 1 % arrive twice, and each device is offline for up to
    /// 5 minutes in every tenth period of 10 minutes.
    fn default() -> Self {
        Self {
            disorder: 0.05,
            disorder_by: TimeDelta::seconds(5),
            duplicates: 0.01,
            duplicates_by: TimeDelta::seconds(30),
            outages: 0.1,
            outage_period: TimeDelta::minutes(10),
        }
    }
}

/// A path with its faults.
pub(super) struct Path {
    seed: u64,
    faults: PathFaults,
    disorder_by: Span,
    duplicates_by: Span,
    /// At least a microsecond.
    period: Span,
}

/// How a reading arrives.
pub(super) struct Delivery {
    pub(super) arrival: Micros,
    /// It is part of the backlog of a device that was offline.
    pub(super) backlog: bool,
    /// The arrival of its duplicate, if there is one; not before `arrival`.
    pub(super) duplicate_arrival: Option<Micros>,
}

impl Path {
    pub(super) fn new(setup: &Setup) -> Self {
        let faults = setup.faults.clone();
        Self {
            seed: setup.seed,
            disorder_by: length(faults.disorder_by),
            duplicates_by: length(faults.duplicates_by),
            period: length(faults.outage_period).max(Span(1)),
            faults,
        }
    }

    pub(super) fn delivery(&self, device: u32, sensor: u32, event_time: Micros) -> Delivery {
        let online = self.back_online(device, event_time);
        let key = [u64::from(device), u64::from(sensor), event_time.0 as u64];
        let delay = if self.share(2, key) < self.faults.disorder {
            part(self.disorder_by, self.share(3, key))
        } else {
            Span::ZERO
        };
        let arrival = match online {
            // A device sends its backlog in order.
            Some(online) => online + LATENCY,
            None => event_time + LATENCY + delay,
        };
        let duplicate_arrival = (self.share(4, key) < self.faults.duplicates)
            .then(|| arrival + part(self.duplicates_by, self.share(5, key)));
        Delivery { arrival, backlog: online.is_some(), duplicate_arrival }
    }

    /// A random number about a reading; `question` tells apart those about the same reading.
    fn share(&self, question: u64, [device, sensor, event_time]: [u64; 3]) -> f64 {
        dice::share(&[self.seed, question, device, sensor, event_time])
    }

    /// The time at which the device is online again, if it is offline at `event_time`.
    fn back_online(&self, device: u32, event_time: Micros) -> Option<Micros> {
        let number = event_time.0.div_euclid(self.period.0);
        let key = [u64::from(device), number as u64];
        if self.period_share(6, key) >= self.faults.outages {
            return None;
        }
        let half = self.period.0 as f64 / 2.0;
        let begin = Micros(number * self.period.0 + (self.period_share(7, key) * half) as i64);
        let end = begin + Span((self.period_share(8, key) * half) as i64);
        (begin..end).contains(&event_time).then_some(end)
    }

    /// As [`Self::share`], about a device in a period.
    fn period_share(&self, question: u64, [device, period]: [u64; 2]) -> f64 {
        dice::share(&[self.seed, question, device, period])
    }
}

/// A length of time; zero where it is negative.
fn length(time: TimeDelta) -> Span {
    Span(time.num_microseconds().unwrap_or(i64::MAX)).max(Span::ZERO)
}

/// A share of a length of time.
fn part(whole: Span, share: f64) -> Span {
    Span((share * whole.0 as f64) as i64)
}

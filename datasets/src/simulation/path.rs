//! The way from device to platform: delay, disorder, copies, outages with a backlog after them. It must not know
//! values or count anything.

use chrono::TimeDelta;

use super::{Setup, dice};

/// Every reading takes at least this long, microseconds.
const LATENCY: i64 = 20_000;

/// What the path does. A share is in `[0, 1]`.
#[derive(Clone, Debug)]
pub struct PathFaults {
    /// Share of readings that are held up and so overtaken by others.
    pub disorder: f64,
    /// How long a reading is held up at most.
    pub disorder_by: TimeDelta,
    /// Share of readings that come twice, the same in every field.
    pub duplicates: f64,
    /// How long after the first copy the second comes at most.
    pub duplicates_by: TimeDelta,
    /// Share of spells in which a device goes offline once. It sends its backlog, oldest first, when it is back.
    pub outages: f64,
    /// Length of a spell. An outage lasts half of it at most, and ends in it.
    pub outage_spell: TimeDelta,
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
            outage_spell: TimeDelta::minutes(10),
        }
    }
}

impl Default for PathFaults {
    /// A path as it is in the field: 5 % held up by up to 5 s, 1 % twice, and each device offline for up to 5 minutes in
    /// every tenth spell of 10 minutes.
    fn default() -> Self {
        Self {
            disorder: 0.05,
            disorder_by: TimeDelta::seconds(5),
            duplicates: 0.01,
            duplicates_by: TimeDelta::seconds(30),
            outages: 0.1,
            outage_spell: TimeDelta::minutes(10),
        }
    }
}

/// The faults with their times in microseconds.
pub(super) struct Path {
    seed: u64,
    faults: PathFaults,
    disorder_by: f64,
    duplicates_by: f64,
    spell: i64,
}

/// What becomes of one reading. Times are UTC microseconds.
pub(super) struct Fate {
    pub(super) arrival: i64,
    pub(super) backlog: bool,
    /// Not before `arrival`.
    pub(super) copy_arrival: Option<i64>,
}

impl Path {
    pub(super) fn new(setup: &Setup) -> Self {
        let micros = |time: TimeDelta| time.num_microseconds().unwrap_or(i64::MAX).max(0);
        let faults = setup.faults.clone();
        Self {
            seed: setup.seed,
            disorder_by: micros(faults.disorder_by) as f64,
            duplicates_by: micros(faults.duplicates_by) as f64,
            spell: micros(faults.outage_spell).max(1),
            faults,
        }
    }

    pub(super) fn fate(&self, device: u32, sensor: u32, event_time: i64) -> Fate {
        let dice = |question: u64| {
            dice::share(&[self.seed, question, u64::from(device), u64::from(sensor), event_time as u64])
        };
        let back = self.back_online(device, event_time);
        let held_up = if dice(2) < self.faults.disorder { (dice(3) * self.disorder_by) as i64 } else { 0 };
        let arrival = match back {
            // A backlog is read from the device's own store, in order.
            Some(back) => back + LATENCY,
            None => event_time + LATENCY + held_up,
        };
        let copy_arrival =
            (dice(4) < self.faults.duplicates).then(|| arrival + (dice(5) * self.duplicates_by) as i64);
        Fate { arrival, backlog: back.is_some(), copy_arrival }
    }

    /// When the device is back, where it is offline at `event_time`.
    fn back_online(&self, device: u32, event_time: i64) -> Option<i64> {
        let spell = event_time.div_euclid(self.spell);
        let dice = |question: u64| dice::share(&[self.seed, question, u64::from(device), spell as u64]);
        if dice(6) >= self.faults.outages {
            return None;
        }
        let half = self.spell as f64 / 2.0;
        let begin = spell * self.spell + (dice(7) * half) as i64;
        let end = begin + (dice(8) * half) as i64;
        (begin..end).contains(&event_time).then_some(end)
    }
}

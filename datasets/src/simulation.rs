//! Devices that measure and a faulty path, with the correct results. It must not know a clock, nor the kinds of devices:
//! those are defined in [`plant`](crate::plant) and [`city`](crate::city).
//!
//! Everything is a function of the seed and of time: the value of a sensor in its n-th interval since 1970, its arrival,
//! and whether it arrives twice. So two simulations with one seed have the same readings, whatever their steps and starts,
//! and a simulation that is started again continues as if it had never stopped. (On one machine: the last bit of a sine
//! differs between processors.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use arrow::array::{Int32Array, Int64Array, RecordBatch, StringArray};
use chrono::{DateTime, TimeDelta, Utc};
use wye_domain::tags;
use wye_domain::time::{Micros, Span};

use crate::columns::{Columns, dictionary};
use crate::truth::{Truth, TruthRow};
use path::Path;
use signal::{Sensor, Signal};

pub use path::PathFaults;

pub(crate) mod dice;
mod path;
mod registry;
pub(crate) mod signal;

#[cfg(test)]
mod tests;

/// The settings of a simulation, besides its devices.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The same seed gives the same readings.
    pub seed: u64,
    /// Nothing is measured before this time.
    pub start: DateTime<Utc>,
    /// The interval in which each sensor measures once; at least a millisecond.
    pub interval: TimeDelta,
    /// The faults of the path from the devices to the platform.
    pub faults: PathFaults,
}

/// One simulated device; it sends one reading of each of its sensors in every interval.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) id: String,
    /// Sorted by key; the tags of each reading, and the attributes in the registry.
    pub(crate) attributes: Vec<(&'static str, String)>,
    /// In the order of the simulation's sensors.
    pub(crate) signals: Vec<Signal>,
}

/// The numbers of readings that have been delivered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Distinct readings.
    pub readings: u64,
    /// Duplicates of readings, not counted in `readings`.
    pub duplicates: u64,
    /// Those of `readings` that arrived in the backlog of a device that had been offline.
    pub backlog: u64,
}

/// A running simulation. It delivers readings in the order of their arrival.
pub struct Simulation {
    sensors: Vec<Sensor>,
    devices: Vec<Device>,
    seed: u64,
    interval: Span,
    path: Path,
    /// By device: the number of the interval in which it measures next.
    next_slots: Vec<i64>,
    in_transit: BinaryHeap<Reverse<Transit>>,
    truth: Truth,
    counts: Counts,
    words: Words,
}

/// A reading that has not arrived yet. The order of the fields is the order of arrival, and nothing else may decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Transit {
    arrival: Micros,
    device: u32,
    /// The number of its interval since 1970.
    slot: i64,
    sensor: u32,
    duplicate: bool,
    backlog: bool,
}

/// The dictionaries that all batches share, with the codes of each sensor and device.
struct Words {
    devices: Arc<StringArray>,
    metrics: Arc<StringArray>,
    units: Arc<StringArray>,
    unit_of_sensor: Vec<i32>,
    tags: Arc<StringArray>,
    tags_of_device: Vec<i32>,
}

impl Simulation {
    pub(crate) fn new(sensors: Vec<Sensor>, devices: Vec<Device>, setup: &Setup) -> Self {
        let interval = Span(setup.interval.num_microseconds().unwrap_or(i64::MAX)).max(Span::from_millis(1));
        let start = Micros(setup.start.timestamp_micros());
        let texts: Vec<String> = devices
            .iter()
            .map(|device| {
                let pairs = device.attributes.iter().map(|(key, value)| (*key, value.as_str()));
                tags::canonical(pairs).unwrap_or_default()
            })
            .collect();
        let (units, unit_of_sensor) = distinct(sensors.iter().map(|sensor| sensor.unit));
        let (tags, tags_of_device) = distinct(texts.iter().map(String::as_str));
        let words = Words {
            devices: Arc::new(StringArray::from_iter_values(devices.iter().map(|device| &device.id))),
            metrics: Arc::new(StringArray::from_iter_values(sensors.iter().map(|sensor| sensor.metric))),
            units: Arc::new(StringArray::from(units)),
            unit_of_sensor,
            tags: Arc::new(StringArray::from(tags)),
            tags_of_device,
        };
        let phases = (0..devices.len()).map(|device| phase(setup.seed, device, interval));
        Self {
            next_slots: phases.map(|phase| slot_at(start - phase, interval)).collect(),
            truth: Truth::new(devices.len() * sensors.len()),
            path: Path::new(setup),
            seed: setup.seed,
            interval,
            in_transit: BinaryHeap::new(),
            counts: Counts::default(),
            words,
            sensors,
            devices,
        }
    }

    /// Delivers all readings that arrive before `until` and were not delivered yet, in the reading schema and in order of
    /// arrival; the batch may have no rows. Its cost and size grow with the time since the last call, so call it in steps
    /// to simulate hours.
    pub fn next_batch(&mut self, until: DateTime<Utc>) -> RecordBatch {
        let until = Micros(until.timestamp_micros());
        self.measure(until);
        self.deliver(until)
    }

    /// Delivers all readings that have not arrived yet, such as the backlog of a device that is offline now.
    pub fn finish(&mut self) -> RecordBatch {
        self.deliver(Micros::MAX)
    }

    /// The correct results for the readings that have been delivered so far, sorted by window, device and metric.
    pub fn truth(&self) -> impl Iterator<Item = TruthRow<'_>> {
        let sensors = self.sensors.len();
        self.truth.rows().map(move |(window_start, series, summary)| TruthRow {
            device_id: &self.devices[series / sensors].id,
            metric: self.sensors[series % sensors].metric,
            window_start,
            summary,
        })
    }

    /// Removes the correct results of windows that start before `time`, to limit the memory of a long run. A reading of
    /// such a window that arrives later starts the window again.
    pub fn forget_truth_before(&mut self, time: DateTime<Utc>) {
        self.truth.forget_before(Micros(time.timestamp_micros()));
    }

    /// The numbers of readings that have been delivered so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A device registry file with these devices, their reporting interval and the plausible range of each metric.
    pub fn registry_toml(&self) -> String {
        registry::toml(&self.sensors, &self.devices, self.interval)
    }

    fn measure(&mut self, until: Micros) {
        for device in 0..self.devices.len() {
            while self.event_time(device, self.next_slots[device]) < until {
                let slot = self.next_slots[device];
                self.next_slots[device] += 1;
                self.send(device, slot);
            }
        }
    }

    /// The time at which a device measures in an interval.
    fn event_time(&self, device: usize, slot: i64) -> Micros {
        Micros(slot * self.interval.0) + phase(self.seed, device, self.interval)
    }

    /// Sends the readings of a device in an interval.
    fn send(&mut self, device: usize, slot: i64) {
        let event_time = self.event_time(device, slot);
        let device = device as u32;
        for sensor in 0..self.sensors.len() as u32 {
            let delivery = self.path.delivery(device, sensor, event_time);
            let (arrival, backlog) = (delivery.arrival, delivery.backlog);
            let first = Transit { arrival, device, slot, sensor, duplicate: false, backlog };
            self.in_transit.push(Reverse(first));
            if let Some(arrival) = delivery.duplicate_arrival {
                self.in_transit.push(Reverse(Transit { arrival, duplicate: true, ..first }));
            }
        }
    }

    fn deliver(&mut self, until: Micros) -> RecordBatch {
        let mut arrived = Vec::new();
        while let Some(Reverse(next)) = self.in_transit.peek().copied().filter(|next| next.0.arrival < until)
        {
            self.in_transit.pop();
            arrived.push(next);
        }
        let mut values = Vec::with_capacity(arrived.len());
        let mut times = Vec::with_capacity(arrived.len());
        for reading in &arrived {
            let (device, sensor) = (reading.device as usize, reading.sensor as usize);
            let event_time = self.event_time(device, reading.slot);
            let value =
                self.devices[device].signals[sensor].value(&self.sensors[sensor], event_time, reading.slot);
            values.push(value);
            times.push(event_time.0);
            if reading.duplicate {
                self.counts.duplicates += 1;
            } else {
                // A duplicate never arrives before its reading, so every delivered reading counts here.
                self.truth.add(device * self.sensors.len() + sensor, event_time, value);
                self.counts.readings += 1;
                self.counts.backlog += u64::from(reading.backlog);
            }
        }
        self.batch(&arrived, values, times)
    }

    fn batch(&self, arrived: &[Transit], values: Vec<f64>, times: Vec<i64>) -> RecordBatch {
        let words = &self.words;
        let devices = arrived.iter().map(|reading| reading.device as i32);
        let metrics = arrived.iter().map(|reading| reading.sensor as i32);
        let units = arrived.iter().map(|reading| words.unit_of_sensor[reading.sensor as usize]);
        let tags = arrived.iter().map(|reading| words.tags_of_device[reading.device as usize]);
        let columns = Columns {
            device_id: dictionary(Int32Array::from_iter_values(devices), Arc::clone(&words.devices)),
            metric: dictionary(Int32Array::from_iter_values(metrics), Arc::clone(&words.metrics)),
            value: values,
            event_time: times,
            sequence: Int64Array::from_iter_values(arrived.iter().map(|reading| reading.slot)),
            unit: dictionary(Int32Array::from_iter_values(units), Arc::clone(&words.units)),
            tags: dictionary(Int32Array::from_iter_values(tags), Arc::clone(&words.tags)),
        };
        columns.into_batch()
    }
}

/// The distinct words, and the index of each given word among them.
fn distinct<'a>(given: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<i32>) {
    let mut words = Vec::new();
    let mut indices = HashMap::new();
    let codes = given.map(|word| {
        *indices.entry(word).or_insert_with(|| {
            words.push(word);
            words.len() as i32 - 1
        })
    });
    let codes = codes.collect();
    (words, codes)
}

/// The time within each interval at which a device measures. It differs between devices, so that they do not all send at
/// once.
fn phase(seed: u64, device: usize, interval: Span) -> Span {
    Span::from_millis((dice::share(&[seed, 1, device as u64]) * interval.millis() as f64) as i64)
}

/// The number of the first interval that starts at `time` or later.
fn slot_at(time: Micros, interval: Span) -> i64 {
    time.0.div_euclid(interval.0) + i64::from(time.0.rem_euclid(interval.0) > 0)
}

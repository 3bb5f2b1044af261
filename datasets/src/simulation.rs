//! Devices that measure and a path that is not perfect, with the truth known. It must not know a clock, nor what the
//! devices are: those are said in [`plant`](crate::plant) and [`city`](crate::city).
//!
//! Everything is a function of the seed and of time: what a sensor measures in its n-th interval since 1970, when that
//! arrives, and whether it arrives twice. So two simulations of one seed agree on every reading, however they are
//! stepped and whenever they are started, and a simulation that starts again after a stop goes on as if it had never
//! stopped. (On one machine: the last bit of a sine differs between processors.)

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, TimeDelta, Utc};
use wye_domain::time::Micros;
use wye_domain::{reading, tags};

use crate::columns::dictionary;
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

/// What every simulation needs besides its devices.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Same seed, same readings.
    pub seed: u64,
    /// Nothing is measured before this.
    pub start: DateTime<Utc>,
    /// How often each sensor measures; at least a millisecond.
    pub interval: TimeDelta,
    /// What the path does to readings.
    pub faults: PathFaults,
}

/// One simulated device; it sends one reading of each of its sensors in every interval.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) id: String,
    /// Sorted by key; tags of each reading and attributes in the registry.
    pub(crate) attributes: Vec<(&'static str, String)>,
    /// In the order of the simulation's sensors.
    pub(crate) signals: Vec<Signal>,
}

/// What has been handed out so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Distinct readings.
    pub readings: u64,
    /// Second copies of readings, not counted in `readings`.
    pub duplicates: u64,
    /// Those of `readings` that came with the backlog of a device that had been offline.
    pub backlog: u64,
}

/// A running simulation. It hands out what arrives, in the order of arrival.
pub struct Simulation {
    sensors: Vec<Sensor>,
    devices: Vec<Device>,
    seed: u64,
    interval: i64,
    path: Path,
    next_slots: Vec<i64>,
    underway: BinaryHeap<Reverse<Parcel>>,
    truth: Truth,
    counts: Counts,
    words: Words,
}

/// A reading on its way. The order of the fields is the order of arrival; nothing else may decide it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Parcel {
    arrival: i64,
    device: u32,
    slot: i64,
    sensor: u32,
    copy: bool,
    backlog: bool,
}

/// The dictionaries that all batches share.
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
        let interval = setup.interval.num_microseconds().unwrap_or(i64::MAX).max(1000);
        let start = setup.start.timestamp_micros();
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
        let first_slot = |device: usize| {
            let phase = phase(setup.seed, device, interval);
            (start - phase).div_euclid(interval) + i64::from((start - phase).rem_euclid(interval) > 0)
        };
        Self {
            next_slots: (0..devices.len()).map(first_slot).collect(),
            truth: Truth::new(devices.len() * sensors.len()),
            path: Path::new(setup),
            seed: setup.seed,
            interval,
            underway: BinaryHeap::new(),
            counts: Counts::default(),
            words,
            sensors,
            devices,
        }
    }

    /// Everything that arrives before `until` and has not been handed out yet, in the reading schema and in order of
    /// arrival; no rows where nothing does. The cost and the size grow with the time since the last call: to catch up
    /// on hours, step through them.
    pub fn next_batch(&mut self, until: DateTime<Utc>) -> RecordBatch {
        let until = until.timestamp_micros();
        self.measure(until);
        self.deliver(until)
    }

    /// Everything that is still on its way, such as the backlog of a device that is offline now.
    pub fn finish(&mut self) -> RecordBatch {
        self.deliver(i64::MAX)
    }

    /// The truth about what has been handed out so far, sorted by window, device and metric.
    pub fn truth(&self) -> impl Iterator<Item = TruthRow<'_>> {
        let sensors = self.sensors.len();
        self.truth.rows().map(move |(window_start, series, summary)| TruthRow {
            device_id: &self.devices[series / sensors].id,
            metric: self.sensors[series % sensors].metric,
            window_start,
            summary,
        })
    }

    /// Gives up the truth about windows that start before `time`, to bound the memory of a long run. A reading of
    /// such a window that arrives later starts it anew.
    pub fn forget_truth_before(&mut self, time: DateTime<Utc>) {
        self.truth.forget_before(Micros(time.timestamp_micros()));
    }

    /// What has been handed out so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A device registry file with these devices, their reporting interval and the plausible range of each metric.
    pub fn registry_toml(&self) -> String {
        registry::toml(&self.sensors, &self.devices, self.interval)
    }

    fn measure(&mut self, until: i64) {
        for device in 0..self.devices.len() {
            let phase = phase(self.seed, device, self.interval);
            while self.next_slots[device] * self.interval + phase < until {
                let slot = self.next_slots[device];
                self.next_slots[device] += 1;
                self.send(device as u32, slot, slot * self.interval + phase);
            }
        }
    }

    fn send(&mut self, device: u32, slot: i64, event_time: i64) {
        for sensor in 0..self.sensors.len() as u32 {
            let fate = self.path.fate(device, sensor, event_time);
            let parcel =
                Parcel { arrival: fate.arrival, device, slot, sensor, copy: false, backlog: fate.backlog };
            self.underway.push(Reverse(parcel));
            if let Some(arrival) = fate.copy_arrival {
                self.underway.push(Reverse(Parcel { arrival, copy: true, ..parcel }));
            }
        }
    }

    fn deliver(&mut self, until: i64) -> RecordBatch {
        let mut parcels = Vec::new();
        while let Some(Reverse(parcel)) = self.underway.peek().copied().filter(|next| next.0.arrival < until)
        {
            self.underway.pop();
            parcels.push(parcel);
        }
        let mut values = Vec::with_capacity(parcels.len());
        let mut times = Vec::with_capacity(parcels.len());
        for parcel in &parcels {
            let (device, sensor) = (parcel.device as usize, parcel.sensor as usize);
            let event_time = parcel.slot * self.interval + phase(self.seed, device, self.interval);
            let value =
                self.devices[device].signals[sensor].value(&self.sensors[sensor], event_time, parcel.slot);
            values.push(value);
            times.push(event_time);
            if parcel.copy {
                self.counts.duplicates += 1;
            } else {
                // The first copy never arrives after the second, so what is handed out is always in the truth.
                self.truth.add(device * self.sensors.len() + sensor, Micros(event_time), value);
                self.counts.readings += 1;
                self.counts.backlog += u64::from(parcel.backlog);
            }
        }
        self.batch(&parcels, values, times)
    }

    fn batch(&self, parcels: &[Parcel], values: Vec<f64>, times: Vec<i64>) -> RecordBatch {
        let Words { devices, metrics, units, unit_of_sensor, tags, tags_of_device } = &self.words;
        let keys = |key: &dyn Fn(&Parcel) -> i32| parcels.iter().map(key).collect::<Vec<_>>();
        let columns: Vec<ArrayRef> = vec![
            dictionary(keys(&|parcel| parcel.device as i32), Arc::clone(devices)),
            dictionary(keys(&|parcel| parcel.sensor as i32), Arc::clone(metrics)),
            Arc::new(Float64Array::from(values)),
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")),
            Arc::new(Int64Array::from_iter_values(parcels.iter().map(|parcel| parcel.slot))),
            dictionary(keys(&|parcel| unit_of_sensor[parcel.sensor as usize]), Arc::clone(units)),
            dictionary(keys(&|parcel| tags_of_device[parcel.device as usize]), Arc::clone(tags)),
        ];
        RecordBatch::try_new(reading::schema(), columns).expect("the columns are built by this schema")
    }
}

/// The distinct words and the index of each given word among them: a word stands in its dictionary once.
fn distinct<'a>(given: impl Iterator<Item = &'a str>) -> (Vec<&'a str>, Vec<i32>) {
    let mut words = Vec::new();
    let mut indices = HashMap::new();
    let keys = given.map(|word| {
        *indices.entry(word).or_insert_with(|| {
            words.push(word);
            words.len() as i32 - 1
        })
    });
    let keys = keys.collect();
    (words, keys)
}

/// Microseconds into its interval at which a device measures, so that devices do not all speak at once.
fn phase(seed: u64, device: usize, interval: i64) -> i64 {
    let millis = interval / 1000;
    (dice::share(&[seed, 1, device as u64]) * millis as f64) as i64 * 1000
}

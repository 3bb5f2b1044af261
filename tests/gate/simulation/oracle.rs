//! The oracle: what answers must say, straight from what was sent. It shares no code with the layers.
//!
//! The first reading of an identity in log order counts; a later one is a duplicate, or a conflict where its value differs.
//! In a few places the layers promise less than that, and a window with such readings is compared by bounds only:
//!
//! - a reading above the horizon whose first copy is below it and older than the duplicate window;
//! - readings of one identity in several Kafka partitions, until all of them are below the horizon.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::events::Event;
use super::log::{KafkaPartition, Place};
use super::readings::{Identity, Sent};
use super::versions::{DAY, MINUTE, Metric, Version};

/// What an answer is made of.
pub(crate) struct Scope<'a> {
    pub(crate) log: &'a [KafkaPartition],
    /// The horizon of the batch view; 0 without one.
    pub(crate) horizon: Vec<i64>,
    /// Up to where the answer holds everything.
    pub(crate) covered: Vec<i64>,
    /// The newest horizon of any batch view.
    pub(crate) newest_horizon: Vec<i64>,
    /// In µs.
    pub(crate) duplicate_window: i64,
}

/// A reading of the log and what it counts as.
pub(crate) struct Judged<'a> {
    reading: &'a Sent,
    place: Place,
    role: Role,
    is_below_horizon: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    First,
    Duplicate,
    Conflict,
    /// It may count as any of them.
    Doubtful,
}

/// What a window of a series must hold.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// The values that count.
    pub(crate) values: Vec<f64>,
    pub(crate) invalid: u64,
    pub(crate) conflicts: u64,
    /// Event time (µs) and value.
    pub(crate) first: Option<(i64, f64)>,
    pub(crate) last: Option<(i64, f64)>,
    /// How many readings of each device.
    pub(crate) devices: BTreeMap<u8, u64>,
    /// Whether some of it is from above the horizon.
    pub(crate) is_live: bool,
    /// The windows of the metric's own length that the batch view has of it, by their starts in µs.
    pub(crate) batch_windows: BTreeSet<i64>,
    /// How many readings more may count.
    pub(crate) doubtful: u64,
}

/// The name of a series: the metric and the value of its dimension.
pub(crate) type Series = (String, Option<String>);

/// By series and window start (µs).
pub(crate) type Windows = BTreeMap<(Series, i64), Expected>;

/// What every accepted reading that an answer covers counts as.
pub(crate) fn judge<'a>(scope: &Scope<'a>) -> Vec<Judged<'a>> {
    let mut all: Vec<Judged<'a>> = Vec::new();
    let mut by_identity: HashMap<Identity, Vec<usize>> = HashMap::new();
    for (p, log) in scope.log.iter().enumerate() {
        for (place, reading) in log.accepted_below(scope.covered[p]) {
            by_identity.entry(reading.identity()).or_default().push(all.len());
            let is_below_horizon = place.offset < scope.horizon[p];
            all.push(Judged { reading, place, role: Role::First, is_below_horizon });
        }
    }
    for mut copies in by_identity.into_values().filter(|copies| copies.len() > 1) {
        copies.sort_unstable_by_key(|at| all[*at].place);
        let (first, value) = (all[copies[0]].place, all[copies[0]].reading.value);
        let is_spread = copies.iter().any(|at| all[*at].place.kafka_partition != first.kafka_partition);
        let is_mixed = is_spread && copies.iter().any(|at| !all[*at].is_below_horizon);
        let is_remembered = scope.remembers(first);
        if !is_mixed && all[copies[0]].is_below_horizon {
            let above = copies.iter().filter(|at| !all[**at].is_below_horizon).count();
            (0..above).for_each(|_| scope.count_duplicate(is_remembered));
        }
        for (nth, at) in copies.into_iter().enumerate() {
            let copy = &mut all[at];
            if is_mixed {
                scope.log[0].count(Event::DuplicateInSeveralKafkaPartitions);
            }
            copy.role = if is_mixed || (nth > 0 && !copy.is_below_horizon && !is_remembered) {
                Role::Doubtful
            } else if nth == 0 {
                Role::First
            } else if copy.reading.value == value {
                Role::Duplicate
            } else {
                Role::Conflict
            };
        }
    }
    all
}

impl Scope<'_> {
    /// Counts a reading above the horizon whose first copy is below it.
    fn count_duplicate(&self, is_remembered: bool) {
        let log = &self.log[0];
        if !is_remembered {
            log.count(Event::DuplicateForgotten);
            return;
        }
        log.count(Event::DuplicateRemembered);
        if self.duplicate_window < DAY {
            log.count(Event::DuplicateRememberedInFiniteWindow);
        }
    }

    /// Whether every owner knows the reading at a place: it is above all horizons, or within the duplicate window.
    fn remembers(&self, place: Place) -> bool {
        let p = place.kafka_partition as usize;
        let newest = self.log[p].readings.all().last().map_or(0, |entry| entry.time);
        place.offset >= self.newest_horizon[p] || place.time > newest - self.duplicate_window
    }
}

/// The windows of so many µs of a metric.
pub(crate) fn windows(judged: &[Judged<'_>], version: &Version, metric: &Metric, length: i64) -> Windows {
    let mut windows = Windows::new();
    for judged in judged.iter().filter(|judged| judged.role != Role::Duplicate) {
        let reading = judged.reading;
        if !(metric.wants)(reading) {
            continue;
        }
        // −0 counts as 0.
        let value = (metric.value)(reading) + 0.0;
        if !value.is_finite() {
            continue;
        }
        let series = (metric.metric_name(reading), (metric.group)(reading, version));
        let window = windows.entry((series, start_of(reading.event_time, length))).or_default();
        match judged.role {
            Role::Doubtful => window.doubtful += 1,
            Role::Conflict => window.conflicts += 1,
            Role::First | Role::Duplicate => {
                window.add(reading, value);
                window.invalid += u64::from(is_invalid(reading, judged.place.time, version));
            }
        }
        if judged.is_below_horizon {
            window.batch_windows.insert(start_of(reading.event_time, metric.length));
        } else {
            window.is_live = true;
        }
    }
    windows
}

impl Expected {
    fn add(&mut self, reading: &Sent, value: f64) {
        let timed = (reading.event_time, value);
        self.values.push(value);
        *self.devices.entry(reading.device).or_default() += 1;
        self.first = Some(self.first.map_or(timed, |first| if timed < first { timed } else { first }));
        self.last = Some(self.last.map_or(timed, |last| if timed > last { timed } else { last }));
    }
}

/// The start of the window that holds a time, both in µs; windows are aligned to 1970.
fn start_of(time: i64, length: i64) -> i64 {
    let whole = if time >= 0 { time / length } else { (time + 1) / length - 1 };
    whole * length
}

/// Whether a reading fails a check: its value is not plausible, its unit is another one, or the device's clock is ahead.
fn is_invalid(reading: &Sent, ingest_time: i64, version: &Version) -> bool {
    let limits = version.limits.iter().find(|limits| limits.metric == reading.metric);
    let is_implausible = limits.is_some_and(|limits| {
        limits.min.is_some_and(|min| reading.value < min)
            || limits.max.is_some_and(|max| reading.value > max)
            || matches!((limits.unit, reading.unit), (Some(right), Some(unit)) if right != unit)
    });
    is_implausible || reading.event_time > ingest_time + MINUTE
}

/// What a batch run knows of how late readings come, and of when everything before is in its view.
#[derive(Default)]
pub(crate) struct RunFacts {
    /// How late each reading below the horizon has come, as a [`power`], without backlogs; ascending.
    lateness: Vec<u32>,
    /// In µs: what was in the log then is in the answer.
    pub(crate) as_of: i64,
    /// When (µs) the first reading below the horizon was ingested.
    pub(crate) first_ingest: Option<i64>,
}

impl RunFacts {
    /// `as_of_start` is when (µs) the run started, where everything that was in the log then is below the horizon.
    pub(crate) fn new(judged: &[Judged<'_>], as_of_start: Option<i64>) -> Self {
        let below = judged.iter().filter(|judged| judged.is_below_horizon);
        let newest = below.clone().map(|judged| judged.place.time).max();
        let first_ingest = below.clone().map(|judged| judged.place.time).min();
        let mut lateness: Vec<u32> = below
            .map(|judged| judged.place.time - judged.reading.event_time)
            .filter(|lateness| *lateness < DAY)
            .map(power)
            .collect();
        lateness.sort_unstable();
        Self { lateness, as_of: newest.max(as_of_start).unwrap_or(0), first_ingest }
    }

    /// Twice an age (µs) by which half of the readings have landed: a power of two of a millisecond.
    pub(crate) fn usual_age(&self) -> Option<i64> {
        let is_enough = |power: &u32| {
            let landed = self.lateness.partition_point(|lateness| lateness < power);
            landed as f64 / self.lateness.len() as f64 >= 0.5
        };
        let power = (1..40).find(is_enough);
        power.map(|power| (1_000 << power).min(DAY))
    }

    /// The share of readings that have landed when a window has ended so many µs ago.
    pub(crate) fn settledness(&self, age: i64) -> f64 {
        if age >= DAY {
            return 1.0;
        }
        if self.lateness.is_empty() || age < 0 {
            return 0.0;
        }
        let landed = self.lateness.partition_point(|lateness| *lateness < power(age));
        landed as f64 / self.lateness.len() as f64
    }
}

/// The smallest power of two of a millisecond that is larger than a time in µs.
fn power(micros: i64) -> u32 {
    let millis = micros.max(0) / 1_000;
    (0..).find(|power| millis < 1 << power).unwrap_or(u32::MAX)
}

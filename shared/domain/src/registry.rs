//! The device registry: which devices there are, how often they report, what they are part of, and which values of a
//! reading name are plausible.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use serde::Deserialize;

use crate::ErrorKind;
use crate::schedule::{Schedule, ScheduleParts};
use crate::time::{Micros, Span, Window, WindowSize, parse_rfc3339};

/// A registry file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// `[[device]]` tables.
    #[serde(default)]
    pub device: Vec<DeviceConfig>,
    /// `[[metric_limits]]` tables.
    #[serde(default)]
    pub metric_limits: Vec<LimitsConfig>,
}

/// One `[[device]]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceConfig {
    /// The device's name in its readings.
    pub device_id: String,
    /// How often it reports each of its metrics, such as `"1s"` or `"1h"`.
    #[serde(default)]
    pub reporting_interval: Option<String>,
    /// No reading is expected before this time, RFC 3339.
    #[serde(default)]
    pub since: Option<String>,
    /// No reading is expected from this time on, RFC 3339.
    #[serde(default)]
    pub until: Option<String>,
    /// Other reporting intervals, from some time on.
    #[serde(default)]
    pub interval_change: Vec<IntervalChangeConfig>,
    /// When no reading is expected.
    #[serde(default)]
    pub maintenance: Vec<MaintenanceConfig>,
    /// The reading names that it reports; needed for expectations of groups that span devices.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// Further facts, usable in metric definitions by name.
    #[serde(default)]
    pub attributes: BTreeMap<String, String>,
}

/// One `[[device.interval_change]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntervalChangeConfig {
    /// From when on, RFC 3339.
    pub from: String,
    /// The interval from then on.
    pub reporting_interval: String,
}

/// One `[[device.maintenance]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaintenanceConfig {
    /// From when on, RFC 3339.
    pub from: String,
    /// Until when, RFC 3339.
    pub to: String,
}

/// One `[[metric_limits]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// The reading name.
    pub metric: String,
    /// The only unit that is right, where readings carry one.
    #[serde(default)]
    pub unit: Option<String>,
    /// Smallest plausible value.
    #[serde(default)]
    pub min: Option<f64>,
    /// Largest plausible value.
    #[serde(default)]
    pub max: Option<f64>,
}

/// A device's place among all devices of the registry, in the order of their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber(pub u32);

/// What the registry says of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its number, which holds for this registry only.
    pub number: DeviceNumber,
    /// When it reports each of its metrics; `None` where that is not known.
    pub schedule: Option<Arc<Schedule>>,
    /// Reported reading names.
    pub metrics: Vec<String>,
    /// Further facts.
    pub attributes: BTreeMap<String, String>,
}

/// Plausible readings of one name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// The right unit.
    pub unit: Option<String>,
    /// Smallest plausible value.
    pub min: Option<f64>,
    /// Largest plausible value.
    pub max: Option<f64>,
}

impl Limits {
    /// Whether a value in a unit is plausible.
    #[inline]
    pub fn allow(&self, value: f64, unit: Option<&str>) -> bool {
        self.min.is_none_or(|min| value >= min)
            && self.max.is_none_or(|max| value <= max)
            && match (&self.unit, unit) {
                (Some(right), Some(given)) => right == given,
                _ => true,
            }
    }
}

/// The checked registry.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    devices: HashMap<String, Device>,
    limits: HashMap<String, Limits>,
}

/// How far an event time may lie after the ingest time before the device's clock is taken to be wrong.
pub const CLOCK_TOLERANCE: Span = Span::from_mins(1);

/// An entry of the registry that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{table} {name:?}, key {key:?}: {problem}; {remedy}")]
pub struct RegistryError {
    /// The table of the entry: `device` or `metric_limits`.
    pub table: &'static str,
    /// The device or the reading name.
    pub name: String,
    /// The key at fault.
    pub key: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub remedy: &'static str,
}

impl RegistryError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }

    /// A second entry with the same name.
    fn twice(table: &'static str, name: String, key: &'static str) -> Self {
        let problem = "an earlier entry has the same name".to_owned();
        Self { table, name, key, problem, remedy: "keep one entry" }
    }
}

impl Registry {
    /// Checks a registry as written.
    ///
    /// # Errors
    /// [`RegistryError`] naming the entry, the key, the problem and what to write instead.
    pub fn check(config: RegistryConfig) -> Result<Self, RegistryError> {
        let mut registry = Self::default();
        for device in config.device {
            let schedule = schedule(&device)?.map(Arc::new);
            let DeviceConfig { device_id, metrics, attributes, .. } = device;
            let device = Device { number: DeviceNumber(0), schedule, metrics, attributes };
            match registry.devices.entry(device_id) {
                Entry::Occupied(known) => {
                    return Err(RegistryError::twice("device", known.key().clone(), "device_id"));
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(device);
                }
            }
        }
        let mut by_name: Vec<(&String, &mut Device)> = registry.devices.iter_mut().collect();
        by_name.sort_unstable_by_key(|(name, _)| *name);
        for (number, (_, device)) in (0..).zip(by_name) {
            device.number = DeviceNumber(number);
        }
        for LimitsConfig { metric, unit, min, max } in config.metric_limits {
            match registry.limits.entry(metric) {
                Entry::Occupied(known) => {
                    return Err(RegistryError::twice("metric_limits", known.key().clone(), "metric"));
                }
                Entry::Vacant(vacant) => {
                    vacant.insert(Limits { unit, min, max });
                }
            }
        }
        Ok(registry)
    }

    /// What the registry says of a device.
    pub fn device(&self, device_id: &str) -> Option<&Device> {
        self.devices.get(device_id)
    }

    /// All devices, in the order of their names.
    pub fn devices(&self) -> Vec<(&str, &Device)> {
        let mut devices: Vec<_> = self.devices.iter().map(|(name, device)| (name.as_str(), device)).collect();
        devices.sort_unstable_by_key(|(_, device)| device.number);
        devices
    }

    /// A fingerprint of everything that numbers can depend on: all devices and limits.
    pub fn fingerprint(&self) -> u64 {
        let devices: Vec<(&str, Fingerprinted<'_>)> =
            self.devices().into_iter().map(|(name, device)| (name, Fingerprinted(device))).collect();
        let limits: BTreeMap<&String, &Limits> = self.limits.iter().collect();
        crate::fingerprint::of_text(&format!("{devices:?}\u{2}{limits:?}"))
    }

    /// The limits of a reading name.
    pub fn limits(&self, metric: &str) -> Option<&Limits> {
        self.limits.get(metric)
    }

    /// A further fact about a device.
    pub fn attribute(&self, device_id: &str, name: &str) -> Option<&str> {
        self.devices.get(device_id)?.attributes.get(name).map(String::as_str)
    }
}

/// A device as it goes into the fingerprint. Stability contract: the text must stay, since fingerprints are stored.
struct Fingerprinted<'a>(&'a Device);

impl fmt::Debug for Fingerprinted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Device { number, schedule, metrics, attributes } = self.0;
        let interval = schedule.as_ref().and_then(|schedule| schedule.only_interval());
        let mut text = formatter.debug_struct("Device");
        text.field("number", number)
            .field("interval", &interval.map(|interval| interval.0))
            .field("metrics", metrics)
            .field("attributes", attributes);
        if let (None, Some(schedule)) = (interval, schedule) {
            text.field("schedule", schedule);
        }
        text.finish()
    }
}

/// When a device reports, from the texts of the registry; `None` without an interval.
fn schedule(config: &DeviceConfig) -> Result<Option<Schedule>, RegistryError> {
    let error = |key: &'static str, problem: String, remedy: &'static str| RegistryError {
        table: "device",
        name: config.device_id.clone(),
        key,
        problem,
        remedy,
    };
    let time = |key, text: &str| {
        let problem =
            || error(key, format!("{text:?} is not a time"), "write for example \"2026-03-01T00:00:00Z\"");
        parse_rfc3339(text).map_err(|_| problem())
    };
    let interval = |key, text: &str| {
        let problem =
            || error(key, format!("{text:?} is not a duration"), "write for example \"1s\" or \"1h\"");
        WindowSize::parse(text).map(WindowSize::span).map_err(|_| problem())
    };
    let since = config.since.as_deref().map(|text| time("since", text)).transpose()?;
    let until = config.until.as_deref().map(|text| time("until", text)).transpose()?;
    let (since, until) = (since.unwrap_or(Micros::MIN), until.unwrap_or(Micros::MAX));
    if since >= until {
        return Err(error("until", "it is not after `since`".to_owned(), "write a later time"));
    }
    let mut changes = Vec::with_capacity(config.interval_change.len());
    for change in &config.interval_change {
        let key = "interval_change";
        let from = time(key, &change.from)?;
        if changes.iter().any(|(known, _)| *known == from) {
            return Err(error(key, format!("there are two from {}", change.from), "keep one of them"));
        }
        changes.push((from, interval(key, &change.reporting_interval)?));
    }
    let mut maintenance = Vec::with_capacity(config.maintenance.len());
    for stretch in &config.maintenance {
        let key = "maintenance";
        let window = Window { start: time(key, &stretch.from)?, end: time(key, &stretch.to)? };
        if window.start >= window.end {
            return Err(error(
                key,
                format!("{} is not after {}", stretch.to, stretch.from),
                "write a later `to`",
            ));
        }
        maintenance.push(window);
    }
    match &config.reporting_interval {
        Some(text) => {
            let interval = interval("reporting_interval", text)?;
            Ok(Some(Schedule::new(ScheduleParts { since, until, interval, changes, maintenance })))
        }
        None if since == Micros::MIN
            && until == Micros::MAX
            && changes.is_empty()
            && maintenance.is_empty() =>
        {
            Ok(None)
        }
        None => Err(error(
            "reporting_interval",
            "it is missing, and the device has `since`, `until`, `interval_change` or `maintenance`"
                .to_owned(),
            "write how often the device reports, for example \"10s\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str, line: &str, interval: &str) -> DeviceConfig {
        DeviceConfig {
            device_id: id.into(),
            reporting_interval: Some(interval.into()),
            metrics: vec!["t".into()],
            attributes: [("line".to_owned(), line.to_owned())].into(),
            ..DeviceConfig::default()
        }
    }

    fn refused(devices: [DeviceConfig; 2]) -> RegistryError {
        let config = RegistryConfig { device: devices.into(), metric_limits: vec![] };
        Registry::check(config).unwrap_err()
    }

    fn fingerprint(devices: [DeviceConfig; 2], max: f64) -> u64 {
        let limits = LimitsConfig { metric: "t".into(), unit: None, min: None, max: Some(max) };
        let config = RegistryConfig { device: devices.into(), metric_limits: vec![limits] };
        Registry::check(config).unwrap().fingerprint()
    }

    #[test]
    fn the_fingerprint_follows_every_fact() {
        let base = fingerprint([device("a", "1", "1s"), device("b", "1", "1s")], 5.0);
        assert_eq!(fingerprint([device("b", "1", "1s"), device("a", "1", "1s")], 5.0), base);
        let later = DeviceConfig { since: Some(text(1, 0)), ..device("b", "1", "1s") };
        for other in [
            fingerprint([device("a", "1", "1s"), later], 5.0),
            fingerprint([device("a", "1", "1s"), device("b", "2", "1s")], 5.0),
            fingerprint([device("a", "1", "1s"), device("b", "1", "2s")], 5.0),
            fingerprint([device("a", "1", "1s"), device("b", "1", "1s")], 6.0),
        ] {
            assert_ne!(other, base);
        }
    }

    /// Stored rows have this fingerprint: if it changes, every view is computed again.
    #[test]
    fn the_fingerprint_stays() {
        assert_eq!(fingerprint([device("a", "1", "1s"), device("b", "2", "1h")], 5.0), 0x25d8_f2e6_7de1_65ce);
    }

    #[test]
    fn wrong_entries_say_where_they_are_wrong() {
        let soon = refused([device("a", "1", "soon"), device("b", "1", "1s")]);
        assert_eq!((soon.table, soon.name.as_str(), soon.key), ("device", "a", "reporting_interval"));
        assert!(soon.to_string().contains("write for example"), "{soon}");
        let twice = refused([device("a", "1", "1s"), device("a", "1", "2s")]);
        assert_eq!((twice.table, twice.name.as_str(), twice.key), ("device", "a", "device_id"));
    }

    fn scheduled(change: impl FnOnce(&mut DeviceConfig)) -> Result<Option<Arc<Schedule>>, RegistryError> {
        let mut config = device("a", "1", "10s");
        change(&mut config);
        let registry = Registry::check(RegistryConfig { device: vec![config], metric_limits: vec![] })?;
        Ok(registry.device("a").unwrap().schedule.clone())
    }

    fn text(minute: u32, second: u32) -> String {
        format!("1970-01-01T00:{minute:02}:{second:02}Z")
    }

    #[test]
    fn schedules_are_read_and_checked() {
        let change =
            |from, interval: &str| IntervalChangeConfig { from, reporting_interval: interval.into() };
        let read = scheduled(|device| {
            device.since = Some(text(1, 0));
            device.interval_change.push(change(text(2, 0), "5s"));
            device.maintenance.push(MaintenanceConfig { from: text(2, 30), to: text(2, 40) });
        });
        let schedule = read.unwrap().unwrap();
        let minutes = Window { start: Micros::EPOCH, end: Micros::from_secs(180) };
        let parts: Vec<_> = schedule.within(minutes).collect();
        let seconds = |length, interval| (Span::from_secs(length), Span::from_secs(interval));
        assert_eq!(parts, [seconds(60, 10), seconds(30, 5), seconds(20, 5)]);
        let refused = [
            scheduled(|device| device.since = Some("soon".into())),
            scheduled(|device| (device.since, device.until) = (Some(text(2, 0)), Some(text(1, 0)))),
            scheduled(|device| {
                device.maintenance.push(MaintenanceConfig { from: text(1, 0), to: text(1, 0) });
            }),
            scheduled(|device| device.interval_change.push(change(text(1, 0), "0s"))),
            scheduled(|device| {
                device.interval_change.extend([change(text(1, 0), "1s"), change(text(1, 0), "2s")]);
            }),
            scheduled(|device| (device.since, device.reporting_interval) = (Some(text(1, 0)), None)),
        ];
        let keys = refused.map(|refused| refused.unwrap_err().key);
        let changes = "interval_change";
        assert_eq!(keys, ["since", "until", "maintenance", changes, changes, "reporting_interval"]);
    }

    #[test]
    fn devices_are_numbered_by_name() {
        let device = ["c", "a", "b"].map(|id| device(id, "1", "1s")).into();
        let config = RegistryConfig { device, metric_limits: vec![] };
        let registry = Registry::check(config).unwrap();
        let names: Vec<&str> = registry.devices().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(registry.device("c").unwrap().number, DeviceNumber(2));
    }

    #[test]
    fn implausible_values_are_outside_of_the_limits() {
        let limits = Limits { unit: Some("Cel".into()), min: Some(-50.0), max: Some(60.0) };
        assert!(limits.allow(20.0, None));
        assert!(limits.allow(20.0, Some("Cel")));
        assert!(!limits.allow(20.0, Some("K")));
        assert!(!limits.allow(61.0, None));
    }
}

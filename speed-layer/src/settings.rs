//! The settings of ingest and of the speed layer, with their defaults and the rules that they must keep. Must not know
//! where settings are written: [`wye_runtime::config`] reads files and the environment.

use std::time::Duration;

use serde::Deserialize;
use wye_domain::time::{Micros, Span};
use wye_domain::wire::Acceptance;
use wye_runtime::config::value::{byte_size, time};
use wye_runtime::config::{Setting, Unworkable};

/// All settings of this crate with their defaults, as TOML: the reference for users.
pub const DEFAULTS: &str = include_str!("settings.toml");

/// The smallest body in bytes that can hold a reading.
const SMALLEST_BODY: usize = 1 << 10;

/// The settings of this crate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `[ingest]`
    pub ingest: IngestSettings,
    /// `[speed]`
    pub speed: SpeedSettings,
}

/// `[ingest]`: accepting readings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestSettings {
    /// The largest body of one request after decompression, in bytes. Written as `"64MiB"`.
    #[serde(deserialize_with = "byte_size")]
    pub max_body: usize,
    /// How long a request waits for the log to acknowledge its readings. While a message to a Kafka partition has waited
    /// for longer, requests that write to that Kafka partition are refused.
    #[serde(with = "humantime_serde")]
    pub ack_timeout: Duration,
    /// The batching delay of the producer of readings (linger).
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// Readings with an earlier event time are rejected. Written as RFC 3339.
    #[serde(deserialize_with = "time")]
    pub earliest_event_time: Micros,
    /// Readings whose event time is further ahead of their ingest time are rejected.
    #[serde(with = "humantime_serde")]
    pub max_future: Duration,
}

/// `[speed]`: the speed layer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeedSettings {
    /// How often changed rows are written to the realtime views.
    #[serde(with = "humantime_serde")]
    pub flush_interval: Duration,
    /// How often a new epoch starts.
    #[serde(with = "humantime_serde")]
    pub epoch_interval: Duration,
    /// How far back duplicates are detected, in ingest time; readings above the horizon are always included.
    #[serde(with = "humantime_serde")]
    pub duplicate_window: Duration,
    /// The most readings that are remembered to detect duplicates, over all Kafka partitions.
    pub duplicate_entries: usize,
    /// How long the owner of a Kafka partition may take to answer before another process takes it over.
    #[serde(with = "humantime_serde")]
    pub answer_patience: Duration,
}

impl Settings {
    /// All settings that cannot work.
    pub fn check(&self) -> Vec<Unworkable> {
        let mut unworkable = self.ingest.check();
        unworkable.extend(self.speed.check());
        unworkable
    }
}

impl IngestSettings {
    /// Which readings are accepted: the same rules for every reader of the log.
    pub fn acceptance(&self) -> Acceptance {
        Acceptance { earliest: self.earliest_event_time.0, max_future: Span::from(self.max_future).0 }
    }

    fn check(&self) -> Vec<Unworkable> {
        let max_body = Setting { section: "ingest", key: "max_body", example: "\"64MiB\"" };
        let ack_timeout = Setting { section: "ingest", key: "ack_timeout", example: "\"5s\"" };
        let linger = Setting { section: "ingest", key: "linger", example: "\"5ms\"" };
        let too_small = format!("is {} bytes, and a reading needs 1KiB at least", self.max_body);
        [
            (self.max_body < SMALLEST_BODY).then(|| max_body.cannot_work(too_small)),
            ack_timeout.at_least(self.ack_timeout, Duration::from_millis(100)),
            linger.at_most(self.linger, Duration::from_secs(60)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl SpeedSettings {
    fn check(&self) -> Vec<Unworkable> {
        let Self { flush_interval, epoch_interval, .. } = *self;
        let flush = Setting { section: "speed", key: "flush_interval", example: "\"100ms\"" };
        let epoch = Setting { section: "speed", key: "epoch_interval", example: "\"10s\"" };
        let entries = Setting { section: "speed", key: "duplicate_entries", example: "20000000" };
        let patience = Setting { section: "speed", key: "answer_patience", example: "\"5s\"" };
        let is_short = epoch_interval < flush_interval || epoch_interval.is_zero();
        let too_short = format!(
            "is {epoch_interval:?}, shorter than flush_interval ({flush_interval:?}), and an epoch has one flush at least"
        );
        [
            flush.at_least(flush_interval, Duration::from_millis(1)),
            flush.at_most(flush_interval, Duration::from_secs(60)),
            is_short.then(|| epoch.cannot_work(too_short)),
            entries.at_least_one(self.duplicate_entries),
            patience.at_least(self.answer_patience, Duration::from_secs(1)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, toml::de::Error> {
        toml::from_str(text)
    }

    /// The defaults with another value for one key.
    fn with(key: &str, value: &str) -> String {
        let lines = DEFAULTS.lines().map(|line| match line.split_once(" = ") {
            Some((name, _)) if name == key => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect()
    }

    #[test]
    fn the_defaults_are_complete_and_work() {
        let settings = read(DEFAULTS).unwrap();
        assert_eq!(settings.check(), []);
        assert_eq!(settings.ingest.max_body, 64 << 20);
        assert_eq!(settings.ingest.acceptance(), Acceptance::default());
        assert_eq!(settings.speed.flush_interval, Duration::from_millis(100));
    }

    #[test]
    fn a_setting_that_cannot_work_is_named_with_a_value_that_can() {
        for (key, value) in [
            ("max_body", "\"0\""),
            ("ack_timeout", "\"1ms\""),
            ("linger", "\"2m\""),
            ("flush_interval", "\"0s\""),
            ("epoch_interval", "\"50ms\""),
            ("duplicate_entries", "0"),
            ("answer_patience", "\"0s\""),
        ] {
            let unworkable = read(&with(key, value)).unwrap().check();
            assert_eq!(unworkable.iter().map(|wrong| wrong.key).collect::<Vec<_>>(), [key]);
            assert_eq!(read(&with(key, unworkable[0].example)).unwrap().check(), [], "{key}");
        }
    }

    #[test]
    fn sizes_times_and_keys_that_cannot_be_read_are_refused() {
        for size in ["\"many\"", "\"99999999999GiB\"", "\"-1\"", "\"1.5MiB\"", "\"1TB\""] {
            let error = read(&with("max_body", size)).unwrap_err().to_string();
            assert!(error.contains("64MiB") || error.contains("more than this machine"), "{error}");
        }
        assert!(read(&with("earliest_event_time", "\"yesterday\"")).is_err());
        assert!(read(&format!("{DEFAULTS}unknown = 1\n")).is_err());
    }
}

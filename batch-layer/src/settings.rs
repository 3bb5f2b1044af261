//! The settings of the batch layer, with their defaults and rules. Must not know where settings are written.

use std::time::Duration;

use chrono::DateTime;
use croner::Cron;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use wye_runtime::config::{Setting, Unworkable};

/// The sections of this layer with the default of every setting, for the reference of all settings.
pub const DEFAULTS: &str = include_str!("settings.toml");

/// The settings of the batch layer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `[archive]`
    pub archive: ArchiveSettings,
    /// `[batch]`
    pub batch: BatchSettings,
}

/// How the archiver works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveSettings {
    /// How often new readings are appended; at least 10 ms.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// An append starts early once this many rows are read; at least 1.
    pub max_rows: usize,
    /// How long archived dead letters stay in their topic.
    #[serde(with = "humantime_serde")]
    pub keep_dead_letters: Duration,
}

/// When batch runs start, and how long they and their views take.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSettings {
    /// The time between the starts of two runs; at least 1 s, or zero, see [`Self::period`].
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// When runs start, in UTC; instead of `interval`.
    #[serde(deserialize_with = "cron")]
    pub schedule: Option<Cron>,
    /// About how many readings a cell has at most; at least 1. See [`crate::cells`].
    pub cell_readings: u64,
    /// How many cells are computed at the same time; zero: as many as the machine has cores.
    pub threads: usize,
    /// How long the files of a replaced view are kept; 1 s to 1 day.
    #[serde(with = "humantime_serde")]
    pub keep_versions: Duration,
    /// How long a run waits for the owners to answer, and after that for the archiver to reach their cuts; at least 1 s.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

/// A cron expression; none in an empty text.
fn cron<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cron>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let cron: Cron = text.parse().map_err(|error| {
        D::Error::custom(format!("{text:?} is not a cron expression such as \"*/5 * * * *\": {error}"))
    })?;
    match cron.find_next_occurrence(&DateTime::UNIX_EPOCH, true) {
        Ok(_) => Ok(Some(cron)),
        Err(_) => Err(D::Error::custom(format!("{text:?} names no time, unlike \"*/5 * * * *\""))),
    }
}

impl BatchSettings {
    /// The time between the starts of two runs; `None` where runs start only on request.
    pub fn period(&self) -> Option<Duration> {
        (!self.interval.is_zero()).then_some(self.interval)
    }
}

impl Settings {
    /// All settings that cannot work.
    pub fn check(&self) -> Vec<Unworkable> {
        let second = Duration::from_secs(1);
        let day = Duration::from_secs(86_400);
        let too_short = self.batch.period().filter(|period| *period < second).map(|period| {
            format!("is {period:?}, less than a run takes; use at least 1s, or 0s for runs on request only")
        });
        let rules = [
            archive("interval", "\"2s\"").at_least(self.archive.interval, Duration::from_millis(10)),
            archive("max_rows", "1000000").at_least_one(self.archive.max_rows),
            batch("cell_readings", "2000000").at_least_one(self.batch.cell_readings as usize),
            batch("keep_versions", "\"15m\"").at_least(self.batch.keep_versions, second),
            batch("keep_versions", "\"15m\"").at_most(self.batch.keep_versions, day),
            batch("patience", "\"5s\"").at_least(self.batch.patience, second),
            too_short.map(|problem| batch("interval", "\"60s\"").cannot_work(problem)),
        ];
        rules.into_iter().flatten().collect()
    }
}

const fn archive(key: &'static str, example: &'static str) -> Setting {
    Setting { section: "archive", key, example }
}

const fn batch(key: &'static str, example: &'static str) -> Setting {
    Setting { section: "batch", key, example }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Settings {
        toml::from_str(DEFAULTS).unwrap()
    }

    #[test]
    fn the_defaults_work() {
        assert_eq!(defaults().check(), []);
        assert_eq!(defaults().batch.period(), Some(Duration::from_secs(60)));
    }

    #[test]
    fn each_setting_that_cannot_work_is_named_with_one_that_can() {
        let settings = Settings {
            archive: ArchiveSettings {
                interval: Duration::ZERO,
                max_rows: 0,
                keep_dead_letters: Duration::ZERO,
            },
            batch: BatchSettings {
                interval: Duration::from_millis(1),
                schedule: None,
                cell_readings: 0,
                threads: 0,
                keep_versions: Duration::from_secs(86_401),
                patience: Duration::ZERO,
            },
        };
        let wrong = settings.check();
        let names: Vec<(&str, &str)> = wrong.iter().map(|wrong| (wrong.section, wrong.key)).collect();
        let expected = [
            ("archive", "interval"),
            ("archive", "max_rows"),
            ("batch", "cell_readings"),
            ("batch", "keep_versions"),
            ("batch", "patience"),
            ("batch", "interval"),
        ];
        assert_eq!(names, expected);
        for wrong in wrong {
            let section = format!("[{}]\n{} = {}\n", wrong.section, wrong.key, wrong.example);
            assert!(toml::from_str::<toml::Table>(&section).is_ok(), "{section}");
        }
    }

    #[test]
    fn without_an_interval_runs_start_only_on_request() {
        let mut settings = defaults();
        settings.batch.interval = Duration::ZERO;
        assert_eq!((settings.check(), settings.batch.period()), (vec![], None));
    }

    #[test]
    fn a_schedule_is_a_cron_expression_or_empty() {
        let with = |schedule| {
            toml::from_str::<Settings>(
                &DEFAULTS.replace("schedule = \"\"", &format!("schedule = {schedule:?}")),
            )
        };
        assert_eq!(with("").unwrap().batch.schedule, None);
        assert!(with("*/5 * * * *").unwrap().batch.schedule.is_some());
        for wrong in ["every minute", "61 * * * *", "* * *", "0 0 30 2 *"] {
            let message = with(wrong).unwrap_err().to_string();
            assert!(message.contains(wrong) && message.contains("*/5 * * * *"), "{message}");
        }
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(toml::from_str::<Settings>(&format!("{DEFAULTS}\nunknown = 1\n")).is_err());
    }
}

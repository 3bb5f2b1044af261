//! The settings of the batch layer, with their defaults and rules. Must not know where settings are written.

use std::time::Duration;

use serde::Deserialize;

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
    /// How often what was read is appended; 10 ms at least.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// An append starts early when so many rows have been read; 1 at least.
    pub max_rows: usize,
    /// How long archived dead letters stay in their topic.
    #[serde(with = "humantime_serde")]
    pub keep_dead_letters: Duration,
}

/// When batch runs start, and how long they and their views take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchSettings {
    /// The time between the starts of two runs; 1 s at least, or zero, see [`Self::period`].
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long the files of a replaced view are kept; 1 s to 1 day.
    #[serde(with = "humantime_serde")]
    pub keep_versions: Duration,
    /// How long a run waits for the owners to answer, and after that for the archiver to reach their cuts; 1 s at least.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
}

impl BatchSettings {
    /// The time between the starts of two runs; `None` where runs start only on request.
    pub fn period(&self) -> Option<Duration> {
        (!self.interval.is_zero()).then_some(self.interval)
    }
}

/// A setting that can be read and cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unworkable {
    /// The section that it is in.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// What is wrong; follows the name of the setting.
    pub problem: String,
    /// A value that can work, as it is written.
    pub example: &'static str,
}

impl Settings {
    /// All settings that cannot work.
    pub fn check(&self) -> Vec<Unworkable> {
        let (archive, batch) = (&self.archive, &self.batch);
        let second = Duration::from_secs(1);
        let day = Duration::from_secs(86_400);
        let rules = [
            at_least(("archive", "interval"), archive.interval, Duration::from_millis(10), "\"2s\""),
            at_least_one(("archive", "max_rows"), archive.max_rows, "1000000"),
            at_least(("batch", "keep_versions"), batch.keep_versions, second, "\"15m\""),
            at_most(("batch", "keep_versions"), batch.keep_versions, day, "\"15m\""),
            at_least(("batch", "patience"), batch.patience, second, "\"5s\""),
            batch.period().filter(|period| *period < second).map(|period| Unworkable {
                section: "batch",
                key: "interval",
                problem: format!(
                    "is {period:?}, and a run takes longer; at least 1s, or 0s for runs on request only"
                ),
                example: "\"60s\"",
            }),
        ];
        rules.into_iter().flatten().collect()
    }
}

/// A section and a key in it.
type Name = (&'static str, &'static str);

fn at_least(name: Name, value: Duration, least: Duration, example: &'static str) -> Option<Unworkable> {
    (value < least)
        .then(|| unworkable(name, format!("is {value:?}, and must be {least:?} at least"), example))
}

fn at_most(name: Name, value: Duration, most: Duration, example: &'static str) -> Option<Unworkable> {
    (value > most).then(|| unworkable(name, format!("is {value:?}, and must be {most:?} at most"), example))
}

fn at_least_one(name: Name, value: usize, example: &'static str) -> Option<Unworkable> {
    (value == 0).then(|| unworkable(name, "is 0, and must be 1 at least".to_owned(), example))
}

fn unworkable((section, key): Name, problem: String, example: &'static str) -> Unworkable {
    Unworkable { section, key, problem, example }
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
                keep_versions: Duration::from_secs(86_401),
                patience: Duration::ZERO,
            },
        };
        let wrong = settings.check();
        let names: Vec<(&str, &str)> = wrong.iter().map(|wrong| (wrong.section, wrong.key)).collect();
        let expected = [
            ("archive", "interval"),
            ("archive", "max_rows"),
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
    fn unknown_settings_are_refused() {
        assert!(toml::from_str::<Settings>(&format!("{DEFAULTS}\nunknown = 1\n")).is_err());
    }
}

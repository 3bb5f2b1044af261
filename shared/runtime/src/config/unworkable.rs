//! Settings that can be read but cannot work, each with a value that can work.

use std::time::Duration;

/// A setting that can be read but cannot work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unworkable {
    /// The section that it is in.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// What is wrong; in a message it follows the name of the setting.
    pub problem: String,
    /// A value that can work, as it is written.
    pub example: &'static str,
}

/// The name of a setting, with a value that can work.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The section that it is in.
    pub section: &'static str,
    /// Its name there.
    pub key: &'static str,
    /// A value that can work, as it is written.
    pub example: &'static str,
}

impl Setting {
    /// The setting with a problem.
    pub fn cannot_work(self, problem: String) -> Unworkable {
        let Self { section, key, example } = self;
        Unworkable { section, key, problem, example }
    }

    /// The problem of a duration that is shorter than `least`.
    pub fn at_least(self, value: Duration, least: Duration) -> Option<Unworkable> {
        (value < least).then(|| self.cannot_work(format!("is {value:?}, and must be at least {least:?}")))
    }

    /// The problem of a duration that is longer than `most`.
    pub fn at_most(self, value: Duration, most: Duration) -> Option<Unworkable> {
        (value > most).then(|| self.cannot_work(format!("is {value:?}, and must be at most {most:?}")))
    }

    /// The problem of a number that is 0.
    pub fn at_least_one(self, value: usize) -> Option<Unworkable> {
        (value == 0).then(|| self.cannot_work("is 0, and must be at least 1".to_owned()))
    }
}

/// Whether a text is `HOST:PORT`; the host is not looked up.
pub fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

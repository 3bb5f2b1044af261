//! A setting that can be read and cannot work, with a value that can.

use std::time::Duration;

/// A setting that cannot work.
#[derive(Debug, PartialEq, Eq)]
pub struct Unworkable {
    /// Its section.
    pub section: &'static str,
    /// Its key.
    pub key: &'static str,
    /// What is wrong; follows the name of the setting.
    pub problem: String,
    /// A value that can work, as it is written.
    pub example: &'static str,
}

/// The name of a setting, with a value that can work.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) example: &'static str,
}

impl Setting {
    /// What is wrong with it.
    pub(super) fn cannot_work(self, problem: String) -> Unworkable {
        let Self { section, key, example } = self;
        Unworkable { section, key, problem, example }
    }

    /// What is wrong with a duration that is shorter than `least`.
    pub(super) fn at_least(self, value: Duration, least: Duration) -> Option<Unworkable> {
        (value < least).then(|| self.cannot_work(format!("is {value:?}, and must be {least:?} at least")))
    }

    /// What is wrong with a duration that is longer than `most`.
    pub(super) fn at_most(self, value: Duration, most: Duration) -> Option<Unworkable> {
        (value > most).then(|| self.cannot_work(format!("is {value:?}, and must be {most:?} at most")))
    }
}

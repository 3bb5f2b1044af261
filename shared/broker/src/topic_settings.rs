//! The settings of a topic: their names, allowed values and defaults.
//!
//! A setting that the embedded broker cannot fulfil is refused, so that no one relies on it. Pure.

use std::collections::BTreeMap;

/// One setting.
struct Setting {
    name: &'static str,
    default: &'static str,
    values: Values,
}

/// The allowed values of a setting.
enum Values {
    /// One of these; the broker cannot fulfil any other.
    OneOf(&'static [&'static str]),
    /// A whole number, at least this one.
    AtLeast(i64),
    /// Any value. It has no effect: it configures what the broker never does (compaction) or always does (flushing).
    Any,
}

use Values::{Any, AtLeast, OneOf};

/// All settings, in the order in which they are listed.
const SETTINGS: [Setting; 15] = [
    setting("cleanup.policy", "delete", OneOf(&["delete"])),
    setting("compression.type", "producer", OneOf(&["producer"])),
    setting("max.message.bytes", "1048588", AtLeast(0)),
    setting("message.timestamp.type", CREATE_TIME, OneOf(&[CREATE_TIME, LOG_APPEND_TIME])),
    setting("min.insync.replicas", "1", OneOf(&["1"])),
    setting("retention.bytes", "-1", OneOf(&["-1"])),
    setting("retention.ms", "-1", OneOf(&["-1"])),
    setting("segment.bytes", "33554432", AtLeast(14)),
    setting("delete.retention.ms", "86400000", Any),
    setting("file.delete.delay.ms", "60000", Any),
    setting("flush.messages", "9223372036854775807", Any),
    setting("flush.ms", "9223372036854775807", Any),
    setting("min.cleanable.dirty.ratio", "0.5", Any),
    setting("segment.ms", "604800000", Any),
    setting("unclean.leader.election.enable", "false", Any),
];

const CREATE_TIME: &str = "CreateTime";
const LOG_APPEND_TIME: &str = "LogAppendTime";

const fn setting(name: &'static str, default: &'static str, values: Values) -> Setting {
    Setting { name, default, values }
}

/// Checks the settings of a topic.
///
/// # Errors
/// A message that names the first setting that is unknown or has a wrong value, and what to do.
pub(crate) fn check(settings: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, value) in settings {
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
            return Err(format!("{name}: the embedded broker does not have this setting; leave it out"));
        };
        match setting.values {
            OneOf(values) if !values.contains(&value.trim()) => {
                let values = values.join(" or ");
                return Err(format!("{name}={value}: the embedded broker supports only {name}={values}"));
            }
            AtLeast(least) if !value.trim().parse::<i64>().is_ok_and(|value| value >= least) => {
                return Err(format!("{name}={value}: it must be a whole number, at least {least}"));
            }
            OneOf(_) | AtLeast(_) | Any => {}
        }
    }
    Ok(())
}

/// A setting of a topic with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// The source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Topic,
    Default,
}

/// All settings of a topic for which `settings` were set.
pub(crate) fn in_force(settings: &BTreeMap<String, String>) -> impl Iterator<Item = InForce> {
    SETTINGS.iter().map(|setting| match settings.get(setting.name) {
        Some(value) => InForce { name: setting.name, value: value.trim().to_owned(), origin: Origin::Topic },
        None => InForce { name: setting.name, value: setting.default.to_owned(), origin: Origin::Default },
    })
}

/// Whether the broker sets the timestamps of the records of a topic with these settings.
pub(crate) fn has_log_append_time(settings: &BTreeMap<String, String>) -> bool {
    settings.get("message.timestamp.type").is_some_and(|value| value.trim() == LOG_APPEND_TIME)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{check, in_force};

    fn one(name: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        for (name, value) in [
            ("retention.ms", "604800000"),
            ("retention.bytes", "1000000"),
            ("cleanup.policy", "compact"),
            ("message.timestamp.type", "Whenever"),
            ("max.message.bytes", "many"),
            ("segment.bytes", "-5"),
            ("retention", "1"),
        ] {
            let problem = check(&one(name, value)).unwrap_err();
            assert!(problem.contains(name), "{problem}");
        }
    }

    #[test]
    fn supported_settings_and_all_defaults_are_accepted() {
        check(&BTreeMap::new()).unwrap();
        for setting in in_force(&BTreeMap::new()) {
            check(&one(setting.name, &setting.value)).unwrap();
        }
        check(&one("message.timestamp.type", "LogAppendTime")).unwrap();
        check(&one("segment.bytes", "67108864")).unwrap();
    }
}

//! Settings as they were written, each with its file and line or its variable, so that every problem can name its place.
//! Must not know what a setting means, nor which values can work.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;

use super::{ConfigError, ENVIRONMENT_PREFIX, Settings, Unworkable, definition_error, parse_error};

/// The section of metric definitions, which is a list.
const METRIC: &str = "metric";

/// The settings so far.
pub(super) struct Written<S> {
    defaults: toml::Table,
    settings: toml::Table,
    problems: Problems,
    read_as: PhantomData<S>,
}

/// The problems so far, and where each setting was written.
#[derive(Default)]
pub(super) struct Problems {
    pub(super) errors: Vec<ConfigError>,
    /// By section and key.
    places: BTreeMap<(String, String), String>,
}

impl<S: Settings> Written<S> {
    /// Only the defaults, which are TOML.
    ///
    /// # Errors
    /// When they are not.
    pub(super) fn new(defaults: &str) -> Result<Self, ConfigError> {
        let table: toml::Table =
            toml::from_str(defaults).map_err(|error| parse_error("the defaults", defaults, &error))?;
        Ok(Self {
            settings: table.clone(),
            defaults: table,
            problems: Problems::default(),
            read_as: PhantomData,
        })
    }

    /// Adds the settings of a file.
    ///
    /// # Errors
    /// When the file is not TOML. Problems of its settings are collected for [`Self::finish`].
    pub(super) fn take_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let name = path.display().to_string();
        let table: toml::Table = toml::from_str(text).map_err(|error| parse_error(&name, text, &error))?;
        for (section, value) in table {
            match value {
                toml::Value::Array(metrics) if section == METRIC => self.take_metrics(path, metrics),
                toml::Value::Table(given) if self.has_section(&section) => {
                    for (key, value) in given {
                        let place = place_in(&name, line_of(text, &section, &key));
                        self.take(&section, &key, value, place);
                    }
                }
                _ => {
                    let header = [format!("[{section}]"), format!("[[{section}]]"), format!("{section} =")];
                    let line = text.lines().position(|line| {
                        header.iter().any(|header| line.trim_start().starts_with(header.as_str()))
                    });
                    let problem = self.no_section(&section);
                    self.problems.add(place_in(&name, line.map(|line| line + 1)), problem);
                }
            }
        }
        Ok(())
    }

    /// Adds the setting of a variable of the environment, if it is one of Wye's.
    pub(super) fn take_variable(&mut self, variable: &str, value: String) {
        let Some((section, key)) =
            variable.strip_prefix(ENVIRONMENT_PREFIX).and_then(|path| path.split_once("__"))
        else {
            return;
        };
        let (section, key) = (section.to_lowercase(), key.to_lowercase());
        let place = format!("environment variable {variable}");
        if !self.has_section(&section) {
            let problem = self.no_section(&section);
            return self.problems.add(place, problem);
        }
        let value = match self.defaults[&section].get(&key) {
            // A text needs no quotes in a variable; a number, a boolean or a table is written as in the file.
            Some(toml::Value::String(_)) | None => toml::Value::String(value),
            Some(_) => parsed(&value).unwrap_or(toml::Value::String(value)),
        };
        self.take(&section, &key, value, place);
    }

    /// All settings (with the default of each that was rejected), and all problems.
    pub(super) fn finish(self) -> (toml::Table, Problems) {
        (self.settings, self.problems)
    }

    fn has_section(&self, section: &str) -> bool {
        self.defaults.get(section).is_some_and(toml::Value::is_table)
    }

    fn take(&mut self, section: &str, key: &str, value: toml::Value, place: String) {
        let Some(default) = self.defaults[section].get(key) else {
            let known = self.defaults[section].as_table().into_iter().flat_map(toml::Table::keys);
            let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
            let problem = format!("there is no setting `{key}` in [{section}]; there are {known}");
            return self.problems.add(place, problem);
        };
        let mut alone = self.defaults.clone();
        alone[section][key] = value.clone();
        if let Err(error) = S::deserialize(alone) {
            let wrong = error.to_string();
            // A value that may be a password is never shown.
            let (value, wrong) = match S::SECRET.contains(&key) {
                true => ("the given value".to_owned(), "it has the wrong type"),
                false => (value.to_string(), wrong.lines().next().unwrap_or_default()),
            };
            let problem = format!(
                "`{key}` in [{section}] cannot be {value}: {wrong}; write for example {key} = {default}"
            );
            return self.problems.add(place, problem);
        }
        self.settings[section][key] = value;
        self.problems.places.insert((section.to_owned(), key.to_owned()), place);
    }

    fn take_metrics(&mut self, path: &Path, metrics: Vec<toml::Value>) {
        let mut sound = Vec::new();
        for (index, metric) in metrics.into_iter().enumerate() {
            match wye_metrics::definition::MetricConfig::deserialize(metric.clone()) {
                Ok(_) => sound.push(metric),
                Err(error) => {
                    let problem = error.to_string().trim().replace('\n', " ");
                    // serde names the key last, or first where there is no such key.
                    let key = match problem.rsplit_once(" in `") {
                        Some((_, key)) => key.trim_end_matches('`'),
                        None => problem.split('`').nth(1).unwrap_or("name"),
                    };
                    self.problems.errors.push(definition_error(Some(path), index, key, &problem));
                }
            }
        }
        self.settings.insert(METRIC.to_owned(), toml::Value::Array(sound));
    }

    fn no_section(&self, section: &str) -> String {
        let known: Vec<String> = self.defaults.keys().map(|known| format!("[{known}]")).collect();
        format!("there is no section [{section}]; there are {} and [[{METRIC}]]", known.join(", "))
    }
}

impl Problems {
    /// Adds the problem of a setting that cannot work, with the place where the setting was written.
    pub(super) fn reject(&mut self, unworkable: &Unworkable) {
        let Unworkable { section, key, problem, example } = unworkable;
        let written = self.places.get(&((*section).to_owned(), (*key).to_owned()));
        let place = written.cloned().unwrap_or_else(|| "the defaults".to_owned());
        self.add(place, format!("`{key}` in [{section}] {problem}; write for example {key} = {example}"));
    }

    fn add(&mut self, place: String, problem: String) {
        self.errors.push(ConfigError::Parse { place, problem });
    }
}

/// A place in a file, with the line if it is known.
fn place_in(file: &str, line: Option<usize>) -> String {
    line.map_or_else(|| file.to_owned(), |line| format!("{file}, line {line}"))
}

/// The value in the text of a variable; `None` where it is not TOML.
fn parsed(value: &str) -> Option<toml::Value> {
    toml::from_str::<toml::Table>(&format!("value = {value}")).ok()?.remove("value")
}

/// The 1-based line of a key in a section.
fn line_of(text: &str, section: &str, key: &str) -> Option<usize> {
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.starts_with('[') {
            inside = line.trim_start_matches('[').split(']').next().map(str::trim) == Some(section);
        } else if inside
            && line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', '.']))
        {
            return Some(number);
        }
    }
    None
}

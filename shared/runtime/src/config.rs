//! Loads the configuration, and reports all mistakes at once, each with its place. Each layer defines its settings
//! ([`value`] reads durations, sizes and times) and checks which of them cannot work ([`Unworkable`]); the program defines
//! the sections.
//!
//! Order: defaults < file < environment. The program applies its flags after that.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use wye_domain::registry::{Registry, RegistryConfig};
use wye_metrics::definition::{Definition, MetricConfig};

pub mod value;

mod unworkable;
mod written;

pub use unworkable::{Setting, Unworkable, is_address};
use written::Written;

/// The prefix of environment variables; the section and the key follow, separated by two underscores.
pub const ENVIRONMENT_PREFIX: &str = "WYE_";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}; check the path and its permissions")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file or variable that does not hold settings, or a setting that cannot work.
    #[error("{place}: {problem}")]
    Parse {
        /// The file with the line, or the environment variable.
        place: String,
        /// What is wrong, and what to write instead.
        problem: String,
    },
    /// Several problems.
    #[error("{} settings cannot be used:{}", .0.len(), listed(.0))]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// All problems as one error; `Ok` where there is none.
    ///
    /// # Errors
    /// The problem, or all of them.
    pub fn all(mut problems: Vec<Self>) -> Result<(), Self> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(Self::Several(problems)),
        }
    }
}

/// The problems, one on each line.
fn listed(problems: &[ConfigError]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// Settings that a program loads: one field for each section, and `metric` for the metric definitions.
pub trait Settings: DeserializeOwned {
    /// The names of settings whose values may be secret: errors and logs never show them.
    const SECRET: &'static [&'static str];

    /// All settings that cannot work.
    fn check(&self) -> Vec<Unworkable>;
}

/// Reads the defaults, the file if one is given, and the variables of the environment (those that are not Wye's are ignored),
/// and checks that every setting can work.
///
/// # Errors
/// [`ConfigError`] naming file and line or variable, and what to write instead, for all problems at once.
pub fn load<S: Settings>(
    defaults: &str,
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<S, ConfigError> {
    let mut written = Written::<S>::new(defaults)?;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        written.take_file(path, &text)?;
    }
    for (variable, value) in environment {
        written.take_variable(&variable, value);
    }
    let (settings, mut problems) = written.finish();
    match S::deserialize(settings) {
        Ok(settings) => {
            for unworkable in settings.check() {
                problems.reject(&unworkable);
            }
            ConfigError::all(problems.errors)?;
            Ok(settings)
        }
        Err(error) => {
            problems.errors.push(ConfigError::Parse {
                place: "the settings".to_owned(),
                problem: error.to_string().trim().replace('\n', " "),
            });
            Err(ConfigError::Several(problems.errors))
        }
    }
}

/// Checks the metric definitions; `file` is where they were written.
///
/// # Errors
/// [`ConfigError`] naming file, line, key, problem and what to write instead.
pub fn definitions(metrics: &[MetricConfig], file: Option<&Path>) -> Result<Vec<Definition>, ConfigError> {
    let (mut definitions, mut problems): (Vec<Definition>, Vec<ConfigError>) = Default::default();
    for (index, metric) in metrics.iter().enumerate() {
        match Definition::check(metric) {
            Ok(definition) => definitions.push(definition),
            Err(error) => problems.push(definition_error(file, index, error.key, &error.to_string())),
        }
    }
    for (index, metric) in metrics.iter().enumerate() {
        if let Some(problem) = view_taken(metrics, &metric.name) {
            problems.push(definition_error(file, index, "name", &problem));
        }
    }
    ConfigError::all(problems)?;
    Ok(definitions)
}

/// Reads the device registry at `registry`, which is relative to the folder of the configuration file; an empty one where
/// no file is named.
///
/// # Errors
/// [`ConfigError`] naming the registry file, the entry and what to write instead.
pub fn registry(registry: &str, file: Option<&Path>) -> Result<Registry, ConfigError> {
    if registry.is_empty() {
        return Ok(Registry::default());
    }
    let path = beside(file, registry);
    let text =
        std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    let place = path.display().to_string();
    let written: RegistryConfig =
        toml::from_str(&text).map_err(|error| parse_error(&place, &text, &error))?;
    Registry::check(written).map_err(|error| ConfigError::Parse { place, problem: error.to_string() })
}

/// A path that is relative to the folder of the configuration file.
pub fn beside(file: Option<&Path>, path: &str) -> PathBuf {
    file.and_then(Path::parent).unwrap_or(Path::new("")).join(path)
}

/// The problem of a metric whose name is the name of a rollup's view of another metric.
fn view_taken(others: &[MetricConfig], name: &str) -> Option<String> {
    others.iter().find_map(|other| {
        let view = other
            .rollups
            .iter()
            .map(|rollup| format!("{}_{rollup}", other.name))
            .find(|view| view == name)?;
        Some(format!(
            "{view:?} is the view of a rollup of the metric {:?}; give this one another name",
            other.name
        ))
    })
}

/// An error in the n-th `[[metric]]` of a file, with the line of the key.
pub fn definition_error(file: Option<&Path>, index: usize, key: &str, problem: &str) -> ConfigError {
    let text = file.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let name = file.map_or_else(|| "metric definitions".to_owned(), |path| path.display().to_string());
    let place = match line_of_definition(&text, index, key) {
        Some(line) => format!("{name}, line {line}"),
        None => name,
    };
    ConfigError::Parse { place, problem: problem.to_owned() }
}

/// The 1-based line of a key in the n-th `[[metric]]`, or of its header where the key is absent.
fn line_of_definition(text: &str, index: usize, key: &str) -> Option<usize> {
    let mut headers =
        text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[metric]]"));
    let (start, _) = headers.nth(index)?;
    let own =
        text.lines().enumerate().skip(start + 1).take_while(|(_, line)| !line.trim_start().starts_with('['));
    let key_line = own.into_iter().find(|(_, line)| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    Some(key_line.map_or(start, |(line, _)| line) + 1)
}

fn parse_error(place: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = line.map_or_else(|| place.to_owned(), |line| format!("{place}, line {line}"));
    ConfigError::Parse { place, problem: error.message().replace('\n', " ") }
}

#[cfg(test)]
mod tests;

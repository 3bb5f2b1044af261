//! A mapping: how the rows of one kind of wide CSV file become readings. It must not know any data file, only column names.
//!
//! ```toml
//! delimiter = ","                  # default ","; one ASCII character, "\t" for a tab
//! decimal_comma = false            # default false; true: 1,5 is one and a half
//! missing = ["NA", "", -200]       # default [""]; strings are compared as text, numbers as numbers
//!
//! [device]                         # exactly one of column, constant, file_name
//! column = "station"
//! prefix = "station-"              # default ""; is put before the text of the column
//!
//! [time]
//! columns = ["Date", "Time"]       # joined by one space, parsed by `format`
//! format = "%Y-%m-%d %H:%M:%S"     # chrono's strftime, or "rfc3339", "unix_seconds", "unix_millis"
//! zone = "Europe/Rome"             # IANA name or "+01:00"; must be left out where the format has a zone
//! # instead of columns and format:
//! # parts = { year = "year", month = "month", day = "day", hour = "hour" }   # also minute and second
//!
//! [tags]
//! site = { constant = "north" }
//! street = { column = "Street" }
//!
//! [[metric]]
//! column = "PM2.5"
//! name = "pm2_5"                   # default: the name of the column
//! unit = "ug/m3"                   # UCUM; default none
//! scale = 1.0                      # value = number * scale + offset
//! offset = 0.0
//! ```
//!
//! A local time that a clock change repeats is the earlier of the two; one that a clock change skips is invalid.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::DatasetError;
use crate::number::parse_number;
use time::TimeRule;

pub(crate) mod time;

#[cfg(test)]
mod tests;

/// A valid mapping. Whether a data file has its columns is checked when the file is opened.
#[derive(Clone, Debug)]
pub struct Mapping {
    pub(crate) source: PathBuf,
    pub(crate) delimiter: u8,
    pub(crate) decimal_mark: u8,
    pub(crate) missing: Missing,
    pub(crate) device: DeviceRule,
    pub(crate) time: TimeRule,
    pub(crate) tags: BTreeMap<String, Origin>,
    pub(crate) metrics: Vec<MetricColumn>,
    canonical: String,
}

/// One column that becomes one metric.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricColumn {
    /// The name of the column in the header of the file.
    pub column: String,
    /// The name of the metric in the readings.
    #[serde(default)]
    pub name: String,
    /// UCUM unit of the value, after scale and offset.
    pub unit: Option<String>,
    /// The number in the file is multiplied by this first.
    #[serde(default = "one")]
    pub scale: f64,
    /// Then this is added.
    #[serde(default)]
    pub offset: f64,
}

/// The cells that mean that there is no reading.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    words: Vec<Vec<u8>>,
    numbers: Vec<f64>,
}

/// The source of the device's name.
#[derive(Clone, Debug)]
pub(crate) enum DeviceRule {
    Column { column: String, prefix: String },
    Constant(String),
    FileName,
}

/// The source of a tag's value.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(crate) enum Origin {
    Column(String),
    Constant(String),
}

/// The file as it is written. Its canonical form is this, serialized again: with defaults, without comments.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default = "comma")]
    delimiter: String,
    #[serde(default)]
    decimal_comma: bool,
    #[serde(default = "empty_is_missing")]
    missing: Vec<MissingWritten>,
    device: DeviceWritten,
    time: TimeWritten,
    #[serde(default)]
    tags: BTreeMap<String, Origin>,
    metric: Vec<MetricColumn>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum MissingWritten {
    Word(String),
    Number(f64),
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DeviceWritten {
    column: Option<String>,
    constant: Option<String>,
    #[serde(default)]
    file_name: bool,
    #[serde(default)]
    prefix: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct TimeWritten {
    columns: Option<Vec<String>>,
    format: Option<String>,
    zone: Option<String>,
    parts: Option<time::Parts>,
}

impl Mapping {
    /// Reads and checks the mapping file at `path`.
    ///
    /// # Errors
    /// [`DatasetError::Read`] where the file cannot be read, [`DatasetError::Mapping`] where it is invalid.
    pub fn load(path: &Path) -> Result<Self, DatasetError> {
        let text = fs::read_to_string(path)
            .map_err(|source| DatasetError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, path)
    }

    /// Parses and checks the text of a mapping; errors name it as `source`.
    ///
    /// # Errors
    /// [`DatasetError::Mapping`] with the key, and what to write.
    pub fn parse(text: &str, source: &Path) -> Result<Self, DatasetError> {
        Self::checked(text, source).map_err(|(key, problem)| DatasetError::Mapping {
            path: source.to_path_buf(),
            key,
            problem,
        })
    }

    fn checked(text: &str, source: &Path) -> Result<Self, Problem> {
        let mut written: Written =
            toml::from_str(text).map_err(|error| problem("syntax", error.to_string().trim_end()))?;
        for metric in &mut written.metric {
            if metric.name.is_empty() {
                metric.name.clone_from(&metric.column);
            }
        }
        check_metrics(&written.metric)?;
        Ok(Self {
            source: source.to_path_buf(),
            canonical: serde_json::to_string(&written)
                .map_err(|error| problem("syntax", error.to_string()))?,
            delimiter: delimiter(&written.delimiter)?,
            decimal_mark: decimal_mark(&written)?,
            missing: Missing::new(&written.missing),
            device: device_rule(written.device)?,
            time: time_rule(written.time)?,
            tags: written.tags,
            metrics: written.metric,
        })
    }

    /// The metrics, in the order of the mapping, which is their order in a chunk.
    pub fn metrics(&self) -> &[MetricColumn] {
        &self.metrics
    }

    /// The meaning of the mapping as text: equal for two mappings that differ only in comments, layout and written defaults.
    pub(crate) fn canonical(&self) -> &str {
        &self.canonical
    }

    pub(crate) fn device_is_file_name(&self) -> bool {
        matches!(self.device, DeviceRule::FileName)
    }
}

impl Missing {
    fn new(written: &[MissingWritten]) -> Self {
        let mut missing = Self { words: Vec::new(), numbers: Vec::new() };
        for item in written {
            match item {
                MissingWritten::Word(word) => missing.words.push(word.trim().as_bytes().to_vec()),
                MissingWritten::Number(number) => missing.numbers.push(*number),
            }
        }
        missing
    }

    pub(crate) fn is_word(&self, text: &[u8]) -> bool {
        self.words.iter().any(|word| word == text)
    }

    /// Whether the number in the file, before scale and offset, means missing.
    pub(crate) fn is_number(&self, number: f64) -> bool {
        self.numbers.contains(&number)
    }

    /// Whether a cell that is used as text means missing, as a word or as a number.
    pub(crate) fn is_text(&self, text: &[u8], decimal_mark: u8) -> bool {
        self.is_word(text)
            || (!self.numbers.is_empty()
                && parse_number(text, decimal_mark).is_some_and(|number| self.is_number(number)))
    }
}

/// The key of the mapping, and what is wrong with it.
type Problem = (String, String);

fn problem(key: impl Into<String>, text: impl Into<String>) -> Problem {
    (key.into(), text.into())
}

fn check_metrics(metrics: &[MetricColumn]) -> Result<(), Problem> {
    if metrics.is_empty() {
        return Err(problem("metric", "there is none; write at least one [[metric]] with a column"));
    }
    let mut names = HashSet::new();
    for (index, metric) in metrics.iter().enumerate() {
        check_metric(metric).map_err(|(key, text)| (format!("metric[{index}].{key}"), text))?;
        let name = metric.name.as_str();
        if !names.insert(name) {
            let text = format!("`{name}` is the name of another metric; write a different name");
            return Err(problem(format!("metric[{index}].name"), text));
        }
    }
    Ok(())
}

/// Checks one metric; the key of a problem is a field of it.
fn check_metric(metric: &MetricColumn) -> Result<(), Problem> {
    if metric.column.is_empty() {
        return Err(problem("column", "it is empty; write the name of a column in the header of the file"));
    }
    if !metric.scale.is_finite() || metric.scale == 0.0 {
        return Err(problem("scale", "it must be a finite number other than 0; leave it out for 1"));
    }
    if !metric.offset.is_finite() {
        return Err(problem("offset", "it must be a finite number; leave it out for 0"));
    }
    if metric.unit.as_ref().is_some_and(String::is_empty) {
        return Err(problem(
            "unit",
            "it is empty; leave the key out for no unit, or write \"1\" for a pure number",
        ));
    }
    Ok(())
}

fn delimiter(text: &str) -> Result<u8, Problem> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err(problem("delimiter", "it must be one ASCII character, such as \",\", \";\" or \"\\t\"")),
    }
}

fn decimal_mark(written: &Written) -> Result<u8, Problem> {
    match (written.decimal_comma, written.delimiter.as_str()) {
        (true, ",") => Err(problem(
            "decimal_comma",
            "numbers with a comma need another delimiter; write delimiter = \";\" or decimal_comma = false",
        )),
        (true, _) => Ok(b','),
        (false, _) => Ok(b'.'),
    }
}

fn device_rule(written: DeviceWritten) -> Result<DeviceRule, Problem> {
    let DeviceWritten { column, constant, file_name, prefix } = written;
    match (column, constant, file_name) {
        (Some(column), None, false) => Ok(DeviceRule::Column { column, prefix }),
        _ if !prefix.is_empty() => {
            Err(problem("device.prefix", "it is only for device.column; leave it out"))
        }
        (None, Some(constant), false) if constant.trim().is_empty() => {
            Err(problem("device.constant", "it is empty; write the name of the device"))
        }
        (None, Some(constant), false) => Ok(DeviceRule::Constant(constant)),
        (None, None, true) => Ok(DeviceRule::FileName),
        _ => Err(problem(
            "device",
            "write exactly one of column = \"..\", constant = \"..\", file_name = true",
        )),
    }
}

fn time_rule(written: TimeWritten) -> Result<TimeRule, Problem> {
    match (written.columns, written.format, written.parts) {
        (Some(columns), Some(format), None) => {
            if columns.is_empty() {
                return Err(problem("time.columns", "it is empty; write the columns of the time"));
            }
            TimeRule::text(columns, &format, written.zone.as_deref())
                .map_err(|(key, text)| problem(key, text))
        }
        (None, None, Some(parts)) => {
            TimeRule::parts(parts, written.zone.as_deref()).map_err(|(key, text)| problem(key, text))
        }
        _ => Err(problem(
            "time",
            "write columns = [\"..\"] with format = \"..\", or parts = { year = \"..\", month = \"..\", day = \"..\" }",
        )),
    }
}

fn one() -> f64 {
    1.0
}

fn comma() -> String {
    ",".into()
}

fn empty_is_missing() -> Vec<MissingWritten> {
    vec![MissingWritten::Word(String::new())]
}

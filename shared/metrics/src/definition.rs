//! What a metric is: its definition as written, and the same thing checked.
//!
//! The expressions (`where`, `value`, `by`) are texts here; [`crate::plan`] plans them. A definition with
//! the name `*` is a family: one metric for each reading name, which then is the metric's name.

use serde::{Deserialize, Serialize};

use wye_domain::ErrorKind;
use wye_domain::sketches::Needs;
use wye_domain::time::WindowSize;

use crate::{sql_tables, view_rows};

/// The name of the definition that makes every reading name a metric of its own.
pub const FAMILY: &str = "*";

/// A `[[metric]]` table as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricConfig {
    /// Unique name; `*` for the family.
    pub name: String,
    /// One sentence for people.
    #[serde(default)]
    pub help: String,
    /// UCUM unit of the value.
    #[serde(default)]
    pub unit: String,
    /// SQL condition over a reading's columns, tags and registry attributes.
    #[serde(default, rename = "where")]
    pub filter: Option<String>,
    /// SQL expression of the value.
    #[serde(default)]
    pub value: Option<String>,
    /// Dimensions: a column, tag or attribute name, or `expression AS name`.
    #[serde(default)]
    pub by: Option<Vec<String>>,
    /// Length of the windows.
    #[serde(default)]
    pub window: Option<String>,
    /// Longer windows made by merging.
    #[serde(default)]
    pub rollups: Vec<String>,
    /// Which aggregates are answered.
    #[serde(default)]
    pub aggregates: Option<Vec<String>>,
}

/// An aggregate that a metric answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Aggregate {
    /// Distinct readings.
    Count,
    /// Compensated sum.
    Sum,
    /// Mean.
    Avg,
    /// Smallest value.
    Min,
    /// Largest value.
    Max,
    /// Sample standard deviation.
    Stddev,
    /// Value at the first event time.
    First,
    /// Value at the last event time.
    Last,
    /// Median, within 1 %.
    P50,
    /// 95th percentile, within 1 %.
    P95,
    /// 99th percentile, within 1 %.
    P99,
    /// Distinct devices, standard error 1.6 %.
    DistinctDevices,
}

impl Aggregate {
    /// All of them, in the order in which they are listed to people.
    pub const ALL: [Self; 12] = [
        Self::Count,
        Self::Sum,
        Self::Avg,
        Self::Min,
        Self::Max,
        Self::Stddev,
        Self::First,
        Self::Last,
        Self::P50,
        Self::P95,
        Self::P99,
        Self::DistinctDevices,
    ];

    /// Those that a definition answers where it lists none.
    pub const DEFAULT: [Self; 8] =
        [Self::Count, Self::Sum, Self::Avg, Self::Min, Self::Max, Self::Stddev, Self::First, Self::Last];

    /// The name in definitions, columns and parameters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Avg => "avg",
            Self::Min => "min",
            Self::Max => "max",
            Self::Stddev => "stddev",
            Self::First => "first",
            Self::Last => "last",
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
            Self::DistinctDevices => "distinct_devices",
        }
    }

    /// Finds an aggregate by name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|aggregate| aggregate.name() == name)
    }
}

/// One dimension of a definition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Dimension {
    /// The column name in answers.
    pub name: String,
    /// The SQL expression; the name itself where only that was given.
    pub expression: String,
}

/// A checked metric definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Unique name; [`FAMILY`] for the family.
    pub name: String,
    /// One sentence for people.
    pub help: String,
    /// UCUM unit.
    pub unit: String,
    /// SQL condition.
    pub filter: Option<String>,
    /// SQL value.
    pub value: String,
    /// The dimensions, without `metric`.
    pub dimensions: Vec<Dimension>,
    /// Length of the windows.
    pub window: WindowSize,
    /// Longer windows, ascending, each a multiple of `window`.
    pub rollups: Vec<WindowSize>,
    /// Answered aggregates.
    pub aggregates: Vec<Aggregate>,
}

/// The columns that only answers have; the others are those of stored views and aggregates. `value` is a reading's.
const ANSWER_COLUMNS: [&str; 6] =
    ["source", "state", "value", "current_value", "data_points", "last_updated"];

/// Whether answers or stored views have a column of this name, so that no dimension may have it.
fn is_column(name: &str) -> bool {
    let aggregates = Aggregate::ALL.into_iter().map(Aggregate::name);
    view_rows::fixed_columns().chain(aggregates).chain(ANSWER_COLUMNS).any(|column| column == name)
}

/// A definition that breaks a rule or cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metric {metric:?}, key {key:?}: {problem}; {remedy}")]
pub struct DefinitionError {
    /// The definition's name.
    pub metric: String,
    /// The key at fault, such as `where`.
    pub key: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub remedy: String,
}

impl DefinitionError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

impl Definition {
    /// The default: every device and reading name, one-minute windows.
    pub fn family() -> Self {
        let device_id = Dimension { name: "device_id".to_owned(), expression: "device_id".to_owned() };
        Self {
            name: FAMILY.to_owned(),
            help: "every reading name by device".to_owned(),
            unit: String::new(),
            filter: None,
            value: "value".to_owned(),
            dimensions: vec![device_id],
            window: WindowSize::MINUTE,
            rollups: vec![WindowSize::HOUR, WindowSize::DAY],
            aggregates: Aggregate::DEFAULT.to_vec(),
        }
    }

    /// Whether this is the family `*`.
    pub fn is_family(&self) -> bool {
        self.name == FAMILY
    }

    /// Which sketches its summaries carry. Whether devices are counted depends on the registry too, see
    /// [`Needs::devices`].
    pub fn needs(&self) -> Needs {
        Needs {
            quantiles: self
                .aggregates
                .iter()
                .any(|a| matches!(a, Aggregate::P50 | Aggregate::P95 | Aggregate::P99)),
            distinct: self.aggregates.contains(&Aggregate::DistinctDevices),
            devices: false,
        }
    }

    /// Checks a definition as written.
    ///
    /// # Errors
    /// [`DefinitionError`] naming the key, the problem and what to write instead.
    pub fn check(config: &MetricConfig) -> Result<Self, DefinitionError> {
        check_name(config)?;
        let window = size(config, "window", config.window.as_deref().unwrap_or("1m"))?;
        Ok(Self {
            name: config.name.clone(),
            help: config.help.clone(),
            unit: config.unit.clone(),
            filter: config.filter.clone(),
            value: config.value.clone().unwrap_or_else(|| "value".to_owned()),
            dimensions: dimensions(config)?,
            window,
            rollups: rollups(config, window)?,
            aggregates: aggregates(config)?,
        })
    }

    /// The names of the dimensions.
    pub fn dimension_names(&self) -> Vec<&str> {
        self.dimensions.iter().map(|dimension| dimension.name.as_str()).collect()
    }
}

fn fail(
    config: &MetricConfig,
    key: &'static str,
    problem: String,
    remedy: impl Into<String>,
) -> DefinitionError {
    DefinitionError { metric: config.name.clone(), key, problem, remedy: remedy.into() }
}

/// Whether SQL accepts a name without quotes.
fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn check_name(config: &MetricConfig) -> Result<(), DefinitionError> {
    let name = config.name.as_str();
    if name != FAMILY && !is_plain(name) {
        let remedy =
            "use letters, digits and _, starting with a letter, or \"*\" for one metric per reading name";
        return Err(fail(config, "name", format!("{name:?} is not a name"), remedy));
    }
    let taken = if sql_tables::reserved_names().any(|table| table == name) {
        "a table"
    } else if is_column(name) {
        "a column"
    } else {
        return Ok(());
    };
    let problem = format!("{name:?} is the name of {taken} of Wye");
    Err(fail(config, "name", problem, format!("write for example \"{name}_of_line\"")))
}

fn dimensions(config: &MetricConfig) -> Result<Vec<Dimension>, DefinitionError> {
    let default = [String::from("device_id")];
    let mut dimensions: Vec<Dimension> = Vec::new();
    for entry in config.by.as_deref().unwrap_or(&default) {
        let dimension = dimension(entry);
        // Each metric of the family is one reading name.
        if config.name == FAMILY && dimension.name == "metric" {
            continue;
        }
        if is_column(&dimension.name) || !is_plain(&dimension.name) {
            let problem = format!("a dimension cannot be called {:?}", dimension.name);
            return Err(fail(config, "by", problem, "write \"expression AS another_name\""));
        }
        if dimensions.iter().any(|known| known.name == dimension.name) {
            let problem = format!("{:?} is listed twice", dimension.name);
            return Err(fail(config, "by", problem, "name each dimension once"));
        }
        dimensions.push(dimension);
    }
    Ok(dimensions)
}

fn size(config: &MetricConfig, key: &'static str, text: &str) -> Result<WindowSize, DefinitionError> {
    WindowSize::parse(text).map_err(|_| {
        let problem = format!("{text:?} is not a length of time");
        fail(config, key, problem, "write for example \"1m\", \"15s\" or \"1h\"")
    })
}

fn rollups(config: &MetricConfig, window: WindowSize) -> Result<Vec<WindowSize>, DefinitionError> {
    let mut rollups = Vec::new();
    for text in &config.rollups {
        let rollup = size(config, "rollups", text)?;
        if rollup <= window || !rollup.is_multiple_of(window) {
            let problem = format!("{rollup} is not a multiple of the window, {window}");
            return Err(fail(config, "rollups", problem, "write a longer multiple of it"));
        }
        rollups.push(rollup);
    }
    rollups.sort();
    rollups.dedup();
    Ok(rollups)
}

fn aggregates(config: &MetricConfig) -> Result<Vec<Aggregate>, DefinitionError> {
    let Some(names) = &config.aggregates else { return Ok(Aggregate::DEFAULT.to_vec()) };
    let mut aggregates = Vec::new();
    for name in names {
        let Some(aggregate) = Aggregate::parse(name) else {
            let known = Aggregate::ALL.map(Aggregate::name).join(", ");
            let problem = format!("{name:?} is not an aggregate");
            return Err(fail(config, "aggregates", problem, format!("choose from {known}")));
        };
        if !aggregates.contains(&aggregate) {
            aggregates.push(aggregate);
        }
    }
    Ok(aggregates)
}

/// Reads `name` or `expression AS name`.
fn dimension(entry: &str) -> Dimension {
    let lower = entry.to_ascii_lowercase();
    match lower.rfind(" as ") {
        Some(at) => {
            Dimension { name: entry[at + 4..].trim().to_owned(), expression: entry[..at].trim().to_owned() }
        }
        None => Dimension { name: entry.trim().to_owned(), expression: entry.trim().to_owned() },
    }
}

/// A fingerprint of everything in the definitions that decides how readings become summaries. It is stored with realtime rows
/// and batch views, so that numbers of different definitions are never merged.
///
/// Stability contract: the text must stay, since fingerprints are stored.
pub fn fingerprint(definitions: &[Definition]) -> u64 {
    let text: String = definitions.iter().map(fingerprinted).collect();
    wye_domain::fingerprint::of_text(&text)
}

fn fingerprinted(definition: &Definition) -> String {
    let Definition { name, filter, value, dimensions, window, .. } = definition;
    let needs = definition.needs();
    format!("{name}\u{1}{filter:?}\u{1}{value}\u{1}{dimensions:?}\u{1}{window}\u{1}{needs:?}\u{2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str) -> MetricConfig {
        MetricConfig { name: name.to_owned(), ..MetricConfig::default() }
    }

    #[test]
    fn the_family_groups_by_device() {
        let family = Definition::family();
        assert_eq!(family.needs(), Needs::default());
        let rollups = vec!["1h".to_owned(), "1d".to_owned()];
        let written = MetricConfig { help: family.help.clone(), rollups, ..config(FAMILY) };
        assert_eq!(Definition::check(&written).unwrap(), family);
    }

    #[test]
    fn wrong_definitions_name_the_key_and_say_what_to_write() {
        for (config, key, remedy) in [
            (config("my metric"), "name", "use letters, digits and _"),
            (MetricConfig { window: Some("soon".into()), ..config("m") }, "window", "write for example"),
            (MetricConfig { rollups: vec!["90s".into()], ..config("m") }, "rollups", "longer multiple"),
            (
                MetricConfig { aggregates: Some(vec!["median".into()]), ..config("m") },
                "aggregates",
                "choose from",
            ),
            (MetricConfig { by: Some(vec!["count".into()]), ..config("m") }, "by", "AS another_name"),
            (MetricConfig { by: Some(vec!["a".into(), "a".into()]), ..config("m") }, "by", "once"),
        ] {
            let error = Definition::check(&config).unwrap_err();
            assert_eq!((error.metric.as_str(), error.key), (config.name.as_str(), key));
            assert!(error.remedy.contains(remedy), "{error}");
            assert!(error.to_string().contains(&error.problem) && error.to_string().contains(remedy));
        }
    }

    #[test]
    fn a_metric_cannot_have_the_name_of_a_table_or_column() {
        for name in sql_tables::reserved_names().chain(["count", "window_start"]) {
            let message = Definition::check(&config(name)).unwrap_err().to_string();
            assert!(message.contains("of Wye;") && message.contains(&format!("{name}_of_line")), "{message}");
        }
    }

    #[test]
    fn expressions_can_be_named() {
        let checked = Definition::check(&MetricConfig {
            by: Some(vec!["upper(line) AS production_line".into()]),
            ..config("m")
        })
        .unwrap();
        assert_eq!(checked.dimensions[0].expression, "upper(line)");
        assert_eq!(checked.dimensions[0].name, "production_line");
    }

    #[test]
    fn the_fingerprint_follows_what_is_computed() {
        let base = Definition::check(&config("m")).unwrap();
        let helped = Definition { help: "other words".into(), ..base.clone() };
        let longer = Definition { window: WindowSize::parse("5m").unwrap(), ..base.clone() };
        assert_eq!(fingerprint(std::slice::from_ref(&base)), fingerprint(&[helped]));
        assert_ne!(fingerprint(&[base]), fingerprint(&[longer]));
        // Stored rows have it: if it changes, every view is computed again.
        assert_eq!(fingerprint(&[Definition::family()]), 0x9c6e_2f17_541c_786d);
    }
}

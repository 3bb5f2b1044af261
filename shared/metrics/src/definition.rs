//! What a metric is: its definition as written, and the same thing checked.
//!
//! The expressions (`where`, `value`, `by`) are texts here; they are planned by the tables crate. A definition with
//! the name `*` is a family: one metric for each reading name, which then is the metric's name.

use serde::{Deserialize, Serialize};

use wye_domain::DomainError;
use wye_domain::sketches::Needs;
use wye_domain::time::WindowSize;

/// The name of the definition that makes every reading name a metric of its own.
pub const FAMILY: &str = "*";

/// A `[[metric]]` table as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

    /// The name in definitions, columns and parameters.
    pub fn name(self) -> &'static str {
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

/// The columns that answers and stored views have beside the dimensions.
const RESERVED: [&str; 40] = [
    "metric_key",
    "metric",
    "definition",
    "series",
    "window_start",
    "window_end",
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "stddev",
    "first",
    "last",
    "first_time",
    "last_time",
    "p50",
    "p95",
    "p99",
    "distinct_devices",
    "invalid",
    "conflicts",
    "sum_high",
    "sum_low",
    "m2",
    "quantiles",
    "distinct",
    "device_counts",
    "source",
    "state",
    "expected",
    "expected_source",
    "completeness",
    "validity",
    "precision",
    "confidence_score",
    "value",
    "current_value",
    "data_points",
    "last_updated",
];

/// The tables that SQL has beside the views of metrics. A metric of such a name would have no view.
pub const TABLES: [&str; 12] = [
    "readings",
    "realtime_metrics",
    "batch_metrics",
    "unified_series",
    "unified_metrics",
    "unified_metrics_classic",
    "late_readings",
    "dead_letters",
    "batch_runs",
    "coverage",
    "devices",
    "alerts",
];

impl Definition {
    /// The default: every device and reading name, one-minute windows.
    pub fn family() -> Self {
        let config = MetricConfig {
            name: FAMILY.to_owned(),
            help: "every reading name by device".to_owned(),
            unit: String::new(),
            filter: None,
            value: None,
            by: None,
            window: None,
            rollups: vec!["1h".to_owned(), "1d".to_owned()],
            aggregates: None,
        };
        Self::check(&config).expect("the default definition is valid")
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
    /// [`DomainError::Define`] naming the key, the problem and what to write instead.
    pub fn check(config: &MetricConfig) -> Result<Self, DomainError> {
        let fail = |key: &str, problem: String, remedy: &str| DomainError::Define {
            place: format!("metric {:?}, key {key:?}", config.name),
            problem,
            remedy: remedy.to_owned(),
        };
        let family = config.name == FAMILY;
        let well_named = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !family && !well_named(&config.name) {
            return Err(fail(
                "name",
                format!("{:?} is not a name", config.name),
                "use letters, digits and _, starting with a letter, or \"*\" for one metric per reading name",
            ));
        }
        let taken = if TABLES.contains(&config.name.as_str()) {
            Some("a table")
        } else if RESERVED.contains(&config.name.as_str()) {
            Some("a column")
        } else {
            None
        };
        if let Some(taken) = taken {
            return Err(fail(
                "name",
                format!("{:?} is {taken} of Wye's own", config.name),
                &format!("write for example \"{}_of_line\"", config.name),
            ));
        }
        let default_by = if family {
            vec!["device_id".to_owned(), "metric".to_owned()]
        } else {
            vec!["device_id".to_owned()]
        };
        let mut dimensions = Vec::new();
        for entry in config.by.clone().unwrap_or(default_by) {
            let dimension = dimension(&entry);
            if family && dimension.name == "metric" {
                continue;
            }
            if RESERVED.contains(&dimension.name.as_str()) || !well_named(&dimension.name) {
                return Err(fail(
                    "by",
                    format!("a dimension cannot be called {:?}", dimension.name),
                    "write \"expression AS another_name\"",
                ));
            }
            if dimensions.iter().any(|known: &Dimension| known.name == dimension.name) {
                return Err(fail(
                    "by",
                    format!("{:?} stands twice", dimension.name),
                    "name each dimension once",
                ));
            }
            dimensions.push(dimension);
        }
        let size = |key: &str, text: &str| {
            WindowSize::parse(text).map_err(|_| {
                fail(key, format!("{text:?} is no length"), "write for example \"1m\", \"15s\" or \"1h\"")
            })
        };
        let window = size("window", config.window.as_deref().unwrap_or("1m"))?;
        let mut rollups = Vec::new();
        for text in &config.rollups {
            let rollup = size("rollups", text)?;
            if rollup <= window || !rollup.is_multiple_of(window) {
                return Err(fail(
                    "rollups",
                    format!("{rollup} is not made of whole windows of {window}"),
                    "use a longer multiple of the window",
                ));
            }
            rollups.push(rollup);
        }
        rollups.sort();
        rollups.dedup();
        let default_aggregates =
            ["count", "sum", "avg", "min", "max", "stddev", "first", "last"].map(str::to_owned).to_vec();
        let mut aggregates = Vec::new();
        for name in config.aggregates.clone().unwrap_or(default_aggregates) {
            let Some(aggregate) = Aggregate::parse(&name) else {
                let known = Aggregate::ALL.map(Aggregate::name).join(", ");
                return Err(fail(
                    "aggregates",
                    format!("{name:?} is not an aggregate"),
                    &format!("choose from {known}"),
                ));
            };
            if !aggregates.contains(&aggregate) {
                aggregates.push(aggregate);
            }
        }
        Ok(Self {
            name: config.name.clone(),
            help: config.help.clone(),
            unit: config.unit.clone(),
            filter: config.filter.clone(),
            value: config.value.clone().unwrap_or_else(|| "value".to_owned()),
            dimensions,
            window,
            rollups,
            aggregates,
        })
    }

    /// The names of the dimensions.
    pub fn dimension_names(&self) -> Vec<&str> {
        self.dimensions.iter().map(|dimension| dimension.name.as_str()).collect()
    }
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

/// A fingerprint of everything in the definitions that decides which readings make which summaries. Stored with
/// realtime rows and batch views, so that numbers of other definitions are never mixed in.
pub fn fingerprint(definitions: &[Definition]) -> u64 {
    use std::fmt::Write;
    let mut text = String::new();
    for definition in definitions {
        let Definition { name, filter, value, dimensions, window, .. } = definition;
        let needs = definition.needs();
        write!(text, "{name}\u{1}{filter:?}\u{1}{value}\u{1}{dimensions:?}\u{1}{window}\u{1}{needs:?}\u{2}")
            .expect("writing to a string cannot fail");
    }
    wye_domain::fingerprint::of_text(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str) -> MetricConfig {
        MetricConfig {
            name: name.to_owned(),
            help: String::new(),
            unit: String::new(),
            filter: None,
            value: None,
            by: None,
            window: None,
            rollups: Vec::new(),
            aggregates: None,
        }
    }

    #[test]
    fn the_family_groups_by_device() {
        let family = Definition::family();
        assert_eq!(family.dimension_names(), ["device_id"]);
        assert_eq!(family.needs(), Needs::default());
    }

    #[test]
    fn wrong_definitions_say_what_to_write() {
        let message = |config: &MetricConfig| Definition::check(config).unwrap_err().to_string();
        assert!(message(&config("my metric")).contains("use letters, digits and _"));
        assert!(
            message(&MetricConfig { window: Some("soon".into()), ..config("m") })
                .contains("write for example")
        );
        assert!(message(&MetricConfig { rollups: vec!["90s".into()], ..config("m") }).contains("multiple"));
        assert!(
            message(&MetricConfig { aggregates: Some(vec!["median".into()]), ..config("m") })
                .contains("choose from")
        );
        assert!(
            message(&MetricConfig { by: Some(vec!["count".into()]), ..config("m") })
                .contains("AS another_name")
        );
    }

    #[test]
    fn a_metric_cannot_have_the_name_of_a_table_or_column() {
        for name in TABLES.iter().chain(&["count", "window_start"]) {
            let message = Definition::check(&config(name)).unwrap_err().to_string();
            assert!(
                message.contains("of Wye's own") && message.contains(&format!("{name}_of_line")),
                "{message}"
            );
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
    }
}

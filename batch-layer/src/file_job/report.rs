//! What a job did: what was read, what each rule found, and what was written.

use std::path::PathBuf;

use serde::Serialize;

use super::clean::{Check, Cleaning, Column};
use super::recipe::Action;
use super::source::Source;
use super::values::type_name;

/// How many examples a rule has.
pub(crate) const EXAMPLES: usize = 3;

/// The outcome of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The query was run.
    Done,
    /// A rule that says `fail` has found a value; the query was not run.
    Rejected,
}

/// What a job did.
#[derive(Clone, Debug, Serialize)]
pub struct JobReport {
    /// Whether the query was run.
    pub outcome: Outcome,
    /// The tables.
    pub inputs: Vec<InputReport>,
    /// Rows of the result.
    pub rows: u64,
    /// The file with the result, if it is in one.
    pub output: Option<PathBuf>,
    /// One line for each rule that says `fail` and has found a value.
    pub failures: Vec<String>,
}

/// What was read and cleaned of a table.
#[derive(Clone, Debug, Serialize)]
pub struct InputReport {
    /// The name of the table.
    pub name: String,
    /// The recipe that it was cleaned by, if there is one.
    pub recipe: Option<String>,
    /// How many files it has.
    pub files: usize,
    /// Bytes of the files.
    pub bytes: u64,
    /// Rows in the files.
    pub rows_read: u64,
    /// Rows that a rule dropped. A row that several rules drop counts once.
    pub rows_dropped: u64,
    /// The columns as the query sees them.
    pub columns: Vec<ColumnReport>,
    /// What each rule found, in the order of the columns.
    pub rules: Vec<RuleReport>,
}

/// A column as the query sees it.
#[derive(Clone, Debug, Serialize)]
pub struct ColumnReport {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// Its name in the files, if it was renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<String>,
}

/// A kind of rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A text had spaces at its ends.
    Trimmed,
    /// A word or number that means that there is no value.
    Missing,
    /// A value that has not the type of its column.
    Invalid,
    /// A value below the minimum.
    Below,
    /// A value above the maximum.
    Above,
    /// A row without a required value.
    Required,
    /// A row with the same key as another one.
    Duplicate,
}

impl Rule {
    /// The rule in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Below => "below",
            Self::Above => "above",
            Self::Required => "required",
            Self::Duplicate => "duplicate",
        }
    }
}

/// What a rule found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleReport {
    /// The column in the files; the key columns for [`Rule::Duplicate`].
    pub column: String,
    /// The rule.
    pub rule: Rule,
    /// What happens with the values; `None` for texts that were trimmed.
    pub action: Option<Action>,
    /// How many values there are.
    pub values: u64,
    /// The first of them, each value once.
    pub examples: Vec<Example>,
}

/// A value that a rule found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Its row: 1 is the first row of the first file.
    pub row: u64,
    /// The value in the file; `None` where there is none.
    pub value: Option<String>,
}

/// What was counted of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rows_read: u64,
    pub(crate) rows_dropped: u64,
    pub(crate) rules: Vec<RuleReport>,
}

impl RuleReport {
    /// Of a check that has found nothing yet.
    pub(crate) fn of(check: &Check, columns: &[Column]) -> Self {
        let column = columns[check.column].original.clone();
        Self { column, rule: check.rule, action: check.action, values: 0, examples: Vec::new() }
    }

    /// Whether another example would be of use.
    pub(crate) fn wants(&self, value: Option<&str>) -> bool {
        self.examples.len() < EXAMPLES && !self.examples.iter().any(|known| known.value.as_deref() == value)
    }
}

impl InputReport {
    /// Of a table that was read and cleaned.
    pub(crate) fn new(source: &Source, cleaning: &Cleaning, tally: Tally) -> Self {
        Self {
            name: source.name.clone(),
            recipe: cleaning.recipe.clone(),
            files: source.files.len(),
            bytes: source.files.iter().map(|file| file.bytes).sum(),
            rows_read: tally.rows_read,
            rows_dropped: tally.rows_dropped,
            columns: cleaning.columns.iter().map(ColumnReport::of).collect(),
            rules: merged(tally.rules),
        }
    }

    /// Of a table that is used as it is.
    pub(crate) fn unchanged(source: &Source, cleaning: &Cleaning) -> Self {
        let rows_read = source.files.iter().filter_map(|file| file.rows).sum();
        Self::new(source, cleaning, Tally { rows_read, ..Tally::default() })
    }

    /// One line for each rule that says `fail` and has found a value.
    pub(crate) fn failures(&self) -> Vec<String> {
        let failed = self.rules.iter().filter(|rule| rule.action == Some(Action::Fail) && rule.values > 0);
        failed.map(|rule| format!("{}: {}", self.name, rule.failure())).collect()
    }
}

impl RuleReport {
    fn failure(&self) -> String {
        let (count, column) = (self.values, &self.column);
        let what = match self.rule {
            Rule::Invalid => "not of its type",
            Rule::Below => "below its minimum",
            Rule::Above => "above its maximum",
            _ => "missing",
        };
        let examples: Vec<String> = self.examples.iter().map(Example::to_string).collect();
        let values = if count == 1 { "value is" } else { "values are" };
        let advice = match self.rule {
            Rule::Required => format!("required = \"drop\" in [columns.{column}] drops such rows"),
            rule => format!(
                "{} = \"null\" or \"drop\" in [columns.{column}] removes such values or their rows",
                rule.name()
            ),
        };
        format!("column {column}: {count} {values} {what} ({}); {advice}", examples.join(", "))
    }
}

impl std::fmt::Display for Example {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.value {
            Some(value) => write!(formatter, "{value:?} in row {}", self.row),
            None => write!(formatter, "row {}", self.row),
        }
    }
}

impl ColumnReport {
    fn of(column: &Column) -> Self {
        Self {
            name: column.name.clone(),
            type_name: type_name(&column.result_type()),
            renamed_from: Some(column.original.clone()).filter(|original| *original != column.name),
        }
    }
}

/// Words and numbers that mean missing are two checks of one rule.
fn merged(rules: Vec<RuleReport>) -> Vec<RuleReport> {
    let mut merged: Vec<RuleReport> = Vec::new();
    for rule in rules {
        let same = merged.iter_mut().find(|known| (&known.column, known.rule) == (&rule.column, rule.rule));
        let Some(same) = same else {
            merged.push(rule);
            continue;
        };
        same.values += rule.values;
        same.examples.extend(rule.examples);
        same.examples.sort_by_key(|example| example.row);
        same.examples.truncate(EXAMPLES);
    }
    merged
}

//! The rules of a recipe, bound to the columns of a table. Must not read any row: `plan` makes the rules into a plan.

mod plan;

use std::sync::Arc;

use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::utils::datafusion_strsim::normalized_levenshtein;

use super::FileJobError;
use super::recipe::{ColumnRules, Keep, Missing, Recipe};
use super::source::Source;
use super::values::{ColumnType, bound, is_text, type_name};
pub(crate) use plan::{Check, Guess, Plan, cleaned};

/// How similar a name must be to be suggested.
const SIMILAR: f64 = 0.6;

/// How a table is cleaned.
#[derive(Clone, Debug)]
pub(crate) struct Cleaning {
    pub(crate) columns: Vec<Column>,
    /// The columns that identify a row, and which one of several is kept.
    pub(crate) dedupe: Option<(Vec<usize>, Keep)>,
    /// The name of the recipe, if there is one.
    pub(crate) recipe: Option<String>,
    trim: bool,
    missing: Missing,
}

/// A column and its rules.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Its name in the files.
    pub(crate) original: String,
    /// Its name in the query.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    data_type: DataType,
    is_csv: bool,
    rules: ColumnRules,
    min: Option<ScalarValue>,
    max: Option<ScalarValue>,
}

/// The type of a column in the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// That of the file.
    Native,
    /// That of the recipe.
    Written(ColumnType),
    /// One that all values may have: the next wider one is tried when one has not.
    Guessed(ColumnType),
}

impl Kind {
    /// The type that values are converted to; `None` where they are not.
    fn target(self) -> Option<ColumnType> {
        match self {
            Self::Native => None,
            Self::Written(kind) | Self::Guessed(kind) => Some(kind),
        }
    }
}

impl Cleaning {
    /// The rules of a recipe for a table; without a recipe, only empty cells of CSV files have a meaning.
    ///
    /// # Errors
    /// When the recipe does not fit the table.
    pub(crate) fn new(source: &Source, recipe: Option<&Recipe>) -> Result<Self, FileJobError> {
        let names: Vec<&str> = source.columns.iter().map(|column| column.name.as_str()).collect();
        let missing = match recipe {
            Some(recipe) => recipe.missing.clone(),
            None if source.is_csv() => Missing::default(),
            None => Missing { words: Vec::new(), numbers: Vec::new() },
        };
        let mut cleaning = Self {
            columns: Vec::new(),
            dedupe: None,
            recipe: recipe.map(|recipe| recipe.source.clone()),
            trim: recipe.is_some_and(|recipe| recipe.trim),
            missing,
        };
        for column in &source.columns {
            let rules = recipe.and_then(|recipe| recipe.columns.get(&column.name)).cloned();
            let rules = rules.unwrap_or_else(|| ColumnRules {
                decimal_comma: recipe.is_some_and(|recipe| recipe.decimal_comma),
                ..ColumnRules::default()
            });
            let kind = match rules.kind {
                Some(kind) => Kind::Written(kind),
                None if source.is_csv() => Kind::Guessed(ColumnType::Text),
                None => Kind::Native,
            };
            let column = Column {
                original: column.name.clone(),
                name: rules.rename.clone().unwrap_or_else(|| column.name.clone()),
                kind,
                data_type: column.data_type.clone(),
                is_csv: source.is_csv(),
                min: None,
                max: None,
                rules,
            };
            cleaning.columns.push(column);
        }
        let Some(recipe) = recipe else { return Ok(cleaning) };
        let bind = cleaning.bind(recipe, &names);
        bind.map_err(|problem| FileJobError::Arguments(format!("{}: {problem}", recipe.source)))?;
        Ok(cleaning)
    }

    /// Checks the names and bounds of a recipe.
    fn bind(&mut self, recipe: &Recipe, names: &[&str]) -> Result<(), String> {
        for name in recipe.columns.keys() {
            place(names, name).map_err(|problem| format!("columns.{name}: {problem}"))?;
        }
        if let Some(dedupe) = &recipe.dedupe {
            let places: Result<Vec<usize>, String> =
                dedupe.by.iter().map(|name| place(names, name)).collect();
            self.dedupe = Some((places.map_err(|problem| format!("dedupe: {problem}"))?, dedupe.keep));
        }
        for column in &mut self.columns {
            column.bind().map_err(|problem| format!("columns.{}: {problem}", column.original))?;
        }
        for (index, column) in self.columns.iter().enumerate() {
            if self.columns[..index].iter().any(|before| before.name == column.name) {
                return Err(format!(
                    "columns.{}: another column is named {:?}; rename one of them",
                    column.original, column.name
                ));
            }
        }
        Ok(())
    }

    /// The columns in the query.
    pub(crate) fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|column| Field::new(&column.name, column.result_type(), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// Changes the guessed types of some columns.
    pub(crate) fn widen(&mut self, types: Vec<(usize, ColumnType)>) {
        for (column, kind) in types {
            self.columns[column].kind = Kind::Guessed(kind);
        }
    }
}

impl Column {
    /// The type in the query.
    pub(crate) fn result_type(&self) -> DataType {
        match self.kind.target() {
            Some(kind) => kind.arrow(),
            None if is_text(&self.data_type) => DataType::Utf8,
            None => self.data_type.clone(),
        }
    }

    /// Makes the bounds into values of the column's type.
    fn bind(&mut self) -> Result<(), String> {
        if let Some(kind) = self.rules.kind
            && !can_cast_types(&self.data_type, &kind.arrow())
        {
            let from = type_name(&self.data_type);
            return Err(format!("a column of type {from} cannot become {}", type_name(&kind.arrow())));
        }
        if self.rules.min.is_none() && self.rules.max.is_none() {
            return Ok(());
        }
        if matches!(self.kind, Kind::Guessed(_)) {
            return Err("`min` and `max` need a type; write for example type = \"float\"".to_owned());
        }
        let data_type = self.result_type();
        self.min = self.rules.min.as_ref().map(|min| bound(min, &data_type)).transpose()?;
        self.max = self.rules.max.as_ref().map(|max| bound(max, &data_type)).transpose()?;
        if let (Some(min), Some(max)) = (&self.min, &self.max)
            && min.partial_cmp(max) == Some(std::cmp::Ordering::Greater)
        {
            return Err(format!("`min` {min} is above `max` {max}"));
        }
        Ok(())
    }
}

/// Where a column is.
fn place(names: &[&str], name: &str) -> Result<usize, String> {
    names.iter().position(|known| *known == name).ok_or_else(|| unknown_column(names, name))
}

/// The message for a column that does not exist.
pub(crate) fn unknown_column(names: &[&str], name: &str) -> String {
    let scores = names.iter().map(|known| (similarity(known, name), known));
    match scores.max_by(|one, other| one.0.total_cmp(&other.0)) {
        Some((score, known)) if score >= SIMILAR => {
            format!("there is no column {name:?}; did you mean {known:?}?")
        }
        _ => format!("there is no column {name:?}; the columns are {}", names.join(", ")),
    }
}

/// How similar two names are, from 0 to 1, upper and lower case aside.
fn similarity(one: &str, other: &str) -> f64 {
    normalized_levenshtein(&one.to_lowercase(), &other.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_column_is_answered_with_the_closest_one() {
        let names = ["Temp", "pressure"];
        assert_eq!(unknown_column(&names, "temp"), "there is no column \"temp\"; did you mean \"Temp\"?");
        assert!(unknown_column(&names, "xyz").ends_with("the columns are Temp, pressure"));
    }
}

//! A recipe: how a table is cleaned. It is written in TOML; columns have the names that they have in the file.
//!
//! ```toml
//! trim    = true                  # default false: removes spaces at both ends of texts
//! missing = ["", "NA", "-", -999] # default [""]: what means that there is no value; numbers are compared as numbers
//! invalid = "null"                # default "fail": what happens with a value that has not the type of its column
//! decimal_comma = false           # default false; true: 1,5 is one and a half
//!
//! [columns.temp]
//! type     = "float"              # text, integer, float, boolean, date, timestamp; default: that of the values
//! rename   = "temperature"        # its name in the SQL
//! invalid  = "drop"               # default: the one above
//! min      = -40
//! max      = 60
//! below    = "null"               # default "fail": what happens with a value below min
//! above    = "drop"               # default "fail": what happens with a value above max
//! required = "drop"               # what happens with a row that has no value here; default: nothing
//!
//! [columns.day]
//! type   = "date"
//! format = "%d/%m/%Y"             # default: ISO 8601
//!
//! [dedupe]
//! by   = ["id", "day"]            # rows with the same values here are one row
//! keep = "last"                   # default "first"
//! ```
//!
//! `null` removes the value, `drop` removes the row, `fail` ends the job after all rows were checked. The rules are applied in
//! this order: trim, missing, type, min and max, required, dedupe.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::FileJobError;
use super::values::ColumnType;

/// A valid recipe. Whether a table has its columns is checked when it is used.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub(crate) source: String,
    pub(crate) trim: bool,
    pub(crate) missing: Missing,
    pub(crate) decimal_comma: bool,
    pub(crate) columns: BTreeMap<String, ColumnRules>,
    pub(crate) dedupe: Option<Dedupe>,
}

/// What happens with a value that breaks a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The job ends without a result.
    #[default]
    Fail,
    /// The value is removed.
    Null,
    /// The row is removed.
    Drop,
}

/// Which one of several equal rows is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Keep {
    #[default]
    First,
    Last,
}

/// Rows with the same values in some columns are one row.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dedupe {
    pub(crate) by: Vec<String>,
    #[serde(default)]
    pub(crate) keep: Keep,
}

/// What means that there is no value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Missing {
    pub(crate) words: Vec<String>,
    pub(crate) numbers: Vec<f64>,
}

impl Default for Missing {
    fn default() -> Self {
        Self { words: vec![String::new()], numbers: Vec::new() }
    }
}

/// The rules of one column.
#[derive(Clone, Debug, Default)]
pub(crate) struct ColumnRules {
    pub(crate) rename: Option<String>,
    pub(crate) kind: Option<ColumnType>,
    pub(crate) format: Option<String>,
    pub(crate) decimal_comma: bool,
    pub(crate) invalid: Action,
    pub(crate) min: Option<toml::Value>,
    pub(crate) below: Action,
    pub(crate) max: Option<toml::Value>,
    pub(crate) above: Action,
    pub(crate) required: Option<Action>,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    trim: bool,
    missing: Option<Vec<toml::Value>>,
    #[serde(default)]
    invalid: Action,
    #[serde(default)]
    decimal_comma: bool,
    #[serde(default)]
    columns: BTreeMap<String, ColumnWritten>,
    dedupe: Option<Dedupe>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ColumnWritten {
    #[serde(rename = "type")]
    kind: Option<ColumnType>,
    rename: Option<String>,
    format: Option<String>,
    invalid: Option<Action>,
    min: Option<toml::Value>,
    below: Option<Action>,
    max: Option<toml::Value>,
    above: Option<Action>,
    required: Option<Action>,
}

impl Recipe {
    /// Reads and checks the recipe in a file.
    ///
    /// # Errors
    /// When the file cannot be read, or with the line and the key that is wrong.
    pub fn load(path: &Path) -> Result<Self, FileJobError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            FileJobError::Arguments(format!("cannot read the recipe {}: {error}", path.display()))
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads and checks a recipe; `source` is its name in messages.
    ///
    /// # Errors
    /// With the line and the key that is wrong.
    pub fn parse(text: &str, source: &str) -> Result<Self, FileJobError> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let line = line.map(|line| format!(", line {line}")).unwrap_or_default();
            FileJobError::Arguments(format!("{source}{line}: {}", error.message().trim().replace('\n', " ")))
        })?;
        written.check(source).map_err(|problem| FileJobError::Arguments(format!("{source}: {problem}")))
    }
}

impl Written {
    fn check(self, source: &str) -> Result<Recipe, String> {
        let mut columns = BTreeMap::new();
        for (name, column) in self.columns {
            let rules = column.check(self.invalid, self.decimal_comma);
            columns.insert(name.clone(), rules.map_err(|problem| format!("columns.{name}: {problem}"))?);
        }
        if self.dedupe.as_ref().is_some_and(|dedupe| dedupe.by.is_empty()) {
            return Err("dedupe: `by` names no column; write for example by = [\"id\"]".to_owned());
        }
        Ok(Recipe {
            source: source.to_owned(),
            trim: self.trim,
            missing: self.missing.map(missing).transpose()?.unwrap_or_default(),
            decimal_comma: self.decimal_comma,
            columns,
            dedupe: self.dedupe,
        })
    }
}

impl ColumnWritten {
    fn check(self, invalid: Action, decimal_comma: bool) -> Result<ColumnRules, String> {
        if self.below.is_some() && self.min.is_none() {
            return Err("`below` says what happens with values below `min`, which is not there".to_owned());
        }
        if self.above.is_some() && self.max.is_none() {
            return Err("`above` says what happens with values above `max`, which is not there".to_owned());
        }
        if self.format.is_some() && !self.kind.is_some_and(ColumnType::is_time) {
            return Err("`format` needs type = \"date\" or type = \"timestamp\"".to_owned());
        }
        if let Some(format) = &self.format {
            super::time_format::check_format(format)?;
        }
        if self.invalid.is_some() && matches!(self.kind, None | Some(ColumnType::Text)) {
            return Err("`invalid` needs a `type` other than text".to_owned());
        }
        if self.required == Some(Action::Null) {
            return Err("`required` is \"drop\" or \"fail\"".to_owned());
        }
        if self.rename.as_ref().is_some_and(String::is_empty) {
            return Err("`rename` is empty".to_owned());
        }
        Ok(ColumnRules {
            rename: self.rename,
            kind: self.kind,
            format: self.format,
            decimal_comma,
            invalid: self.invalid.unwrap_or(invalid),
            min: self.min,
            below: self.below.unwrap_or_default(),
            max: self.max,
            above: self.above.unwrap_or_default(),
            required: self.required,
        })
    }
}

fn missing(written: Vec<toml::Value>) -> Result<Missing, String> {
    let mut missing = Missing { words: Vec::new(), numbers: Vec::new() };
    for value in written {
        match value {
            toml::Value::String(word) => missing.words.push(word),
            toml::Value::Integer(number) => missing.numbers.push(number as f64),
            toml::Value::Float(number) => missing.numbers.push(number),
            other => return Err(format!("`missing` has {other}, which is neither a text nor a number")),
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        Recipe::parse(text, "r.toml").expect_err(text).to_string()
    }

    #[test]
    fn what_is_not_written_has_a_default() {
        let recipe = Recipe::parse("[columns.x]\nmin = 1\n", "r.toml").unwrap();
        assert_eq!((recipe.trim, &recipe.missing), (false, &Missing::default()));
        let rules = &recipe.columns["x"];
        assert_eq!((rules.below, rules.invalid, rules.required), (Action::Fail, Action::Fail, None));
    }

    #[test]
    fn the_action_for_all_columns_is_that_of_each() {
        let text = "invalid = \"null\"\n[columns.a]\ntype = \"float\"\n[columns.b]\ntype = \"date\"\ninvalid = \"drop\"";
        let recipe = Recipe::parse(text, "r.toml").unwrap();
        assert_eq!(recipe.columns["a"].invalid, Action::Null);
        assert_eq!(recipe.columns["b"].invalid, Action::Drop);
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        for (text, words) in [
            ("trimm = true", &["r.toml, line 1", "trimm", "trim"][..]),
            ("\n[columns.x]\ntyp = \"text\"", &["line 3", "typ", "type"]),
            ("[columns.x]\ntype = \"real\"", &["line 2", "real", "float"]),
            ("[columns.x]\nbelow = \"drop\"", &["columns.x", "min"]),
            ("[columns.x]\nabove = \"drop\"", &["columns.x", "max"]),
            ("[columns.x]\nformat = \"%Y\"", &["columns.x", "date"]),
            ("[columns.x]\ntype = \"date\"\nformat = \"%Q\"", &["columns.x", "%Q"]),
            ("[columns.x]\ninvalid = \"drop\"", &["columns.x", "type"]),
            ("[columns.x]\nrequired = \"null\"", &["columns.x", "drop"]),
            ("[columns.x]\nrename = \"\"", &["columns.x", "rename"]),
            ("missing = [true]", &["missing", "true"]),
            ("[dedupe]\nby = []", &["dedupe", "by"]),
            ("[dedupe]\nby = [\"x\"]\nkeep = \"newest\"", &["line 3", "newest", "last"]),
        ] {
            let message = problem(text);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}

//! The rules as a plan on DataFusion's expressions.
//!
//! The plan is a sequence of projections. Each adds columns, named by a letter and the place of the column in the table:
//!
//! | column | is | flag | is true where |
//! |---|---|---|---|
//! | `c` | the value in the file | | |
//! | `t` | the text that the next steps work on | `s` | trimming has changed the text |
//! | | | `m` | the text is a word that means missing |
//! | `v` | the value in the column's type | `x` | a value has not the type |
//! | | | `y` | a value is no float either (only where the type is guessed to be integer) |
//! | | | `n` | the value is a number that means missing |
//! | | | `l`, `h` | the value is below the minimum, above the maximum |
//! | `w` | the result | `q` | there is no value, but one is required |

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::functions::expr_fn::{btrim, character_length, coalesce, lower, regexp_like, replace};
use datafusion::logical_expr::{Expr, cast, ident, lit, not, try_cast, when};
use datafusion::prelude::DataFrame;

use super::{Cleaning, Column, Kind};
use crate::file_job::recipe::Action;
use crate::file_job::report::Rule;
use crate::file_job::source::original;
use crate::file_job::time_format::parsed;
use crate::file_job::values::{ColumnType, is_text};

/// What is trimmed: spaces, tabs, line ends and the no-break space.
const SPACES: &str = " \t\r\n\u{a0}";
/// Texts of digits that are no guessed floats: a float would lose leading zeros, or the last of many digits.
const KEEPS_DIGITS: &str = "^[+-]?(0[0-9]|[0-9]{16,}$)";
/// Characters of a date such as 2026-01-31.
const DATE_LENGTH: i64 = 10;

/// A plan with what its flags mean.
pub(crate) struct Plan {
    pub(crate) frame: DataFrame,
    pub(crate) checks: Vec<Check>,
    pub(crate) guesses: Vec<Guess>,
}

/// A rule that is checked.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// The place of the column.
    pub(crate) column: usize,
    pub(crate) rule: Rule,
    /// What happens; `None` where only the text is changed.
    pub(crate) action: Option<Action>,
    /// The column of flags.
    pub(crate) flag: String,
}

/// A guessed type that is checked.
#[derive(Clone, Debug)]
pub(crate) struct Guess {
    /// The place of the column.
    pub(crate) column: usize,
    pub(crate) kind: ColumnType,
    /// The flags of values that have not the type.
    pub(crate) flag: String,
    /// The flags of values that are no floats, where the type is integer.
    pub(crate) no_float: Option<String>,
}

/// The name of the result of the column at a place.
pub(crate) fn cleaned(place: usize) -> String {
    name('w', place)
}

fn name(letter: char, place: usize) -> String {
    format!("{letter}{place}")
}

impl Cleaning {
    /// The plan over the rows of a [`Source`](crate::file_job::source::Source).
    ///
    /// # Errors
    /// When DataFusion cannot plan it.
    pub(crate) fn plan(&self, frame: DataFrame) -> Result<Plan, DataFusionError> {
        let steps =
            [Self::texts, Self::missing_words, Self::values, Self::flags, Self::results, Self::required];
        let mut plan = Plan { frame, checks: Vec::new(), guesses: Vec::new() };
        let mut carried: Vec<String> = (0..self.columns.len()).map(original).collect();
        for step in steps {
            let added = self.step(step, &mut plan)?;
            if added.is_empty() {
                continue;
            }
            let mut projection: Vec<Expr> = carried.iter().map(ident).collect();
            projection.extend(added.iter().map(|(name, expression)| expression.clone().alias(name)));
            plan.frame = plan.frame.select(projection)?;
            carried.extend(added.into_iter().map(|(name, _)| name));
        }
        let results = (0..self.columns.len()).map(cleaned);
        let flags = plan.checks.iter().map(|check| check.flag.clone());
        let guesses =
            plan.guesses.iter().flat_map(|guess| [Some(guess.flag.clone()), guess.no_float.clone()]);
        let originals =
            (0..self.columns.len()).filter(|place| plan.checks.iter().any(|it| it.column == *place));
        let mut needed: Vec<String> =
            results.chain(flags).chain(guesses.flatten()).chain(originals.map(original)).collect();
        needed.sort();
        needed.dedup();
        plan.frame = plan.frame.select(needed.iter().map(ident).collect::<Vec<_>>())?;
        Ok(plan)
    }

    /// The columns that a step adds.
    fn step(&self, step: Step, plan: &mut Plan) -> Result<Vec<(String, Expr)>, DataFusionError> {
        let mut added = Vec::new();
        for (place, column) in self.columns.iter().enumerate() {
            let mut adding = Adding { place, column, added: &mut added, plan };
            step(self, &mut adding)?;
        }
        Ok(added)
    }

    fn texts(&self, adding: &mut Adding<'_>) -> Result<(), DataFusionError> {
        let column = adding.column;
        if !column.is_text() {
            return Ok(());
        }
        let mut text = ident(original(adding.place));
        if column.data_type != DataType::Utf8 {
            text = cast(text, DataType::Utf8);
        }
        if column.is_csv {
            // The reader has no empty texts.
            text = coalesce(vec![text, lit("")]);
        }
        let trimmed = btrim(vec![text.clone(), lit(SPACES)]);
        if self.trim {
            adding.check('s', Rule::Trimmed, None, text.clone().not_eq(trimmed.clone()));
        }
        // Spaces around a number or a time mean nothing.
        let text = if self.trim || column.is_converted() { trimmed } else { text };
        adding.add('t', text);
        Ok(())
    }

    fn missing_words(&self, adding: &mut Adding<'_>) -> Result<(), DataFusionError> {
        if !self.has_missing_words(adding.column) {
            return Ok(());
        }
        let words = self.missing.words.iter().map(lit).collect();
        adding.check('m', Rule::Missing, Some(Action::Null), adding.column('t').in_list(words, false));
        Ok(())
    }

    fn values(&self, adding: &mut Adding<'_>) -> Result<(), DataFusionError> {
        let column = adding.column;
        let mut value = if column.is_text() { adding.column('t') } else { ident(original(adding.place)) };
        if self.has_missing_words(column) {
            let nothing = lit(ScalarValue::Utf8(None));
            value = when(adding.column('m'), nothing).otherwise(value)?;
        }
        adding.add('v', column.converted(value)?);
        Ok(())
    }

    fn flags(&self, adding: &mut Adding<'_>) -> Result<(), DataFusionError> {
        let column = adding.column;
        let value = adding.column('v');
        if column.is_converted() {
            let text = if column.is_text() { adding.column('t') } else { ident(original(adding.place)) };
            let mut present = text.clone().is_not_null();
            if self.has_missing_words(column) {
                present = present.and(not(adding.column('m')));
            }
            match column.kind {
                Kind::Guessed(kind) => adding.guess(kind, &text, &present),
                _ => {
                    let invalid = present.and(value.clone().is_null());
                    adding.check('x', Rule::Invalid, Some(column.rules.invalid), invalid);
                }
            }
        }
        let mut counts = lit(true);
        if self.has_missing_numbers(column) {
            let numbers = self.missing.numbers.iter().map(|number| lit(*number)).collect();
            let missing = cast(value.clone(), DataType::Float64).in_list(numbers, false);
            counts = not(missing.clone());
            adding.check('n', Rule::Missing, Some(Action::Null), missing);
        }
        if let Some(min) = &column.min {
            let below = counts.clone().and(value.clone().lt(lit(min.clone())));
            adding.check('l', Rule::Below, Some(column.rules.below), below);
        }
        if let Some(max) = &column.max {
            let above = counts.and(value.gt(lit(max.clone())));
            adding.check('h', Rule::Above, Some(column.rules.above), above);
        }
        Ok(())
    }

    fn results(&self, adding: &mut Adding<'_>) -> Result<(), DataFusionError> {
        let column = adding.column;
        let mut removed = Vec::new();
        if self.has_missing_numbers(column) {
            removed.push(adding.column('n'));
        }
        if column.min.is_some() && column.rules.below == Action::Null {
            removed.push(adding.column('l'));
        }
        if column.max.is_some() && column.rules.above == Action::Null {
            removed.push(adding.column('h'));
        }
        let value = adding.column('v');
        let result = match removed.into_iter().reduce(Expr::or) {
            Some(removed) => {
                let nothing = ScalarValue::try_from(column.result_type())?;
                when(removed, lit(nothing)).otherwise(value)?
            }
            None => value,
        };
        adding.add('w', result);
        Ok(())
    }

    fn required(&self, adding: &mut Adding<'_>) -> Result<(), DataFusionError> {
        let column = adding.column;
        let Some(action) = column.rules.required else { return Ok(()) };
        let mut absent = ident(cleaned(adding.place)).is_null();
        // A value of another type that drops the row, or ends the job, is not absent as well.
        let has_invalid = column.is_converted() && matches!(column.kind, Kind::Written(_));
        if has_invalid && column.rules.invalid != Action::Null {
            absent = absent.and(not(adding.column('x')));
        }
        adding.check('q', Rule::Required, Some(action), absent);
        Ok(())
    }

    fn has_missing_words(&self, column: &Column) -> bool {
        column.is_text() && !self.missing.words.is_empty()
    }

    fn has_missing_numbers(&self, column: &Column) -> bool {
        column.result_type().is_numeric() && !self.missing.numbers.is_empty()
    }
}

/// A step of the plan, for one column.
type Step = fn(&Cleaning, &mut Adding<'_>) -> Result<(), DataFusionError>;

/// What a step adds for one column.
struct Adding<'a> {
    place: usize,
    column: &'a Column,
    added: &'a mut Vec<(String, Expr)>,
    plan: &'a mut Plan,
}

impl Adding<'_> {
    /// A column of an earlier step.
    fn column(&self, letter: char) -> Expr {
        ident(name(letter, self.place))
    }

    fn add(&mut self, letter: char, expression: Expr) {
        self.added.push((name(letter, self.place), expression));
    }

    fn check(&mut self, letter: char, rule: Rule, action: Option<Action>, flag: Expr) {
        self.add(letter, flag);
        self.plan.checks.push(Check { column: self.place, rule, action, flag: name(letter, self.place) });
    }

    fn guess(&mut self, kind: ColumnType, text: &Expr, present: &Expr) {
        let differs = differs(kind, text, &self.column('v'));
        self.add('x', present.clone().and(differs.clone()));
        let mut no_float = None;
        if kind == ColumnType::Integer {
            let float = self.column.float(text.clone()).unwrap_or_else(|_| lit(ScalarValue::Float64(None)));
            let differs = differs.and(self::differs(ColumnType::Float, text, &float));
            self.add('y', present.clone().and(differs));
            no_float = Some(name('y', self.place));
        }
        let flag = name('x', self.place);
        self.plan.guesses.push(Guess { column: self.place, kind, flag, no_float });
    }
}

/// Whether a text is not the value of a type, or would lose something as one.
fn differs(kind: ColumnType, text: &Expr, value: &Expr) -> Expr {
    let text = text.clone();
    let is_wrong = match kind {
        ColumnType::Integer => cast(value.clone(), DataType::Utf8).not_eq(text),
        ColumnType::Float => regexp_like(text, lit(KEEPS_DIGITS), None),
        ColumnType::Boolean => lower(text).in_list(vec![lit("true"), lit("false")], true),
        ColumnType::Date => character_length(text).not_eq(lit(DATE_LENGTH)),
        ColumnType::Text | ColumnType::Timestamp => return value.clone().is_null(),
    };
    value.clone().is_null().or(is_wrong)
}

impl Column {
    fn is_text(&self) -> bool {
        is_text(&self.data_type)
    }

    /// Whether values get another type.
    fn is_converted(&self) -> bool {
        self.kind.target().is_some_and(|kind| kind != ColumnType::Text && kind.arrow() != self.data_type)
    }

    /// A value in the type of the column; none where it has not the type.
    fn converted(&self, value: Expr) -> Result<Expr, DataFusionError> {
        let Some(kind) = self.kind.target() else { return Ok(value) };
        if kind.arrow() == self.data_type || (kind == ColumnType::Text && self.is_text()) {
            return Ok(value);
        }
        Ok(match &self.rules.format {
            Some(format) if self.is_text() => parsed(value, format, kind),
            // Such as seconds since 1970.
            Some(format) if self.data_type.is_numeric() => parsed(cast(value, DataType::Utf8), format, kind),
            _ if kind == ColumnType::Float && self.is_text() => self.float(value)?,
            // A conversion of 1.5 would be 1.
            _ if kind == ColumnType::Integer
                && !self.data_type.is_integer()
                && self.data_type.is_numeric() =>
            {
                let converted = try_cast(value.clone(), kind.arrow());
                let is_same = cast(converted.clone(), DataType::Float64).eq(cast(value, DataType::Float64));
                when(is_same, converted).otherwise(lit(ScalarValue::Int64(None)))?
            }
            _ => try_cast(value, kind.arrow()),
        })
    }

    /// A text as a finite number; none where it is no such number.
    fn float(&self, text: Expr) -> Result<Expr, DataFusionError> {
        let text = if self.rules.decimal_comma { replace(text, lit(","), lit(".")) } else { text };
        let number = try_cast(text, DataType::Float64);
        // Comparisons take NaN for larger than all numbers.
        let is_finite = number.clone().between(lit(f64::MIN), lit(f64::MAX));
        when(is_finite, number).otherwise(lit(ScalarValue::Float64(None)))
    }
}

//! DataFusion's errors as messages for clients: what is wrong, where in the statement, and what to do. Names of
//! DataFusion's types, rules and layers are left out.

use std::error::Error;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use wye_metrics::sql_messages::{ambiguous_name, known, on_one_line, place_first, root, without_prefixes};

use super::names;
use crate::ServingError;

/// Characters of a message; a longer one is cut.
const LONGEST: usize = 1_000;

/// An error of ours as one of DataFusion's.
pub(super) fn external(error: impl Into<Box<dyn Error + Send + Sync>>) -> DataFusionError {
    DataFusionError::External(error.into())
}

/// Sorts errors of DataFusion: an error that the client can correct becomes a message, any other stays as it is.
pub(crate) fn translate(error: DataFusionError) -> ServingError {
    let position = position(&error);
    let message = match root(&error) {
        DataFusionError::ResourcesExhausted(message) => {
            let message = first_line(message);
            return ServingError::Limit {
                message: format!(
                    "the query needs more memory or disk than all queries may use together ([sql] memory, spill); read fewer \
                     rows, columns or groups ({message})"
                ),
            };
        }
        DataFusionError::SchemaError(problem, _) => schema_message(problem),
        DataFusionError::SQL(problem, _) => parser_message(&problem.to_string()),
        DataFusionError::External(problem) => match pattern_message(&problem.to_string()) {
            Some(message) => message,
            None => return ServingError::Run { source: Box::new(error) },
        },
        DataFusionError::ArrowError(problem, _) => tidy(&problem.to_string()),
        problem @ (DataFusionError::Plan(_)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Configuration(_)
        | DataFusionError::Execution(_)) => tidy(&problem.message()),
        _ => return ServingError::Run { source: Box::new(error) },
    };
    let message = match position {
        Some((line, column)) if !message.starts_with("line ") => {
            format!("line {line}, column {column}: {message}")
        }
        _ => message,
    };
    ServingError::Query { message }
}

/// The line and column in the statement; `None` where they are not known.
fn position(error: &DataFusionError) -> Option<(u64, u64)> {
    let first = match error {
        DataFusionError::Collection(errors) => errors.first()?,
        error => error,
    };
    let span = first.diagnostic()?.span?;
    (span.start.line > 0).then_some((span.start.line, span.start.column))
}

fn schema_message(problem: &SchemaError) -> String {
    match problem {
        SchemaError::FieldNotFound { field, valid_fields } => {
            names::unknown_column_message(field, valid_fields)
        }
        problem => ambiguous_name(problem).unwrap_or_else(|| problem.to_string()),
    }
}

fn parser_message(text: &str) -> String {
    let text = tidy(text);
    if text.contains("recursion limit") {
        return "the statement is nested too deeply; use WITH for the inner parts".to_owned();
    }
    place_first(&text)
}

/// A text of DataFusion without prefixes and backtrace, on one line.
fn tidy(text: &str) -> String {
    let text = without_prefixes(text);
    if let Some(message) = known(text, "a value of type String") {
        return message;
    }
    let text = on_one_line(&text.replace("wye.public.", ""));
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// The message for "regex parse error: ... error: unclosed group"; `None` for other errors.
fn pattern_message(text: &str) -> Option<String> {
    if text.contains("exceeds size limit") {
        return Some("the regular expression is too large".to_owned());
    }
    let problem = text.strip_prefix("regex parse error:")?.rsplit("error: ").next()?;
    Some(format!("the regular expression is wrong: {}", problem.trim()))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_and_column_come_first_and_prefixes_are_left_out() {
        assert_eq!(
            parser_message(
                "sql parser error: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1"
            ),
            "line 1, column 1: expected an SQL statement but found SELEC"
        );
        assert_eq!(
            parser_message("sql parser error: Expected: an expression, found: EOF at Line: 2, Column: 7"),
            "line 2, column 7: expected an expression but the statement ends"
        );
        assert_eq!(
            tidy("Optimizer rule 'simplify' failed\ncaused by\nArrow error: Divide by zero error"),
            "divide by zero error"
        );
        assert_eq!(
            tidy("Error during planning: table 'wye.public.temp' not found"),
            "table 'temp' not found"
        );
    }
}

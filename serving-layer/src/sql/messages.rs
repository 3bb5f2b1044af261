//! DataFusion's errors as messages for clients: what is wrong, where in the statement, and what to do. Names of
//! DataFusion's types, rules and layers are left out.

use std::error::Error;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;

use super::names;
use crate::ServingError;

/// Prefixes by which DataFusion and its libraries name themselves.
const PREFIXES: [&str; 15] = [
    "Error during planning: ",
    "Execution error: ",
    "Internal error: ",
    "Arrow error: ",
    "Invalid argument error: ",
    "Compute error: ",
    "Schema error: ",
    "Parser error: ",
    "Cast error: ",
    "SQL error: ",
    "External error: ",
    "This feature is not implemented: ",
    "Invalid or Unsupported Configuration: ",
    "sql parser error: ",
    "type_coercion\ncaused by\n",
];
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

/// The first cause; of several errors, that of the first.
fn root(error: &DataFusionError) -> &DataFusionError {
    match error.find_root() {
        DataFusionError::Collection(errors) => errors.first().map_or(error, root),
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => root(inner),
        DataFusionError::Shared(inner) => root(inner),
        root => root,
    }
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
        SchemaError::AmbiguousReference { field } => format!(
            "the column {} is in several tables; write the table's name before it, as in t.{}",
            field.name, field.name
        ),
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => {
            format!("two columns are named {name}; give one another name with AS")
        }
    }
}

/// "Expected: an expression, found: EOF at Line: 1, Column: 8" with the line and column first.
fn parser_message(text: &str) -> String {
    let text = tidy(text);
    if text.contains("recursion limit") {
        return "the statement is nested too deeply; use WITH for the inner parts".to_owned();
    }
    let text = text.replace("Expected: ", "expected ").replace("expected: ", "expected ");
    let text = text.replace(", found: EOF", " but the statement ends").replace(", found: ", " but found ");
    let Some((problem, place)) = text.rsplit_once(" at Line: ") else { return text };
    let Some((line, column)) = place.split_once(", Column: ") else { return problem.to_owned() };
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    format!("line {line}, column {column}: {problem}")
}

/// A text of DataFusion without prefixes and backtrace, on one line.
fn tidy(text: &str) -> String {
    let mut text = text.split("\n\nbacktrace").next().unwrap_or_default().trim();
    loop {
        let before = text;
        for prefix in PREFIXES {
            text = text.strip_prefix(prefix).unwrap_or(text);
        }
        if let Some((rule, rest)) = text.split_once("\ncaused by\n")
            && rule.starts_with("Optimizer rule")
        {
            text = rest;
        }
        if text == before {
            break;
        }
    }
    if let Some(message) = arguments_message(text) {
        return message;
    }
    if text.contains("require unique expression names") {
        return "two columns have the same name; give one another name with AS".to_owned();
    }
    let text = text.split("This issue was likely caused by").next().unwrap_or_default().trim();
    let text = text.replace("wye.public.", "").replace("DataFusion error: ", "").replace('\n', "; ");
    let mut text = match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    };
    // Messages begin in lower case; names and keywords are not changed.
    let mut characters = text.chars();
    if let (Some(first), Some(second)) = (characters.next(), characters.next())
        && first.is_ascii_uppercase()
        && second.is_ascii_lowercase()
    {
        text.replace_range(..1, &first.to_ascii_lowercase().to_string());
    }
    text.trim_end_matches('.').to_owned()
}

/// The message for "regex parse error: ... error: unclosed group"; `None` for other errors.
fn pattern_message(text: &str) -> Option<String> {
    if text.contains("exceeds size limit") {
        return Some("the regular expression is too large".to_owned());
    }
    let problem = text.strip_prefix("regex parse error:")?.rsplit("error: ").next()?;
    Some(format!("the regular expression is wrong: {}", problem.trim()))
}

/// The message for "Function 'sum' failed to match any signature, errors: ... requires Int64, but received String
/// (DataType: ...)"; `None` for other errors.
fn arguments_message(text: &str) -> Option<String> {
    let (function, rest) = text.strip_prefix("Function '")?.split_once("' failed to match any signature")?;
    let given = rest.split("but received ").nth(1).and_then(|rest| rest.split([' ', ')', '.']).next());
    Some(match given {
        Some(given) => format!("{function} cannot be applied to a value of type {given}"),
        None => format!("{function} cannot be applied to these arguments"),
    })
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

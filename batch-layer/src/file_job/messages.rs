//! Errors of DataFusion as messages: the first cause, without the names of layers and types.

use std::error::Error;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;

use super::clean::unknown_column;

/// Prefixes by which DataFusion and its libraries name themselves.
const PREFIXES: [&str; 16] = [
    "Error during planning: ",
    "Execution error: ",
    "External error: ",
    "Internal error: ",
    "Arrow error: ",
    "Csv error: ",
    "Json error: ",
    "Parquet error: ",
    "Invalid argument error: ",
    "Compute error: ",
    "Schema error: ",
    "Parser error: ",
    "Cast error: ",
    "SQL error: ",
    "This feature is not implemented: ",
    "sql parser error: ",
];

/// What is wrong, in one line.
pub(crate) fn of(error: &DataFusionError) -> String {
    match root(error) {
        DataFusionError::SchemaError(problem, _) => schema_message(problem),
        DataFusionError::SQL(problem, _) => parser_message(&problem.to_string()),
        DataFusionError::ResourcesExhausted(problem) => format!(
            "it needs more memory; give it more with --memory, or read fewer columns or rows ({})",
            problem.lines().next().unwrap_or_default()
        ),
        DataFusionError::ArrowError(problem, _) => of_arrow(problem),
        DataFusionError::External(problem) => of_external(&**problem),
        problem => tidy(&problem.message()),
    }
}

/// What is wrong, in one line.
pub(crate) fn of_arrow(error: &ArrowError) -> String {
    match error {
        ArrowError::ExternalError(problem) => of_external(&**problem),
        problem => tidy(&problem.to_string()),
    }
}

/// Whether a statement names a column that does not exist.
pub(crate) fn is_unknown_column(error: &DataFusionError) -> bool {
    matches!(
        root(error),
        DataFusionError::SchemaError(problem, _) if matches!(**problem, SchemaError::FieldNotFound { .. })
    )
}

fn of_external(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<DataFusionError>() {
        Some(error) => of(error),
        None => tidy(&error.to_string()),
    }
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

fn schema_message(problem: &SchemaError) -> String {
    match problem {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut names: Vec<&str> = valid_fields.iter().map(|field| field.name.as_str()).collect();
            names.dedup();
            format!("{} (names are compared with upper and lower case)", unknown_column(&names, &field.name))
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
    let text = tidy(text).replace("Expected: ", "expected ").replace("expected: ", "expected ");
    let text = text.replace(", found: EOF", " but the statement ends").replace(", found: ", " but found ");
    let Some((problem, place)) = text.rsplit_once(" at Line: ") else { return text };
    let Some((line, column)) = place.split_once(", Column: ") else { return problem.to_owned() };
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    format!("line {line}, column {column}: {problem}")
}

/// A text without prefixes and backtrace, on one line.
fn tidy(text: &str) -> String {
    let mut text = text.split("\n\nbacktrace").next().unwrap_or_default().trim();
    loop {
        let before = text;
        for prefix in PREFIXES {
            text = text.strip_prefix(prefix).unwrap_or(text);
        }
        if text == before {
            break;
        }
    }
    if let Some(message) = known_message(text) {
        return message;
    }
    let text = text.split("This issue was likely caused by").next().unwrap_or_default().trim();
    let text = text.replace("DataFusion error: ", "").replace("datafusion.public.", "").replace('\n', "; ");
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(first), Some(second)) if first.is_ascii_uppercase() && second.is_ascii_lowercase() => {
            format!("{}{}", first.to_ascii_lowercase(), &text[1..]).trim_end_matches('.').to_owned()
        }
        _ => text.trim_end_matches('.').to_owned(),
    }
}

/// A message for some errors that are frequent and hard to read.
fn known_message(text: &str) -> Option<String> {
    if text.contains("require unique expression names") {
        return Some("two columns have the same name; give one another name with AS".to_owned());
    }
    if text.contains("invalid UTF-8") {
        let place = text.rsplit_once(" for ").map(|(_, place)| format!(" in {place}")).unwrap_or_default();
        return Some(format!("the text{place} is not UTF-8; convert the file to UTF-8 first"));
    }
    // "Function 'sum' failed to match any signature, errors: ... requires Int64, but received String (DataType: ...)"
    let lower = text.replacen('F', "f", 1);
    let (function, rest) = lower.strip_prefix("function '")?.split_once("' failed to match any signature")?;
    let given = rest.split("but received ").nth(1).and_then(|rest| rest.split([' ', ')', '.']).next());
    Some(match given {
        Some("String") => format!(
            "{function} cannot be applied to texts; a recipe (--clean) gives a column a type, and says which words mean that \
             there is no value"
        ),
        Some(given) => format!("{function} cannot be applied to a value of type {given}"),
        None => format!("{function} cannot be applied to these arguments"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_place_first_and_no_prefixes() {
        assert_eq!(
            parser_message("sql parser error: Expected: an expression, found: EOF at Line: 2, Column: 7"),
            "line 2, column 7: expected an expression but the statement ends"
        );
        let error = DataFusionError::External("Csv error: bad field".into());
        assert_eq!(of(&error), "bad field");
    }
}

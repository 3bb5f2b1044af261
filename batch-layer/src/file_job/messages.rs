//! Errors of DataFusion as messages: the first cause, without the names of layers and types.

use std::error::Error;

use arrow::error::ArrowError;
use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use wye_metrics::sql_messages::{ambiguous_name, known, on_one_line, place_first, root, without_prefixes};

use super::clean::unknown_column;

/// What is wrong, in one line.
pub(crate) fn of(error: &DataFusionError) -> String {
    match root(error) {
        DataFusionError::SchemaError(problem, _) => schema_message(problem),
        DataFusionError::SQL(problem, _) => place_first(&tidy(&problem.to_string())),
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

fn schema_message(problem: &SchemaError) -> String {
    match problem {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let mut names: Vec<&str> = valid_fields.iter().map(|field| field.name.as_str()).collect();
            names.dedup();
            format!("{} (names are compared with upper and lower case)", unknown_column(&names, &field.name))
        }
        problem => ambiguous_name(problem).unwrap_or_else(|| problem.to_string()),
    }
}

/// What texts are called, and what helps against them.
const TEXTS: &str =
    "texts; a recipe (--clean) gives a column a type, and says which words mean that there is no value";

/// A text without prefixes and backtrace, on one line.
fn tidy(text: &str) -> String {
    let text = without_prefixes(text);
    if text.contains("invalid UTF-8") {
        let place = text.rsplit_once(" for ").map(|(_, place)| format!(" in {place}")).unwrap_or_default();
        return format!("the text{place} is not UTF-8; convert the file to UTF-8 first");
    }
    known(text, TEXTS).unwrap_or_else(|| on_one_line(&text.replace("datafusion.public.", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_no_prefixes_and_says_what_helps() {
        let error = DataFusionError::External("Csv error: bad field".into());
        assert_eq!(of(&error), "bad field");
        let error = DataFusionError::Plan(
            "Function 'sum' failed to match any signature, errors: requires Int64, but received String (x)"
                .into(),
        );
        assert!(of(&error).starts_with("sum cannot be applied to texts; a recipe (--clean)"));
    }
}

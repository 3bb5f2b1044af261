//! Errors of DataFusion in words: what the SQL of the serving layer and that over files have in common. Names of DataFusion's
//! types, rules and layers are left out. Must not know which tables there are, or who asks.

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::Statement as Sql;

/// Prefixes by which DataFusion and its libraries name themselves.
const PREFIXES: [&str; 19] = [
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
    "Invalid or Unsupported Configuration: ",
    "DataFusion error: ",
    "sql parser error: ",
    "type_coercion\ncaused by\n",
];

/// The first cause; of several errors, that of the first.
#[must_use]
pub fn root(error: &DataFusionError) -> &DataFusionError {
    match error.find_root() {
        DataFusionError::Collection(errors) => errors.first().map_or(error, root),
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => root(inner),
        DataFusionError::Shared(inner) => root(inner),
        root => root,
    }
}

/// The message for a name that means several columns; `None` for one that means none.
#[must_use]
pub fn ambiguous_name(problem: &SchemaError) -> Option<String> {
    match problem {
        SchemaError::FieldNotFound { .. } => None,
        SchemaError::AmbiguousReference { field } => Some(format!(
            "the column {} is in several tables; write the table's name before it, as in t.{}",
            field.name, field.name
        )),
        SchemaError::DuplicateQualifiedField { name, .. }
        | SchemaError::DuplicateUnqualifiedField { name } => {
            Some(format!("two columns are named {name}; give one another name with AS"))
        }
    }
}

/// "Expected: an expression, found: EOF at Line: 1, Column: 8" with the line and column first.
#[must_use]
pub fn place_first(text: &str) -> String {
    let text = text.replace("Expected: ", "expected ").replace("expected: ", "expected ");
    let text = text.replace(", found: EOF", " but the statement ends").replace(", found: ", " but found ");
    let Some((problem, place)) = text.rsplit_once(" at Line: ") else { return text };
    let Some((line, column)) = place.split_once(", Column: ") else { return problem.to_owned() };
    let column: String = column.chars().take_while(char::is_ascii_digit).collect();
    format!("line {line}, column {column}: {problem}")
}

/// A text without prefixes and backtrace.
#[must_use]
pub fn without_prefixes(text: &str) -> &str {
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
            return text;
        }
    }
}

/// A text on one line that begins in lower case and ends without a period. Names and keywords are not changed.
#[must_use]
pub fn on_one_line(text: &str) -> String {
    let text = text.split("This issue was likely caused by").next().unwrap_or_default().trim();
    let mut text = text.replace("DataFusion error: ", "").replace('\n', "; ");
    let mut characters = text.chars();
    if let (Some(first), Some(second)) = (characters.next(), characters.next())
        && first.is_ascii_uppercase()
        && second.is_ascii_lowercase()
    {
        text.replace_range(..1, &first.to_ascii_lowercase().to_string());
    }
    text.trim_end_matches('.').to_owned()
}

/// A frequent error that is hard to read, such as "Function 'sum' failed to match any signature, errors: ... requires Int64,
/// but received String (DataType: ...)"; `None` for other errors. `texts` is what texts are called, and what helps against
/// them.
#[must_use]
pub fn known(text: &str, texts: &str) -> Option<String> {
    if text.contains("require unique expression names") {
        return Some("two columns have the same name; give one another name with AS".to_owned());
    }
    let (function, rest) = text.strip_prefix("Function '")?.split_once("' failed to match any signature")?;
    let given = rest.split("but received ").nth(1).and_then(|rest| rest.split([' ', ')', '.']).next());
    Some(match given {
        Some("String") => format!("{function} cannot be applied to {texts}"),
        Some(given) => format!("{function} cannot be applied to a value of type {given}"),
        None => format!("{function} cannot be applied to these arguments"),
    })
}

/// Whether a statement only reads tables.
#[must_use]
pub fn only_reads(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(
            **statement,
            Sql::Query(_)
                | Sql::Explain { .. }
                | Sql::ExplainTable { .. }
                | Sql::ShowTables { .. }
                | Sql::ShowColumns { .. }
                | Sql::ShowFunctions { .. }
        ),
        Statement::Explain(explain) => only_reads(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_and_column_come_first_and_prefixes_are_left_out() {
        for (text, message) in [
            (
                "sql parser error: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1",
                "line 1, column 1: expected an SQL statement but found SELEC",
            ),
            (
                "sql parser error: Expected: an expression, found: EOF at Line: 2, Column: 7",
                "line 2, column 7: expected an expression but the statement ends",
            ),
        ] {
            assert_eq!(place_first(without_prefixes(text)), message);
        }
        let text = "Optimizer rule 'simplify' failed\ncaused by\nArrow error: Divide by zero error";
        assert_eq!(on_one_line(without_prefixes(text)), "divide by zero error");
    }
}

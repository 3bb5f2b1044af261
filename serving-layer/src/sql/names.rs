//! Names in a statement: what is close to an unknown one is suggested, and a name without quotes means the only table or
//! column that it fits whatever its case.
//!
//! A statement that can be planned as it is written is never changed.

use std::ops::ControlFlow;

use datafusion::common::{Column, SchemaError, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Expr, Ident, visit_expressions_mut};

use super::catalog::CaptureSchema;
use super::{CATALOG, SCHEMA};
use crate::ServingError;
use crate::suggest::close_names;

/// How many column names of a statement are looked for in another case.
const CORRECTIONS: usize = 32;
/// How many names a message lists.
const LISTED: usize = 40;

/// Checks that the tables of a statement exist.
///
/// # Errors
/// [`ServingError::Query`] with the name to write instead.
pub(super) fn check_tables(
    tables: &[TableReference],
    schema: &CaptureSchema,
    state: &SessionState,
) -> Result<(), ServingError> {
    let ours = |table: &&TableReference| {
        if state.table_functions().contains_key(table.table()) {
            return false;
        }
        table.catalog().is_none_or(|name| name == CATALOG) && table.schema().is_none_or(|name| name == SCHEMA)
    };
    let mut known = None;
    for table in tables.iter().filter(ours) {
        let name = table.table();
        let known = known.get_or_insert_with(|| schema.names());
        if !known.contains(name) && same_but_case(name, known.iter()).len() != 1 {
            return Err(ServingError::Query { message: unknown_table(name, known) });
        }
    }
    Ok(())
}

/// The names that differ from one in nothing but case.
pub(super) fn same_but_case<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    known.filter(|known| known.to_lowercase() == lower).map(String::as_str).collect()
}

/// Plans a statement.
///
/// # Errors
/// [`ServingError::Query`] when it is wrong, anything else when it fails.
pub(super) async fn plan(
    state: &SessionState,
    mut statement: Statement,
) -> Result<LogicalPlan, ServingError> {
    for _ in 0..CORRECTIONS {
        let error = match state.statement_to_plan(statement.clone()).await {
            Ok(plan) => return Ok(plan),
            Err(error) => error,
        };
        let corrected = match unknown_column(&error) {
            Some((field, valid)) => correct(&mut statement, field, valid),
            None => false,
        };
        if !corrected {
            return Err(ServingError::of_query(error));
        }
    }
    state.statement_to_plan(statement).await.map_err(ServingError::of_query)
}

/// What to say of a column that there is not.
pub(super) fn unknown_column_message(field: &Column, valid: &[Column]) -> String {
    let names: Vec<&str> = distinct(valid);
    let same = names.iter().filter(|name| name.to_lowercase() == field.name.to_lowercase());
    let same: Vec<String> = same.map(|name| format!("{name:?}")).collect();
    let name = field.flat_name();
    if !same.is_empty() {
        return format!("there is no column {name}; write {} with its quotes", same.join(" or "));
    }
    if names.is_empty() {
        return format!("there is no column {name}: nothing is read here that has columns");
    }
    let close = close_names(&field.name, &names);
    if !close.is_empty() {
        return format!("there is no column {name}; did you mean {}?", close.join(" or "));
    }
    let more = if names.len() > LISTED { ", ..." } else { "" };
    let listed: Vec<&str> = names.into_iter().take(LISTED).collect();
    format!("there is no column {name}; the columns are {}{more}", listed.join(", "))
}

/// The column that an error misses, and those that there are.
pub(super) fn unknown_column(error: &DataFusionError) -> Option<(&Column, &[Column])> {
    match error.find_root() {
        DataFusionError::SchemaError(error, _) => match &**error {
            SchemaError::FieldNotFound { field, valid_fields } => Some((field, valid_fields)),
            _ => None,
        },
        DataFusionError::Diagnostic(_, error) => unknown_column(error),
        _ => None,
    }
}

fn unknown_table(name: &str, known: &std::collections::BTreeSet<String>) -> String {
    let same = same_but_case(name, known.iter());
    if !same.is_empty() {
        let quoted: Vec<String> = same.iter().map(|name| format!("{name:?}")).collect();
        return format!("there is no table {name}; write {} with its quotes", quoted.join(" or "));
    }
    let names: Vec<&String> = known.iter().collect();
    match close_names(name, &names).as_slice() {
        [] => format!("there is no table {name}; SHOW TABLES lists them"),
        close => {
            format!("there is no table {name}; did you mean {}? SHOW TABLES lists them", close.join(" or "))
        }
    }
}

fn distinct(columns: &[Column]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for column in columns {
        if !names.contains(&column.name.as_str()) {
            names.push(&column.name);
        }
    }
    names
}

/// Writes a column's name as it is, where it was written without quotes and fits only one; whether anything changed.
fn correct(statement: &mut Statement, field: &Column, valid: &[Column]) -> bool {
    let lower = field.name.to_lowercase();
    let same: Vec<&str> = distinct(valid).into_iter().filter(|name| name.to_lowercase() == lower).collect();
    let &[name] = same.as_slice() else { return false };
    let Some(statement) = inner_mut(statement) else { return false };
    let mut changed = false;
    let mut rename = |ident: &mut Ident| {
        if ident.quote_style.is_none() && ident.value.to_lowercase() == lower && ident.value != name {
            name.clone_into(&mut ident.value);
            ident.quote_style = Some('"');
            changed = true;
        } else if ident.quote_style.is_none() && ident.value == name && name != lower {
            ident.quote_style = Some('"');
            changed = true;
        }
    };
    let _: ControlFlow<()> = visit_expressions_mut(statement, |expression| {
        match expression {
            Expr::Identifier(ident) => rename(ident),
            Expr::CompoundIdentifier(idents) => idents.last_mut().into_iter().for_each(&mut rename),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    changed
}

fn inner_mut(statement: &mut Statement) -> Option<&mut ast::Statement> {
    match statement {
        Statement::Statement(statement) => Some(statement),
        Statement::Explain(explain) => inner_mut(&mut explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => None,
    }
}

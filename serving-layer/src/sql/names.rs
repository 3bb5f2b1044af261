//! Names of tables and columns in a statement. A name without quotes finds a table or column in another case, if there is
//! only one such; for an unknown name, similar ones are suggested.
//!
//! A statement that can be planned as it is written is never changed.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::common::{Column, SchemaError, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{self, Expr, Ident, visit_expressions_mut};

use super::catalog::CaptureSchema;
use super::planner::{CATALOG, SCHEMA};
use crate::ServingError;
use crate::suggest::close_names;

/// How many column names of a statement are corrected.
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
    let tables: Vec<&TableReference> = tables.iter().filter(|table| is_in_schema(table, state)).collect();
    if tables.is_empty() {
        return Ok(());
    }
    let known = schema.names();
    for table in tables {
        let name = table.table();
        if !known.contains(name) && same_but_case(name, known.iter().map(String::as_str)).len() != 1 {
            return Err(ServingError::Query { message: unknown_table_message(name, &known) });
        }
    }
    Ok(())
}

/// Whether a name in a statement is one of our tables: neither a table function nor in another catalog.
fn is_in_schema(table: &TableReference, state: &SessionState) -> bool {
    !state.table_functions().contains_key(table.table())
        && table.catalog().is_none_or(|name| name == CATALOG)
        && table.schema().is_none_or(|name| name == SCHEMA)
}

/// The known names that are equal to one, upper and lower case aside.
pub(super) fn same_but_case<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    known.filter(|known| known.to_lowercase() == lower).collect()
}

/// Plans a statement.
///
/// # Errors
/// [`ServingError::Query`] when the statement is wrong, other errors when planning fails.
pub(super) async fn plan(
    state: &SessionState,
    mut statement: Statement,
) -> Result<LogicalPlan, ServingError> {
    for _ in 0..CORRECTIONS {
        let error = match state.statement_to_plan(statement.clone()).await {
            Ok(plan) => return Ok(plan),
            Err(error) => error,
        };
        match unknown_column(&error) {
            Some((field, valid)) if correct(&mut statement, field, valid) => {}
            _ => return Err(ServingError::of_query(error)),
        }
    }
    state.statement_to_plan(statement).await.map_err(ServingError::of_query)
}

/// The message for an unknown column.
pub(super) fn unknown_column_message(field: &Column, valid: &[Column]) -> String {
    let names = distinct(valid);
    let same = same_but_case(&field.name, names.iter().copied());
    let name = field.flat_name();
    if !same.is_empty() {
        return format!("there is no column {name}; write {}, with the quotes", quoted(&same));
    }
    if names.is_empty() {
        return format!("there is no column {name}: no table is read here");
    }
    let close = close_names(&field.name, &names);
    if !close.is_empty() {
        return format!("there is no column {name}; did you mean {}?", close.join(" or "));
    }
    let more = if names.len() > LISTED { ", ..." } else { "" };
    let listed: Vec<&str> = names.into_iter().take(LISTED).collect();
    format!("there is no column {name}; the columns are {}{more}", listed.join(", "))
}

/// The column that an error is about, and the columns that there are; `None` for other errors.
fn unknown_column(error: &DataFusionError) -> Option<(&Column, &[Column])> {
    match error.find_root() {
        DataFusionError::SchemaError(error, _) => match &**error {
            SchemaError::FieldNotFound { field, valid_fields } => Some((field, valid_fields)),
            _ => None,
        },
        DataFusionError::Diagnostic(_, error) => unknown_column(error),
        _ => None,
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or ")
}

fn unknown_table_message(name: &str, known: &BTreeSet<String>) -> String {
    let same = same_but_case(name, known.iter().map(String::as_str));
    if !same.is_empty() {
        return format!("there is no table {name}; write {}, with the quotes", quoted(&same));
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

/// Replaces a column's name without quotes by the only known one that is equal to it, case aside. Returns whether the
/// statement has changed.
fn correct(statement: &mut Statement, field: &Column, valid: &[Column]) -> bool {
    let known = distinct(valid);
    let &[name] = same_but_case(&field.name, known.into_iter()).as_slice() else { return false };
    let Some(statement) = inner_mut(statement) else { return false };
    let mut changed = false;
    let _: ControlFlow<()> = visit_expressions_mut(statement, |expression| {
        changed |= match expression {
            Expr::Identifier(ident) => rename(ident, name),
            Expr::CompoundIdentifier(idents) => idents.last_mut().is_some_and(|ident| rename(ident, name)),
            _ => false,
        };
        ControlFlow::Continue(())
    });
    changed
}

/// Replaces a name without quotes by one that is equal to it, case aside. Returns whether it has changed.
fn rename(ident: &mut Ident, name: &str) -> bool {
    let lower = name.to_lowercase();
    // A name in lower case that has no quotes is found as it is.
    if ident.quote_style.is_some()
        || ident.value.to_lowercase() != lower
        || (ident.value == name && name == lower)
    {
        return false;
    }
    name.clone_into(&mut ident.value);
    ident.quote_style = Some('"');
    true
}

fn inner_mut(statement: &mut Statement) -> Option<&mut ast::Statement> {
    match statement {
        Statement::Statement(statement) => Some(statement),
        Statement::Explain(explain) => inner_mut(&mut explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => None,
    }
}

//! Limits on what one step of a query may make. Operators reserve the memory that they keep in the memory pool; these rules
//! are for memory that is not reserved: functions whose results are longer than their arguments ([`functions`]), operators
//! that repeat or collect rows ([`operators`]), and long texts that are repeated in each row.
//!
//! They limit a step, not a query. A step is never interrupted; a query that uses too much memory between two steps is ended
//! by [`super::watchdog`].

mod functions;
mod growth;
mod operators;
mod sizes;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Expr, LogicalPlan};

/// The most bytes that one step makes.
const STEP_BYTES: usize = 64 << 20;
/// The most columns that one column of a nested type has.
const NESTED_COLUMNS: usize = 1_000;
/// The most bytes or items of a type of fixed size.
const FIXED_SIZE: i32 = 1 << 20;

/// Adds the rules to a session.
pub(super) fn install(mut builder: SessionStateBuilder) -> SessionStateBuilder {
    let functions = builder.scalar_functions().take().unwrap_or_default();
    let mut planners = builder.expr_planners().take().unwrap_or_default();
    planners.insert(0, Arc::new(functions::BoundLiterals));
    builder
        .with_scalar_functions(functions.into_iter().map(functions::bounded).collect())
        .with_expr_planners(planners)
        .with_analyzer_rule(Arc::new(functions::BoundFunctions))
        .with_optimizer_rule(Arc::new(functions::BoundFunctions))
        .with_physical_optimizer_rule(Arc::new(operators::BoundOperators))
}

/// Makes batches smaller where a plan repeats a long literal in each row.
///
/// # Errors
/// When the values of a type in the plan cannot be small.
pub(super) fn fit_batches(mut state: SessionState, plan: &LogicalPlan) -> Result<SessionState> {
    let mut longest = 0;
    plan.apply_with_subqueries(|node| {
        for field in node.schema().fields() {
            check_type(field.data_type())?;
        }
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                match part {
                    Expr::Literal(value, _) => {
                        check_type(&value.data_type())?;
                        longest = longest.max(value.size());
                    }
                    Expr::Cast(cast) => check_type(cast.field.data_type())?,
                    Expr::TryCast(cast) => check_type(cast.field.data_type())?,
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let rows = (STEP_BYTES / longest.max(1)).max(1);
    let config = state.config().clone();
    if rows < config.batch_size() {
        *state.config_mut() = config.with_batch_size(rows);
    }
    Ok(state)
}

/// Rejects types whose values cannot be small.
fn check_type(data_type: &DataType) -> Result<()> {
    if nested_columns(data_type, NESTED_COLUMNS) > NESTED_COLUMNS {
        return Err(too_large(format!(
            "a column has more than {NESTED_COLUMNS} nested columns, or values of more than {FIXED_SIZE} bytes or items"
        )));
    }
    Ok(())
}

/// How many columns a column of this type has; counting stops above `most`.
fn nested_columns(data_type: &DataType, most: usize) -> usize {
    match data_type {
        DataType::Struct(fields) => {
            let mut count = 0;
            for field in fields {
                count += nested_columns(field.data_type(), most.saturating_sub(count));
                if count > most {
                    break;
                }
            }
            count
        }
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::Map(field, _) => nested_columns(field.data_type(), most),
        DataType::FixedSizeList(_, size) if *size > FIXED_SIZE => usize::MAX,
        DataType::FixedSizeList(field, _) => nested_columns(field.data_type(), most),
        DataType::FixedSizeBinary(size) if *size > FIXED_SIZE => usize::MAX,
        _ => 1,
    }
}

/// The error of a step that would make too much.
fn too_large(problem: String) -> DataFusionError {
    DataFusionError::Execution(format!("{problem}; that is more than one step of a query may make"))
}

//! Bounds on what one step of a query may make. Operators ask the memory pool for what they keep; these rules are for what
//! nobody asks for: functions whose results are longer than their arguments ([`functions`]), operators that repeat or
//! collect rows ([`operators`]), and long texts that are repeated in each row.
//!
//! They bound a step, not a query: a step is never interrupted, and whatever holds more than the budget between two steps
//! is ended by [`super::watch`].

mod functions;
mod growth;
mod operators;
mod sizes;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{Expr, LogicalPlan};

/// Bytes that one step makes at most.
const STEP: usize = 64 << 20;
/// Columns within columns of one column.
const LEAVES: usize = 1_000;
/// Bytes or items of a type of fixed size.
const FIXED: i32 = 1 << 20;

/// Adds the rules to a session.
pub(super) fn install(mut builder: SessionStateBuilder) -> SessionStateBuilder {
    let known = builder.scalar_functions().take().unwrap_or_default();
    let mut planners = builder.expr_planners().take().unwrap_or_default();
    planners.insert(0, Arc::new(functions::BoundLiterals));
    builder
        .with_scalar_functions(known.into_iter().map(functions::bounded).collect())
        .with_expr_planners(planners)
        .with_analyzer_rule(Arc::new(functions::BoundFunctions))
        .with_optimizer_rule(Arc::new(functions::BoundFunctions))
        .with_physical_optimizer_rule(Arc::new(operators::BoundOperators))
}

/// Makes batches small where a plan repeats a long text in each row.
///
/// # Errors
/// When a type in the plan is larger than a step may be.
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
    let rows = (STEP / longest.max(1)).max(1);
    let config = state.config().clone();
    if rows < config.batch_size() {
        *state.config_mut() = config.with_batch_size(rows);
    }
    Ok(state)
}

/// Refuses types whose values cannot be small.
fn check_type(data_type: &DataType) -> Result<()> {
    if leaves(data_type, LEAVES) > LEAVES {
        return Err(too_large(format!(
            "a column has more than {LEAVES} columns within it, or values of more than {FIXED} bytes or items"
        )));
    }
    Ok(())
}

/// How many columns a column is, counted up to a bound.
fn leaves(data_type: &DataType, most: usize) -> usize {
    match data_type {
        DataType::Struct(fields) => {
            let mut count = 0;
            for field in fields {
                count += leaves(field.data_type(), most.saturating_sub(count));
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
        | DataType::Map(field, _) => leaves(field.data_type(), most),
        DataType::FixedSizeList(_, size) if *size > FIXED => usize::MAX,
        DataType::FixedSizeList(field, _) => leaves(field.data_type(), most),
        DataType::FixedSizeBinary(size) if *size > FIXED => usize::MAX,
        _ => 1,
    }
}

/// The refusal of a step.
fn too_large(what: String) -> datafusion::error::DataFusionError {
    datafusion::error::DataFusionError::Execution(format!(
        "{what}; that is more than one step of a query may make"
    ))
}

//! Operators that repeat rows, or that keep rows without a reservation in the memory pool. Before each of them, a
//! [`Bounded`] operator limits what it gets.
//!
//! A nested loop compares all of its left rows with a batch of its right rows before it yields, so that batch is small where
//! there are many left rows. Other joins yield as often as they emit rows.
//!
//! A join repeats a row for each row that matches it, so very long rows are rejected before it. A cross join keeps batches
//! even where they have no columns left, and a window keeps all rows of its partition: memory for both is reserved in the
//! pool. An unnest makes a row of each item at once, so it gets few rows at a time, and its output is split into batches.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec,
};
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use super::sizes::{largest_row, row_bytes};
use super::{STEP_BYTES, too_large};
use crate::sql::operator::{Operator, OperatorExec, Part};

/// The most bytes of a row that a join repeats.
const JOINED_ROW_BYTES: u64 = 32 << 10;
/// The most pairs of rows that a nested loop compares before it yields.
const PAIRS: usize = 1_000_000;
/// Bytes that a batch takes besides its columns.
const BATCH_BYTES: usize = 512;
/// The input of a join that is read first.
const LEFT: usize = 0;

/// Puts a [`Bounded`] operator before each operator that needs it.
#[derive(Debug)]
pub(super) struct BoundOperators;

/// What is limited.
#[derive(Clone, Debug)]
enum Bound {
    /// Long rows are rejected.
    RowLength,
    /// The same, and memory is reserved for the batches, which are kept even where they have no columns. Counts the rows.
    KeptBatches(Arc<AtomicUsize>),
    /// Long rows are rejected, and a batch is small where each of its rows is compared with many, as they were counted.
    Pairs(Arc<AtomicUsize>),
    /// Memory is reserved for all rows, which are kept.
    KeptRows,
    /// Few rows at a time, by the lengths of the lists in these columns (given by index).
    Lists(Vec<usize>),
    /// Batches of the usual size.
    BatchSize,
}

/// The operator: passes rows on within a bound.
#[derive(Debug)]
struct Bounded {
    bound: Bound,
    /// The memory of rows that the operator after it keeps; freed with the operator.
    kept: Kept,
}

/// Memory that is reserved at the first row that is kept.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<OnceLock<MemoryReservation>>);

impl PhysicalOptimizerRule for BoundOperators {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| Ok(Transformed::yes(bound(node)?))).data()
    }

    fn name(&self) -> &str {
        "bound_operators"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A node with the bounds that it needs.
fn bound(node: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    if node.is::<NestedLoopJoinExec>() {
        let left_rows = Arc::new(AtomicUsize::new(0));
        return bound_join(&node, |input| match input {
            LEFT => Bound::KeptBatches(Arc::clone(&left_rows)),
            _ => Bound::Pairs(Arc::clone(&left_rows)),
        });
    }
    if node.is::<CrossJoinExec>() {
        return bound_join(&node, |input| match input {
            LEFT => Bound::KeptBatches(Arc::default()),
            _ => Bound::RowLength,
        });
    }
    if node.is::<HashJoinExec>() || node.is::<SortMergeJoinExec>() || node.is::<PiecewiseMergeJoinExec>() {
        return bound_join(&node, |_| Bound::RowLength);
    }
    if node.is::<ScalarSubqueryExec>() {
        // The first input is the query, the others are its subqueries.
        return bound_inputs(&node, |input| (input > 0).then_some(Bound::RowLength));
    }
    if node.is::<WindowAggExec>() {
        return bound_inputs(&node, |_| Some(Bound::KeptRows));
    }
    if let Some(unnest) = node.downcast_ref::<UnnestExec>() {
        let lists: Vec<usize> =
            unnest.list_column_indices().iter().map(|list| list.index_in_input_schema).collect();
        let unnest = bound_inputs(&node, |_| Some(Bound::Lists(lists.clone())))?;
        return Ok(Bounded::before(unnest, Bound::BatchSize));
    }
    Ok(node)
}

/// A join with bounds for its inputs, which yields to other tasks.
fn bound_join(
    join: &Arc<dyn ExecutionPlan>,
    bounds: impl Fn(usize) -> Bound,
) -> Result<Arc<dyn ExecutionPlan>> {
    Ok(Arc::new(CooperativeExec::new(bound_inputs(join, |input| Some(bounds(input)))?)))
}

/// A node with bounds for some of its inputs, given by index.
fn bound_inputs(
    node: &Arc<dyn ExecutionPlan>,
    bounds: impl Fn(usize) -> Option<Bound>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let inputs = node.children().into_iter().enumerate().map(|(input, child)| match bounds(input) {
        Some(bound) => Bounded::before(Arc::clone(child), bound),
        None => Arc::clone(child),
    });
    let inputs = inputs.collect();
    Arc::clone(node).replace_children(inputs, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

impl Bounded {
    fn before(input: Arc<dyn ExecutionPlan>, bound: Bound) -> Arc<dyn ExecutionPlan> {
        OperatorExec::over(input, Self { bound, kept: Kept::default() })
    }
}

impl Operator for Bounded {
    const NAME: &'static str = "BoundExec";

    fn properties(&self, input: &Arc<dyn ExecutionPlan>) -> Arc<PlanProperties> {
        Arc::clone(input.properties())
    }

    fn maintains_input_order(&self) -> bool {
        true
    }

    fn fresh(&self) -> Self {
        Self { bound: self.bound.clone(), kept: Kept::default() }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.bound {
            Bound::RowLength => "rows",
            Bound::KeptBatches(_) => "kept batches",
            Bound::Pairs(_) => "pairs",
            Bound::KeptRows => "kept rows",
            Bound::Lists(_) => "lists",
            Bound::BatchSize => "batch size",
        })
    }

    fn execute(&self, Part { input, context, .. }: Part) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let kept = self.kept.clone();
        Ok(match self.bound.clone() {
            Bound::RowLength => input.map(|batch| check_rows(batch?)).boxed(),
            Bound::KeptBatches(rows) => input
                .map(move |batch| {
                    let batch = batch?;
                    rows.fetch_add(batch.num_rows(), Ordering::Relaxed);
                    let batch = check_rows(batch)?;
                    kept.reserve(BATCH_BYTES, &context)?;
                    Ok(batch)
                })
                .boxed(),
            Bound::Pairs(others) => input
                .map(|batch| check_rows(batch?))
                .map_ok(move |batch| {
                    let others = Arc::clone(&others);
                    in_pieces(batch, move |_, _| Ok(PAIRS / others.load(Ordering::Relaxed).max(1)))
                })
                .try_flatten()
                .boxed(),
            Bound::KeptRows => input
                .map(move |batch| {
                    let batch = batch?;
                    kept.reserve(BATCH_BYTES + batch.get_array_memory_size(), &context)?;
                    Ok(batch)
                })
                .boxed(),
            Bound::Lists(lists) => {
                let lists: Arc<[usize]> = lists.into();
                input
                    .map_ok(move |batch| {
                        let lists = Arc::clone(&lists);
                        in_pieces(batch, move |batch, start| unnested_rows(batch, start, &lists))
                    })
                    .try_flatten()
                    .boxed()
            }
            Bound::BatchSize => {
                let rows = context.session_config().batch_size();
                input.map_ok(move |batch| in_pieces(batch, move |_, _| Ok(rows))).try_flatten().boxed()
            }
        })
    }
}

impl Kept {
    fn reserve(&self, bytes: usize, context: &TaskContext) -> Result<()> {
        let reservation = self
            .0
            .get_or_init(|| MemoryConsumer::new("rows of a join or window").register(context.memory_pool()));
        reservation.try_grow(bytes)
    }
}

/// Rejects a batch with a very long row.
fn check_rows(batch: RecordBatch) -> Result<RecordBatch> {
    let longest = largest_row(&batch);
    if longest > JOINED_ROW_BYTES {
        return Err(too_large(format!(
            "a join or subquery would repeat a row of {} KiB; the limit is {} KiB",
            longest >> 10,
            JOINED_ROW_BYTES >> 10
        )));
    }
    Ok(batch)
}

/// Splits a batch; `rows` gives the length of the piece that starts at a row. Yields to other tasks between pieces.
fn in_pieces(
    batch: RecordBatch,
    rows: impl Fn(&RecordBatch, usize) -> Result<usize> + Send + 'static,
) -> impl futures::Stream<Item = Result<RecordBatch>> + Send {
    let whole = (batch.num_rows() == 0).then(|| Ok(batch.clone()));
    let pieces = stream::try_unfold((batch, 0, rows), |(batch, start, rows)| async move {
        if start >= batch.num_rows() {
            return Ok(None);
        }
        if start > 0 {
            tokio::task::yield_now().await;
        }
        let length = rows(&batch, start)?.clamp(1, batch.num_rows() - start);
        let piece = batch.slice(start, length);
        Ok(Some((piece, (batch, start + length, rows))))
    });
    stream::iter(whole).chain(pieces)
}

/// How many rows from `start` on make one step together when each item of their lists becomes a row.
fn unnested_rows(batch: &RecordBatch, start: usize, lists: &[usize]) -> Result<usize> {
    let rest = batch.slice(start, batch.num_rows() - start);
    let mut others = vec![64_u64; rest.num_rows()];
    let mut items = vec![1_u64; rest.num_rows()];
    for (index, column) in rest.columns().iter().enumerate() {
        if lists.contains(&index) {
            let counts = item_counts(column.as_ref());
            items.iter_mut().zip(counts).for_each(|(most, count)| *most = count.max(*most));
        } else {
            let bytes = row_bytes(column.as_ref());
            others.iter_mut().zip(bytes).for_each(|(sum, bytes)| *sum += bytes);
        }
    }
    let mut made = 0_u64;
    for (row, (items, others)) in items.into_iter().zip(others).enumerate() {
        let bytes = items.saturating_mul(others);
        if bytes > 4 * STEP_BYTES as u64 {
            return Err(too_large(format!("unnest would make {items} rows of {others} bytes from one row")));
        }
        made = made.saturating_add(bytes);
        if made > STEP_BYTES as u64 && row > 0 {
            return Ok(row);
        }
    }
    Ok(rest.num_rows())
}

/// How many items the list in each row has; the most that it can have where lists contain lists.
fn item_counts(column: &dyn Array) -> Vec<u64> {
    match column.data_type() {
        DataType::List(field) if !field.data_type().is_nested() => {
            let lists = column.as_list::<i32>();
            (0..lists.len()).map(|row| lists.value_length(row) as u64).collect()
        }
        DataType::LargeList(field) if !field.data_type().is_nested() => {
            let lists = column.as_list::<i64>();
            (0..lists.len()).map(|row| lists.value_length(row) as u64).collect()
        }
        _ => row_bytes(column),
    }
}

//! Operators that repeat rows or keep them without asking the memory pool, each with a node before it that bounds what it
//! gets.
//!
//! A nested loop looks at all pairs of its left rows with a batch of its right ones before it pauses, so that batch is
//! small where there are many left rows; other joins pause as often as they give rows.
//!
//! A join repeats a row for each that it meets, so rows that are very long are refused before it. A cross join keeps
//! batches even where they have no columns left, and a window keeps all rows of its partition: both are asked for in the
//! pool. An unnest makes a row of each item at once, so it gets few rows at a time, and what it makes is cut into batches.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec,
};
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::sizes::{largest_row, row_bytes};
use super::{STEP, too_large};

/// Bytes of a row that a join repeats.
const JOINED_ROW: u64 = 32 << 10;
/// Pairs of rows that a nested loop looks at before it pauses.
const PAIRS: usize = 1_000_000;
/// Bytes that a batch takes beside its columns.
const BATCH: usize = 512;

/// Puts a [`BoundExec`] before each operator that needs it.
#[derive(Debug)]
pub(super) struct BoundOperators;

/// What is bounded.
#[derive(Clone, Debug)]
enum Bound {
    /// Long rows are refused.
    Rows,
    /// And batches are kept, which takes memory however few columns they have. Counts the rows.
    KeptBatches(Arc<AtomicUsize>),
    /// Long rows are refused, and each row is met by as many as were counted.
    Pairs(Arc<AtomicUsize>),
    /// And all of the rows are kept.
    KeptRows,
    /// Few rows at a time, by the lists in these columns.
    Lists(Vec<usize>),
    /// Batches of the usual size.
    BatchSize,
}

/// See the module.
#[derive(Debug)]
struct BoundExec {
    input: Arc<dyn ExecutionPlan>,
    bound: Bound,
    /// What was asked for, until the query ends.
    kept: Arc<Mutex<Vec<MemoryReservation>>>,
}

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

fn bound(node: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let before = |bounds: &dyn Fn(usize) -> Option<Bound>| -> Result<Arc<dyn ExecutionPlan>> {
        let children = node.children().into_iter().enumerate().map(|(place, child)| match bounds(place) {
            Some(bound) => BoundExec::before(Arc::clone(child), bound),
            None => Arc::clone(child),
        });
        let children = children.collect();
        Arc::clone(&node)
            .replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    };
    let left_rows = Arc::new(AtomicUsize::new(0));
    if node.is::<NestedLoopJoinExec>() {
        let join = before(&|place| {
            let rows = Arc::clone(&left_rows);
            Some(if place == 0 { Bound::KeptBatches(rows) } else { Bound::Pairs(rows) })
        })?;
        return Ok(Arc::new(CooperativeExec::new(join)));
    }
    if node.is::<CrossJoinExec>() {
        let kept = || Bound::KeptBatches(Arc::clone(&left_rows));
        let join = before(&|place| Some(if place == 0 { kept() } else { Bound::Rows }))?;
        return Ok(Arc::new(CooperativeExec::new(join)));
    }
    if node.is::<HashJoinExec>() || node.is::<SortMergeJoinExec>() || node.is::<PiecewiseMergeJoinExec>() {
        let join = before(&|_| Some(Bound::Rows))?;
        return Ok(Arc::new(CooperativeExec::new(join)));
    }
    if node.is::<ScalarSubqueryExec>() {
        return before(&|place| (place > 0).then_some(Bound::Rows));
    }
    if node.is::<WindowAggExec>() {
        return before(&|_| Some(Bound::KeptRows));
    }
    if let Some(unnest) = node.downcast_ref::<UnnestExec>() {
        let lists: Vec<usize> =
            unnest.list_column_indices().iter().map(|list| list.index_in_input_schema).collect();
        let unnest = before(&|_| Some(Bound::Lists(lists.clone())))?;
        return Ok(BoundExec::before(unnest, Bound::BatchSize));
    }
    Ok(node)
}

impl BoundExec {
    fn before(input: Arc<dyn ExecutionPlan>, bound: Bound) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { input, bound, kept: Arc::default() })
    }
}

impl DisplayAs for BoundExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = match &self.bound {
            Bound::Rows => "rows",
            Bound::KeptBatches(_) => "kept batches",
            Bound::Pairs(_) => "pairs",
            Bound::KeptRows => "kept rows",
            Bound::Lists(_) => "lists",
            Bound::BatchSize => "batch size",
        };
        write!(f, "BoundExec: {bound}")
    }
}

impl ExecutionPlan for BoundExec {
    fn name(&self) -> &str {
        "BoundExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Self::before(children.swap_remove(0), self.bound.clone()))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = context.session_config().batch_size();
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let schema = input.schema();
        let reservation = MemoryConsumer::new("rows of a join or window").register(context.memory_pool());
        let keeper = Keeper { reservation: Some(reservation), kept: Arc::clone(&self.kept) };
        let bounded = match self.bound.clone() {
            Bound::Rows => input.map(|batch| checked(batch?)).boxed(),
            Bound::KeptBatches(rows) => {
                let counted = move |batch: RecordBatch| {
                    rows.fetch_add(batch.num_rows(), Ordering::Relaxed);
                    keeper.keep(checked(batch)?, |_| BATCH)
                };
                input.map(move |batch| counted(batch?)).boxed()
            }
            Bound::Pairs(others) => {
                let rows = move |_: &RecordBatch, _| Ok(PAIRS / others.load(Ordering::Relaxed).max(1));
                input
                    .map(|batch| checked(batch?))
                    .map_ok(move |batch| in_pieces(batch, rows.clone()))
                    .try_flatten()
                    .boxed()
            }
            Bound::KeptRows => {
                let bytes = |batch: &RecordBatch| BATCH + batch.get_array_memory_size();
                input.map(move |batch| keeper.keep(batch?, bytes)).boxed()
            }
            Bound::Lists(lists) => {
                input.map_ok(move |batch| in_pieces(batch, few_items(lists.clone()))).try_flatten().boxed()
            }
            Bound::BatchSize => {
                input.map_ok(move |batch| in_pieces(batch, move |_, _| Ok(rows))).try_flatten().boxed()
            }
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, bounded)))
    }
}

/// Asks for the memory of what an operator keeps, until the query ends.
struct Keeper {
    /// There until dropped.
    reservation: Option<MemoryReservation>,
    kept: Arc<Mutex<Vec<MemoryReservation>>>,
}

impl Keeper {
    fn keep(&self, batch: RecordBatch, bytes: impl Fn(&RecordBatch) -> usize) -> Result<RecordBatch> {
        if let Some(reservation) = &self.reservation {
            reservation.try_grow(bytes(&batch))?;
        }
        Ok(batch)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let kept = self.reservation.take();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).extend(kept);
    }
}

fn checked(batch: RecordBatch) -> Result<RecordBatch> {
    let longest = largest_row(&batch);
    if longest > JOINED_ROW {
        return Err(too_large(format!(
            "a row of {} KiB would be repeated by a join or subquery, where rows have at most {} KiB",
            longest >> 10,
            JOINED_ROW >> 10
        )));
    }
    Ok(batch)
}

/// A batch in pieces; `rows` says how many rows the piece from a row on has.
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

/// As many rows as make a step together once their lists are rows.
fn few_items(lists: Vec<usize>) -> impl Fn(&RecordBatch, usize) -> Result<usize> + Send + 'static {
    move |batch, start| {
        let rest = batch.slice(start, batch.num_rows() - start);
        let mut others = vec![64_u64; rest.num_rows()];
        let mut items = vec![1_u64; rest.num_rows()];
        for (place, column) in rest.columns().iter().enumerate() {
            if lists.contains(&place) {
                items
                    .iter_mut()
                    .zip(item_counts(column.as_ref()))
                    .for_each(|(most, count)| *most = count.max(*most));
            }
            others.iter_mut().zip(row_bytes(column.as_ref())).for_each(|(sum, bytes)| {
                if !lists.contains(&place) {
                    *sum += bytes;
                }
            });
        }
        let mut made = 0_u64;
        for (row, (items, others)) in items.into_iter().zip(others).enumerate() {
            let bytes = items.saturating_mul(others);
            if bytes > 4 * STEP as u64 {
                return Err(too_large(format!(
                    "unnest would make {items} rows of {others} bytes from one row"
                )));
            }
            made = made.saturating_add(bytes);
            if made > STEP as u64 && row > 0 {
                return Ok(row);
            }
        }
        Ok(rest.num_rows())
    }
}

/// How many items the list in each row has; where lists are within lists, at most.
fn item_counts(column: &dyn Array) -> Vec<u64> {
    let nested = |field: &DataType| field.is_nested();
    match column.data_type() {
        DataType::List(field) if !nested(field.data_type()) => {
            let lists = column.as_list::<i32>();
            (0..lists.len()).map(|row| lists.value_length(row) as u64).collect()
        }
        DataType::LargeList(field) if !nested(field.data_type()) => {
            let lists = column.as_list::<i64>();
            (0..lists.len()).map(|row| lists.value_length(row) as u64).collect()
        }
        _ => row_bytes(column),
    }
}

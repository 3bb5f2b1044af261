//! Marks copies of readings: the first of an identity in log order counts, a later one is a duplicate, or a conflict
//! if its value differs. The same rule as in the speed layer, here on the fields themselves and without a limit.
//!
//! [`DedupExec`] is a DataFusion operator over readings sorted by [`READING_ORDER`], so that copies stand side by
//! side, the first in log order first. It must not know what is computed of the readings.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, RecordBatch, UInt8Array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, OrderingRequirements};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, Distribution, ExecutionPlan,
    ExecutionPlanProperties, PhysicalExpr, PlanProperties, ReplaceChildrenOptions,
};
use futures::{Stream, StreamExt};
use wye_domain::DomainError;
use wye_domain::identity::Novelty;
use wye_domain::reading::ReadingColumns;
use wye_tables::columns::READING_ORDER;

/// The column that says what a reading is: a UInt8 with one of the codes below.
pub const NOVELTY: &str = "novelty";
/// [`Novelty::First`]
pub const FIRST: u8 = 0;
/// [`Novelty::Duplicate`]
pub const DUPLICATE: u8 = 1;
/// [`Novelty::Conflict`]
pub const CONFLICT: u8 = 2;

/// The code of a novelty in the column [`NOVELTY`].
pub fn code(novelty: Novelty) -> u8 {
    match novelty {
        Novelty::First => FIRST,
        Novelty::Duplicate => DUPLICATE,
        Novelty::Conflict => CONFLICT,
    }
}

/// The identity of the last reading of a batch, and the value that counts for it.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    device_id: String,
    metric: String,
    event_time: i64,
    sequence: Option<i64>,
    value: f64,
}

/// Marks the readings of one sorted stream, batch by batch.
#[derive(Debug, Default)]
pub struct Deduplicator {
    last: Option<Kept>,
}

impl Deduplicator {
    /// What each reading of the next batch is, as codes.
    ///
    /// Rows are compared by their numbers first; words are only looked at where the numbers are equal and the
    /// dictionary codes are not.
    ///
    /// # Errors
    /// When the batch lacks a column of a reading.
    pub fn mark(&mut self, batch: &RecordBatch) -> std::result::Result<Vec<u8>, DomainError> {
        let columns = ReadingColumns::of(batch)?;
        let rows = batch.num_rows();
        let mut novelty = vec![FIRST; rows];
        let Some(last_row) = rows.checked_sub(1) else { return Ok(novelty) };
        let has_sequences = columns.sequence.null_count() < rows;
        let sequence = |row: usize| {
            (has_sequences && columns.sequence.is_valid(row)).then(|| columns.sequence.value(row))
        };
        // The value that counts for the identity of the row before.
        let mut counting = columns.value[0];
        if let Some(last) = &self.last {
            let same = columns.event_time[0] == last.event_time
                && sequence(0) == last.sequence
                && columns.device_id.text(0) == Some(last.device_id.as_str())
                && columns.metric.text(0) == Some(last.metric.as_str());
            if same {
                novelty[0] = code(copy_of(last.value, columns.value[0]));
                counting = last.value;
            }
        }
        for (before, novelty) in novelty[1..].iter_mut().enumerate() {
            let row = before + 1;
            let same = columns.event_time[row] == columns.event_time[before]
                && sequence(row) == sequence(before)
                && same_word(&columns.device_id, row, before)
                && same_word(&columns.metric, row, before);
            if same {
                *novelty = code(copy_of(counting, columns.value[row]));
            } else {
                counting = columns.value[row];
            }
        }
        self.last = Some(Kept {
            device_id: columns.device_id.text(last_row).unwrap_or_default().to_owned(),
            metric: columns.metric.text(last_row).unwrap_or_default().to_owned(),
            event_time: columns.event_time[last_row],
            sequence: sequence(last_row),
            value: counting,
        });
        Ok(novelty)
    }
}

fn copy_of(counting: f64, value: f64) -> Novelty {
    if counting.to_bits() == value.to_bits() { Novelty::Duplicate } else { Novelty::Conflict }
}

fn same_word(column: &wye_domain::reading::TextColumn<'_>, row: usize, before: usize) -> bool {
    column.code(row) == column.code(before) || column.text(row) == column.text(before)
}

/// Adds the column [`NOVELTY`] to sorted readings.
#[derive(Debug)]
pub struct DedupExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl DedupExec {
    /// Over readings that are sorted by [`READING_ORDER`] in each plan partition, no identity in two of them.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let given = input.schema();
        let fields = given.fields().iter().cloned();
        let fields = fields.chain([Arc::new(Field::new(NOVELTY, DataType::UInt8, false))]);
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Fields>()));
        // The new column is the last one, so what is known of the others holds by their places.
        let orderings = input.output_ordering().cloned();
        let properties = PlanProperties::new(
            EquivalenceProperties::new_with_orderings(schema, orderings),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Self { input, properties: Arc::new(properties) }
    }

    fn columns(&self, names: &[&str]) -> Vec<Arc<dyn PhysicalExpr>> {
        let schema = self.input.schema();
        let column = |name: &&str| Column::new_with_schema(name, &schema).ok();
        names.iter().filter_map(column).map(|column| Arc::new(column) as Arc<dyn PhysicalExpr>).collect()
    }
}

impl DisplayAs for DedupExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DedupExec: by=[device_id, metric, event_time, sequence]")
    }
}

impl ExecutionPlan for DedupExec {
    fn name(&self) -> &'static str {
        "DedupExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::KeyPartitioned(self.columns(&READING_ORDER[..2]))]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        // The Kafka columns of the order are not asked for where the scan keeps them to itself.
        vec![self.input.output_ordering().cloned().map(OrderingRequirements::from)]
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

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input))),
            _ => Err(DataFusionError::Internal("DedupExec has one input".to_owned())),
        }
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, plan_partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(Marked {
            input: self.input.execute(plan_partition, context)?,
            schema: self.schema(),
            deduplicator: Deduplicator::default(),
        }))
    }
}

struct Marked {
    input: SendableRecordBatchStream,
    schema: SchemaRef,
    deduplicator: Deduplicator,
}

impl Marked {
    fn mark(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let novelty =
            self.deduplicator.mark(batch).map_err(|error| DataFusionError::External(error.into()))?;
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(UInt8Array::from(novelty)));
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

impl Stream for Marked {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.input.poll_next_unpin(context));
        Poll::Ready(next.map(|batch| batch.and_then(|batch| self.mark(&batch))))
    }
}

impl RecordBatchStream for Marked {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

#[cfg(test)]
mod tests;

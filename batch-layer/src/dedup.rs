//! Marks copies of readings: the first of an identity in log order counts, a later one is a duplicate, or a conflict
//! if its value differs. The same rule as in the speed layer, here on the fields themselves and without a limit, also
//! for copies in several Kafka partitions (see [`READING_ORDER`] for which of them is the first).
//!
//! [`DedupExec`] is a DataFusion operator over readings sorted by [`READING_ORDER`], so that copies are side by side,
//! the first in log order first. It states what it needs of its input, so that an optimizer keeps to it. It must not
//! know what is computed of the readings.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, AsArray, RecordBatch, UInt8Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalSortExpr};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, Distribution, ExecutionPlan,
    ExecutionPlanProperties, PhysicalExpr, PlanProperties, ReplaceChildrenOptions,
};
use futures::{Stream, StreamExt};
use wye_domain::DomainError;
use wye_domain::identity::{Novelty, copy_of};
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
/// The same reading of the log once more, as a table has it whose files were merged by two at once.
pub const REPEATED: u8 = 3;

/// The code of a novelty in the column [`NOVELTY`].
pub fn code(novelty: Novelty) -> u8 {
    match novelty {
        Novelty::First => FIRST,
        Novelty::Duplicate => DUPLICATE,
        Novelty::Conflict => CONFLICT,
    }
}

/// The novelty of a code in the column [`NOVELTY`]; `None` for a row that is no reading of its own.
#[inline]
pub fn novelty(code: u8) -> Option<Novelty> {
    match code {
        FIRST => Some(Novelty::First),
        DUPLICATE => Some(Novelty::Duplicate),
        CONFLICT => Some(Novelty::Conflict),
        _ => None,
    }
}

/// The identity of the last reading of a batch.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    device_id: String,
    metric: String,
    event_time: i64,
    sequence: Option<i64>,
    /// The value that counts.
    value: f64,
    place: Place,
}

/// Where a reading is in the log: Kafka partition, offset, index in its message.
type Place = (i32, i64, i32);

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
        let places = Places::of(batch)?;
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
                let repeated = places.of_row(0) == last.place;
                novelty[0] = if repeated { REPEATED } else { code(copy_of(last.value, counting)) };
                counting = last.value;
            }
        }
        for (before, novelty) in novelty[1..].iter_mut().enumerate() {
            let row = before + 1;
            let same = columns.event_time[row] == columns.event_time[before]
                && sequence(row) == sequence(before)
                && same_word(&columns.device_id, row, before)
                && same_word(&columns.metric, row, before);
            if same && places.of_row(row) == places.of_row(before) {
                *novelty = REPEATED;
            } else if same {
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
            place: places.of_row(last_row),
        });
        Ok(novelty)
    }
}

struct Places<'a> {
    partition: &'a [i32],
    offset: &'a [i64],
    index: &'a [i32],
}

impl<'a> Places<'a> {
    fn of(batch: &'a RecordBatch) -> std::result::Result<Self, DomainError> {
        let column =
            |name: &'static str| batch.column_by_name(name).ok_or(DomainError::Shape { column: name });
        let small = |name: &'static str| {
            let column = column(name)?.as_primitive_opt::<Int32Type>();
            column.map(|column| column.values().as_ref()).ok_or(DomainError::Shape { column: name })
        };
        let offset = column("kafka_offset")?.as_primitive_opt::<Int64Type>();
        let offset = offset.ok_or(DomainError::Shape { column: "kafka_offset" })?.values();
        Ok(Self { partition: small("kafka_partition")?, offset, index: small("kafka_index")? })
    }

    fn of_row(&self, row: usize) -> Place {
        (self.partition[row], self.offset[row], self.index[row])
    }
}

fn same_word(column: &wye_domain::reading::TextColumn<'_>, row: usize, before: usize) -> bool {
    column.code(row) == column.code(before) || column.text(row) == column.text(before)
}

/// Adds the column [`NOVELTY`] to sorted readings.
#[derive(Debug)]
pub struct DedupExec {
    input: Arc<dyn ExecutionPlan>,
    /// What each plan partition of the input must be sorted by.
    order: Vec<PhysicalSortExpr>,
    properties: Arc<PlanProperties>,
}

impl DedupExec {
    /// Over readings that are sorted by [`READING_ORDER`] in each plan partition, no device in two of them.
    ///
    /// # Errors
    /// When the input lacks a column of the order.
    pub fn new(input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        let given = input.schema();
        let options = SortOptions { descending: false, nulls_first: true };
        let mut order = Vec::with_capacity(READING_ORDER.len());
        for name in READING_ORDER {
            order.push(PhysicalSortExpr::new(Arc::new(Column::new_with_schema(name, &given)?), options));
        }
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
        Ok(Self { input, order, properties: Arc::new(properties) })
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
        // The first column of the order is the device: all copies of an identity are in its plan partition.
        vec![Distribution::KeyPartitioned(vec![Arc::clone(&self.order[0].expr)])]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![LexOrdering::new(self.order.iter().cloned()).map(OrderingRequirements::from)]
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
            (Some(input), true) => Ok(Arc::new(Self::new(input)?)),
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

//! Marks repeated readings: the first of an identity in log order counts, a later one is a duplicate, or a conflict if its
//! value differs. The same rule as in the speed layer, here on the fields themselves and without a limit, also where a
//! device is in several Kafka partitions (see [`READING_ORDER`] for which reading is the first).
//!
//! [`DedupExec`] is a DataFusion operator over readings sorted by [`READING_ORDER`], so that readings of one identity are
//! adjacent, the first in log order first. It declares the order and the distribution that it needs, so that an optimizer
//! keeps them.
//! It must not know what is computed of the readings.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, Int32Array, RecordBatch, UInt8Array};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalSortExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties,
    InputDistributionRequirements, PhysicalExpr, PlanProperties,
};
use futures::StreamExt;
use wye_domain::DomainError;
use wye_domain::assemble::PlacedColumns;
use wye_domain::identity::{Novelty, copy_of};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{ReadingColumns, TextColumn, column};
use wye_domain::time::Micros;
use wye_tables::columns::READING_ORDER;

/// The column that says what a reading is: a UInt8 with one of the codes below.
pub const NOVELTY: &str = "novelty";
/// [`Novelty::First`]
pub const FIRST: u8 = 0;
/// [`Novelty::Duplicate`]
pub const DUPLICATE: u8 = 1;
/// [`Novelty::Conflict`]
pub const CONFLICT: u8 = 2;
/// The same reading of the log a second time. A table has it twice after two engines have merged the same files at once.
pub const REPEATED: u8 = 3;

/// The code of a novelty in the column [`NOVELTY`].
pub fn code(novelty: Novelty) -> u8 {
    match novelty {
        Novelty::First => FIRST,
        Novelty::Duplicate => DUPLICATE,
        Novelty::Conflict => CONFLICT,
    }
}

/// The novelty of a code in the column [`NOVELTY`]; `None` for [`REPEATED`].
#[inline]
pub fn novelty(code: u8) -> Option<Novelty> {
    match code {
        FIRST => Some(Novelty::First),
        DUPLICATE => Some(Novelty::Duplicate),
        CONFLICT => Some(Novelty::Conflict),
        _ => None,
    }
}

/// The last reading of a batch.
#[derive(Clone, Debug, PartialEq)]
struct Last {
    device_id: String,
    metric: String,
    event_time: Micros,
    sequence: Option<i64>,
    /// The value that counts for this identity.
    counting: f64,
    place: Place,
}

/// Where a reading is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    kafka_partition: KafkaPartition,
    offset: Offset,
    /// In its message.
    index: i32,
}

/// Marks the readings of one sorted stream, batch by batch.
#[derive(Debug, Default)]
pub struct Deduplicator {
    last: Option<Last>,
}

impl Deduplicator {
    /// What each reading of the next batch is, as codes.
    ///
    /// Rows are compared by their numbers first; texts are only compared where the numbers are equal and the dictionary
    /// codes are not. (`arrow::compute::partition` would compare the texts of all rows.)
    ///
    /// # Errors
    /// When the batch lacks a column of a reading.
    pub fn mark(&mut self, batch: &RecordBatch) -> std::result::Result<Vec<u8>, DomainError> {
        let rows = Rows::of(batch)?;
        let mut novelty = vec![FIRST; batch.num_rows()];
        let Some(last_row) = batch.num_rows().checked_sub(1) else { return Ok(novelty) };
        let values = rows.columns.value;
        // The value that counts for the identity of the row before.
        let mut counting = values[0];
        if let Some(last) = self.last.as_ref().filter(|last| rows.has_identity(0, last)) {
            let is_repeated = rows.place(0) == last.place;
            novelty[0] = if is_repeated { REPEATED } else { code(copy_of(last.counting, values[0])) };
            counting = last.counting;
        }
        for (before, novelty) in novelty[1..].iter_mut().enumerate() {
            let row = before + 1;
            if !rows.have_one_identity(before, row) {
                counting = values[row];
            } else if rows.place(row) == rows.place(before) {
                *novelty = REPEATED;
            } else {
                *novelty = code(copy_of(counting, values[row]));
            }
        }
        self.last = Some(rows.last(last_row, counting));
        Ok(novelty)
    }
}

/// The columns of a batch by which its rows are compared.
struct Rows<'a> {
    columns: ReadingColumns<'a>,
    has_sequences: bool,
    kafka_partition: &'a [i32],
    kafka_offset: &'a [i64],
    kafka_index: &'a [i32],
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> std::result::Result<Self, DomainError> {
        let PlacedColumns { readings: columns, kafka_offset, .. } = PlacedColumns::of(batch)?;
        Ok(Self {
            columns,
            has_sequences: columns.sequence.null_count() < batch.num_rows(),
            kafka_partition: column::<Int32Array>(batch, "kafka_partition")?.values(),
            kafka_offset,
            kafka_index: column::<Int32Array>(batch, "kafka_index")?.values(),
        })
    }

    #[inline]
    fn sequence(&self, row: usize) -> Option<i64> {
        let column = self.columns.sequence;
        (self.has_sequences && column.is_valid(row)).then(|| column.value(row))
    }

    #[inline]
    fn place(&self, row: usize) -> Place {
        Place {
            kafka_partition: KafkaPartition(self.kafka_partition[row]),
            offset: Offset(self.kafka_offset[row]),
            index: self.kafka_index[row],
        }
    }

    #[inline]
    fn have_one_identity(&self, before: usize, row: usize) -> bool {
        self.columns.event_time[row] == self.columns.event_time[before]
            && self.sequence(row) == self.sequence(before)
            && same_text(&self.columns.device_id, row, before)
            && same_text(&self.columns.metric, row, before)
    }

    fn has_identity(&self, row: usize, last: &Last) -> bool {
        self.columns.event_time[row] == last.event_time.0
            && self.sequence(row) == last.sequence
            && self.columns.device_id.text(row) == Some(last.device_id.as_str())
            && self.columns.metric.text(row) == Some(last.metric.as_str())
    }

    fn last(&self, row: usize, counting: f64) -> Last {
        Last {
            device_id: self.columns.device_id.text(row).unwrap_or_default().to_owned(),
            metric: self.columns.metric.text(row).unwrap_or_default().to_owned(),
            event_time: Micros(self.columns.event_time[row]),
            sequence: self.sequence(row),
            counting,
            place: self.place(row),
        }
    }
}

#[inline]
fn same_text(column: &TextColumn<'_>, row: usize, before: usize) -> bool {
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
        // The new column is the last one, so the input's orderings hold: they name columns by their places.
        let orderings = input.output_ordering().cloned();
        let properties = PlanProperties::new(
            EquivalenceProperties::new_with_orderings(marked_schema(&given), orderings),
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

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        // The first column of the order is the device: all readings of an identity are in its plan partition.
        let device = Arc::clone(&self.order[0].expr);
        InputDistributionRequirements::new(vec![Distribution::KeyPartitioned(vec![device])])
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

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self::new(input)?)),
            _ => Err(DataFusionError::Internal("DedupExec has one input".to_owned())),
        }
    }

    fn execute(&self, plan_partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(plan_partition, context)?;
        let (schema, mut deduplicator) = (self.schema(), Deduplicator::default());
        let marked =
            input.map(move |batch| batch.and_then(|batch| with_novelty(&batch, &schema, &mut deduplicator)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), marked)))
    }
}

/// The columns of a batch, and [`NOVELTY`] as the last one.
pub(crate) fn marked_schema(given: &Schema) -> SchemaRef {
    let fields = given.fields().iter().cloned();
    let fields = fields.chain([Arc::new(Field::new(NOVELTY, DataType::UInt8, false))]);
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

/// A batch with its novelty as the last column.
fn with_novelty(
    batch: &RecordBatch,
    schema: &SchemaRef,
    deduplicator: &mut Deduplicator,
) -> Result<RecordBatch> {
    let novelty = deduplicator.mark(batch).map_err(|error| DataFusionError::External(error.into()))?;
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(UInt8Array::from(novelty)));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

#[cfg(test)]
mod tests;

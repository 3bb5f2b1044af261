//! From a batch of readings to contributions: the expressions of every definition, evaluated on Arrow batches.
//!
//! A reading that an expression fails on adds nothing to the metric, and is reported; the other readings are computed.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, RecordBatch,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{cast, take, take_record_batch};
use arrow::datatypes::{DataType, Float64Type, Int32Type};
use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::PhysicalExpr;
use wye_domain::DomainError;
use wye_domain::reading::{ReadingColumns, column, text_type};
use wye_domain::registry::{CLOCK_TOLERANCE, DeviceNumber, Limits};
use wye_domain::series::SeriesTable;

use super::isolate::isolate;
use super::{MetricPlan, MetricPlans};
use crate::contribution::Contributions;
use crate::failures::FailedRow;

/// What the readings of a batch have in common for all definitions.
struct Shared<'a> {
    batch: &'a RecordBatch,
    columns: ReadingColumns<'a>,
    event_time: TimestampMicrosecondArray,
    device_id: ArrayRef,
    invalid: Arc<Option<Vec<bool>>>,
    numbers: Arc<Vec<Option<DeviceNumber>>>,
}

impl MetricPlans {
    /// Evaluates every definition on a batch that has the columns of a reading and `ingest_time`; the answers are in
    /// the order of [`MetricPlans::plans`]. New series get their ids from `series`.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn contributions(&self, batch: &RecordBatch, series: &mut SeriesTable) -> Result<Vec<Contributions>> {
        let batch = self.with_attributes(batch).map_err(external)?;
        let columns = ReadingColumns::of(&batch).map_err(external)?;
        let shared = Shared {
            batch: &batch,
            columns,
            event_time: column::<TimestampMicrosecondArray>(&batch, "event_time").map_err(external)?.clone(),
            device_id: column::<DictionaryArray<Int32Type>>(&batch, "device_id")
                .map(|device_id| Arc::new(device_id.clone()) as ArrayRef)
                .map_err(external)?,
            invalid: Arc::new(self.invalid(&columns, &batch).map_err(external)?),
            numbers: Arc::new(self.device_numbers(&columns)),
        };
        self.plans.iter().map(|plan| plan.contributions(&shared, series)).collect()
    }

    /// Which readings fail a check; `None` when none does.
    fn invalid(
        &self,
        columns: &ReadingColumns<'_>,
        batch: &RecordBatch,
    ) -> Result<Option<Vec<bool>>, DomainError> {
        let limits: Vec<Option<&Limits>> = columns
            .metric
            .words()
            .iter()
            .map(|word| self.registry.limits(word.unwrap_or_default()))
            .collect();
        let limited = limits.iter().any(Option::is_some);
        let ingest_time = column::<TimestampMicrosecondArray>(batch, "ingest_time")?.values();
        let mut invalid: Option<Vec<bool>> = None;
        for row in 0..batch.num_rows() {
            let implausible = limited
                && columns
                    .metric
                    .code(row)
                    .and_then(|code| limits[code])
                    .is_some_and(|limits| !limits.allow(columns.value[row], columns.unit.text(row)));
            if implausible || columns.event_time[row] > ingest_time[row].saturating_add(CLOCK_TOLERANCE.0) {
                invalid.get_or_insert_with(|| vec![false; batch.num_rows()])[row] = true;
            }
        }
        Ok(invalid)
    }

    /// The registry's numbers of the devices, by word of `device_id`; empty where no definition counts devices.
    fn device_numbers(&self, columns: &ReadingColumns<'_>) -> Vec<Option<DeviceNumber>> {
        if self.plans.iter().all(|plan| !plan.needs.devices) {
            return Vec::new();
        }
        columns.device_id.words().iter().map(|word| self.counted_device(word?)).collect()
    }

    /// The registry's number of a device, if readings are expected of it.
    fn counted_device(&self, device_id: &str) -> Option<DeviceNumber> {
        let device = self.registry.device(device_id)?;
        device.schedule.as_ref().map(|_| device.number)
    }
}

impl MetricPlan {
    fn contributions(&self, shared: &Shared<'_>, series: &mut SeriesTable) -> Result<Contributions> {
        let batch = shared.batch;
        let evaluated = match self.evaluate(batch) {
            Ok(evaluated) => evaluated,
            Err(_) => self.evaluate_row_by_row(batch)?,
        };
        let Evaluated { keep, value, dimensions, mut failed } = evaluated;
        failed.extend(not_finite(&value, keep.as_ref()));
        failed.sort_by_key(|failed| failed.row);
        let series = self.series(&shared.columns, &dimensions, keep.as_ref(), series).map_err(external)?;
        Ok(Contributions {
            needs: self.needs,
            failed,
            value,
            event_time: shared.event_time.clone(),
            series,
            keep,
            invalid: Arc::clone(&shared.invalid),
            window: self.definition.window,
            device_id: Arc::clone(&shared.device_id),
            numbers: Arc::clone(&shared.numbers),
        })
    }

    /// Evaluates on all rows at once.
    fn evaluate(&self, batch: &RecordBatch) -> Result<Evaluated> {
        let rows = batch.num_rows();
        let keep = match &self.filter {
            None => None,
            Some(filter) => Some(filter.evaluate(batch)?.into_array(rows)?.as_boolean().clone()),
        };
        let value = as_numbers(&self.value.evaluate(batch)?.into_array(rows)?)?;
        let dimensions =
            self.dimensions.iter().map(|dimension| as_text(dimension.evaluate(batch)?.into_array(rows)?));
        Ok(Evaluated { keep, value, dimensions: dimensions.collect::<Result<_>>()?, failed: Vec::new() })
    }

    /// The same where an expression fails: first which rows are wanted, then what they give. A row that is not wanted
    /// cannot fail.
    fn evaluate_row_by_row(&self, batch: &RecordBatch) -> Result<Evaluated> {
        let mut wanted = Wanted::new(self.filter.as_ref(), batch)?;
        let value = as_numbers(&wanted.answers(&self.value)?)?;
        let dimensions = self.dimensions.iter().map(|dimension| as_text(wanted.answers(dimension)?));
        let dimensions = dimensions.collect::<Result<_>>()?;
        let failed = wanted.messages.into_iter().enumerate();
        let failed = failed.filter_map(|(row, message)| Some(FailedRow { row, message: message? }));
        let keep = Some(BooleanArray::from(wanted.keep));
        Ok(Evaluated { keep, value, dimensions, failed: failed.collect() })
    }
}

/// The rows of a batch that a definition wants and does not fail on, as far as it was evaluated.
struct Wanted {
    /// By row of the batch.
    keep: Vec<bool>,
    /// By row of the batch: why an expression fails on it.
    messages: Vec<Option<Arc<str>>>,
    /// The rows that the filter keeps.
    kept: Vec<u32>,
    /// These rows as a batch.
    batch: RecordBatch,
    /// By row of the whole batch: its place among the kept ones.
    place: UInt32Array,
}

impl Wanted {
    fn new(filter: Option<&Arc<dyn PhysicalExpr>>, batch: &RecordBatch) -> Result<Self> {
        let rows = batch.num_rows();
        let mut messages: Vec<Option<Arc<str>>> = vec![None; rows];
        let mut keep = vec![true; rows];
        if let Some(filter) = filter {
            let found = isolate(filter, batch)?;
            let answers = found.answers.as_boolean();
            keep = (0..rows).map(|row| answers.is_valid(row) && answers.value(row)).collect();
            found.failed.into_iter().for_each(|failed| messages[failed.row] = Some(failed.message));
        }
        let kept: Vec<u32> = (0..rows as u32).filter(|row| keep[*row as usize]).collect();
        let mut place: Vec<Option<u32>> = vec![None; rows];
        (0..).zip(&kept).for_each(|(at, row)| place[*row as usize] = Some(at));
        let batch = take_record_batch(batch, &UInt32Array::from(kept.clone()))?;
        Ok(Self { keep, messages, kept, batch, place: UInt32Array::from(place) })
    }

    /// The answers of an expression by row of the whole batch; null where it fails and where a row is not kept.
    fn answers(&mut self, expression: &Arc<dyn PhysicalExpr>) -> Result<ArrayRef> {
        let found = isolate(expression, &self.batch)?;
        for failed in found.failed {
            let row = self.kept[failed.row] as usize;
            self.keep[row] = false;
            self.messages[row].get_or_insert(failed.message);
        }
        Ok(take(&found.answers, &self.place, None)?)
    }
}

/// The expressions of a definition on a batch.
struct Evaluated {
    keep: Option<BooleanArray>,
    value: Float64Array,
    dimensions: Vec<ArrayRef>,
    failed: Vec<FailedRow>,
}

fn as_numbers(answers: &ArrayRef) -> Result<Float64Array> {
    Ok(cast(answers, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
}

fn as_text(answers: ArrayRef) -> Result<ArrayRef> {
    if answers.data_type() == &text_type() {
        return Ok(answers);
    }
    Ok(cast(&cast(&answers, &DataType::Utf8)?, &text_type())?)
}

/// The wanted rows whose value is infinite or NaN.
fn not_finite(value: &Float64Array, keep: Option<&BooleanArray>) -> Vec<FailedRow> {
    if value.values().iter().all(|value| value.is_finite()) {
        return Vec::new();
    }
    let rows = (0..value.len()).filter(|row| value.is_valid(*row) && !value.value(*row).is_finite());
    rows.filter(|row| keep.is_none_or(|keep| keep.is_valid(*row) && keep.value(*row)))
        .map(|row| FailedRow { row, message: format!("the value is {}", value.value(row)).into() })
        .collect()
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

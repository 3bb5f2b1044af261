//! Settled numbers that a run changes: compares the rows of a cell with those of the view before. Must not know how rows are
//! computed, nor commit anything.
//!
//! First only a digest of each old row is kept, and compared as the new rows are written. The old numbers are read again for the
//! rows that differ, mostly none.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::col;
use futures::TryStreamExt;
use hashbrown::{DefaultHashBuilder, HashMap};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use wye_domain::DomainError;
use wye_domain::batch;
use wye_domain::fingerprint;
use wye_domain::reading::{TextColumn, column};
use wye_domain::time::{Micros, Window};
use wye_metrics::definition::Aggregate;
use wye_metrics::plan::MetricPlans;
use wye_metrics::view_rows::ViewColumn;
use wye_tables::columns::{restatement_schema, time_literal};
use wye_tables::restatements::RestatementWriter;
use wye_tables::views::ViewSnapshot;

use crate::error::BatchError;

/// What new rows are compared with.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The view before.
    pub view: ViewSnapshot,
    /// Its windows that had ended by then were settled.
    pub settled_until: Micros,
    /// Why numbers may differ.
    pub cause: Cause,
    /// The ID of the run, for the rows.
    pub run_id: String,
    /// When the run started.
    pub started: Micros,
}

/// Why the numbers of a run may differ from those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Readings have come late, or were amended in these stretches of time.
    Readings(Vec<Window>),
    /// Other metric definitions or rules of acceptance.
    Definition,
    /// Another registry.
    Registry,
}

impl Cause {
    fn of(&self, window: Window) -> &'static str {
        match self {
            Self::Readings(amended) => {
                let is_amended = amended.iter().any(|at| at.start < window.end && window.start < at.end);
                if is_amended { "amendment" } else { "late_readings" }
            }
            Self::Definition => "definition",
            Self::Registry => "registry",
        }
    }

    /// Whether it is a change that a number is not there any more: other definitions make other windows.
    fn counts_gone(&self) -> bool {
        matches!(self, Self::Readings(_))
    }
}

/// The fingerprint of a series, and the start of a window.
type Key = (u64, i64);

/// A number that has changed.
#[derive(Debug)]
struct Changed {
    metric_key: String,
    definition: String,
    metric: String,
    window: Window,
    old: Value,
    new: Option<Value>,
}

/// The place of a row: its batch, and its number in it.
type Place = (usize, usize);

/// The settled rows that the view before has in the place of a cell.
#[derive(Debug)]
pub(crate) struct OldRows {
    comparison: Arc<Comparison>,
    plans: Arc<MetricPlans>,
    hasher: DefaultHashBuilder,
    window: Window,
    /// By key: a digest of the numbers of the rows that were not met yet.
    digests: HashMap<Key, u64>,
    /// New rows that differ from old ones, and where they are by key.
    new_rows: Vec<RecordBatch>,
    changed: HashMap<Key, Place>,
}

/// The columns that digests are of. Where none of these numbers differs, no aggregate does.
const DIGESTED: [&str; 10] =
    ["count", "invalid", "conflicts", "sum_high", "m2", "min", "max", "first", "last", "confidence_score"];

impl OldRows {
    /// Reads the digests; `None` where no window of the cell was settled.
    pub(crate) async fn read(
        comparison: &Arc<Comparison>,
        plans: &Arc<MetricPlans>,
        window: Window,
        context: &Arc<TaskContext>,
    ) -> Result<Option<Self>, BatchError> {
        if window.start >= comparison.settled_until {
            return Ok(None);
        }
        let mut old = Self {
            comparison: Arc::clone(comparison),
            plans: Arc::clone(plans),
            hasher: DefaultHashBuilder::default(),
            window,
            digests: HashMap::new(),
            new_rows: Vec::new(),
            changed: HashMap::new(),
        };
        let key = [ViewColumn::Series, ViewColumn::WindowStart, ViewColumn::WindowEnd].map(ViewColumn::name);
        let columns: Vec<&str> = key.into_iter().chain(DIGESTED).collect();
        let mut rows = old.scan(&columns, context)?;
        while let Some(batch) = rows.try_next().await.map_err(BatchError::Compute)? {
            let digested = old.digested(&batch).map_err(wrong_shape)?;
            old.digests.extend(digested.into_iter().map(|(_, key, digest)| (key, digest)));
        }
        Ok(Some(old))
    }

    fn scan(
        &self,
        columns: &[&str],
        context: &Arc<TaskContext>,
    ) -> Result<datafusion::execution::SendableRecordBatchStream, BatchError> {
        let Comparison { view, settled_until, .. } = &*self.comparison;
        let filters = [
            col(ViewColumn::WindowStart.name()).gt_eq(time_literal(self.window.start)),
            col(ViewColumn::WindowStart.name()).lt(time_literal(self.window.end)),
            col(ViewColumn::WindowEnd.name()).lt_eq(time_literal(*settled_until)),
        ];
        let view = view.overlapping(self.window);
        let plan = view.scan(columns, &filters).map_err(BatchError::tables("read the batch view before"))?;
        execute_stream(plan, Arc::clone(context)).map_err(BatchError::Compute)
    }

    /// The settled rows of a batch with readings: row, key and digest.
    fn digested(&self, batch: &RecordBatch) -> Result<Vec<(usize, Key, u64)>, DomainError> {
        let series = TextColumn::of(batch, ViewColumn::Series.name())?;
        let names: Vec<u64> =
            series.words().iter().map(|word| fingerprint::of_text(word.unwrap_or_default())).collect();
        let [starts, ends] = [ViewColumn::WindowStart, ViewColumn::WindowEnd]
            .map(|name| column::<TimestampMicrosecondArray>(batch, name.name()));
        let (starts, ends) = (starts?.values(), ends?.values());
        let counts: &Int64Array = column(batch, "count")?;
        let numbers = DIGESTED.map(|name| {
            let array = batch.column_by_name(name).ok_or(DomainError::Shape { column: name })?;
            bits(array).ok_or(DomainError::Shape { column: name })
        });
        let numbers = numbers.into_iter().collect::<Result<Vec<Vec<u64>>, _>>()?;
        let is_settled =
            |row: &usize| ends[*row] <= self.comparison.settled_until.0 && counts.value(*row) > 0;
        let rows = (0..batch.num_rows()).filter(is_settled).filter_map(|row| {
            let digest = numbers.iter().fold(0, |digest, column| self.hasher.hash_one((digest, column[row])));
            Some((row, (names[series.code(row)?], starts[row]), digest))
        });
        Ok(rows.collect())
    }

    /// Compares rows that take the place of old ones.
    pub(crate) fn compare(&mut self, batch: &RecordBatch) -> Result<(), BatchError> {
        let mut rows = Vec::new();
        for (row, key, digest) in self.digested(batch).map_err(wrong_shape)? {
            // A number that was not there was not settled.
            if self.digests.remove(&key).is_some_and(|old| old != digest) {
                self.changed.insert(key, (self.new_rows.len(), rows.len()));
                rows.push(row as u32);
            }
        }
        if !rows.is_empty() {
            let names = self.columns().map(|name| batch.schema().index_of(name));
            let columns = names.collect::<Result<Vec<_>, _>>().and_then(|places| batch.project(&places));
            let taken = columns.and_then(|columns| take_record_batch(&columns, &UInt32Array::from(rows)));
            self.new_rows.push(taken.map_err(|error| BatchError::Compute(error.into()))?);
        }
        Ok(())
    }

    /// Once all new rows were compared: writes the rows of the table of restatements, and returns how many there are.
    pub(crate) async fn finish(
        mut self,
        context: &Arc<TaskContext>,
        writer: &Mutex<RestatementWriter>,
    ) -> Result<u64, BatchError> {
        if !self.comparison.cause.counts_gone() {
            self.digests.clear();
        }
        let mut restated = 0;
        if self.changed.is_empty() && self.digests.is_empty() {
            return Ok(restated);
        }
        let columns: Vec<&str> = self.columns().collect();
        let mut rows = self.scan(&columns, context)?;
        while let Some(batch) = rows.try_next().await.map_err(BatchError::Compute)? {
            let mut changed = Vec::new();
            for (row, key, _) in self.digested(&batch).map_err(wrong_shape)? {
                let new = self.changed.get(&key).map(|(at, row)| (&self.new_rows[*at], *row));
                if new.is_some() || self.digests.contains_key(&key) {
                    changed.push(self.described(&batch, row, new).map_err(wrong_shape)?);
                }
            }
            if !changed.is_empty() {
                restated += changed.len() as u64;
                let written = writer.lock().await.write(&rows_of(&self.comparison, &changed)).await;
                written.map_err(BatchError::tables("write restatements"))?;
            }
        }
        Ok(restated)
    }

    /// The columns that a row is described by.
    fn columns(&self) -> impl Iterator<Item = &'static str> {
        let names = [ViewColumn::Series, ViewColumn::WindowStart, ViewColumn::WindowEnd];
        let names =
            names.into_iter().chain([ViewColumn::MetricKey, ViewColumn::Definition, ViewColumn::Metric]);
        let aggregates = Aggregate::ALL.into_iter().map(Aggregate::name);
        let aggregates = aggregates.filter(|name| !DIGESTED.contains(name));
        names.map(ViewColumn::name).chain(DIGESTED).chain(aggregates)
    }

    /// An old row, and the new one in its place.
    fn described(
        &self,
        old: &RecordBatch,
        row: usize,
        new: Option<(&RecordBatch, usize)>,
    ) -> Result<Changed, DomainError> {
        let text =
            |name: ViewColumn| Ok(TextColumn::of(old, name.name())?.text(row).unwrap_or_default().to_owned());
        let time =
            |name: ViewColumn| Ok(Micros(column::<TimestampMicrosecondArray>(old, name.name())?.value(row)));
        let definition = text(ViewColumn::Definition)?;
        Ok(Changed {
            metric_key: text(ViewColumn::MetricKey)?,
            metric: text(ViewColumn::Metric)?,
            window: Window { start: time(ViewColumn::WindowStart)?, end: time(ViewColumn::WindowEnd)? },
            old: values(&self.plans, old, row, &definition),
            new: new.map(|(new, row)| values(&self.plans, new, row, &definition)),
            definition,
        })
    }
}

/// The numbers of a row: its count, the aggregates of its definition, and the score.
fn values(plans: &MetricPlans, batch: &RecordBatch, row: usize, definition: &str) -> Value {
    let listed = plans.find(definition).map(|plan| plan.definition().aggregates.clone()).unwrap_or_default();
    let names = Aggregate::ALL
        .into_iter()
        .filter(|aggregate| *aggregate == Aggregate::Count || listed.contains(aggregate));
    let names = names.map(Aggregate::name).chain([ViewColumn::ConfidenceScore.name()]);
    let values = names.filter_map(|name| Some((name.to_owned(), number(batch.column_by_name(name)?, row))));
    Value::Object(values.collect::<Map<String, Value>>())
}

fn number(array: &ArrayRef, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        _ => Value::Null,
    }
}

/// The bits of each number of a column, all ones where there is none; `None` where it has no numbers.
fn bits(array: &ArrayRef) -> Option<Vec<u64>> {
    let mut bits: Vec<u64> = match array.data_type() {
        DataType::Int64 => {
            array.as_primitive::<Int64Type>().values().iter().map(|value| value.cast_unsigned()).collect()
        }
        DataType::Float64 => {
            array.as_primitive::<Float64Type>().values().iter().map(|value| value.to_bits()).collect()
        }
        _ => return None,
    };
    for row in (0..bits.len()).filter(|row| array.is_null(*row)) {
        bits[row] = u64::MAX;
    }
    Some(bits)
}

fn rows_of(comparison: &Comparison, all: &[Changed]) -> RecordBatch {
    let texts = |text: &dyn Fn(&Changed) -> Option<String>| -> ArrayRef {
        Arc::new(all.iter().map(text).collect::<StringArray>())
    };
    let times = |time: &dyn Fn(&Changed) -> Micros| -> ArrayRef {
        let times = all.iter().map(|changed| time(changed).0);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let columns = vec![
        texts(&|_| Some(comparison.run_id.clone())),
        times(&|_| comparison.started),
        texts(&|changed| Some(changed.metric_key.clone())),
        texts(&|changed| Some(changed.definition.clone())),
        texts(&|changed| Some(changed.metric.clone())),
        times(&|changed| changed.window.start),
        times(&|changed| changed.window.end),
        texts(&|changed| Some(comparison.cause.of(changed.window).to_owned())),
        texts(&|changed| Some(changed.old.to_string())),
        texts(&|changed| changed.new.as_ref().map(Value::to_string)),
    ];
    batch::of_columns(restatement_schema(), columns)
}

fn wrong_shape(error: DomainError) -> BatchError {
    BatchError::Compute(datafusion::error::DataFusionError::External(error.into()))
}

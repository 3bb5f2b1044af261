//! Settled numbers that a run changes: compares the rows of a cell with those of the view before. Must not know how rows are
//! computed, nor commit anything.
//!
//! First only a digest of each old row is kept, and compared as the new rows are written. The numbers themselves are read again
//! for the rows that differ, mostly none.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::common::ScalarValue;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{Expr, col, lit};
use futures::TryStreamExt;
use hashbrown::{DefaultHashBuilder, HashMap};
use serde_json::{Map, Value};
use wye_domain::DomainError;
use wye_domain::batch;
use wye_domain::fingerprint;
use wye_domain::reading::{TextColumn, column};
use wye_domain::time::{Micros, Window};
use wye_metrics::definition::Aggregate;
use wye_metrics::plan::MetricPlans;
use wye_metrics::view_rows::ViewColumn;
use wye_tables::columns::restatement_schema;
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

    /// Whether a number that was not there, or is not there any more, is a change: other definitions make other windows.
    fn counts_absent(&self) -> bool {
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
    old: Option<Value>,
    new: Option<Value>,
}

/// The settled rows that the view before has in the place of a cell.
#[derive(Debug)]
pub(crate) struct OldRows {
    comparison: Arc<Comparison>,
    plans: Arc<MetricPlans>,
    hasher: DefaultHashBuilder,
    window: Window,
    /// By key: a digest of the numbers of the rows that were not met yet.
    digests: HashMap<Key, u64>,
    changed: HashMap<Key, Changed>,
}

/// The columns that digests are of. Where none of these numbers differs, no aggregate does.
const DIGESTED: [&str; 7] = ["count", "invalid", "conflicts", "sum_high", "m2", "last", "confidence_score"];

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
            col(ViewColumn::WindowStart.name()).gt_eq(time(self.window.start)),
            col(ViewColumn::WindowStart.name()).lt(time(self.window.end)),
            col(ViewColumn::WindowEnd.name()).lt_eq(time(*settled_until)),
        ];
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
        for (row, key, digest) in self.digested(batch).map_err(wrong_shape)? {
            let is_changed = match self.digests.remove(&key) {
                Some(old) => old != digest,
                None => self.comparison.cause.counts_absent(),
            };
            if is_changed {
                let mut changed = self.described(batch, row).map_err(wrong_shape)?;
                std::mem::swap(&mut changed.old, &mut changed.new);
                self.changed.insert(key, changed);
            }
        }
        Ok(())
    }

    /// The rows of the table of restatements, once all new rows were compared; `None` where nothing has changed.
    pub(crate) async fn finish(
        mut self,
        context: &Arc<TaskContext>,
    ) -> Result<Option<RecordBatch>, BatchError> {
        if !self.comparison.cause.counts_absent() {
            self.digests.clear();
        }
        if self.changed.is_empty() && self.digests.is_empty() {
            return Ok(None);
        }
        let columns: Vec<&str> = self.columns().collect();
        let mut rows = self.scan(&columns, context)?;
        while let Some(batch) = rows.try_next().await.map_err(BatchError::Compute)? {
            for (row, key, _) in self.digested(&batch).map_err(wrong_shape)? {
                if let Some(changed) = self.changed.get_mut(&key) {
                    changed.old = values(&self.plans, &batch, row, &changed.definition);
                } else if self.digests.contains_key(&key) {
                    let gone = self.described(&batch, row).map_err(wrong_shape)?;
                    self.changed.insert(key, gone);
                }
            }
        }
        let mut all: Vec<Changed> = self.changed.into_values().collect();
        all.sort_by(|a, b| (&a.metric_key, a.window.start).cmp(&(&b.metric_key, b.window.start)));
        Ok(Some(rows_of(&self.comparison, &all)))
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

    /// A row with its numbers as the old ones.
    fn described(&self, batch: &RecordBatch, row: usize) -> Result<Changed, DomainError> {
        let text = |name: ViewColumn| {
            Ok(TextColumn::of(batch, name.name())?.text(row).unwrap_or_default().to_owned())
        };
        let time = |name: ViewColumn| {
            Ok(Micros(column::<TimestampMicrosecondArray>(batch, name.name())?.value(row)))
        };
        let definition = text(ViewColumn::Definition)?;
        Ok(Changed {
            metric_key: text(ViewColumn::MetricKey)?,
            metric: text(ViewColumn::Metric)?,
            window: Window { start: time(ViewColumn::WindowStart)?, end: time(ViewColumn::WindowEnd)? },
            old: values(&self.plans, batch, row, &definition),
            new: None,
            definition,
        })
    }
}

/// The numbers of a row: its count, the aggregates of its definition, and the score.
fn values(plans: &MetricPlans, batch: &RecordBatch, row: usize, definition: &str) -> Option<Value> {
    let listed = plans.find(definition).map(|plan| plan.definition().aggregates.clone()).unwrap_or_default();
    let names = Aggregate::ALL
        .into_iter()
        .filter(|aggregate| *aggregate == Aggregate::Count || listed.contains(aggregate));
    let names = names.map(Aggregate::name).chain([ViewColumn::ConfidenceScore.name()]);
    let values = names.filter_map(|name| Some((name.to_owned(), number(batch.column_by_name(name)?, row))));
    Some(Value::Object(values.collect::<Map<String, Value>>()))
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

/// The bits of each number of a column; `None` where it has no numbers.
fn bits(array: &ArrayRef) -> Option<Vec<u64>> {
    let null = |row: usize| array.is_null(row);
    if let Some(numbers) = array.as_any().downcast_ref::<Int64Array>() {
        let values = numbers.values().iter().enumerate();
        return Some(
            values.map(|(row, value)| if null(row) { u64::MAX } else { value.cast_unsigned() }).collect(),
        );
    }
    let numbers = array.as_any().downcast_ref::<Float64Array>()?;
    let values = numbers.values().iter().enumerate();
    Some(values.map(|(row, value)| if null(row) { u64::MAX } else { value.to_bits() }).collect())
}

fn rows_of(comparison: &Comparison, all: &[Changed]) -> RecordBatch {
    let texts = |text: &dyn Fn(&Changed) -> Option<String>| -> ArrayRef {
        Arc::new(all.iter().map(text).collect::<StringArray>())
    };
    let times = |time: &dyn Fn(&Changed) -> Micros| -> ArrayRef {
        let times = all.iter().map(|changed| time(changed).0);
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let json = |value: &Option<Value>| value.as_ref().map(Value::to_string);
    let columns = vec![
        texts(&|_| Some(comparison.run_id.clone())),
        times(&|_| comparison.started),
        texts(&|changed| Some(changed.metric_key.clone())),
        texts(&|changed| Some(changed.definition.clone())),
        texts(&|changed| Some(changed.metric.clone())),
        times(&|changed| changed.window.start),
        times(&|changed| changed.window.end),
        texts(&|changed| Some(comparison.cause.of(changed.window).to_owned())),
        texts(&|changed| json(&changed.old)),
        texts(&|changed| json(&changed.new)),
    ];
    batch::of_columns(restatement_schema(), columns)
}

fn time(time: Micros) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(time.0), Some("UTC".into())))
}

fn wrong_shape(error: DomainError) -> BatchError {
    BatchError::Compute(datafusion::error::DataFusionError::External(error.into()))
}

//! From a batch of readings to contributions: which reading adds which value to which series and window.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch};
use arrow::compute::{cast, concat};
use arrow::datatypes::{DataType, Float64Type, TimestampMicrosecondType};
use datafusion::error::DataFusionError;
use hashbrown::HashMap;
use wye_domain::reading::{ReadingColumns, TextColumn, text_type};
use wye_domain::registry::{CLOCK_TOLERANCE, Limits};
use wye_domain::series::{SeriesId, SeriesKey, SeriesTable};
use wye_domain::sketches::Needs;
use wye_domain::time::WindowSize;

use super::{MetricPlan, MetricPlans};

/// What one reading adds to one series.
#[derive(Clone, Copy, Debug)]
pub struct Contribution {
    /// The row of the batch.
    pub row: usize,
    /// The series.
    pub series: SeriesId,
    /// Window start in µs.
    pub window_start: i64,
    /// The metric's value.
    pub value: f64,
    /// Event time in µs.
    pub event_time: i64,
    /// Whether the reading fails a check: unit, range, clock.
    pub invalid: bool,
}

/// What the readings of a batch add to the series of one definition.
#[derive(Debug)]
pub struct Contributions {
    /// Which sketches the definition's summaries carry.
    pub needs: Needs,
    value: Float64Array,
    event_time: arrow::array::TimestampMicrosecondArray,
    series: Vec<SeriesId>,
    keep: Option<BooleanArray>,
    invalid: Arc<Option<Vec<bool>>>,
    window: WindowSize,
}

impl Contributions {
    /// Visits the contribution of each row, in row order; rows outside the definition's `where` add nothing.
    #[inline]
    pub fn for_each(&self, mut visit: impl FnMut(Contribution)) {
        let size = self.window.micros();
        let event_times = self.event_time.values();
        let values = self.value.values();
        let (mut start, mut end) = (0i64, 0i64);
        for row in 0..values.len() {
            if self.keep.as_ref().is_some_and(|keep| keep.is_null(row) || !keep.value(row))
                || self.value.is_null(row)
            {
                continue;
            }
            let value = values[row];
            if !value.is_finite() {
                continue;
            }
            let event_time = event_times[row];
            if event_time < start || event_time >= end {
                start = self.window.start_of(event_time);
                end = start.saturating_add(size);
            }
            let invalid = self.invalid.as_ref().as_ref().is_some_and(|invalid| invalid[row]);
            visit(Contribution {
                row,
                series: self.series[row],
                window_start: start,
                value,
                event_time,
                invalid,
            });
        }
    }
}

impl MetricPlans {
    /// Evaluates every definition on a batch that has the columns of a reading and `ingest_time`. New series get
    /// their ids from `series`.
    ///
    /// # Errors
    /// When an expression fails on the data (a cast of text that is no number, say), or the batch lacks a column.
    pub fn contributions(
        &self,
        batch: &RecordBatch,
        series: &mut SeriesTable,
    ) -> Result<Vec<Contributions>, DataFusionError> {
        let batch = self.with_attributes(batch).map_err(external)?;
        let columns = ReadingColumns::of(&batch).map_err(external)?;
        let invalid = Arc::new(self.invalid(&columns, &batch));
        self.plans.iter().map(|plan| plan.contributions(&batch, &columns, series, &invalid)).collect()
    }

    /// Which readings fail a check; `None` when none does.
    fn invalid(&self, columns: &ReadingColumns<'_>, batch: &RecordBatch) -> Option<Vec<bool>> {
        let limits: Vec<Option<&Limits>> = columns
            .metric
            .words()
            .iter()
            .map(|word| self.registry.limits(word.unwrap_or_default()))
            .collect();
        let limited = limits.iter().any(Option::is_some);
        let ingest_time =
            batch.column_by_name("ingest_time")?.as_primitive_opt::<TimestampMicrosecondType>()?.values();
        let mut invalid: Option<Vec<bool>> = None;
        for row in 0..batch.num_rows() {
            let implausible = limited
                && columns
                    .metric
                    .code(row)
                    .and_then(|code| limits[code])
                    .is_some_and(|limits| !limits.allow(columns.value[row], columns.unit.text(row)));
            if implausible || columns.event_time[row] > ingest_time[row].saturating_add(CLOCK_TOLERANCE) {
                invalid.get_or_insert_with(|| vec![false; batch.num_rows()])[row] = true;
            }
        }
        invalid
    }
}

impl MetricPlan {
    fn contributions(
        &self,
        batch: &RecordBatch,
        columns: &ReadingColumns<'_>,
        series: &mut SeriesTable,
        invalid: &Arc<Option<Vec<bool>>>,
    ) -> Result<Contributions, DataFusionError> {
        let Evaluated { keep, value, dimensions } = self.evaluate_or_split(batch)?;
        let event_time = batch
            .column_by_name("event_time")
            .expect("the evaluation schema has event_time")
            .as_primitive::<TimestampMicrosecondType>()
            .clone();
        let series = self.series(columns, &dimensions, keep.as_ref(), series);
        Ok(Contributions {
            needs: self.definition.needs(),
            value,
            event_time,
            series,
            keep,
            invalid: Arc::clone(invalid),
            window: self.definition.window,
        })
    }

    /// Evaluates the expressions. Where one fails on the data (a cast of a text that is no number, say), the batch is
    /// split until the readings at fault stand alone: they add nothing to this metric, all others do.
    fn evaluate_or_split(&self, batch: &RecordBatch) -> Result<Evaluated, DataFusionError> {
        let rows = batch.num_rows();
        match self.evaluate(batch) {
            Ok(evaluated) => Ok(evaluated),
            Err(_) if rows > 1 => {
                let (head, tail) = (batch.slice(0, rows / 2), batch.slice(rows / 2, rows - rows / 2));
                Evaluated::concat(
                    &self.evaluate_or_split(&compact(&head)?)?,
                    &self.evaluate_or_split(&compact(&tail)?)?,
                )
            }
            Err(_) => Ok(Evaluated {
                keep: Some(BooleanArray::from(vec![false; rows])),
                value: Float64Array::from(vec![None; rows]),
                dimensions: self
                    .dimensions
                    .iter()
                    .map(|_| arrow::array::new_null_array(&text_type(), rows))
                    .collect(),
            }),
        }
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<Evaluated, DataFusionError> {
        let rows = batch.num_rows();
        let keep = match &self.filter {
            None => None,
            Some(filter) => Some(filter.evaluate(batch)?.into_array(rows)?.as_boolean().clone()),
        };
        let value = self.value.evaluate(batch)?.into_array(rows)?;
        let value = cast(&value, &DataType::Float64)?.as_primitive::<Float64Type>().clone();
        let mut dimensions: Vec<ArrayRef> = Vec::with_capacity(self.dimensions.len());
        for dimension in &self.dimensions {
            let column = dimension.evaluate(batch)?.into_array(rows)?;
            dimensions.push(if column.data_type() == &text_type() {
                column
            } else {
                cast(&cast(&column, &DataType::Utf8)?, &text_type())?
            });
        }
        Ok(Evaluated { keep, value, dimensions })
    }

    /// The series of each row. Rows are first numbered by their combination of dictionary codes, so that each
    /// combination's texts are looked at once a batch.
    fn series(
        &self,
        columns: &ReadingColumns<'_>,
        dimensions: &[ArrayRef],
        keep: Option<&BooleanArray>,
        table: &mut SeriesTable,
    ) -> Vec<SeriesId> {
        let rows = columns.value.len();
        let texts: Vec<TextColumn<'_>> = dimensions
            .iter()
            .map(|column| TextColumn::of_array(column).expect("dimensions were cast to dictionaries of text"))
            .collect();
        let mut parts: Vec<TextColumn<'_>> = texts.clone();
        if self.definition.is_family() {
            parts.push(columns.metric);
        }
        let mut combination = vec![0u32; rows];
        let mut combinations = 1usize;
        for part in &parts {
            combinations = number_pairs(&mut combination, combinations, part);
        }
        let mut known: Vec<Option<SeriesId>> = vec![None; combinations];
        let definition: Arc<str> = self.definition.name.as_str().into();
        let mut ids = Vec::with_capacity(rows);
        for (row, combination) in combination.iter().enumerate() {
            let slot = &mut known[*combination as usize];
            let kept = keep.is_none_or(|keep| !keep.is_null(row) && keep.value(row));
            let id = match slot {
                Some(id) => *id,
                None if !kept => SeriesId(0),
                None => {
                    let metric = if self.definition.is_family() {
                        columns.metric.text(row).unwrap_or_default().into()
                    } else {
                        definition.clone()
                    };
                    let group = texts.iter().map(|text| text.text(row).map(Arc::from)).collect();
                    *slot.insert(table.id(SeriesKey { definition: definition.clone(), metric, group }))
                }
            };
            ids.push(id);
        }
        ids
    }
}

/// The batch with no words in its dictionaries but those of its rows: an expression is evaluated on all words.
fn compact(batch: &RecordBatch) -> Result<RecordBatch, DataFusionError> {
    let columns = batch.columns().iter().map(|column| {
        if column.data_type() == &text_type() {
            cast(&cast(column, &DataType::Utf8)?, &text_type())
        } else {
            Ok(Arc::clone(column))
        }
    });
    Ok(RecordBatch::try_new(batch.schema(), columns.collect::<Result<_, _>>()?)?)
}

/// The expressions of a definition on a batch.
struct Evaluated {
    keep: Option<BooleanArray>,
    value: Float64Array,
    dimensions: Vec<ArrayRef>,
}

impl Evaluated {
    fn concat(head: &Self, tail: &Self) -> Result<Self, DataFusionError> {
        let keep = |part: &Self| {
            part.keep.clone().unwrap_or_else(|| BooleanArray::from(vec![true; part.value.len()]))
        };
        let dimensions = head
            .dimensions
            .iter()
            .zip(&tail.dimensions)
            .map(|(head, tail)| concat(&[head.as_ref(), tail.as_ref()]))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            keep: Some(concat(&[&keep(head), &keep(tail)])?.as_boolean().clone()),
            value: concat(&[&head.value, &tail.value])?.as_primitive::<Float64Type>().clone(),
            dimensions,
        })
    }
}

/// Numbers the pairs (number so far, code of the next column) from 0; gives how many there can be.
fn number_pairs(numbers: &mut [u32], count: usize, part: &TextColumn<'_>) -> usize {
    let words = part.words().len() + 1;
    let code = |row: usize| part.code(row).map_or(words - 1, |code| code);
    if count.saturating_mul(words) <= 1 << 16 {
        for (row, number) in numbers.iter_mut().enumerate() {
            *number = (*number as usize * words + code(row)) as u32;
        }
        return count * words;
    }
    let mut pairs: HashMap<(u32, u32), u32, foldhash::fast::RandomState> = HashMap::default();
    let mut last = ((u32::MAX, u32::MAX), 0);
    for (row, number) in numbers.iter_mut().enumerate() {
        let pair = (*number, code(row) as u32);
        if last.0 != pair {
            let next = pairs.len() as u32;
            last = (pair, *pairs.entry(pair).or_insert(next));
        }
        *number = last.1;
    }
    pairs.len().max(1)
}

fn external(error: wye_domain::DomainError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

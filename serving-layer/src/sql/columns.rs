//! The columns of the merged tables: their names and types, what of a batch view each needs, and how they are computed,
//! column by column from rows of a view, or row by row from merged answers.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Decimal128Builder, DictionaryArray, Float64Array, Int32Array,
    Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::{kernels::boolean, nullif};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use wye_domain::DomainError;
use wye_domain::reading::{TextBuilder, TextColumn, text_type, time_type};
use wye_metrics::definition::Aggregate;

use crate::directory::{Directory, SeriesInfo};
use wye_metrics::finish::{self, numbers, of_rows, stored_columns};
use wye_metrics::merge::{Answer, Source};

/// Digits of a confidence score, and how many of them are decimals.
const SCORE: (u8, i8) = (3, 2);

/// A column of a merged table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    MetricKey,
    Definition,
    Metric,
    /// The n-th dimension of all.
    Dimension(usize),
    WindowStart,
    WindowEnd,
    /// Null where the definition does not list it; the count is always there.
    Aggregate(Aggregate),
    FirstTime,
    LastTime,
    Source,
    ConfidenceScore,
    Completeness,
    Validity,
    Expected,
    ExpectedSource,
    State,
    /// The last value, whatever the definition lists.
    CurrentValue,
    DataPoints,
    LastUpdated,
}

impl Column {
    pub(crate) fn field(self, directory: &Directory) -> Field {
        let text = |name: &str, null| Field::new(name, text_type(), null);
        let number = |name: &str| Field::new(name, DataType::Float64, true);
        let time = |name: &str| Field::new(name, time_type(), false);
        match self {
            Self::MetricKey => text("metric_key", false),
            Self::Definition => text("definition", false),
            Self::Metric => text("metric", false),
            Self::Dimension(place) => text(&directory.dimensions()[place], true),
            Self::WindowStart => time("window_start"),
            Self::WindowEnd => time("window_end"),
            Self::Aggregate(Aggregate::Count) => Field::new("count", DataType::Int64, false),
            Self::Aggregate(Aggregate::DistinctDevices) => {
                Field::new("distinct_devices", DataType::Int64, true)
            }
            Self::Aggregate(aggregate) => number(aggregate.name()),
            Self::FirstTime => time("first_time"),
            Self::LastTime => time("last_time"),
            Self::Source => text("source", false),
            Self::ConfidenceScore => {
                Field::new("confidence_score", DataType::Decimal128(SCORE.0, SCORE.1), false)
            }
            Self::Completeness => number("completeness"),
            Self::Validity => number("validity"),
            Self::Expected => number("expected"),
            Self::ExpectedSource => text("expected_source", false),
            Self::State => text("state", false),
            Self::CurrentValue => number("current_value"),
            Self::DataPoints => Field::new("data_points", DataType::Int64, false),
            Self::LastUpdated => time("last_updated"),
        }
    }

    /// Whether it is a function of the series and the window alone, so that rows can be chosen by it before the merge.
    pub(crate) fn is_key(self) -> bool {
        self.is_of_series() || matches!(self, Self::WindowStart | Self::WindowEnd)
    }

    /// Whether it is a function of the series alone.
    pub(crate) fn is_of_series(self) -> bool {
        matches!(self, Self::MetricKey | Self::Definition | Self::Metric | Self::Dimension(_))
    }

    /// The columns of a view that the column is computed from, for rows that are in the view alone.
    pub(crate) fn stored(self, directory: &Directory) -> Vec<&str> {
        match self {
            Self::Dimension(place) => vec![&directory.dimensions()[place]],
            Self::MetricKey => vec!["metric_key"],
            Self::Definition => vec!["definition"],
            Self::Metric => vec!["metric"],
            Self::WindowStart => vec!["window_start"],
            Self::WindowEnd => vec!["window_end"],
            Self::Aggregate(aggregate) => stored_columns(aggregate).to_vec(),
            Self::FirstTime => vec!["first_time"],
            Self::LastTime | Self::LastUpdated => vec!["last_time"],
            Self::Source => vec![],
            Self::ConfidenceScore => vec!["confidence_score"],
            Self::Completeness => vec!["completeness"],
            Self::Validity => vec!["validity"],
            Self::Expected => vec!["expected"],
            Self::ExpectedSource => vec!["expected_source"],
            Self::State => vec!["state"],
            Self::CurrentValue => vec!["last"],
            Self::DataPoints => vec!["count"],
        }
    }

    /// What is needed of a view on top of [`Column::stored`] to merge its row with others.
    pub(crate) fn merged_from(self) -> &'static [&'static str] {
        match self {
            Self::Aggregate(Aggregate::First) | Self::FirstTime => &["first", "first_time"],
            Self::Aggregate(Aggregate::Last) | Self::LastTime | Self::CurrentValue | Self::LastUpdated => {
                &["last", "last_time"]
            }
            Self::ConfidenceScore | Self::Completeness | Self::Validity | Self::Expected => {
                &["invalid", "conflicts", "device_counts"]
            }
            _ => &[],
        }
    }
}

/// The schema of some columns.
pub(crate) fn schema(columns: &[Column], directory: &Directory) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(|column| column.field(directory)).collect::<Vec<_>>()))
}

/// Computes columns.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    pub(crate) directory: Arc<Directory>,
    pub(crate) columns: Vec<Column>,
    pub(crate) schema: SchemaRef,
}

impl Builder {
    pub(crate) fn new(directory: Arc<Directory>, columns: Vec<Column>) -> Self {
        let schema = schema(&columns, &directory);
        Self { directory, columns, schema }
    }

    /// From merged answers.
    pub(crate) fn answers(&self, answers: &[(Arc<SeriesInfo>, Answer)]) -> RecordBatch {
        let arrays = self.columns.iter().map(|column| self.of_answers(*column, answers)).collect();
        self.batch(arrays, answers.len())
    }

    /// From rows of a view that stand alone; all of them have readings.
    pub(crate) fn view(&self, rows: &RecordBatch) -> Result<RecordBatch, DomainError> {
        let arrays =
            self.columns.iter().map(|column| self.of_view(*column, rows)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.batch(arrays, rows.num_rows()))
    }

    /// The places of the definitions that do not list an aggregate.
    fn unlisted(&self, aggregate: Aggregate) -> Vec<usize> {
        let plans = self.directory.plans().plans().iter().enumerate();
        plans
            .filter(|(_, plan)| {
                aggregate != Aggregate::Count && !plan.definition().aggregates.contains(&aggregate)
            })
            .map(|(place, _)| place)
            .collect()
    }

    /// Whether `definition` has to be read to know which aggregates are listed.
    pub(crate) fn masks(&self) -> bool {
        self.columns.iter().any(|column| match column {
            Column::Aggregate(aggregate) => {
                let unlisted = self.unlisted(*aggregate).len();
                unlisted > 0 && unlisted < self.directory.plans().plans().len()
            }
            _ => false,
        })
    }

    fn batch(&self, arrays: Vec<ArrayRef>, rows: usize) -> RecordBatch {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .expect("every column is made with its type and length")
    }

    fn of_answers(&self, column: Column, answers: &[(Arc<SeriesInfo>, Answer)]) -> ArrayRef {
        let numbers = |value: &dyn Fn(&SeriesInfo, &Answer) -> Option<f64>| -> ArrayRef {
            Arc::new(answers.iter().map(|(info, answer)| value(info, answer)).collect::<Float64Array>())
        };
        let times = |value: &dyn Fn(&Answer) -> i64| -> ArrayRef {
            let values = answers.iter().map(|(_, answer)| value(answer));
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
        };
        fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
            let mut builder = TextBuilder::default();
            values.for_each(|value| builder.append(value));
            builder.finish()
        }
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        match column {
            Column::MetricKey => texts(answers.iter().map(|(info, _)| Some(info.metric_key.as_str()))),
            Column::Definition => texts(answers.iter().map(|(info, _)| Some(&*info.key.definition))),
            Column::Metric => texts(answers.iter().map(|(info, _)| Some(&*info.key.metric))),
            Column::Dimension(place) => {
                texts(answers.iter().map(|(info, _)| self.directory.dimension(info, place)))
            }
            Column::WindowStart => times(&|answer| answer.window_start),
            Column::WindowEnd => times(&|answer| answer.window_end),
            Column::Aggregate(Aggregate::Count) | Column::DataPoints => Arc::new(
                Int64Array::from_iter_values(answers.iter().map(|(_, answer)| whole(answer.summary.count))),
            ),
            Column::Aggregate(Aggregate::DistinctDevices) => {
                let unlisted = self.unlisted(Aggregate::DistinctDevices);
                let values = answers.iter().map(|(info, answer)| {
                    answer
                        .summary
                        .distinct_devices()
                        .filter(|_| !unlisted.contains(&info.definition))
                        .map(whole)
                });
                Arc::new(values.collect::<Int64Array>())
            }
            Column::Aggregate(aggregate) => {
                let unlisted = self.unlisted(aggregate);
                numbers(&|info, answer| {
                    aggregate.finish(&answer.summary).filter(|_| !unlisted.contains(&info.definition))
                })
            }
            Column::FirstTime => times(&|answer| answer.summary.first.event_time),
            Column::LastTime | Column::LastUpdated => times(&|answer| answer.summary.last.event_time),
            Column::Source => texts(answers.iter().map(|(_, answer)| Some(answer.source.name()))),
            Column::ConfidenceScore => {
                scores(answers.iter().map(|(_, answer)| answer.scored.confidence.score))
            }
            Column::Completeness => numbers(&|_, answer| Some(answer.scored.confidence.completeness)),
            Column::Validity => numbers(&|_, answer| Some(answer.scored.confidence.validity)),
            Column::Expected => numbers(&|_, answer| answer.scored.confidence.expected),
            Column::ExpectedSource => {
                texts(answers.iter().map(|(_, answer)| Some(answer.scored.expected_source.name())))
            }
            Column::State => texts(answers.iter().map(|(_, answer)| Some(answer.state.name()))),
            Column::CurrentValue => numbers(&|_, answer| Some(answer.summary.last.value)),
        }
    }

    fn of_view(&self, column: Column, rows: &RecordBatch) -> Result<ArrayRef, DomainError> {
        match column {
            Column::Source => Ok(constant(Source::Batch.name(), rows.num_rows())),
            Column::ConfidenceScore => {
                Ok(scores(numbers(rows, "confidence_score")?.values().iter().copied()))
            }
            Column::Aggregate(Aggregate::Count) => finish::column(rows, "count").cloned(),
            Column::Aggregate(aggregate) => {
                let unlisted = self.unlisted(aggregate);
                if unlisted.len() == self.directory.plans().plans().len() {
                    let data_type = column.field(&self.directory).data_type().clone();
                    return Ok(arrow::array::new_null_array(&data_type, rows.num_rows()));
                }
                let values = of_rows(aggregate, rows)?;
                if unlisted.is_empty() {
                    return Ok(values);
                }
                let mask = self.in_definitions(rows, &unlisted)?;
                Ok(nullif(&values, &mask).expect("the mask has the length of the values"))
            }
            other => match other.stored(&self.directory).as_slice() {
                [name] => finish::column(rows, name).cloned(),
                _ => Err(DomainError::Shape { column: "of a merged table" }),
            },
        }
    }

    /// Which rows belong to some definitions.
    fn in_definitions(&self, rows: &RecordBatch, places: &[usize]) -> Result<BooleanArray, DomainError> {
        let definition = TextColumn::of(rows, "definition")?;
        let names: Vec<&str> =
            places.iter().map(|place| self.directory.definition(*place).name.as_str()).collect();
        let among: Vec<bool> =
            definition.words().iter().map(|word| word.is_some_and(|word| names.contains(&word))).collect();
        let rows = 0..rows.num_rows();
        let mask: BooleanArray =
            rows.map(|row| Some(definition.code(row).is_some_and(|code| among[code]))).collect();
        Ok(mask)
    }
}

/// Which rows of a view have readings; `None` when all have.
pub(crate) fn filled(rows: &RecordBatch) -> Result<Option<BooleanArray>, DomainError> {
    let counts = wye_metrics::view_rows::reader::count(rows)?;
    if counts.values().iter().all(|count| *count > 0) {
        return Ok(None);
    }
    Ok(Some(counts.values().iter().map(|count| Some(*count > 0)).collect()))
}

/// Rows of a view without some of them.
pub(crate) fn without(rows: &RecordBatch, left_out: &[bool]) -> RecordBatch {
    let left_out = BooleanArray::from(left_out.to_vec());
    let kept = boolean::not(&left_out).expect("negation never fails");
    arrow::compute::filter_record_batch(rows, &kept).expect("the mask has the length of the rows")
}

/// Scores in `[0, 1]` with two decimals.
pub(crate) fn scores(values: impl Iterator<Item = f64>) -> ArrayRef {
    let mut builder = Decimal128Builder::new();
    values.for_each(|score| builder.append_value((score.clamp(0.0, 1.0) * 100.0).round() as i128));
    let scores: Decimal128Array = builder.finish();
    Arc::new(scores.with_precision_and_scale(SCORE.0, SCORE.1).expect("scores are at most 1.00"))
}

/// One word in every row.
fn constant(word: &str, rows: usize) -> ArrayRef {
    let keys = Int32Array::from(vec![0; rows]);
    Arc::new(DictionaryArray::new(keys, Arc::new(StringArray::from(vec![word]))))
}

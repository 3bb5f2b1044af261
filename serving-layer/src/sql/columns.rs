//! The columns of the merged tables: their names and types, the columns of a batch view that each is computed from, and
//! how it is computed: column by column from rows of a batch view, or row by row from merged answers.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Builder, DictionaryArray, Float64Array, Int32Array, Int64Array,
    RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::nullif;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::error::Result;
use wye_domain::DomainError;
use wye_domain::reading::{TextBuilder, TextColumn, text_type, time_type};
use wye_domain::summary_columns::SummaryColumn;
use wye_domain::time::Micros;
use wye_metrics::definition::Aggregate;
use wye_metrics::finish;
use wye_metrics::merge::{Answer, Judge, Source};
use wye_metrics::view_rows::{ViewColumn, judged};

use super::messages::external;
use crate::directory::{Directory, SeriesInfo};

/// Confidence scores have three digits, two of them decimals.
const SCORE_TYPE: DataType = DataType::Decimal128(3, 2);

/// A series with its answer in one window.
pub(super) type SeriesAnswer = (Arc<SeriesInfo>, Answer);

/// A column of a merged table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    MetricKey,
    Definition,
    Metric,
    /// By its index in [`Directory::dimensions`].
    Dimension(usize),
    WindowStart,
    WindowEnd,
    /// Null where the definition does not list it; every definition has a count.
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
    /// The last value, even where the definition does not list it.
    CurrentValue,
    DataPoints,
    LastUpdated,
}

impl Column {
    /// How far a row can be trusted.
    pub(super) const CONFIDENCE: [Self; 7] = [
        Self::Source,
        Self::ConfidenceScore,
        Self::Completeness,
        Self::Validity,
        Self::Expected,
        Self::ExpectedSource,
        Self::State,
    ];

    /// The name in SQL.
    pub(super) fn name(self, directory: &Directory) -> &str {
        match self {
            Self::MetricKey => ViewColumn::MetricKey.name(),
            Self::Definition => ViewColumn::Definition.name(),
            Self::Metric => ViewColumn::Metric.name(),
            Self::Dimension(index) => &directory.dimensions()[index],
            Self::WindowStart => ViewColumn::WindowStart.name(),
            Self::WindowEnd => ViewColumn::WindowEnd.name(),
            Self::Aggregate(aggregate) => aggregate.name(),
            Self::FirstTime => SummaryColumn::FirstTime.name(),
            Self::LastTime => SummaryColumn::LastTime.name(),
            Self::Source => "source",
            Self::ConfidenceScore => ViewColumn::ConfidenceScore.name(),
            Self::Completeness => ViewColumn::Completeness.name(),
            Self::Validity => ViewColumn::Validity.name(),
            Self::Expected => ViewColumn::Expected.name(),
            Self::ExpectedSource => ViewColumn::ExpectedSource.name(),
            Self::State => "state",
            Self::CurrentValue => "current_value",
            Self::DataPoints => "data_points",
            Self::LastUpdated => "last_updated",
        }
    }

    fn field(self, directory: &Directory) -> Field {
        let (data_type, nullable) = match self {
            Self::MetricKey
            | Self::Definition
            | Self::Metric
            | Self::Source
            | Self::ExpectedSource
            | Self::State => (text_type(), false),
            Self::Dimension(_) => (text_type(), true),
            Self::WindowStart | Self::WindowEnd => (time_type(), false),
            Self::FirstTime | Self::LastTime | Self::LastUpdated => (time_type(), true),
            Self::Aggregate(Aggregate::Count) | Self::DataPoints => (DataType::Int64, false),
            Self::Aggregate(Aggregate::DistinctDevices) => (DataType::Int64, true),
            Self::ConfidenceScore => (SCORE_TYPE, false),
            Self::Aggregate(_)
            | Self::Completeness
            | Self::Validity
            | Self::Expected
            | Self::CurrentValue => (DataType::Float64, true),
        };
        Field::new(self.name(directory), data_type, nullable)
    }

    /// Whether the series and the window alone determine it, so that rows can be selected by it before the merge.
    pub(super) fn is_key(self) -> bool {
        self.is_of_series() || matches!(self, Self::WindowStart | Self::WindowEnd)
    }

    /// Whether the series alone determines it.
    pub(super) fn is_of_series(self) -> bool {
        matches!(self, Self::MetricKey | Self::Definition | Self::Metric | Self::Dimension(_))
    }

    /// The columns of a batch view that it is computed from, for rows that are in the batch view only.
    pub(super) fn stored(self, directory: &Directory) -> Vec<&str> {
        match self {
            Self::Aggregate(aggregate) => vec![aggregate.name()],
            Self::Source => vec![],
            Self::CurrentValue => vec![SummaryColumn::Last.name()],
            Self::DataPoints => vec![SummaryColumn::Count.name()],
            Self::LastUpdated => vec![SummaryColumn::LastTime.name()],
            Self::ConfidenceScore => judged::OF_SCORES.to_vec(),
            Self::Completeness => judged::OF_COMPLETENESS.to_vec(),
            Self::State => judged::OF_STATES.to_vec(),
            column => vec![column.name(directory)],
        }
    }

    /// The columns of a batch view's summaries that merging them needs.
    pub(super) fn merged_from(self) -> &'static [SummaryColumn] {
        use SummaryColumn as S;
        match self {
            Self::Aggregate(aggregate) => match aggregate {
                Aggregate::Count => &[S::Count],
                Aggregate::Sum => &[S::SumHigh, S::SumLow],
                Aggregate::Avg => &[S::SumHigh, S::SumLow, S::Count],
                Aggregate::Min => &[S::Min],
                Aggregate::Max => &[S::Max],
                Aggregate::Stddev => &[S::M2, S::SumHigh, S::SumLow, S::Count],
                Aggregate::First => &[S::First, S::FirstTime],
                Aggregate::Last => &[S::Last, S::LastTime],
                Aggregate::P50 | Aggregate::P95 | Aggregate::P99 => &[S::Quantiles, S::Min, S::Max],
                Aggregate::DistinctDevices => &[S::Distinct],
            },
            Self::FirstTime => &[S::First, S::FirstTime],
            Self::LastTime | Self::CurrentValue | Self::LastUpdated => &[S::Last, S::LastTime],
            Self::DataPoints => &[S::Count],
            Self::ConfidenceScore | Self::Completeness | Self::Validity | Self::Expected => {
                &[S::Count, S::Invalid, S::Conflicts, S::DeviceCounts]
            }
            _ => &[],
        }
    }

    /// Whether it changes with time while a window is open.
    fn is_judged(self) -> bool {
        matches!(self, Self::ConfidenceScore | Self::Completeness | Self::Expected)
    }
}

/// Some columns of a merged table, and how batches of them are computed.
#[derive(Clone, Debug)]
pub(super) struct MergedColumns {
    pub(super) directory: Arc<Directory>,
    pub(super) columns: Vec<Column>,
    pub(super) schema: SchemaRef,
}

impl MergedColumns {
    pub(super) fn new(directory: Arc<Directory>, columns: Vec<Column>) -> Self {
        let fields: Vec<Field> = columns.iter().map(|column| column.field(&directory)).collect();
        Self { directory, columns, schema: Arc::new(Schema::new(fields)) }
    }

    /// The column of a name.
    pub(super) fn by_name(&self, name: &str) -> Option<Column> {
        self.columns.iter().copied().find(|column| column.name(&self.directory) == name)
    }

    /// Computes the columns of merged answers.
    ///
    /// # Errors
    /// When an array does not have the type of its column.
    pub(super) fn of_answers(&self, answers: &[SeriesAnswer]) -> Result<RecordBatch> {
        let arrays = self.columns.iter().map(|column| self.column_of_answers(*column, answers)).collect();
        self.batch(arrays, answers.len())
    }

    /// Computes the columns of series, where the series alone determines all of the columns.
    ///
    /// # Errors
    /// When a column needs more than the series.
    pub(super) fn of_series<'a>(
        &self,
        infos: impl ExactSizeIterator<Item = &'a SeriesInfo> + Clone,
    ) -> Result<RecordBatch> {
        let columns = self.columns.iter();
        let arrays =
            columns.map(|column| texts(infos.clone().map(|info| self.series_text(*column, info)))).collect();
        self.batch(arrays, infos.len())
    }

    /// Whether a column changes with time while a window is open.
    pub(super) fn are_judged(&self) -> bool {
        self.columns.iter().any(|column| column.is_judged())
    }

    /// Computes the columns of rows that are in the batch view only. All of the rows have readings, and their windows are not
    /// open ([`Judge::is_open`]) if [`MergedColumns::are_judged`].
    ///
    /// # Errors
    /// When a column of the batch view is missing or damaged.
    pub(super) fn of_view(&self, rows: &RecordBatch, judge: Judge<'_>) -> Result<RecordBatch> {
        let arrays = self.columns.iter().map(|column| self.column_of_view(*column, rows, judge));
        self.batch(arrays.collect::<Result<_>>()?, rows.num_rows())
    }

    /// Whether the column `definition` of the batch view is needed to know which rows have an aggregate.
    pub(super) fn needs_definition(&self) -> bool {
        self.columns.iter().any(|column| match column {
            Column::Aggregate(aggregate) => {
                let unlisted = self.definitions_without(*aggregate).len();
                unlisted > 0 && unlisted < self.directory.plans().plans().len()
            }
            _ => false,
        })
    }

    fn batch(&self, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options).map_err(external)
    }

    /// The definitions, by index, that do not list an aggregate.
    fn definitions_without(&self, aggregate: Aggregate) -> Vec<usize> {
        let plans = self.directory.plans().plans().iter().enumerate();
        plans
            .filter(|(_, plan)| {
                aggregate != Aggregate::Count && !plan.definition().aggregates.contains(&aggregate)
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// A column that the series alone determines; `None` for other columns.
    fn series_text<'a>(&self, column: Column, info: &'a SeriesInfo) -> Option<&'a str> {
        match column {
            Column::MetricKey => Some(&info.metric_key),
            Column::Definition => Some(&info.key.definition),
            Column::Metric => Some(&info.key.metric),
            Column::Dimension(index) => self.directory.dimension(info, index),
            _ => None,
        }
    }

    fn column_of_answers(&self, column: Column, answers: &[SeriesAnswer]) -> ArrayRef {
        match column {
            Column::MetricKey | Column::Definition | Column::Metric | Column::Dimension(_) => {
                texts(answers.iter().map(|(info, _)| self.series_text(column, info)))
            }
            Column::WindowStart => times(answers, |answer| Some(answer.window_start)),
            Column::WindowEnd => times(answers, |answer| Some(answer.window_end)),
            Column::Aggregate(Aggregate::Count) | Column::DataPoints => {
                counts(answers, |_, answer| Some(answer.summary.count))
            }
            Column::Aggregate(aggregate) => {
                let unlisted = self.definitions_without(aggregate);
                match aggregate {
                    Aggregate::DistinctDevices => counts(answers, |info, answer| {
                        answer.summary.distinct_devices().filter(|_| !unlisted.contains(&info.definition))
                    }),
                    _ => floats(answers, |info, answer| {
                        aggregate.finish(&answer.summary).filter(|_| !unlisted.contains(&info.definition))
                    }),
                }
            }
            Column::FirstTime => {
                times(answers, |answer| (answer.summary.count > 0).then_some(answer.summary.first.event_time))
            }
            Column::LastTime | Column::LastUpdated => times(answers, Answer::last_updated),
            Column::Source => texts(answers.iter().map(|(_, answer)| Some(answer.source.name()))),
            Column::ConfidenceScore => scores(answers.iter().map(|(_, answer)| answer.confidence.score)),
            Column::Completeness => floats(answers, |_, answer| Some(answer.confidence.completeness)),
            Column::Validity => floats(answers, |_, answer| Some(answer.confidence.validity)),
            Column::Expected => floats(answers, |_, answer| answer.confidence.expected),
            Column::ExpectedSource => {
                texts(answers.iter().map(|(_, answer)| Some(answer.confidence.expected_source.name())))
            }
            Column::State => texts(answers.iter().map(|(_, answer)| Some(answer.state.name()))),
            Column::CurrentValue => floats(answers, |_, answer| Aggregate::Last.finish(&answer.summary)),
        }
    }

    fn column_of_view(&self, column: Column, rows: &RecordBatch, judge: Judge<'_>) -> Result<ArrayRef> {
        match column {
            Column::Source => Ok(constant(Source::Batch.name(), rows.num_rows())),
            Column::ConfidenceScore => Ok(scores(judged::scores(rows, judge).map_err(external)?.into_iter())),
            Column::Completeness => Ok(Arc::new(judged::completeness(rows, judge).map_err(external)?)),
            Column::State => {
                let states = judged::states(rows, judge).map_err(external)?;
                Ok(texts(states.into_iter().map(|state| Some(state.name()))))
            }
            Column::Aggregate(aggregate) => self.aggregate_of_view(aggregate, rows),
            other => match other.stored(&self.directory).as_slice() {
                [name] => finish::column(rows, name).cloned().map_err(external),
                _ => Err(external(DomainError::Shape { column: "of a merged table" })),
            },
        }
    }

    fn aggregate_of_view(&self, aggregate: Aggregate, rows: &RecordBatch) -> Result<ArrayRef> {
        let unlisted = self.definitions_without(aggregate);
        let stored = || finish::column(rows, aggregate.name()).map_err(external);
        if unlisted.is_empty() {
            return stored().cloned();
        }
        if unlisted.len() == self.directory.plans().plans().len() {
            let field = Column::Aggregate(aggregate).field(&self.directory);
            return Ok(arrow::array::new_null_array(field.data_type(), rows.num_rows()));
        }
        let mask = self.in_definitions(rows, &unlisted).map_err(external)?;
        nullif(stored()?, &mask).map_err(external)
    }

    /// Which rows belong to some definitions, given by index.
    fn in_definitions(
        &self,
        rows: &RecordBatch,
        definitions: &[usize],
    ) -> std::result::Result<BooleanArray, DomainError> {
        let column = TextColumn::of(rows, ViewColumn::Definition.name())?;
        let names: Vec<&str> =
            definitions.iter().map(|index| self.directory.definition(*index).name.as_str()).collect();
        let is_wanted: Vec<bool> =
            column.words().iter().map(|word| word.is_some_and(|word| names.contains(&word))).collect();
        let rows = 0..rows.num_rows();
        Ok(rows.map(|row| Some(column.code(row).is_some_and(|code| is_wanted[code]))).collect())
    }
}

fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    let mut builder = TextBuilder::default();
    values.for_each(|value| builder.append(value));
    builder.finish()
}

fn floats(answers: &[SeriesAnswer], value: impl Fn(&SeriesInfo, &Answer) -> Option<f64>) -> ArrayRef {
    Arc::new(answers.iter().map(|(info, answer)| value(info, answer)).collect::<Float64Array>())
}

fn counts(answers: &[SeriesAnswer], value: impl Fn(&SeriesInfo, &Answer) -> Option<u64>) -> ArrayRef {
    let counts = answers.iter().map(|(info, answer)| value(info, answer));
    Arc::new(counts.map(|count| Some(i64::try_from(count?).unwrap_or(i64::MAX))).collect::<Int64Array>())
}

fn times(answers: &[SeriesAnswer], value: impl Fn(&Answer) -> Option<Micros>) -> ArrayRef {
    let times = answers.iter().map(|(_, answer)| Some(value(answer)?.0));
    Arc::new(times.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

/// Scores in `[0, 1]`, rounded to two decimals.
fn scores(values: impl Iterator<Item = f64>) -> ArrayRef {
    let mut builder = Decimal128Builder::new().with_data_type(SCORE_TYPE);
    values.for_each(|score| builder.append_value((score.clamp(0.0, 1.0) * 100.0).round() as i128));
    Arc::new(builder.finish())
}

/// One word in every row.
fn constant(word: &str, rows: usize) -> ArrayRef {
    let keys = Int32Array::from(vec![0; rows]);
    Arc::new(DictionaryArray::new(keys, Arc::new(StringArray::from(vec![word]))))
}

#[cfg(test)]
mod tests {
    use wye_metrics::view_rows;

    use super::*;
    use crate::testing;

    /// The columns that neither a batch view nor a list of aggregates has. A dimension may not have such a name either.
    const ONLY_IN_ANSWERS: [&str; 5] = ["source", "current_value", "data_points", "last_updated", "state"];

    #[test]
    fn columns_that_no_batch_view_has_are_listed() {
        let directory = testing::directory();
        let mut columns = vec![Column::CurrentValue, Column::DataPoints, Column::LastUpdated];
        columns.extend([Column::MetricKey, Column::Definition, Column::Metric]);
        columns.extend([Column::WindowStart, Column::WindowEnd, Column::FirstTime, Column::LastTime]);
        columns.extend(Column::CONFIDENCE);
        for column in columns {
            let name = column.name(&directory);
            let is_stored = view_rows::fixed_columns().any(|column| column == name);
            assert_ne!(is_stored, ONLY_IN_ANSWERS.contains(&name), "{name}");
        }
    }
}

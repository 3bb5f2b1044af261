//! Builds batches of view rows from summaries and their scores. Must not know how they are scored, nor where they come from.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::Int32Type;
use wye_domain::batch;
use wye_domain::series::SeriesKey;
use wye_domain::summary::Summary;
use wye_domain::summary_columns::SummaryColumnsBuilder;
use wye_domain::time::{Micros, Window, WindowSize};

use super::{ViewColumn, ViewSchema};
use crate::confidence::{Confidence, ExpectedSource};
use crate::definition::{Aggregate, Definition};

/// What all rows of a series have in common.
#[derive(Clone, Debug)]
pub struct ViewSeries {
    metric_key: String,
    definition: Arc<str>,
    metric: Arc<str>,
    /// By dimension column.
    group: Vec<Option<Arc<str>>>,
    stored: String,
    window: WindowSize,
}

impl ViewSeries {
    /// A series of a definition, which is the one that `key` names.
    #[must_use]
    pub fn new(schema: &ViewSchema, definition: &Definition, key: &SeriesKey) -> Self {
        let own = definition.dimension_names();
        let group = schema.dimensions.iter().map(|name| {
            let place = own.iter().position(|own| own == name)?;
            key.group.get(place)?.clone()
        });
        Self {
            metric_key: key.metric_key(&own),
            definition: Arc::clone(&key.definition),
            metric: Arc::clone(&key.metric),
            group: group.collect(),
            stored: key.encode(),
            window: definition.window,
        }
    }

    /// The stored form of the series.
    #[must_use]
    pub fn stored(&self) -> &str {
        &self.stored
    }

    /// Its window that starts at a point.
    #[inline]
    #[must_use]
    pub fn window_at(&self, start: Micros) -> Window {
        self.window.window_at(start)
    }
}

/// Collects rows. Fast where rows of one series follow each other, as they do in a view.
#[derive(Debug)]
pub struct ViewRowsBuilder<'a> {
    schema: &'a ViewSchema,
    /// The series of each run of rows.
    runs: Vec<&'a ViewSeries>,
    /// By row: which run.
    run_of_row: Vec<i32>,
    window_start: Vec<i64>,
    window_end: Vec<i64>,
    summaries: SummaryColumnsBuilder,
    expected: Vec<Option<f64>>,
    /// By row: the place in [`ExpectedSource::ALL`].
    expected_source: Vec<i32>,
    completeness: Vec<f64>,
    validity: Vec<f64>,
    precision: Vec<f64>,
    score: Vec<f64>,
    /// By column of [`ViewColumn::FINISHED`], and row.
    finished: [Vec<Option<f64>>; ViewColumn::FINISHED.len()],
}

impl<'a> ViewRowsBuilder<'a> {
    /// A builder with room for some rows.
    #[must_use]
    pub fn with_capacity(schema: &'a ViewSchema, rows: usize) -> Self {
        Self {
            schema,
            runs: Vec::new(),
            run_of_row: Vec::with_capacity(rows),
            window_start: Vec::with_capacity(rows),
            window_end: Vec::with_capacity(rows),
            summaries: SummaryColumnsBuilder::default(),
            expected: Vec::with_capacity(rows),
            expected_source: Vec::with_capacity(rows),
            completeness: Vec::with_capacity(rows),
            validity: Vec::with_capacity(rows),
            precision: Vec::with_capacity(rows),
            score: Vec::with_capacity(rows),
            finished: ViewColumn::FINISHED.map(|_| Vec::with_capacity(rows)),
        }
    }

    /// Appends a row.
    #[inline]
    pub fn append(
        &mut self,
        series: &'a ViewSeries,
        window: Window,
        summary: &Summary,
        confidence: &Confidence,
    ) {
        if self.runs.last().is_none_or(|last| !std::ptr::eq(*last, series)) {
            self.runs.push(series);
        }
        self.run_of_row.push(self.runs.len() as i32 - 1);
        self.window_start.push(window.start.0);
        self.window_end.push(window.end.0);
        self.summaries.append(summary);
        for (aggregate, answers) in ViewColumn::FINISHED.iter().zip(&mut self.finished) {
            answers.push(aggregate.finish(summary));
        }
        self.expected.push(confidence.expected);
        self.expected_source.push(confidence.expected_source as i32);
        self.completeness.push(confidence.completeness);
        self.validity.push(confidence.validity);
        self.precision.push(confidence.precision);
        self.score.push(confidence.score);
    }

    /// The rows.
    #[must_use]
    pub fn finish(mut self) -> RecordBatch {
        let runs: ScalarBuffer<i32> = std::mem::take(&mut self.run_of_row).into();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.schema.fields().len());
        columns.extend(ViewColumn::NAMES.map(|column| self.column(column, &runs)));
        columns.extend(
            (0..self.schema.dimensions.len())
                .map(|dimension| self.texts(&runs, |series| series.group[dimension].as_deref())),
        );
        columns.extend(ViewColumn::WINDOW.map(|column| self.column(column, &runs)));
        columns.extend(self.summaries.finish());
        let finished = ViewColumn::FINISHED.map(ViewColumn::Finished);
        columns.extend(finished.map(|column| self.column(column, &runs)));
        columns.extend(ViewColumn::CONFIDENCE.map(|column| self.column(column, &runs)));
        batch::of_columns(Arc::clone(&self.schema.schema), columns)
    }

    fn column(&mut self, column: ViewColumn, runs: &ScalarBuffer<i32>) -> ArrayRef {
        match column {
            ViewColumn::MetricKey => self.texts(runs, |series| Some(&series.metric_key)),
            ViewColumn::Definition => self.texts(runs, |series| Some(&series.definition)),
            ViewColumn::Metric => self.texts(runs, |series| Some(&series.metric)),
            ViewColumn::Series => self.texts(runs, |series| Some(&series.stored)),
            ViewColumn::WindowStart => times(std::mem::take(&mut self.window_start)),
            ViewColumn::WindowEnd => times(std::mem::take(&mut self.window_end)),
            ViewColumn::Expected => Arc::new(Float64Array::from(std::mem::take(&mut self.expected))),
            ViewColumn::ExpectedSource => words(
                std::mem::take(&mut self.expected_source),
                &ExpectedSource::ALL.map(ExpectedSource::name),
            ),
            ViewColumn::Completeness => numbers(std::mem::take(&mut self.completeness)),
            ViewColumn::Validity => numbers(std::mem::take(&mut self.validity)),
            ViewColumn::Precision => numbers(std::mem::take(&mut self.precision)),
            ViewColumn::ConfidenceScore => numbers(std::mem::take(&mut self.score)),
            ViewColumn::Finished(aggregate) => {
                let place = ViewColumn::FINISHED.iter().position(|finished| *finished == aggregate);
                let answers =
                    place.map(|place| std::mem::take(&mut self.finished[place])).unwrap_or_default();
                match aggregate {
                    // Counts are whole numbers far below 2^53.
                    Aggregate::DistinctDevices => {
                        Arc::new(answers.into_iter().map(|count| Some(count? as i64)).collect::<Int64Array>())
                    }
                    _ => Arc::new(Float64Array::from(answers)),
                }
            }
        }
    }

    /// A column of a text of each row's series.
    fn texts(&self, runs: &ScalarBuffer<i32>, text: impl Fn(&'a ViewSeries) -> Option<&'a str>) -> ArrayRef {
        let words: Vec<Option<&str>> = self.runs.iter().map(|series| text(series)).collect();
        let nulls = words
            .iter()
            .any(Option::is_none)
            .then(|| runs.iter().map(|run| words[*run as usize].is_some()).collect::<NullBuffer>());
        let words: StringArray = words.into_iter().map(|word| Some(word.unwrap_or_default())).collect();
        let codes = Int32Array::new(runs.clone(), nulls);
        Arc::new(DictionaryArray::<Int32Type>::new(codes, Arc::new(words)))
    }
}

fn times(times: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
}

fn numbers(numbers: Vec<f64>) -> ArrayRef {
    Arc::new(Float64Array::from(numbers))
}

/// A column of a few words, by their places.
fn words(places: Vec<i32>, words: &[&str]) -> ArrayRef {
    let words = Arc::new(StringArray::from(words.to_vec()));
    Arc::new(DictionaryArray::<Int32Type>::new(Int32Array::from(places), words))
}

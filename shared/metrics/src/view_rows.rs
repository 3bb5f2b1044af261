//! The rows of the batch views: which columns they have, and how summaries with their confidence become batches.
//! Must not know readings, files or commits.
//!
//! | column | type | null | meaning |
//! |---|---|---|---|
//! | `metric_key` | Utf8 | no | `metric{dimension="value",…}` |
//! | `definition`, `metric` | Utf8 | no | what was computed |
//! | one for each dimension | Utf8 | yes | the group |
//! | `series` | Utf8 | no | [`SeriesKey::encode`] |
//! | `window_start`, `window_end` | Timestamp(µs, UTC) | no | the window |
//! | those of [`wye_domain::summary_columns`] | | | the summary |
//! | `expected` | Float64 | yes | expected readings |
//! | `expected_source` | Utf8 | no | where the expectation comes from |
//! | `completeness`, `validity`, `precision` | Float64 | no | the factors of the score |
//! | `confidence_score` | Float64 | no | the score, 0 to 1, not rounded |
//! | `state` | Utf8 | no | `PRELIMINARY` or `SETTLED` |
//!
//! Stability contract: these names, types and meanings are stored in the Delta table `batch_views`.
//!
//! [`SeriesKey::encode`]: wye_domain::series::SeriesKey::encode

pub mod reader;

use std::sync::Arc;

use crate::confidence::{ExpectedSource, LatenessHistogram, SETTLED, State, score};
use crate::expectation::Expectation;
use crate::plan::{Expectations, MetricPlans};
use crate::window_table::Entry;
use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use wye_domain::reading::{text_type, time_type};
use wye_domain::series::SeriesTable;
use wye_domain::summary_columns::{SummaryColumnsBuilder, schema_fields};

/// The columns of the views of a set of definitions. No dimension has the name of another column: definitions are
/// checked for that.
pub fn schema(plans: &MetricPlans) -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, text_type(), nullable);
    let number = |name: &str, nullable| Field::new(name, DataType::Float64, nullable);
    let mut fields = vec![text("metric_key", false), text("definition", false), text("metric", false)];
    fields.extend(plans.dimension_names().iter().map(|name| text(name, true)));
    fields.push(text("series", false));
    fields.push(Field::new("window_start", time_type(), false));
    fields.push(Field::new("window_end", time_type(), false));
    fields.extend(schema_fields());
    fields.push(number("expected", true));
    fields.push(text("expected_source", false));
    fields.extend(
        ["completeness", "validity", "precision", "confidence_score"].map(|name| number(name, false)),
    );
    fields.push(text("state", false));
    Arc::new(Schema::new(fields))
}

/// What all windows of a series have in common.
#[derive(Debug)]
struct SeriesFacts {
    metric_key: String,
    definition: Arc<str>,
    metric: Arc<str>,
    /// By dimension column.
    group: Vec<Option<Arc<str>>>,
    stored: String,
    /// Window length in µs.
    window: i64,
    /// What the series should get.
    expectation: Option<Arc<Expectation>>,
}

/// Makes rows of summaries. It is shared by the threads that write.
#[derive(Debug)]
pub struct RowMaker {
    schema: SchemaRef,
    dimensions: usize,
    /// By series id.
    facts: Vec<SeriesFacts>,
    /// Everything that was ingested before this time (µs) is in the summaries.
    as_of: i64,
    lateness: Arc<LatenessHistogram>,
}

/// As of when summaries are judged.
#[derive(Clone, Debug)]
pub struct AsOf {
    /// Everything that was ingested before this time (µs) is in the summaries.
    pub time: i64,
    /// How late readings come.
    pub lateness: Arc<LatenessHistogram>,
}

impl RowMaker {
    /// For the series of one table of windows.
    pub fn new(plans: &MetricPlans, expectations: &Expectations, series: &SeriesTable, as_of: &AsOf) -> Self {
        let schema = schema(plans);
        let names = plans.dimension_names();
        let facts = series.keys().iter().map(|key| {
            let plan = plans.find(&key.definition).expect("every series comes from one of the plans");
            let own = plan.definition().dimension_names();
            let group = names.iter().map(|name| {
                let place = own.iter().position(|own| own == name)?;
                key.group[place].clone()
            });
            SeriesFacts {
                metric_key: key.metric_key(&own),
                definition: Arc::clone(&key.definition),
                metric: Arc::clone(&key.metric),
                group: group.collect(),
                stored: key.encode(),
                window: plan.definition().window.micros(),
                expectation: expectations.of(key).cloned(),
            }
        });
        let facts = facts.collect();
        let lateness = Arc::clone(&as_of.lateness);
        Self { schema, dimensions: names.len(), facts, as_of: as_of.time, lateness }
    }

    /// The stored forms of the series, by id.
    pub fn stored(&self) -> Vec<String> {
        self.facts.iter().map(|facts| facts.stored.clone()).collect()
    }

    /// The columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Where (µs) the window of an entry ends.
    pub fn window_end(&self, entry: &Entry) -> i64 {
        entry.window_start.saturating_add(self.facts[entry.series.0 as usize].window)
    }

    /// Rows for entries, in the order given.
    pub fn rows<'a>(&self, entries: impl ExactSizeIterator<Item = &'a Entry>) -> RecordBatch {
        let mut rows = Rows::with_capacity(entries.len());
        for entry in entries {
            let facts = &self.facts[entry.series.0 as usize];
            rows.append(entry, facts, self);
        }
        rows.finish(self)
    }

    /// The share of readings that had landed when the window that ends at `window_end` was judged.
    #[inline]
    fn settledness(&self, window_end: i64) -> f64 {
        let age = self.as_of.saturating_sub(window_end);
        if age >= LatenessHistogram::BACKLOG { 1.0 } else { self.lateness.settledness(age) }
    }
}

/// Rows in the making.
#[derive(Default)]
struct Rows {
    /// The series ids of runs of rows.
    runs: Vec<u32>,
    /// By row: which run.
    run_of_row: Vec<i32>,
    window_start: Vec<i64>,
    window_end: Vec<i64>,
    summaries: SummaryColumnsBuilder,
    expected: Vec<Option<f64>>,
    completeness: Vec<f64>,
    validity: Vec<f64>,
    precision: Vec<f64>,
    score: Vec<f64>,
    /// By row: 0 for preliminary, 1 for settled.
    settled: Vec<i32>,
}

impl Rows {
    fn with_capacity(rows: usize) -> Self {
        Self {
            run_of_row: Vec::with_capacity(rows),
            window_start: Vec::with_capacity(rows),
            window_end: Vec::with_capacity(rows),
            expected: Vec::with_capacity(rows),
            completeness: Vec::with_capacity(rows),
            validity: Vec::with_capacity(rows),
            precision: Vec::with_capacity(rows),
            score: Vec::with_capacity(rows),
            settled: Vec::with_capacity(rows),
            ..Self::default()
        }
    }

    #[inline]
    fn append(&mut self, entry: &Entry, facts: &SeriesFacts, maker: &RowMaker) {
        if self.runs.last() != Some(&entry.series.0) {
            self.runs.push(entry.series.0);
        }
        self.run_of_row.push(self.runs.len() as i32 - 1);
        let end = maker.window_end(entry);
        self.window_start.push(entry.window_start);
        self.window_end.push(end);
        self.summaries.append(&entry.summary);
        // Of a window that is still open, only the part that has passed can be expected.
        let passed = end.min(maker.as_of).saturating_sub(entry.window_start).max(0);
        let settledness = maker.settledness(end);
        let confidence = score(&entry.summary, facts.expectation.as_deref(), passed, settledness);
        self.expected.push(confidence.expected);
        self.completeness.push(confidence.completeness);
        self.validity.push(confidence.validity);
        self.precision.push(confidence.precision);
        self.score.push(confidence.score);
        self.settled.push(i32::from(settledness >= SETTLED));
    }

    fn finish(mut self, maker: &RowMaker) -> RecordBatch {
        let codes: ScalarBuffer<i32> = std::mem::take(&mut self.run_of_row).into();
        let facts: Vec<&SeriesFacts> =
            self.runs.iter().map(|series| &maker.facts[*series as usize]).collect();
        let text = |word: &dyn Fn(&SeriesFacts) -> Option<&str>| -> ArrayRef {
            let words: Vec<Option<&str>> = facts.iter().map(|facts| word(facts)).collect();
            let nulls = words
                .iter()
                .any(Option::is_none)
                .then(|| codes.iter().map(|run| words[*run as usize].is_some()).collect::<NullBuffer>());
            let words: StringArray = words.into_iter().map(|word| Some(word.unwrap_or_default())).collect();
            Arc::new(DictionaryArray::<Int32Type>::new(
                Int32Array::new(codes.clone(), nulls),
                Arc::new(words),
            ))
        };
        let time = |times: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"))
        };
        let mut columns = vec![
            text(&|facts| Some(&facts.metric_key)),
            text(&|facts| Some(&facts.definition)),
            text(&|facts| Some(&facts.metric)),
        ];
        for dimension in 0..maker.dimensions {
            columns.push(text(&|facts| facts.group[dimension].as_deref()));
        }
        columns.push(text(&|facts| Some(&facts.stored)));
        columns.push(time(self.window_start));
        columns.push(time(self.window_end));
        columns.extend(self.summaries.finish());
        columns.push(Arc::new(Float64Array::from(self.expected)));
        columns.push(text(&|facts| Some(source(facts).name())));
        for numbers in [self.completeness, self.validity, self.precision, self.score] {
            columns.push(Arc::new(Float64Array::from(numbers)));
        }
        let states = StringArray::from(vec![State::Preliminary.name(), State::Settled.name()]);
        let settled = Int32Array::from(self.settled);
        columns.push(Arc::new(DictionaryArray::<Int32Type>::new(settled, Arc::new(states))));
        RecordBatch::try_new(Arc::clone(&maker.schema), columns)
            .expect("the columns have the schema's types and one length")
    }
}

fn source(facts: &SeriesFacts) -> ExpectedSource {
    if facts.expectation.is_some() { ExpectedSource::Registry } else { ExpectedSource::Unknown }
}

#[cfg(test)]
mod tests;

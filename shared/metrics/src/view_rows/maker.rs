//! Makes view rows from the summaries of a batch run.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use wye_domain::series::SeriesTable;
use wye_domain::time::Window;

use super::ViewSchema;
use super::builder::{ViewRowsBuilder, ViewSeries};
use crate::confidence::{Evidence, settled};
use crate::expectation::Expectation;
use crate::plan::{Expectations, MetricPlans};
use crate::window_table::Entry;

/// Makes rows from summaries. All threads that write share it.
#[derive(Debug)]
pub struct RowMaker {
    schema: ViewSchema,
    /// By series ID, with the readings that the series should receive.
    series: Vec<(ViewSeries, Option<Arc<Expectation>>)>,
}

impl RowMaker {
    /// A maker for the series of one table of windows.
    ///
    /// # Panics
    /// When the definition of a series is not in `plans`.
    pub fn new(plans: &MetricPlans, expectations: &Expectations, series: &SeriesTable) -> Self {
        let schema = ViewSchema::of(plans);
        let series = series.keys().iter().map(|key| {
            let plan = plans.find(&key.definition).expect("contributions of these plans made every series");
            (ViewSeries::new(&schema, plan.definition(), key), expectations.of(key).cloned())
        });
        Self { series: series.collect(), schema }
    }

    /// The stored forms of the series, by id.
    pub fn stored(&self) -> Vec<String> {
        self.series.iter().map(|(series, _)| series.stored().to_owned()).collect()
    }

    /// The columns of the rows.
    pub fn schema(&self) -> &SchemaRef {
        self.schema.arrow()
    }

    /// The window of an entry.
    pub fn window(&self, entry: &Entry) -> Window {
        self.series[entry.series.0 as usize].0.window_at(entry.window_start)
    }

    /// Rows for entries, in the order given.
    pub fn rows<'a>(&self, entries: impl ExactSizeIterator<Item = &'a Entry>) -> RecordBatch {
        let mut rows = ViewRowsBuilder::with_capacity(&self.schema, entries.len());
        for entry in entries {
            let (series, expectation) = &self.series[entry.series.0 as usize];
            let (summary, window) = (&entry.summary, series.window_at(entry.window_start));
            let evidence = Evidence { summary, expectation: expectation.as_deref(), window };
            rows.append(series, window, summary, &settled(evidence));
        }
        rows.finish()
    }
}

//! The rows of the batch views: the one list of their columns, from which the schema, the [`builder`] and the [`reader`]
//! follow. The [`maker`] makes them of the summaries of a batch run. Must not know readings, files or commits.
//!
//! | column | type | null | meaning |
//! |---|---|---|---|
//! | `metric_key` | Utf8 | no | `metric{dimension="value",…}` |
//! | `definition`, `metric` | Utf8 | no | what was computed |
//! | one for each dimension | Utf8 | yes | the group |
//! | `series` | Utf8 | no | [`SeriesKey::encode`] |
//! | `window_start`, `window_end` | Timestamp(µs, UTC) | no | the window |
//! | those of [`wye_domain::summary_columns`] | | | the summary |
//! | `sum`, `avg`, `stddev`, `p50`, `p95`, `p99` | Float64 | where there is none | the answers that the summary gives |
//! | `distinct_devices` | Int64 | where there is none | the same |
//! | `expected` | Float64 | yes | expected readings of the whole window |
//! | `expected_source` | Utf8 | no | where the expectation comes from |
//! | `completeness`, `validity`, `precision` | Float64 | no | the factors of the score |
//! | `confidence_score` | Float64 | no | the score, 0 to 1, not rounded |
//!
//! The score is that of a window of which all readings have arrived, so a row is a function of its readings, the definitions
//! and the registry. The score and the state at some moment are computed when a row is read ([`judged`]).
//!
//! Stability contract: these names, types and meanings are stored in the Delta table `batch_metrics`.
//!
//! [`SeriesKey::encode`]: wye_domain::series::SeriesKey::encode

pub mod builder;
pub mod judged;
pub mod maker;
pub mod reader;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use wye_domain::reading::{text_type, time_type};
use wye_domain::summary_columns::{SummaryColumn, schema_fields};

use crate::definition::Aggregate;
use crate::plan::MetricPlans;

/// Which computation makes the rows: to be increased when the same readings give other rows, so that all views are computed
/// again, and rows of another one are not served.
pub const COMPUTATION: u32 = 2;

/// A column that every view has; the others are those of summaries ([`SummaryColumn`]) and dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewColumn {
    /// The public key of the series.
    MetricKey,
    /// The definition's name.
    Definition,
    /// The metric's name.
    Metric,
    /// The stored form of the series.
    Series,
    /// Where the window starts.
    WindowStart,
    /// Where the window ends.
    WindowEnd,
    /// Expected readings.
    Expected,
    /// Where the expectation comes from.
    ExpectedSource,
    /// A factor of the score.
    Completeness,
    /// A factor of the score.
    Validity,
    /// A factor of the score.
    Precision,
    /// The score.
    ConfidenceScore,
    /// An answer that the summary gives, and that is no column of it.
    Finished(Aggregate),
}

impl ViewColumn {
    /// The first columns; the dimensions come after them.
    const NAMES: [Self; 3] = [Self::MetricKey, Self::Definition, Self::Metric];
    /// The columns after the dimensions; those of the summary come after them.
    const WINDOW: [Self; 3] = [Self::Series, Self::WindowStart, Self::WindowEnd];
    /// The columns after those of the summary: the aggregates that are no columns of it.
    const FINISHED: [Aggregate; 7] = [
        Aggregate::Sum,
        Aggregate::Avg,
        Aggregate::Stddev,
        Aggregate::P50,
        Aggregate::P95,
        Aggregate::P99,
        Aggregate::DistinctDevices,
    ];
    /// The last columns.
    const CONFIDENCE: [Self; 6] = [
        Self::Expected,
        Self::ExpectedSource,
        Self::Completeness,
        Self::Validity,
        Self::Precision,
        Self::ConfidenceScore,
    ];

    /// The column's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MetricKey => "metric_key",
            Self::Definition => "definition",
            Self::Metric => "metric",
            Self::Series => "series",
            Self::WindowStart => "window_start",
            Self::WindowEnd => "window_end",
            Self::Expected => "expected",
            Self::ExpectedSource => "expected_source",
            Self::Completeness => "completeness",
            Self::Validity => "validity",
            Self::Precision => "precision",
            Self::ConfidenceScore => "confidence_score",
            Self::Finished(aggregate) => aggregate.name(),
        }
    }

    fn field(self) -> Field {
        let data_type = match self {
            Self::MetricKey | Self::Definition | Self::Metric | Self::Series | Self::ExpectedSource => {
                text_type()
            }
            Self::WindowStart | Self::WindowEnd => time_type(),
            Self::Finished(Aggregate::DistinctDevices) => DataType::Int64,
            Self::Finished(_)
            | Self::Expected
            | Self::Completeness
            | Self::Validity
            | Self::Precision
            | Self::ConfidenceScore => DataType::Float64,
        };
        Field::new(self.name(), data_type, matches!(self, Self::Expected | Self::Finished(_)))
    }
}

/// The columns of the views of a set of definitions. No dimension has the name of another column: definitions are
/// checked for that.
#[derive(Clone, Debug)]
pub struct ViewSchema {
    schema: SchemaRef,
    dimensions: Vec<String>,
}

impl ViewSchema {
    /// For the dimensions of these plans.
    #[must_use]
    pub fn of(plans: &MetricPlans) -> Self {
        let dimensions = plans.dimension_names();
        let mut fields = ViewColumn::NAMES.map(ViewColumn::field).to_vec();
        fields.extend(dimensions.iter().map(|name| Field::new(name, text_type(), true)));
        fields.extend(ViewColumn::WINDOW.map(ViewColumn::field));
        fields.extend(schema_fields());
        fields.extend(ViewColumn::FINISHED.map(|aggregate| ViewColumn::Finished(aggregate).field()));
        fields.extend(ViewColumn::CONFIDENCE.map(ViewColumn::field));
        Self { schema: Arc::new(Schema::new(fields)), dimensions }
    }

    /// The same for Arrow.
    #[must_use]
    pub fn arrow(&self) -> &SchemaRef {
        &self.schema
    }

    /// The names of the dimensions, in the order of their columns.
    #[must_use]
    pub fn dimensions(&self) -> &[String] {
        &self.dimensions
    }
}

/// The names of all columns but the dimensions, in their order.
pub fn fixed_columns() -> impl Iterator<Item = &'static str> {
    let own = ViewColumn::NAMES.into_iter().chain(ViewColumn::WINDOW).map(ViewColumn::name);
    let summary = SummaryColumn::ALL.into_iter().map(SummaryColumn::name);
    let last = ViewColumn::FINISHED.into_iter().map(ViewColumn::Finished).chain(ViewColumn::CONFIDENCE);
    own.chain(summary).chain(last.map(ViewColumn::name))
}

#[cfg(test)]
mod tests;

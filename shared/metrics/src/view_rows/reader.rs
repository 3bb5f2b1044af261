//! Reads rows of a batch view, with all or only some of its columns, as parts to merge.
//!
//! A merge of some columns of a summary needs only these columns, so columns that a query does not ask for are not read and
//! count as empty. Must not know which columns a query asks for.

use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use wye_domain::DomainError;
use wye_domain::reading::{TextColumn, column};
use wye_domain::summary_columns::{SummaryColumn, SummaryColumns};
use wye_domain::time::Micros;

use super::ViewColumn;
use crate::confidence::{Confidence, ExpectedSource, Judged, State};
use crate::merge::BatchRow;

/// The columns of a view that make a whole [`BatchRow`] and say which series it belongs to.
pub fn row_columns() -> Vec<&'static str> {
    let key = [ViewColumn::Series, ViewColumn::WindowStart].map(ViewColumn::name);
    let summary = SummaryColumn::ALL.into_iter().map(SummaryColumn::name);
    let confidence = ViewColumn::CONFIDENCE.into_iter().map(ViewColumn::name);
    key.into_iter().chain(summary).chain(confidence).collect()
}

/// The columns of view rows with their types resolved.
#[derive(Clone, Copy, Debug)]
pub struct ViewRows<'a> {
    /// The stored form of each row's series.
    pub series: TextColumn<'a>,
    window_start: &'a TimestampMicrosecondArray,
    summaries: SummaryColumns<'a>,
    expected: Option<&'a Float64Array>,
    completeness: Option<&'a Float64Array>,
    validity: Option<&'a Float64Array>,
    precision: Option<&'a Float64Array>,
    score: Option<&'a Float64Array>,
    state: Option<TextColumn<'a>>,
    expected_source: Option<TextColumn<'a>>,
}

impl<'a> ViewRows<'a> {
    /// Resolves `series`, `window_start` and `count`, and whatever else is there.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when one of these three is absent or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        Ok(Self {
            series: TextColumn::of(batch, ViewColumn::Series.name())?,
            window_start: window_start(batch)?,
            summaries: SummaryColumns::of_some(batch)?,
            expected: column(batch, ViewColumn::Expected.name()).ok(),
            completeness: column(batch, ViewColumn::Completeness.name()).ok(),
            validity: column(batch, ViewColumn::Validity.name()).ok(),
            precision: column(batch, ViewColumn::Precision.name()).ok(),
            score: column(batch, ViewColumn::ConfidenceScore.name()).ok(),
            state: TextColumn::of(batch, ViewColumn::State.name()).ok(),
            expected_source: TextColumn::of(batch, ViewColumn::ExpectedSource.name()).ok(),
        })
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.window_start.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The window start of a row.
    #[inline]
    #[must_use]
    pub fn window_start(&self, row: usize) -> Micros {
        Micros(self.window_start.value(row))
    }

    /// One row as a part to merge.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when a sketch does not decode.
    pub fn row(&self, row: usize) -> Result<BatchRow, DomainError> {
        let expected_source = match text(self.expected_source, row) {
            Some(name) if name == ExpectedSource::Registry.name() => ExpectedSource::Registry,
            _ => ExpectedSource::Unknown,
        };
        let state = match text(self.state, row) {
            Some(name) if name == State::Settled.name() => State::Settled,
            _ => State::Preliminary,
        };
        let confidence = Confidence {
            expected: number(self.expected, row),
            expected_source,
            completeness: number(self.completeness, row).unwrap_or(0.0),
            validity: number(self.validity, row).unwrap_or(0.0),
            precision: number(self.precision, row).unwrap_or(1.0),
            score: number(self.score, row).unwrap_or(0.0),
        };
        let (window_start, summary) = (self.window_start(row), self.summaries.summary(row)?);
        Ok(BatchRow { window_start, summary, judged: Judged { confidence, state } })
    }
}

fn number(column: Option<&Float64Array>, row: usize) -> Option<f64> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

fn text<'a>(column: Option<TextColumn<'a>>, row: usize) -> Option<&'a str> {
    column.and_then(|column| column.text(row))
}

/// The window starts of a batch of view rows.
///
/// # Errors
/// [`DomainError::Shape`] when they are absent or of another type.
pub fn window_start(batch: &RecordBatch) -> Result<&TimestampMicrosecondArray, DomainError> {
    column(batch, ViewColumn::WindowStart.name())
}

/// The reading counts of a batch of view rows.
///
/// # Errors
/// [`DomainError::Shape`] when they are absent or of another type.
pub fn count(batch: &RecordBatch) -> Result<&Int64Array, DomainError> {
    column(batch, SummaryColumn::Count.name())
}

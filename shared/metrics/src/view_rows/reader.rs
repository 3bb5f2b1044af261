//! Reads rows of a batch view, with all or only some of its columns, as parts to merge.
//!
//! A merge of some columns of a summary needs only these columns, so columns that a query does not ask for are not read and
//! count as empty. Must not know which columns a query asks for.

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray};
use wye_domain::DomainError;
use wye_domain::reading::{TextColumn, column};
use wye_domain::summary_columns::{SummaryColumn, SummaryColumns};
use wye_domain::time::Micros;

use super::ViewColumn;
use crate::merge::BatchRow;

/// The columns of a view that make a whole [`BatchRow`] and say which series it belongs to.
pub fn row_columns() -> Vec<&'static str> {
    let key = [ViewColumn::Series, ViewColumn::WindowStart].map(ViewColumn::name);
    key.into_iter().chain(SummaryColumn::ALL.into_iter().map(SummaryColumn::name)).collect()
}

/// The columns of view rows with their types resolved.
#[derive(Clone, Copy, Debug)]
pub struct ViewRows<'a> {
    /// The stored form of each row's series.
    pub series: TextColumn<'a>,
    window_start: &'a TimestampMicrosecondArray,
    summaries: SummaryColumns<'a>,
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
        Ok(BatchRow { window_start: self.window_start(row), summary: self.summaries.summary(row)? })
    }
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

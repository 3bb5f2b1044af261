//! What a summary answers. Rows of a batch view have the answers in columns, so a query over millions of windows does not make
//! a summary of each.

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use wye_domain::summary::Summary;
use wye_domain::{DomainError, reading};

use crate::definition::Aggregate;

impl Aggregate {
    /// The answer that a summary gives; `None` where it has none.
    pub fn finish(self, summary: &Summary) -> Option<f64> {
        let filled = summary.count > 0;
        match self {
            Self::Count => Some(summary.count as f64),
            Self::Sum => filled.then(|| summary.sum.value()),
            Self::Avg => summary.avg(),
            Self::Min => filled.then_some(summary.min),
            Self::Max => filled.then_some(summary.max),
            Self::Stddev => summary.stddev(),
            Self::First => filled.then_some(summary.first.value),
            Self::Last => filled.then_some(summary.last.value),
            Self::P50 => summary.quantile(0.50),
            Self::P95 => summary.quantile(0.95),
            Self::P99 => summary.quantile(0.99),
            Self::DistinctDevices => summary.distinct_devices().map(|n| n as f64),
        }
    }
}

/// A column by its name.
///
/// # Errors
/// [`DomainError::Decode`] when it is absent.
pub fn column<'a>(rows: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, DomainError> {
    rows.column_by_name(name).ok_or_else(|| DomainError::Decode {
        what: "rows of a batch view",
        reason: format!("they have no column {name:?}"),
    })
}

/// A column of numbers by its name.
///
/// # Errors
/// [`DomainError::Shape`] when it is absent or of another type.
pub fn numbers<'a>(rows: &'a RecordBatch, name: &'static str) -> Result<&'a Float64Array, DomainError> {
    reading::column(rows, name)
}

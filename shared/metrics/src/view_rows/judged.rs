//! The confidence of rows of a batch view at some moment, column by column, for windows that are not open by then
//! ([`Judge::is_open`]). It is what [`crate::confidence::judge`] gives for each row; a test compares both.

use arrow::array::{Array, Float64Array, RecordBatch, TimestampMicrosecondArray};
use wye_domain::DomainError;
use wye_domain::reading::column;
use wye_domain::time::Micros;

use super::ViewColumn;
use crate::confidence::{State, batch_state, product};
use crate::finish::numbers;
use crate::merge::Judge;

/// The columns that [`states`] reads.
pub const OF_STATES: [&str; 1] = [ViewColumn::WindowEnd.name()];
/// The columns that [`completeness`] reads.
pub const OF_COMPLETENESS: [&str; 3] =
    [ViewColumn::WindowEnd.name(), ViewColumn::Expected.name(), ViewColumn::Completeness.name()];
/// The columns that [`scores`] reads.
pub const OF_SCORES: [&str; 5] = [
    ViewColumn::WindowEnd.name(),
    ViewColumn::Expected.name(),
    ViewColumn::Completeness.name(),
    ViewColumn::Validity.name(),
    ViewColumn::Precision.name(),
];

/// The state of each row.
///
/// # Errors
/// [`DomainError::Shape`] when a column is absent or of another type.
pub fn states(rows: &RecordBatch, judge: Judge<'_>) -> Result<Vec<State>, DomainError> {
    Ok(settledness(rows, judge)?.map(batch_state).collect())
}

/// The completeness of each row.
///
/// # Errors
/// [`DomainError::Shape`] when a column is absent or of another type.
pub fn completeness(rows: &RecordBatch, judge: Judge<'_>) -> Result<Float64Array, DomainError> {
    let (settledness, known) = (settledness(rows, judge)?, known_completeness(rows)?);
    Ok(settledness
        .enumerate()
        .map(|(row, settled)| product(known(row), settled, 1.0, 1.0).0)
        .collect::<Vec<_>>()
        .into())
}

/// The score of each row, 0 to 1, not rounded.
///
/// # Errors
/// [`DomainError::Shape`] when a column is absent or of another type.
pub fn scores(rows: &RecordBatch, judge: Judge<'_>) -> Result<Vec<f64>, DomainError> {
    let (settledness, known) = (settledness(rows, judge)?, known_completeness(rows)?);
    let validity = numbers(rows, ViewColumn::Validity.name())?.values();
    let precision = numbers(rows, ViewColumn::Precision.name())?.values();
    let each = settledness.zip(validity.iter().zip(precision)).enumerate();
    Ok(each.map(|(row, (settled, (v, p)))| product(known(row), settled, *v, *p).1).collect())
}

fn settledness<'a>(
    rows: &'a RecordBatch,
    judge: Judge<'a>,
) -> Result<impl Iterator<Item = f64> + use<'a>, DomainError> {
    let ends: &TimestampMicrosecondArray = column(rows, ViewColumn::WindowEnd.name())?;
    Ok(ends.values().iter().map(move |end| judge.settling.settledness(judge.as_of - Micros(*end))))
}

/// The stored completeness of a row, where readings are expected.
fn known_completeness(rows: &RecordBatch) -> Result<impl Fn(usize) -> Option<f64> + use<'_>, DomainError> {
    let expected = numbers(rows, ViewColumn::Expected.name())?;
    let completeness = numbers(rows, ViewColumn::Completeness.name())?;
    Ok(move |row| expected.is_valid(row).then(|| completeness.value(row)))
}

//! What summaries answer: each aggregate from one summary, and the same from columns of summaries.
//!
//! Rows of a batch view that nothing is merged with are finished column by column, so a query over millions of windows does
//! not make a summary of each. A test compares both ways for every aggregate.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, Float64Array, Float64Builder, Int64Builder, RecordBatch};
use wye_domain::sketches::{Sketches, Stored};
use wye_domain::summary::Summary;
use wye_domain::{DomainError, reading};

use crate::definition::Aggregate;
use crate::view_rows::reader::count;

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

/// The columns of [`wye_domain::summary_columns`] that [`of_rows`] reads.
pub fn stored_columns(aggregate: Aggregate) -> &'static [&'static str] {
    match aggregate {
        Aggregate::Count => &["count"],
        Aggregate::Sum => &["sum_high", "sum_low"],
        Aggregate::Avg => &["sum_high", "sum_low", "count"],
        Aggregate::Min => &["min"],
        Aggregate::Max => &["max"],
        Aggregate::Stddev => &["m2", "sum_high", "sum_low", "count"],
        Aggregate::First => &["first"],
        Aggregate::Last => &["last"],
        Aggregate::P50 | Aggregate::P95 | Aggregate::P99 => &["quantiles", "min", "max"],
        Aggregate::DistinctDevices => &["distinct"],
    }
}

/// The answers of an aggregate for rows that have the columns of [`stored_columns`], all of windows with readings: Int64
/// for counts, else Float64; null where a summary has no answer.
///
/// # Errors
/// [`DomainError::Shape`] when a column is absent, [`DomainError::Decode`] when a sketch does not decode.
pub fn of_rows(aggregate: Aggregate, rows: &RecordBatch) -> Result<ArrayRef, DomainError> {
    Ok(match aggregate {
        Aggregate::Count => Arc::clone(column(rows, "count")?),
        Aggregate::Sum => Arc::new(sums(rows)?),
        Aggregate::Avg => {
            let (sums, counts) = (sums(rows)?, count(rows)?);
            let means = sums.values().iter().zip(counts.values()).map(|(sum, count)| sum / *count as f64);
            Arc::new(Float64Array::from_iter_values(means))
        }
        Aggregate::Stddev => {
            let each = numbers(rows, "m2")?.values().iter().zip(count(rows)?.values());
            let deviations =
                each.map(|(m2, count)| (*count > 1).then(|| (m2.max(0.0) / (*count - 1) as f64).sqrt()));
            Arc::new(deviations.collect::<Float64Array>())
        }
        Aggregate::Min | Aggregate::Max | Aggregate::First | Aggregate::Last => {
            Arc::clone(column(rows, aggregate.name())?)
        }
        Aggregate::P50 => quantiles(rows, 0.50)?,
        Aggregate::P95 => quantiles(rows, 0.95)?,
        Aggregate::P99 => quantiles(rows, 0.99)?,
        Aggregate::DistinctDevices => {
            let bytes: &BinaryArray = reading::column(rows, "distinct")?;
            let mut builder = Int64Builder::with_capacity(bytes.len());
            for bytes in bytes {
                let distinct = Sketches::decode(Stored { distinct: bytes, ..Stored::default() })?
                    .and_then(|sketches| sketches.distinct());
                builder.append_option(distinct.map(|n| i64::try_from(n).unwrap_or(i64::MAX)));
            }
            Arc::new(builder.finish())
        }
    })
}

fn sums(rows: &RecordBatch) -> Result<Float64Array, DomainError> {
    let (high, low) = (numbers(rows, "sum_high")?, numbers(rows, "sum_low")?);
    Ok(high.values().iter().zip(low.values()).map(|(high, low)| high + low).collect::<Vec<_>>().into())
}

fn quantiles(rows: &RecordBatch, q: f64) -> Result<ArrayRef, DomainError> {
    let bytes: &BinaryArray = reading::column(rows, "quantiles")?;
    let (min, max) = (numbers(rows, "min")?, numbers(rows, "max")?);
    let mut builder = Float64Builder::with_capacity(bytes.len());
    for (row, bytes) in bytes.iter().enumerate() {
        let value = Sketches::decode(Stored { quantiles: bytes, ..Stored::default() })?
            .and_then(|sketches| sketches.quantile(q));
        builder.append_option(value.map(|value| value.clamp(min.value(row), max.value(row))));
    }
    Ok(Arc::new(builder.finish()))
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

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema};
    use proptest::prelude::*;
    use wye_domain::sketches::Needs;
    use wye_domain::summary_columns::{SummaryColumnsBuilder, schema_fields};
    use wye_domain::time::Micros;

    use super::*;

    fn summary(values: &[f64], needs: Needs) -> Summary {
        let mut summary = Summary { sketches: Sketches::new(needs), ..Summary::EMPTY };
        for (time, value) in values.iter().enumerate() {
            summary.add(*value, Micros(time as i64));
            if let Some(sketches) = &mut summary.sketches {
                sketches.add(*value, &format!("device {}", time % 3), None);
            }
        }
        summary
    }

    /// The answer in a row, and null as `None`.
    fn answer(answers: &ArrayRef, row: usize) -> Option<f64> {
        if answers.is_null(row) {
            return None;
        }
        Some(match answers.data_type() {
            DataType::Int64 => answers.as_primitive::<Int64Type>().value(row) as f64,
            _ => answers.as_primitive::<Float64Type>().value(row),
        })
    }

    proptest! {
        #[test]
        fn both_ways_agree(
            windows in prop::collection::vec(prop::collection::vec(-1e6..1e6f64, 1..9), 1..5),
            has_sketches: bool,
        ) {
            let needs = Needs { quantiles: has_sketches, distinct: has_sketches, devices: false };
            let summaries: Vec<Summary> = windows.iter().map(|values| summary(values, needs)).collect();
            let mut builder = SummaryColumnsBuilder::default();
            summaries.iter().for_each(|summary| builder.append(summary));
            let schema = Arc::new(Schema::new(schema_fields()));
            let rows = RecordBatch::try_new(schema, builder.finish()).unwrap();
            for aggregate in Aggregate::ALL {
                let places: Vec<usize> = stored_columns(aggregate)
                    .iter()
                    .map(|name| rows.schema().index_of(name).unwrap())
                    .collect();
                let answers = of_rows(aggregate, &rows.project(&places).unwrap()).unwrap();
                for (row, summary) in summaries.iter().enumerate() {
                    prop_assert_eq!(answer(&answers, row), aggregate.finish(summary), "{}", aggregate.name());
                }
            }
        }
    }
}

//! Statistics of files: rows, bounds and null counts. Must not know how they are used.
//!
//! In memory they are DataFusion's [`Statistics`], in the log JSON:
//! <https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics>

use arrow::array::{Array, ArrayRef};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use chrono::{DateTime, SecondsFormat, TimeDelta, Timelike};
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, Result, ScalarValue, Statistics};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::physical_optimizer::pruning::PruningStatistics;
use parquet::file::metadata::ParquetMetaData;
use serde_json::{Map, Value, json};

use crate::columns::plain_text;
use crate::delta::LogSnapshot;

/// Longer texts have no bounds: the log must stay small, and files cannot be ordered by truncated bounds.
const LONGEST_TEXT: usize = 256;

/// The statistics of a new file, as Delta stores them. Nested columns have none.
///
/// delta-rs has this too, but only for files of its own writers.
pub(crate) fn of_footer(metadata: &ParquetMetaData, schema: &Schema) -> Result<String> {
    let schema = plain_text(schema);
    let statistics = DFParquetMetadata::statistics_from_parquet_metadata(metadata, &schema)?;
    let (mut min_values, mut max_values, mut null_count) = (Map::new(), Map::new(), Map::new());
    for (field, column) in schema.fields().iter().zip(&statistics.column_statistics) {
        if field.data_type().is_nested() {
            continue;
        }
        if let Precision::Exact(nulls) = column.null_count {
            null_count.insert(field.name().clone(), nulls.into());
        }
        if let (Precision::Exact(min), Precision::Exact(max)) = (&column.min_value, &column.max_value)
            && let (Some(min), Some(max)) = (bound(min, Side::Min), bound(max, Side::Max))
        {
            min_values.insert(field.name().clone(), min);
            max_values.insert(field.name().clone(), max);
        }
    }
    let stats = json!({
        "numRecords": metadata.file_metadata().num_rows(),
        "minValues": min_values,
        "maxValues": max_values,
        "nullCount": null_count,
    });
    Ok(stats.to_string())
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Min,
    Max,
}

/// A bound in the form that Delta stores; `None` for values and types that have none.
fn bound(value: &ScalarValue, side: Side) -> Option<Value> {
    match value {
        ScalarValue::Int32(Some(number)) => Some((*number).into()),
        ScalarValue::Int64(Some(number)) => Some((*number).into()),
        ScalarValue::Float64(Some(number)) => serde_json::Number::from_f64(*number).map(Value::Number),
        ScalarValue::Utf8(Some(text)) if text.len() <= LONGEST_TEXT => Some(text.as_str().into()),
        ScalarValue::Date32(Some(days)) => {
            let date = DateTime::from_timestamp(i64::from(*days) * 86_400, 0)?.date_naive();
            Some(date.to_string().into())
        }
        ScalarValue::TimestampMicrosecond(Some(micros), _) => milliseconds(*micros, side),
        _ => None,
    }
}

/// Delta stores times in whole milliseconds: smallest times are rounded down, largest times up.
fn milliseconds(micros: i64, side: Side) -> Option<Value> {
    let time = DateTime::from_timestamp_micros(micros)?;
    let before = time.with_nanosecond(time.nanosecond() / 1_000_000 * 1_000_000)?;
    let time = match side {
        Side::Max if before < time => before.checked_add_signed(TimeDelta::milliseconds(1))?,
        _ => before,
    };
    // Not every engine reads the text form of a year after 9999.
    let text = time.to_rfc3339_opts(SecondsFormat::Millis, true);
    (text.len() == "2026-01-31T12:00:00.000Z".len()).then_some(Value::String(text))
}

/// The statistics in the log of these columns of each file, in the order of the snapshot's files. `schema` may have text as
/// dictionaries; statistics of its other columns are unknown.
pub(crate) fn of_files(
    snapshot: &LogSnapshot,
    schema: &SchemaRef,
    columns: &[&str],
) -> Result<Vec<Statistics>> {
    let log_data = snapshot.state().log_data();
    let mut files: Vec<Statistics> = Vec::with_capacity(snapshot.files.len());
    for file in snapshot.files.iter() {
        let rows = usize::try_from(file.rows).unwrap_or(usize::MAX);
        files.push(Statistics { num_rows: Precision::Exact(rows), ..Statistics::new_unknown(schema) });
    }
    for name in columns {
        let (index, data_type) = (schema.index_of(name)?, schema.field_with_name(name)?.data_type());
        let column = Column::from_name(*name);
        let known = Known {
            min: typed(log_data.min_values(&column), data_type)?,
            max: typed(log_data.max_values(&column), data_type)?,
            nulls: typed(log_data.null_counts(&column), &DataType::UInt64)?,
        };
        for (position, (file, statistics)) in snapshot.files.iter().zip(&mut files).enumerate() {
            statistics.column_statistics[index] = known.of_file(position, file.rows, data_type)?;
        }
    }
    Ok(files)
}

fn typed(values: Option<ArrayRef>, data_type: &DataType) -> Result<Option<ArrayRef>> {
    Ok(values.map(|values| cast(&values, data_type)).transpose()?)
}

/// The statistics in the log of one column, file by file.
struct Known {
    min: Option<ArrayRef>,
    max: Option<ArrayRef>,
    nulls: Option<ArrayRef>,
}

impl Known {
    fn of_file(&self, position: usize, rows: u64, data_type: &DataType) -> Result<ColumnStatistics> {
        let nulls = match value(self.nulls.as_ref(), position)? {
            Some(ScalarValue::UInt64(nulls)) => nulls,
            _ => None,
        };
        let (min_value, max_value) =
            match (value(self.min.as_ref(), position)?, value(self.max.as_ref(), position)?) {
                // The bounds of a column without values are null, which differs from unknown bounds.
                _ if nulls == Some(rows) => {
                    let null = Precision::Exact(ScalarValue::try_new_null(data_type)?);
                    (null.clone(), null)
                }
                (Some(min), Some(max)) if data_type.is_temporal() => {
                    (Precision::Inexact(min), Precision::Inexact(max))
                }
                (Some(min), Some(max)) => (Precision::Exact(min), Precision::Exact(max)),
                _ => (Precision::Absent, Precision::Absent),
            };
        let null_count = match nulls.map(usize::try_from) {
            Some(Ok(nulls)) => Precision::Exact(nulls),
            _ => Precision::Absent,
        };
        Ok(ColumnStatistics { null_count, min_value, max_value, ..ColumnStatistics::new_unknown() })
    }
}

/// The value of the file at a position, where the log has one.
fn value(values: Option<&ArrayRef>, position: usize) -> Result<Option<ScalarValue>> {
    match values.filter(|values| values.is_valid(position)) {
        Some(values) => ScalarValue::try_from_array(values, position).map(Some),
        None => Ok(None),
    }
}

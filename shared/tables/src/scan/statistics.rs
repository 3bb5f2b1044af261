//! A file's statistics as DataFusion wants them: it believes that files read one after the other are in order only
//! when it sees the bounds of all sort columns. Must not know plans.

use arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};

use crate::delta::stats::FileStats;
use crate::parquet_plan::word;

/// The statistics of a file with these columns.
pub(super) fn of(stats: &FileStats, schema: &Schema) -> Statistics {
    let columns =
        schema.fields().iter().map(|field| column(stats, field.name(), field.data_type())).collect();
    Statistics {
        num_rows: Precision::Exact(usize::try_from(stats.num_records).unwrap_or(usize::MAX)),
        total_byte_size: Precision::Absent,
        column_statistics: columns,
    }
}

fn column(stats: &FileStats, name: &str, data_type: &DataType) -> ColumnStatistics {
    let (min_value, max_value) =
        bounds(stats, name, data_type).unwrap_or((Precision::Absent, Precision::Absent));
    let nulls = stats.null_count.get(name).and_then(serde_json::Value::as_u64);
    ColumnStatistics {
        null_count: nulls.map_or(Precision::Absent, |nulls| {
            Precision::Exact(usize::try_from(nulls).unwrap_or(usize::MAX))
        }),
        min_value,
        max_value,
        ..ColumnStatistics::new_unknown()
    }
}

type Bounds = (Precision<ScalarValue>, Precision<ScalarValue>);

fn bounds(stats: &FileStats, name: &str, data_type: &DataType) -> Option<Bounds> {
    // A column of nulls only has null bounds, which is a fact and not a gap.
    if stats.null_count.get(name).and_then(serde_json::Value::as_u64) == Some(stats.num_records) {
        let null = Precision::Exact(ScalarValue::try_new_null(data_type).ok()?);
        return Some((null.clone(), null));
    }
    match data_type {
        DataType::Dictionary(..) => {
            let (min, max) = stats.text_bounds(name)?;
            Some((Precision::Exact(word(min)), Precision::Exact(word(max))))
        }
        DataType::Int64 => {
            let (min, max) = stats.integer_bounds(name)?;
            Some((
                Precision::Exact(ScalarValue::Int64(Some(min))),
                Precision::Exact(ScalarValue::Int64(Some(max))),
            ))
        }
        DataType::Int32 => {
            let (min, max) = stats.integer_bounds(name)?;
            let value =
                |bound: i64| Some(Precision::Exact(ScalarValue::Int32(Some(i32::try_from(bound).ok()?))));
            Some((value(min)?, value(max)?))
        }
        DataType::Timestamp(_, zone) => {
            let (min, max) = stats.time_bounds(name)?;
            // Delta keeps milliseconds, so the bounds are not the values themselves.
            let value =
                |bound: i64| Precision::Inexact(ScalarValue::TimestampMicrosecond(Some(bound), zone.clone()));
            Some((value(min), value(max)))
        }
        _ => None,
    }
}

//! How many stored readings an amendment is about. Must not know how amendments are applied.

use datafusion::functions_aggregate::expr_fn::{count, count_distinct, max, min};
use datafusion::prelude::{Expr, SessionContext, col, lit};
use datafusion::scalar::ScalarValue;
use serde::Serialize;
use wye_domain::time::{Micros, format_rfc3339};
use wye_metrics::amendment::Selection;
use wye_tables::columns::time_literal;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;

use crate::error::BatchError;

/// What an amendment is about. Duplicates are counted too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// Readings in the master dataset.
    pub readings: i64,
    /// Devices that they are of.
    pub devices: i64,
    /// The earliest event time; absent without a reading.
    pub first: Option<String>,
    /// The latest.
    pub last: Option<String>,
}

/// Counts the readings that are stored now.
///
/// # Errors
/// When the master dataset cannot be read.
pub async fn affected(root: &TableRoot, selection: &Selection) -> Result<Affected, BatchError> {
    let readings = Readings::open(root).await.map_err(BatchError::tables("open the master dataset"))?;
    let snapshot = readings.snapshot().await.map_err(BatchError::tables("read the master dataset"))?;
    let table = snapshot.provider().await.map_err(BatchError::tables("read the master dataset"))?;
    let session = SessionContext::new();
    root.register(&session.runtime_env()).map_err(BatchError::tables("open the store"))?;
    let aggregates = vec![
        count(lit(1)).alias("readings"),
        count_distinct(col("device_id")).alias("devices"),
        min(col("event_time")).alias("first"),
        max(col("event_time")).alias("last"),
    ];
    let frame = session.read_table(table).and_then(|frame| frame.filter(condition(selection)));
    let frame = frame.and_then(|frame| frame.aggregate(Vec::new(), aggregates));
    let batches = frame.map_err(BatchError::Compute)?.collect().await.map_err(BatchError::Compute)?;
    let mut affected = Affected::default();
    for batch in batches.iter().filter(|batch| batch.num_rows() == 1) {
        let mut values = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            values.push(ScalarValue::try_from_array(column, 0).map_err(BatchError::Compute)?);
        }
        affected.readings = number(&values[0]);
        affected.devices = number(&values[1]);
        affected.first = time(&values[2]);
        affected.last = time(&values[3]);
    }
    Ok(affected)
}

fn condition(selection: &Selection) -> Expr {
    let mut condition = col("event_time").gt_eq(time_literal(selection.times.start));
    condition = condition.and(col("event_time").lt(time_literal(selection.times.end)));
    for (column, names) in [("device_id", &selection.devices), ("metric", &selection.metrics)] {
        if !names.is_empty() {
            let names = names.iter().map(|name| lit(name.as_str())).collect();
            condition = condition.and(col(column).in_list(names, false));
        }
    }
    condition
}

fn number(value: &ScalarValue) -> i64 {
    match value {
        ScalarValue::Int64(Some(number)) => *number,
        _ => 0,
    }
}

fn time(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::TimestampMicrosecond(time, _) => time.map(|time| format_rfc3339(Micros(time))),
        _ => None,
    }
}

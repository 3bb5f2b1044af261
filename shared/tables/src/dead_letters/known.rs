//! Leaves out letters about items that have a letter already. Must not know commits.

use std::collections::HashSet;

use arrow::array::{Array, BooleanArray, Int32Array, Int64Array, RecordBatch};
use arrow::compute::filter_record_batch;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{col, lit};
use datafusion::prelude::SessionConfig;

use super::{TABLE, scan_error};
use crate::columns::{ITEM_INDEX, KAFKA_OFFSET, KAFKA_PARTITION};
use crate::delta::{DeltaLog, LogSnapshot};
use crate::error::TablesError;
use crate::file_writer::on_blocking_thread;

/// A rejected item that came in by Kafka: Kafka partition, offset, and its index in the message where it has one.
type Identity = (i32, i64, Option<i32>);

/// The letters about items that have neither an archived letter nor an earlier one in `letters`. Letters about items that
/// did not come in by Kafka are all kept: each was written once.
pub(super) async fn without_known(
    log: &DeltaLog,
    archived: &LogSnapshot,
    letters: Vec<RecordBatch>,
) -> Result<Vec<RecordBatch>, TablesError> {
    let identities = letters.iter().map(identities).collect::<Result<Vec<_>, _>>()?;
    let offsets = identities.iter().flatten().flatten().map(|(_, offset, _)| *offset);
    let mut known = match offsets.clone().min().zip(offsets.max()) {
        Some((lowest, highest)) => {
            let archived = archived_between(log.clone(), archived.clone(), lowest, highest);
            on_blocking_thread(log, archived).await?
        }
        None => HashSet::new(),
    };
    let mut new = Vec::with_capacity(letters.len());
    for (batch, identities) in letters.iter().zip(identities) {
        let keep: BooleanArray = identities
            .into_iter()
            .map(|identity| Some(identity.is_none_or(|identity| known.insert(identity))))
            .collect();
        new.push(filter_record_batch(batch, &keep).map_err(|error| scan_error(error.into()))?);
    }
    Ok(new)
}

/// The items at these offsets (both included) that archived letters are about.
async fn archived_between(
    log: DeltaLog,
    archived: LogSnapshot,
    lowest: i64,
    highest: i64,
) -> Result<HashSet<Identity>, TablesError> {
    // With one plan partition, all of the plan runs on this thread.
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    log.root().register(&session.runtime_env())?;
    let letters = archived.delta_table(&log).table_provider().await.map_err(scan_error)?;
    let at_offsets = session
        .read_table(letters)
        .and_then(|letters| letters.filter(col(KAFKA_OFFSET).between(lit(lowest), lit(highest))))
        .and_then(|letters| letters.select_columns(&[KAFKA_PARTITION, KAFKA_OFFSET, ITEM_INDEX]))
        .map_err(scan_error)?;
    let mut known = HashSet::new();
    for batch in at_offsets.collect().await.map_err(scan_error)? {
        known.extend(identities(&batch)?.into_iter().flatten());
    }
    Ok(known)
}

/// The identity of each row's item, where it came in by Kafka.
fn identities(batch: &RecordBatch) -> Result<Vec<Option<Identity>>, TablesError> {
    let kafka_partitions: &Int32Array = column(batch, KAFKA_PARTITION)?;
    let offsets: &Int64Array = column(batch, KAFKA_OFFSET)?;
    let items: &Int32Array = column(batch, ITEM_INDEX)?;
    let rows = kafka_partitions.iter().zip(offsets).zip(items);
    Ok(rows.map(|((kafka_partition, offset), item)| Some((kafka_partition?, offset?, item))).collect())
}

fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a T, TablesError> {
    let column = batch.column_by_name(name).and_then(|column| column.as_any().downcast_ref());
    column.ok_or_else(|| TablesError::Shape { table: TABLE, reason: format!("no column {name} of its type") })
}

//! The application transactions of a table, and the version of each. Must not know what they are used for.
//!
//! delta-rs returns the version of one name at a time, and reads the log each time. Here all of them are needed for each
//! new version of the table.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use deltalake::kernel::Action;
use deltalake::logstore::get_actions;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::delta::DeltaLog;
use crate::error::TablesError;

/// All transactions as of `version`; `known` are those as of an earlier version.
pub(super) async fn through(
    log: &DeltaLog,
    version: u64,
    known: Option<(u64, &BTreeMap<String, i64>)>,
) -> Result<BTreeMap<String, i64>, TablesError> {
    if let Some((from, known)) = known
        && let Some(found) = replay(log, known.clone(), from + 1..=version).await?
    {
        return Ok(found);
    }
    let (first, base) = match newest_checkpoint(log, version).await? {
        Some((checkpoint, parts)) => (checkpoint + 1, read_checkpoint(log, parts).await?),
        None => (0, BTreeMap::new()),
    };
    replay(log, base, first..=version).await?.ok_or_else(|| TablesError::Corrupt {
        table: log.table(),
        reason: format!("the log has a gap between version {first} and version {version}"),
    })
}

/// Applies log entries; `None` when one of them is missing.
async fn replay(
    log: &DeltaLog,
    mut found: BTreeMap<String, i64>,
    versions: std::ops::RangeInclusive<u64>,
) -> Result<Option<BTreeMap<String, i64>>, TablesError> {
    for version in versions {
        let entry =
            log.log_store().read_commit_entry(version).await.map_err(|source| log.unreadable(source))?;
        let Some(entry) = entry else { return Ok(None) };
        for action in get_actions(version, &entry).map_err(|source| log.unreadable(source))? {
            if let Action::Txn(transaction) = action {
                found.insert(transaction.app_id, transaction.version);
            }
        }
    }
    Ok(Some(found))
}

/// The newest checkpoint that is not newer than `version`, with its parts.
async fn newest_checkpoint(log: &DeltaLog, version: u64) -> Result<Option<(u64, Vec<Path>)>, TablesError> {
    let store = log.store();
    let entries = store.list(Some(&Path::from("_delta_log"))).try_collect::<Vec<_>>().await;
    let entries = entries.map_err(|source| log.unreachable(source))?;
    let mut checkpoints: BTreeMap<u64, Vec<Path>> = BTreeMap::new();
    for entry in entries {
        let Some((number, rest)) = entry.location.filename().and_then(|name| name.split_once('.')) else {
            continue;
        };
        if rest.starts_with("checkpoint")
            && rest.ends_with("parquet")
            && let Ok(number) = number.parse::<u64>()
            && number <= version
        {
            checkpoints.entry(number).or_default().push(entry.location);
        }
    }
    Ok(checkpoints.pop_last())
}

async fn read_checkpoint(log: &DeltaLog, parts: Vec<Path>) -> Result<BTreeMap<String, i64>, TablesError> {
    let mut found = BTreeMap::new();
    for part in parts {
        let object = log.store().get(&part).await.map_err(|source| log.unreachable(source))?;
        let bytes = object.bytes().await.map_err(|source| log.unreachable(source))?;
        let read = tokio::task::spawn_blocking(move || read_part(bytes)).await;
        let read = read.map_err(|error| parquet::errors::ParquetError::External(error.into())).flatten();
        found.extend(read.map_err(|error| TablesError::Corrupt {
            table: log.table(),
            reason: format!("checkpoint {part}: {error}"),
        })?);
    }
    Ok(found)
}

fn read_part(bytes: Bytes) -> Result<Vec<(String, i64)>, parquet::errors::ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    if builder.schema().field_with_name("txn").is_err() {
        return Ok(Vec::new());
    }
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["txn.appId", "txn.version"]);
    let mut found = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let transactions = batch.column(0).as_struct();
        let names = transactions.column_by_name("appId").and_then(|names| names.as_string_opt::<i32>());
        let versions = transactions
            .column_by_name("version")
            .and_then(|versions| versions.as_primitive_opt::<Int64Type>());
        let (Some(names), Some(versions)) = (names, versions) else { continue };
        for row in (0..batch.num_rows()).filter(|row| transactions.is_valid(*row) && names.is_valid(*row)) {
            found.push((names.value(row).to_owned(), versions.value(row)));
        }
    }
    Ok(found)
}

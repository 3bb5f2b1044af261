//! Reading files of dead letters back: to leave out letters that are archived already, and to merge small files. Must
//! not know commits.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, Int64Type};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::TABLE;
use crate::columns::dead_letter_schema;
use crate::delta::{DataFile, DeltaLog};
use crate::error::TablesError;

/// What identifies a refused thing that came in by Kafka: Kafka partition, offset, and its place in the message.
const IDENTITY: [&str; 3] = ["kafka_partition", "kafka_offset", "item_index"];

type Identity = (i32, i64, i32);

/// Leaves out letters about things that an archived letter or an earlier one of these is about. Letters about what did
/// not come in by Kafka all stay: they were written once.
pub(super) async fn without_known(
    log: &DeltaLog,
    files: &[DataFile],
    letters: Vec<RecordBatch>,
) -> Result<Vec<RecordBatch>, TablesError> {
    let offsets = letters.iter().flat_map(identities).flatten().map(|(_, offset, _)| offset);
    let (mut lowest, mut highest) = (i64::MAX, i64::MIN);
    for offset in offsets {
        (lowest, highest) = (lowest.min(offset), highest.max(offset));
    }
    let mut known: HashSet<Identity> = HashSet::new();
    for file in files {
        let bounds = file.stats.integer_bounds("kafka_offset");
        let may_hold = bounds.is_none_or(|(low, high)| low <= highest && lowest <= high);
        if may_hold && lowest <= highest && !file.stats.is_all_null("kafka_offset") {
            for batch in read(log, file, Some(&IDENTITY)).await? {
                known.extend(identities(&batch).flatten());
            }
        }
    }
    let fresh = letters.into_iter().map(|batch| {
        let keep: BooleanArray =
            identities(&batch).map(|identity| Some(identity.is_none_or(|it| known.insert(it)))).collect();
        filter_record_batch(&batch, &keep)
    });
    fresh
        .collect::<Result<_, _>>()
        .map_err(|error| TablesError::Shape { table: TABLE, reason: error.to_string() })
}

/// The rows of one file; all columns, or those named.
pub(super) async fn read(
    log: &DeltaLog,
    file: &DataFile,
    columns: Option<&'static [&'static str]>,
) -> Result<Vec<RecordBatch>, TablesError> {
    let path = file.add.path.clone();
    let got = log.store().get(&Path::from(path.as_str())).await;
    let bytes = match got {
        Ok(object) => object.bytes().await,
        Err(error) => Err(error),
    }
    .map_err(|source| TablesError::Store { table: TABLE, source })?;
    let decode = move || -> Result<Vec<RecordBatch>, parquet::errors::ParquetError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
        let mask = match columns {
            Some(columns) => ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()),
            None => ProjectionMask::all(),
        };
        Ok(builder.with_projection(mask).build()?.collect::<Result<_, _>>()?)
    };
    let decoded = tokio::task::spawn_blocking(decode).await;
    let damaged = |error: &dyn std::fmt::Display| TablesError::Corrupt {
        table: TABLE,
        reason: format!("file {path}: {error}"),
    };
    let batches = decoded.map_err(|error| damaged(&error))?.map_err(|error| damaged(&error))?;
    if columns.is_some() {
        return Ok(batches);
    }
    let whole =
        batches.iter().map(|batch| RecordBatch::try_new(dead_letter_schema(), batch.columns().to_vec()));
    whole.collect::<Result<_, _>>().map_err(|error| damaged(&error))
}

/// The identity of each row, where it has one.
fn identities(batch: &RecordBatch) -> impl Iterator<Item = Option<Identity>> {
    let column = |name| batch.column_by_name(name).expect("letters have this column");
    let partitions = column(IDENTITY[0]).as_primitive::<Int32Type>().clone();
    let offsets = column(IDENTITY[1]).as_primitive::<Int64Type>().clone();
    let items = column(IDENTITY[2]).as_primitive::<Int32Type>().clone();
    (0..batch.num_rows()).map(move |row| {
        let is_known = partitions.is_valid(row) && offsets.is_valid(row);
        let item = if items.is_valid(row) { items.value(row) } else { 0 };
        is_known.then(|| (partitions.value(row), offsets.value(row), item))
    })
}

//! Shared by the tests of this crate: readings as plain rows, and their conversion to and from record batches.

use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::ExecutionPlan;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder, ReadingColumns};
use wye_domain::time::Micros;
use wye_metrics::confidence::Arrival;

use crate::columns::archive_schema;
use crate::readings::ArchiveBatch;

/// A stored reading; the field order is the order of the master dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) device_id: String,
    pub(crate) metric: String,
    pub(crate) event_time: i64,
    pub(crate) sequence: Option<i64>,
    pub(crate) ingest_time: i64,
    pub(crate) kafka_partition: i32,
    pub(crate) kafka_offset: i64,
    pub(crate) kafka_index: i32,
    /// The bits of the value, so that rows can be compared.
    pub(crate) value: u64,
    pub(crate) unit: Option<String>,
    pub(crate) tags: Option<String>,
}

/// A row with the fields that most tests need; one reading per message.
pub(crate) fn row(device_id: &str, event_time: i64, kafka_partition: i32, kafka_offset: i64) -> Row {
    let value = (event_time as f64).to_bits();
    let (device_id, metric) = (device_id.to_owned(), "t".to_owned());
    Row { device_id, metric, event_time, kafka_partition, kafka_offset, value, ..Row::default() }
}

/// The same rows, received by the log at `ingest_time`.
pub(crate) fn ingested<const N: usize>(ingest_time: i64, rows: [Row; N]) -> [Row; N] {
    rows.map(|row| Row { ingest_time, ..row })
}

/// Rows as a batch of [`archive_schema`].
pub(crate) fn archive_batch(rows: &[Row]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for row in rows {
        builder.append(&Reading {
            device_id: &row.device_id,
            metric: &row.metric,
            value: f64::from_bits(row.value),
            event_time: Micros(row.event_time),
            sequence: row.sequence,
            unit: row.unit.as_deref(),
            tags: row.tags.as_deref(),
        });
    }
    let mut columns = builder.finish().columns().to_vec();
    let ingest_times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.ingest_time));
    columns.push(Arc::new(ingest_times.with_timezone("UTC")));
    columns.push(Arc::new(rows.iter().map(|row| row.kafka_offset).collect::<Int64Array>()));
    columns.push(Arc::new(rows.iter().map(|row| row.kafka_index).collect::<Int32Array>()));
    RecordBatch::try_new(archive_schema(), columns).unwrap()
}

/// Rows of one Kafka partition that are appended at once.
pub(crate) fn archive(kafka_partition: i32, from: i64, next: i64, rows: &[Row]) -> ArchiveBatch {
    let readings = if rows.is_empty() { vec![] } else { vec![archive_batch(rows)] };
    ArchiveBatch {
        kafka_partition: KafkaPartition(kafka_partition),
        offsets: Offset(from)..Offset(next),
        readings,
    }
}

/// A horizon from plain numbers.
pub(crate) fn horizon<const N: usize>(offsets: [(i32, i64); N]) -> Horizon {
    offsets
        .map(|(kafka_partition, offset)| (KafkaPartition(kafka_partition), Offset(offset)))
        .into_iter()
        .collect()
}

/// The rows of a batch of [`crate::columns::stored_schema`].
pub(crate) fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let columns = ReadingColumns::of(batch).unwrap();
    let partition = batch.column_by_name("kafka_partition").unwrap().as_primitive::<Int32Type>();
    let offset = batch.column_by_name("kafka_offset").unwrap().as_primitive::<Int64Type>();
    let ingest_time = batch.column_by_name("ingest_time").unwrap().as_primitive::<TimestampMicrosecondType>();
    let index = batch.column_by_name("kafka_index").unwrap().as_primitive::<Int32Type>();
    (0..batch.num_rows())
        .map(|row| {
            let reading = columns.reading(row);
            Row {
                device_id: reading.device_id.to_owned(),
                metric: reading.metric.to_owned(),
                event_time: reading.event_time.0,
                sequence: reading.sequence,
                ingest_time: ingest_time.value(row),
                kafka_partition: partition.value(row),
                kafka_offset: offset.value(row),
                kafka_index: index.value(row),
                value: reading.value.to_bits(),
                unit: reading.unit.map(str::to_owned),
                tags: reading.tags.map(str::to_owned),
            }
        })
        .collect()
}

/// Runs a plan in a new session, and returns the batches of each plan partition.
pub(crate) async fn run(plan: Arc<dyn ExecutionPlan>) -> Vec<Vec<RecordBatch>> {
    let context = SessionContext::new().task_ctx();
    datafusion::physical_plan::collect_partitioned(plan, context).await.unwrap()
}

/// Runs a query over one table.
pub(crate) async fn query(
    table: &str,
    provider: Arc<dyn datafusion::catalog::TableProvider>,
    sql: &str,
) -> Vec<RecordBatch> {
    let session = SessionContext::new();
    session.register_table(table, provider).unwrap();
    session.sql(sql).await.unwrap().collect().await.unwrap()
}

/// The only value in the answer to a query.
pub(crate) async fn number(
    table: &str,
    provider: Arc<dyn datafusion::catalog::TableProvider>,
    sql: &str,
) -> i64 {
    query(table, provider, sql).await[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// When rows have arrived.
pub(crate) fn arrival_of<'a>(rows: impl Iterator<Item = &'a Row>) -> Arrival {
    let mut arrival = Arrival::default();
    rows.for_each(|row| arrival.add(Micros(row.event_time), Micros(row.ingest_time)));
    arrival
}

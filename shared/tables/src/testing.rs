//! Shared by the tests of this crate: readings as plain rows, and their conversion to and from record batches.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use tempfile::TempDir;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder, ReadingColumns};
use wye_domain::time::Micros;
use wye_metrics::confidence::Arrival;

use crate::columns::archive_schema;
use crate::delta::DeltaLog;
use crate::readings::ArchiveBatch;
use crate::s3::{AccessKeys, S3Options};
use crate::store::TableRoot;
use crate::unique;

/// Names the directory of a running `scripts/s3.sh`.
const S3: &str = "WYE_TEST_S3";
/// The bucket of tests.
const BUCKET: &str = "s3://wye";

/// Where a test has its tables.
pub(crate) enum Place {
    Directory(TempDir),
    /// A new prefix.
    S3(String),
}

impl Place {
    /// One of each kind. Without `WYE_TEST_S3`, only a directory; in CI that is an error.
    pub(crate) fn all() -> Vec<Self> {
        let mut places = vec![Self::Directory(tempfile::tempdir().unwrap())];
        match s3() {
            Some(_) => places.push(Self::S3(format!("{BUCKET}/unit-tests/{}", unique::name()))),
            None => println!("not on S3, since {S3} is not set (make test sets it)"),
        }
        places
    }

    /// The root of the tables. Each call shares nothing with the others, as in another process.
    pub(crate) async fn root(&self) -> TableRoot {
        match self {
            Self::Directory(directory) => TableRoot::directory(directory.path()).unwrap(),
            Self::S3(location) => TableRoot::open(location, &s3().unwrap()).await.unwrap(),
        }
    }
}

/// How tests reach S3; `None` without one.
pub(crate) fn s3() -> Option<S3Options> {
    let Some(directory) = std::env::var_os(S3).map(PathBuf::from) else {
        assert!(std::env::var_os("CI").is_none(), "{S3} is not set");
        return None;
    };
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap().trim().to_owned();
    Some(S3Options {
        endpoint: Some(read("endpoint")),
        keys: Some(AccessKeys { id: read("access-key"), secret: read("secret-key") }),
        allow_http: true,
        ..S3Options::default()
    })
}

/// The objects of a table below a directory.
pub(crate) async fn objects(log: &DeltaLog, directory: &str) -> Vec<Path> {
    let found = log.store().list(Some(&Path::from(directory)));
    found.map_ok(|object| object.location).try_collect().await.unwrap()
}

/// A new session that can read all places.
async fn session() -> SessionContext {
    let session = SessionContext::new();
    if let Some(options) = std::env::var_os(S3).and_then(|_| s3()) {
        let root = TableRoot::open(BUCKET, &options).await.unwrap();
        root.register(&session.runtime_env()).unwrap();
    }
    session
}

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
    let context = session().await.task_ctx();
    datafusion::physical_plan::collect_partitioned(plan, context).await.unwrap()
}

/// Runs a query over one table.
pub(crate) async fn query(
    table: &str,
    provider: Arc<dyn datafusion::catalog::TableProvider>,
    sql: &str,
) -> Vec<RecordBatch> {
    let session = session().await;
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

//! The speed and the size of the tables: `cargo bench -p wye-tables --bench timing [directory]`.
//!
//! Eight appends of 3.8 million hourly readings in total, a sorted scan of them in two plan partitions, and a view of the
//! same number of rows from two writers.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::execute_stream_partitioned;
use futures::StreamExt;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder, text_type, time_type};
use wye_domain::summary_columns;
use wye_domain::time::Micros;
use wye_tables::columns::archive_schema;
use wye_tables::readings::{ArchiveBatch, Readings};
use wye_tables::run_record::RunRecord;
use wye_tables::scan::SortedScan;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, Replaces, ViewCommit};

const HOUR: i64 = 3_600_000_000;
const STATIONS: usize = 10;
const HOURS: i64 = 35_064;
const METRICS: [&str; 11] =
    ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM"];
const APPENDS: i64 = 8;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let directory = std::env::args()
        .skip(1)
        .find(|argument| argument != "--bench")
        .map_or_else(std::env::temp_dir, PathBuf::from);
    for layout in [Layout::StationByStation, Layout::AllAtOnce] {
        let root = directory.join(format!("wye-tables-timing-{layout:?}"));
        if root.exists() {
            std::fs::remove_dir_all(&root)?;
        }
        println!("{layout:?}");
        measure(&TableRoot::directory(&root)?, layout).await?;
        std::fs::remove_dir_all(&root)?;
    }
    Ok(())
}

/// The order in which readings arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// All years of one station, then those of the next: the devices of files hardly overlap.
    StationByStation,
    /// All stations, hour by hour: each file has all devices.
    AllAtOnce,
}

async fn measure(root: &TableRoot, layout: Layout) -> Result<(), Error> {
    let readings = Readings::open(root).await?;
    let (mut next, mut bytes, mut rows, mut seconds) = (0, 0, 0, 0.0);
    for append in 0..APPENDS {
        let mut batches = Vec::new();
        let from = next;
        let hours = HOURS * append / APPENDS..HOURS * (append + 1) / APPENDS;
        match layout {
            Layout::AllAtOnce => {
                for start in hours.clone().step_by(100) {
                    for station in 0..STATIONS {
                        batches.push(batch(station, start..(start + 100).min(hours.end), next));
                        next += 1;
                    }
                }
            }
            Layout::StationByStation => {
                let all = STATIONS as i64 * HOURS;
                let mut at = all * append / APPENDS;
                let end = all * (append + 1) / APPENDS;
                while at < end {
                    let (station, hour) = (at / HOURS, at % HOURS);
                    let until = (hour + 5_000).min(HOURS).min(hour + end - at);
                    batches.push(batch(usize::try_from(station)?, hour..until, next));
                    next += 1;
                    at += until - hour;
                }
            }
        }
        let clock = Instant::now();
        let (kafka_partition, offsets) = (KafkaPartition(0), Offset(from)..Offset(next));
        let done =
            readings.append(vec![ArchiveBatch { kafka_partition, offsets, readings: batches }]).await?;
        seconds += clock.elapsed().as_secs_f64();
        (bytes, rows) = (bytes + done.bytes, rows + done.readings);
    }
    println!("  append {rows} readings: {seconds:.2} s, {:.2} bytes a reading", bytes as f64 / rows as f64);
    scan(&readings, &["device_id", "metric", "value", "event_time", "sequence"], None).await?;
    scan(&readings, &["device_id", "metric", "value", "event_time", "sequence"], Some(next - 1)).await?;
    write_view(root, rows).await?;
    if layout == Layout::AllAtOnce {
        let clock = Instant::now();
        let done = readings.compact(wye_tables::CompactionPolicy::default()).await?;
        println!("  {done:?}: {:.2} s", clock.elapsed().as_secs_f64());
        println!("  {:.2} bytes a reading", readings.snapshot().await?.bytes() as f64 / rows as f64);
        scan(&readings, &["device_id", "metric", "value", "event_time", "sequence"], None).await?;
    }
    Ok(())
}

/// All metrics of a station for some hours, as one message: metric by metric.
fn batch(station: usize, hours: std::ops::Range<i64>, offset: i64) -> RecordBatch {
    let device = format!("station-{station:02}");
    let mut builder = ReadingBatchBuilder::default();
    for (number, metric) in METRICS.iter().enumerate() {
        for hour in hours.clone() {
            // Few distinct numbers that change slowly, like measurements.
            let phase = (hour as f64 / (7.0 + number as f64)).sin() * 40.0;
            let noise =
                (hour.wrapping_mul(2_654_435_761).wrapping_add(number as i64 * 97) >> 7).rem_euclid(23);
            builder.append(&Reading {
                device_id: &device,
                metric,
                value: 60.0 + phase.round() + noise as f64,
                event_time: Micros(1_362_096_000_000_000 + hour * HOUR),
                sequence: None,
                unit: None,
                tags: None,
            });
        }
    }
    let rows = builder.len();
    let mut columns = builder.finish().columns().to_vec();
    let ingest_time = 1_790_000_000_000_000 + offset * 1_000;
    columns.push(Arc::new(TimestampMicrosecondArray::from(vec![ingest_time; rows]).with_timezone("UTC")));
    columns.push(Arc::new(Int64Array::from(vec![offset; rows])));
    columns.push(Arc::new(Int32Array::from_iter_values(0..i32::try_from(rows).expect("a message is small"))));
    RecordBatch::try_new(archive_schema(), columns)
        .expect("the columns have the schema's types and one length")
}

async fn scan(readings: &Readings, columns: &[&str], horizon: Option<i64>) -> Result<(), Error> {
    let clock = Instant::now();
    let horizon = horizon.map(horizon_at);
    let scan = SortedScan { horizon: horizon.as_ref(), window: None, columns, batch_size: None };
    let plan = readings.snapshot().await?.sorted_scan(&scan)?;
    let context = SessionContext::new().task_ctx();
    let mut tasks = tokio::task::JoinSet::new();
    for mut part in execute_stream_partitioned(plan, context)? {
        tasks.spawn(async move {
            let mut rows = 0;
            while let Some(batch) = part.next().await {
                rows += batch?.num_rows();
            }
            Ok::<usize, Error>(rows)
        });
    }
    let mut rows = Vec::new();
    while let Some(part) = tasks.join_next().await {
        rows.push(part??);
    }
    println!(
        "  sorted scan{}: {rows:?} rows, {:.2} s",
        if horizon.is_some() { " below a horizon" } else { "" },
        clock.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A horizon at an offset of the only Kafka partition.
fn horizon_at(offset: i64) -> Horizon {
    Horizon::from_iter([(KafkaPartition(0), Offset(offset))])
}

async fn write_view(root: &TableRoot, rows: u64) -> Result<(), Error> {
    let views = BatchViews::open(root)?;
    let schema = view_schema();
    let batches: Arc<Vec<RecordBatch>> = Arc::new((0..16).map(|part| view_batch(&schema, part)).collect());
    let per_writer = usize::try_from(rows)? / 2;
    let clock = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let mut writer = views.writer(&schema)?;
        let batches = Arc::clone(&batches);
        tasks.spawn(async move {
            let mut written = 0;
            for batch in batches.iter().cycle() {
                if written >= per_writer {
                    break;
                }
                writer.write(batch).await?;
                written += batch.num_rows();
            }
            writer.finish().await
        });
    }
    let mut files = Vec::new();
    while let Some(part) = tasks.join_next().await {
        files.extend(part??);
    }
    let count = files.len();
    let run = RunRecord { windows: rows, ..RunRecord::default() };
    let horizon = horizon_at(1);
    let commit = ViewCommit { schema, files, replaces: Replaces::All, horizon, run, expected_version: None };
    let written = clock.elapsed().as_secs_f64();
    views.commit(commit).await?;
    let seconds = clock.elapsed().as_secs_f64();
    let view = views.latest().await?.ok_or("no view after a commit")?;
    println!(
        "  view of {} rows in {count} files: {seconds:.2} s, of which the commit {:.3} s, {:.1} bytes a row",
        view.rows(),
        seconds - written,
        view.bytes() as f64 / view.rows() as f64
    );
    let clock = Instant::now();
    for _ in 0..100 {
        views.latest_version().await?;
    }
    println!("  asking for the newest version: {:.2} ms", clock.elapsed().as_secs_f64() * 10.0);
    let clock = Instant::now();
    let session = SessionContext::new();
    session.register_table("batch_metrics", view.provider().await?)?;
    let found = session.sql("select count(*) from batch_metrics where device_id = 'station-03' and window_start < timestamp '2013-03-02T00:00:00Z'").await?.collect().await?;
    println!(
        "  selective query of it: {:.3} s, {} row(s) of answer",
        clock.elapsed().as_secs_f64(),
        found[0].num_rows()
    );
    Ok(())
}

fn view_schema() -> SchemaRef {
    let mut fields = vec![
        Field::new("definition", text_type(), false),
        Field::new("device_id", text_type(), true),
        Field::new("metric", text_type(), true),
        Field::new("window_start", time_type(), false),
        Field::new("window_size", DataType::Int64, false),
    ];
    fields.extend(summary_columns::schema_fields());
    fields.push(Field::new("expected", DataType::Float64, true));
    fields.push(Field::new("confidence", DataType::Float64, true));
    Arc::new(Schema::new(fields))
}

/// A column with the same text in each row.
fn text(word: &str, rows: usize) -> ArrayRef {
    let words = Arc::new(StringArray::from(vec![word]));
    Arc::new(DictionaryArray::<Int32Type>::new(vec![0; rows].into(), words))
}

/// Consecutive windows with one reading each, like hourly readings in one-minute windows.
fn view_batch(schema: &SchemaRef, part: i64) -> RecordBatch {
    let rows = 8192_usize;
    let starts = (0..rows as i64).map(|row| 1_362_096_000_000_000 + (part * rows as i64 + row) * HOUR);
    let values = (0..rows).map(|row| (60.0 + (row as f64 / 9.0).sin() * 40.0).round());
    let columns = schema.fields().iter().map(|field| match (field.name().as_str(), field.data_type()) {
        ("device_id", _) => text(&format!("station-{:02}", part % 10), rows),
        (_, DataType::Dictionary(..)) => text("any", rows),
        (_, DataType::Timestamp(..)) => {
            Arc::new(TimestampMicrosecondArray::from_iter_values(starts.clone()).with_timezone("UTC"))
        }
        ("window_size", _) => Arc::new(Int64Array::from(vec![60_000_000; rows])),
        ("count", _) => Arc::new(Int64Array::from(vec![1; rows])),
        (_, DataType::Int64) => Arc::new(Int64Array::from(vec![0; rows])),
        ("sum_low" | "m2", _) => Arc::new(Float64Array::from(vec![0.0; rows])),
        (_, DataType::Float64) => Arc::new(Float64Array::from_iter_values(values.clone())),
        (_, other) => arrow::array::new_null_array(other, rows),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect())
        .expect("the columns have the schema's types and one length")
}

//! How long a batch run takes: `batch_run [READINGS [DIR]]` over generated hourly readings of 10 devices with 11 metrics,
//! so that every reading has a window of its own. DIR has the tables, such as those of a stopped `wye up`; readings
//! that are there are used as they are, and the views are replaced. It needs no Kafka, since it uses tables only.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use wye_batch::compute::Compute;
use wye_batch::recompute::{Recomputation, recompute};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::Registry;
use wye_domain::time::{Micros, Span};
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_tables::columns::archive_schema;
use wye_tables::readings::{ArchiveBatch, Readings};
use wye_tables::run_record::RunRecord;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, ViewCommit};

const DEVICES: i64 = 10;
const METRICS: [&str; 11] =
    ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM"];
const HOUR: Span = Span::from_hours(1);
/// 2013-02-28T16:00:00Z
const START: Micros = Micros::from_secs(1_362_067_200);
const KAFKA_PARTITIONS: i64 = 4;
/// Readings of one append of the archiver under load.
const APPEND: i64 = 1_000_000;

#[expect(clippy::print_stdout, reason = "a program for the terminal")]
#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let scratch = tempfile::tempdir()?;
    let root = TableRoot::directory(arguments.get(1).map_or(scratch.path(), Path::new))?;
    let readings = Readings::open(&root).await?;
    if readings.snapshot().await?.readings() == 0 {
        let wanted = arguments.first().map_or(Ok(3_800_000), |text| text.parse())?;
        let begin = Instant::now();
        fill(&readings, wanted).await?;
        println!("generated {wanted} readings in {:.2} s", begin.elapsed().as_secs_f64());
    }
    let plans = Arc::new(MetricPlans::new(Vec::new(), Arc::new(Registry::default()))?);
    let expectations = Arc::new(Expectations::new(&plans)?);
    let compute = Compute::new()?;
    let views = BatchViews::open(&root)?;
    for _ in 0..5 {
        let begin = Instant::now();
        let snapshot = readings.snapshot().await?;
        let previous = views.latest().await?;
        let horizon = snapshot.archived();
        let task = Recomputation {
            root: root.clone(),
            horizon: horizon.clone(),
            readings: snapshot.clone(),
            views: views.clone(),
            plans: Arc::clone(&plans),
            expectations: Arc::clone(&expectations),
            as_of: None,
            threads: compute.threads(),
            progress: None,
        };
        let done = compute.run(recompute(task)).await??;
        let computed = begin.elapsed().as_secs_f64();
        let (rows, windows) = (done.tally.readings, done.windows);
        let expected_version = previous.as_ref().map(|view| view.version());
        let run = RunRecord::default();
        let (schema, files) = (done.schema, done.files);
        views.commit(ViewCommit { schema, files, horizon, run, expected_version }).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let view = views.latest().await?.context("a view was committed")?;
        println!(
            "{rows} readings in {} files ({:.2} bytes each), {windows} windows ({:.1} bytes each): computed in {computed:.2} s, committed in {seconds:.2} s",
            snapshot.files(),
            snapshot.bytes() as f64 / rows as f64,
            view.bytes() as f64 / windows as f64,
        );
    }
    Ok(())
}

/// Readings in the order in which files are loaded: device after device, hour after hour.
async fn fill(readings: &Readings, wanted: i64) -> Result<()> {
    let hours = wanted / (DEVICES * METRICS.len() as i64);
    let mut next = [Offset::START; KAFKA_PARTITIONS as usize];
    let mut gathered: Vec<Gathered> = (0..KAFKA_PARTITIONS).map(|_| Gathered::default()).collect();
    let mut count = 0;
    for device in 0..DEVICES {
        let kafka_partition = (device % KAFKA_PARTITIONS) as usize;
        let device_id = format!("station-{device}");
        for hour in 0..hours {
            for (index, metric) in METRICS.iter().enumerate() {
                let noise = (hour * 7_919 + device * 104_729 + index as i64 * 31) % 1_000;
                gathered[kafka_partition].builder.append(&Reading {
                    device_id: &device_id,
                    metric,
                    value: noise as f64 / 10.0,
                    event_time: START + HOUR * hour,
                    sequence: None,
                    unit: Some("ug/m3"),
                    tags: None,
                });
                gathered[kafka_partition].offsets.push(next[kafka_partition].0 + hour / 1_000);
                gathered[kafka_partition].index.push(((hour % 1_000) * 11) as i32 + index as i32);
                count += 1;
            }
            if count >= APPEND {
                count = 0;
                append(readings, &mut gathered, &mut next).await?;
            }
        }
        next[kafka_partition].0 += hours / 1_000 + 1;
    }
    append(readings, &mut gathered, &mut next).await
}

#[derive(Default)]
struct Gathered {
    builder: ReadingBatchBuilder,
    offsets: Vec<i64>,
    index: Vec<i32>,
    from: Offset,
}

async fn append(readings: &Readings, gathered: &mut [Gathered], next: &mut [Offset]) -> Result<()> {
    let mut batches = Vec::new();
    for ((kafka_partition, one), next) in (0..).map(KafkaPartition).zip(gathered).zip(next) {
        if one.builder.is_empty() {
            continue;
        }
        let mut columns: Vec<ArrayRef> = one.builder.finish().columns().to_vec();
        let offsets = std::mem::take(&mut one.offsets);
        let times = vec![(START + HOUR * 40_000).0; offsets.len()];
        let end = offsets.last().map_or(one.from, |last| Offset(*last).next());
        columns.push(Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")));
        columns.push(Arc::new(Int64Array::from(offsets)));
        columns.push(Arc::new(Int32Array::from(std::mem::take(&mut one.index))));
        batches.push(ArchiveBatch {
            kafka_partition,
            offsets: one.from..end,
            readings: vec![RecordBatch::try_new(archive_schema(), columns)?],
        });
        one.from = end;
        *next = end.max(*next);
    }
    readings.append(batches).await?;
    Ok(())
}

//! How long a batch run takes, and how much memory: `batch_run [READINGS [LAYOUT [DIR]]]`. DIR has the tables, such as those
//! of a stopped `wye up`; readings that are there are used as they are, and the views are replaced. It needs no Kafka, since
//! it uses tables only. Layouts of generated readings:
//!
//! - `stations`: 10 devices with 11 metrics, hourly, as a file of each device is loaded; every reading has a window of its own.
//! - `fleet`: 4,000 devices, every 10 s, in the order of their times, as a live fleet reports; each append has all devices.

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
    let root = TableRoot::directory(arguments.get(2).map_or(scratch.path(), Path::new))?;
    let readings = Readings::open(&root).await?;
    if readings.snapshot().await?.readings() == 0 {
        let wanted = arguments.first().map_or(Ok(3_800_000), |text| text.parse())?;
        let begin = Instant::now();
        match arguments.get(1).map(String::as_str) {
            None | Some("stations") => fill_with_stations(&readings, wanted).await?,
            Some("fleet") => fill_with_fleet(&readings, wanted).await?,
            Some(other) => anyhow::bail!("{other:?} is not a layout; write stations or fleet"),
        }
        println!("generated {wanted} readings in {:.2} s", begin.elapsed().as_secs_f64());
    }
    let plans = Arc::new(MetricPlans::new(Vec::new(), Arc::new(Registry::default()))?);
    let expectations = Arc::new(Expectations::new(&plans)?);
    let compute = Compute::new()?;
    let views = BatchViews::open(&root)?;
    let runs = if readings.snapshot().await?.readings() > 10_000_000 { 2 } else { 5 };
    for _ in 0..runs {
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
            since: None,
            threads: compute.threads(),
            cell_readings: 2_000_000,
            progress: None,
        };
        let done = compute.run(recompute(task)).await??;
        let computed = begin.elapsed().as_secs_f64();
        let (rows, windows, cells) = (done.tally().readings, done.windows(), done.cells.len());
        let expected_version = previous.as_ref().map(|view| view.version());
        let run = RunRecord::default();
        let (schema, files, replaces) = (done.schema, done.files, done.replaces);
        views.commit(ViewCommit { schema, files, replaces, horizon, run, expected_version }).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let view = views.latest().await?.context("a view was committed")?;
        println!(
            "{rows} readings in {} files ({:.2} bytes each), {windows} windows ({:.1} bytes each) in {cells} cells: computed in {computed:.2} s, committed in {seconds:.2} s",
            snapshot.files(),
            snapshot.bytes() as f64 / rows as f64,
            view.bytes() as f64 / windows as f64,
        );
    }
    println!("peak memory {} MiB", peak_memory_mib()?);
    Ok(())
}

/// The largest resident memory of this process so far.
fn peak_memory_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}

/// Readings in the order of their times.
async fn fill_with_fleet(readings: &Readings, wanted: i64) -> Result<()> {
    const DEVICES: i64 = 4_000;
    const INTERVAL: Span = Span::from_secs(10);
    /// Readings of each device in one append.
    const SLICE: i64 = 12;
    let mut next = [Offset::START; KAFKA_PARTITIONS as usize];
    for slice in 0..wanted / (DEVICES * SLICE) {
        let mut batches = Vec::new();
        for kafka_partition in 0..KAFKA_PARTITIONS {
            let mut builder = ReadingBatchBuilder::default();
            let (mut times, mut offsets) = (Vec::new(), Vec::new());
            let from = next[kafka_partition as usize];
            let mut offset = from;
            for tick in slice * SLICE..(slice + 1) * SLICE {
                let event_time = START + INTERVAL * tick;
                for device in (kafka_partition..DEVICES).step_by(KAFKA_PARTITIONS as usize) {
                    let device_id = format!("machine-{device:04}");
                    let noise = (tick * 7_919 + device * 104_729) % 1_000;
                    builder.append(&Reading {
                        device_id: &device_id,
                        metric: "temperature",
                        value: noise as f64 / 10.0,
                        event_time,
                        sequence: None,
                        unit: None,
                        tags: None,
                    });
                    times.push((event_time + Span::from_millis(device % 5_000)).0);
                    offsets.push(offset.0);
                    offset = offset.next();
                }
            }
            next[kafka_partition as usize] = offset;
            let mut columns: Vec<ArrayRef> = builder.finish().columns().to_vec();
            let index = Int32Array::from(vec![0; offsets.len()]);
            columns.push(Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")));
            columns.push(Arc::new(Int64Array::from(offsets)));
            columns.push(Arc::new(index));
            batches.push(ArchiveBatch {
                kafka_partition: KafkaPartition(kafka_partition as i32),
                offsets: from..offset,
                readings: vec![RecordBatch::try_new(archive_schema(), columns)?],
            });
        }
        readings.append(batches).await?;
    }
    Ok(())
}

/// Readings in the order in which files are loaded: device after device, hour after hour.
async fn fill_with_stations(readings: &Readings, wanted: i64) -> Result<()> {
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

//! How long a batch run takes, and how much memory: `batch_run [READINGS [LAYOUT [DIR]]]`. DIR has the tables, such as those
//! of a stopped `wye up`; readings that are there are used as they are, and the views are replaced. It needs no Kafka, since
//! it uses tables only. Layouts of generated readings:
//!
//! - `stations`: 10 devices with 11 metrics, hourly, as a file of each device is loaded; every reading has a window of its own.
//! - `fleet`: 4,000 devices, every 10 s, in the order of their times, as a live fleet reports; each append has all devices.
//!   After the runs over everything come 1 % newest readings, and 1 % late ones scattered over all times, with a run each.

#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use wye_batch::compute::Compute;
use wye_batch::recompute::{Recomputation, Restating, Since, recompute};
use wye_batch::restate::{Cause, Comparison};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::Registry;
use wye_domain::time::{Micros, Span};
use wye_metrics::amendment::Amending;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::COMPUTATION;
use wye_tables::columns::archive_schema;
use wye_tables::readings::{ArchiveBatch, Readings};
use wye_tables::restatements::Restatements;
use wye_tables::run_record::RunRecord;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, ViewCommit, ViewSnapshot, ViewVersion};

const DEVICES: i64 = 10;
const METRICS: [&str; 11] =
    ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM"];
const HOUR: Span = Span::from_hours(1);
/// 2013-02-28T16:00:00Z
const START: Micros = Micros::from_secs(1_362_067_200);
const KAFKA_PARTITIONS: i64 = 4;
/// Devices of the layout `fleet`.
const FLEET: i64 = 4_000;
/// Readings of one append of the archiver under load.
const APPEND: i64 = 1_000_000;

/// The tables, and what is computed.
struct Bench {
    root: TableRoot,
    readings: Readings,
    views: BatchViews,
    plans: Arc<MetricPlans>,
    expectations: Arc<Expectations>,
    compute: Compute,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let scratch = tempfile::tempdir()?;
    let root = TableRoot::directory(arguments.get(2).map_or(scratch.path(), Path::new))?;
    let readings = Readings::open(&root).await?;
    let layout = arguments.get(1).map_or("stations", String::as_str);
    let is_fleet = layout == "fleet";
    ensure!(is_fleet || layout == "stations", "{layout:?} is not a layout; write stations or fleet");
    if readings.snapshot().await?.readings() == 0 {
        let wanted = arguments.first().map_or(Ok(3_800_000), |text| text.parse())?;
        let begin = Instant::now();
        match is_fleet {
            true => fill_with_fleet(&readings, 0..wanted / FLEET, Spread::InOrder).await?,
            false => fill_with_stations(&readings, wanted).await?,
        }
        print(&format!("generated {wanted} readings in {:.2} s", begin.elapsed().as_secs_f64()));
    }
    let plans = Arc::new(MetricPlans::new(Vec::new(), Arc::new(Registry::default()))?);
    let bench = Bench {
        expectations: Arc::new(Expectations::new(&plans)?),
        compute: Compute::new()?,
        views: BatchViews::open(&root)?,
        root,
        readings,
        plans,
    };
    let all = bench.readings.snapshot().await?.readings();
    for _ in 0..if all > 10_000_000 { 2 } else { 5 } {
        bench.run("everything", Start::FromNothing).await?;
    }
    if is_fleet {
        let ticks = all as i64 / FLEET;
        let more = (ticks / 100).max(1);
        fill_with_fleet(&bench.readings, ticks..ticks + more, Spread::InOrder).await?;
        bench.run("1 % newest", Start::FromTheView).await?;
        fill_with_fleet(&bench.readings, ticks..ticks + more, Spread::AtRandom { before: ticks }).await?;
        bench.run("1 % scattered", Start::FromTheView).await?;
    }
    Ok(())
}

/// What a run computes.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    FromNothing,
    FromTheView,
}

impl Bench {
    async fn run(&self, name: &str, start: Start) -> Result<()> {
        // Resets the peak of the memory.
        std::fs::write("/proc/self/clear_refs", "5")?;
        let begin = Instant::now();
        let snapshot = self.readings.snapshot().await?;
        let previous = self.views.latest().await?;
        let horizon = snapshot.archived();
        let since = previous.as_ref().filter(|_| start == Start::FromTheView);
        let since =
            since.map(|view| Since::view(view, &self.plans, &[], &snapshot).map_err(anyhow::Error::msg));
        let restating = match previous.as_ref().filter(|_| start == Start::FromTheView) {
            Some(view) => Some(self.restating(view).await?),
            None => None,
        };
        let task = Recomputation {
            root: self.root.clone(),
            horizon: horizon.clone(),
            readings: snapshot.clone(),
            views: self.views.clone(),
            plans: Arc::clone(&self.plans),
            expectations: Arc::clone(&self.expectations),
            amending: Amending::default(),
            as_of: None,
            now: Micros::MAX,
            since: since.transpose()?,
            threads: self.compute.threads(),
            cell_readings: 2_000_000,
            restating,
            progress: None,
        };
        let done = self.compute.run(recompute(task)).await??;
        let computed = begin.elapsed().as_secs_f64();
        let (rows, windows, cells) = (done.tally().readings, done.windows(), done.cells.len());
        let restated = done.restated;
        let (cells_computed, read): (u64, u64) = (done.computed_cells.values().sum(), done.readings_read);
        let run = RunRecord {
            as_of: done.as_of.unwrap_or_default(),
            lateness: done.lateness,
            definitions: self.plans.fingerprint().to_string(),
            computation: COMPUTATION,
            readings_table: snapshot.table_id().to_owned(),
            ..RunRecord::default()
        };
        let (schema, files, replaces) = (done.schema, done.files, done.replaces);
        let expected_version = previous.as_ref().map(|view| view.version());
        self.views.commit(ViewCommit { schema, files, replaces, horizon, run, expected_version }).await?;
        let seconds = begin.elapsed().as_secs_f64();
        let view = self.views.latest().await?.context("a view was committed")?;
        print(&format!(
            "{name}: computed in {computed:.2} s, committed in {seconds:.2} s, peak memory {} MiB; {cells_computed} of {cells} cells, {read} of {rows} readings in {} files ({:.2} bytes each), {windows} windows ({:.1} bytes each), {restated} restated",
            peak_memory_mib()?,
            snapshot.files(),
            snapshot.bytes() as f64 / rows as f64,
            view.bytes() as f64 / windows as f64,
        ));
        Ok(())
    }

    /// What a run that starts from a view compares its numbers with.
    async fn restating(&self, view: &ViewSnapshot) -> Result<Restating> {
        let run = view.run.as_ref().context("a run has made the view")?;
        let comparison = Comparison {
            view: view.clone(),
            settled_until: run.lateness.settling().settled_until(run.as_of),
            cause: Cause::Readings(Vec::new()),
            run_id: "bench".to_owned(),
            started: run.as_of,
        };
        let table = Restatements::open(&self.root).await?;
        Ok(Restating { comparison: Arc::new(comparison), table, version: ViewVersion(view.version().0 + 1) })
    }
}

#[expect(clippy::print_stdout, reason = "a program for the terminal")]
fn print(line: &str) {
    println!("{line}");
}

/// The largest resident memory of this process so far.
fn peak_memory_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}

/// When the readings of a fleet were measured.
#[derive(Clone, Copy)]
enum Spread {
    /// One after the other.
    InOrder,
    /// Between the readings before this tick, at random.
    AtRandom { before: i64 },
}

/// Readings of each device at some ticks of ten seconds, in the order of arrival.
async fn fill_with_fleet(readings: &Readings, ticks: std::ops::Range<i64>, spread: Spread) -> Result<()> {
    const INTERVAL: Span = Span::from_secs(10);
    /// Readings of each device in one append.
    const SLICE: usize = 12;
    let archived = readings.archived().await?;
    let mut next: Vec<Offset> =
        KafkaPartition::all(KAFKA_PARTITIONS as i32).map(|partition| archived.offset(partition)).collect();
    for start in ticks.clone().step_by(SLICE) {
        let mut batches = Vec::new();
        for (kafka_partition, next) in (0..).zip(&mut next) {
            let mut builder = ReadingBatchBuilder::default();
            let (mut times, mut offsets) = (Vec::new(), Vec::new());
            let from = *next;
            for tick in start..(start + SLICE as i64).min(ticks.end) {
                for device in (kafka_partition..FLEET).step_by(KAFKA_PARTITIONS as usize) {
                    let device_id = format!("machine-{device:04}");
                    let noise = (tick * 7_919 + device * 104_729) % 1_000;
                    let event_time = match spread {
                        Spread::InOrder => START + INTERVAL * tick,
                        Spread::AtRandom { before } => {
                            let any = (tick * FLEET + device).wrapping_mul(0x5851_f42d_4c95_7f2d) >> 11;
                            START + INTERVAL * any.rem_euclid(before) + Span::from_secs(3)
                        }
                    };
                    builder.append(&Reading {
                        device_id: &device_id,
                        metric: "temperature",
                        value: noise as f64 / 10.0,
                        event_time,
                        sequence: None,
                        unit: None,
                        tags: None,
                    });
                    times.push((START + INTERVAL * tick + Span::from_millis(device % 5_000)).0);
                    offsets.push(next.0);
                    *next = next.next();
                }
            }
            let mut columns: Vec<ArrayRef> = builder.finish().columns().to_vec();
            let index = Int32Array::from(vec![0; offsets.len()]);
            columns.push(Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")));
            columns.push(Arc::new(Int64Array::from(offsets)));
            columns.push(Arc::new(index));
            batches.push(ArchiveBatch {
                kafka_partition: KafkaPartition(kafka_partition as i32),
                offsets: from..*next,
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

//! How fast the merge is and how much it holds: `cargo bench -p wye-serving --bench merge_throughput`.
//!
//! 3.84 million single-reading windows of 120 series, once all in epochs (no batch run yet), once all in a batch view of
//! four files. Prints seconds and megabytes.

#![expect(clippy::print_stdout, reason = "a report for people")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use arrow::array::RecordBatch;
use wye_domain::horizon::Horizon;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::realtime_row::Header;
use wye_domain::registry::Registry;
use wye_domain::series::SeriesKey;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span};
use wye_metrics::confidence::{Evidence, settled};
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::ViewSchema;
use wye_metrics::view_rows::builder::{ViewRowsBuilder, ViewSeries};
use wye_runtime::clock::SystemClock;
use wye_serving::directory::{Directory, SeriesInfo};
use wye_serving::hub::{Hub, Input};
use wye_serving::realtime::RealtimeRow;
use wye_serving::snapshot::BatchSnapshot;
use wye_serving::sql::{EngineParts, Limits, Sources, SqlEngine, UnknownHost};
use wye_tables::amendments::Amendments;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::restatements::Restatements;
use wye_tables::run_record::RunRecord;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, Replaces, ViewCommit};

const SERIES: usize = 120;
const WINDOWS: i64 = 32_000;
const EPOCH_ROWS: u64 = 500_000;
const PARTITION: KafkaPartition = KafkaPartition(0);
const OWNER: Generation = Generation(Offset(1));

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = TableRoot::directory(folder.path())?;
    let plans = Arc::new(MetricPlans::new(Vec::new(), Arc::new(Registry::default()))?);
    let expectations = Expectations::new(&plans)?;
    let directory = Arc::new(Directory::new(plans, expectations));
    let hub = Arc::new(Hub::new(Arc::clone(&directory), 1));
    let views = BatchViews::open(&root)?;
    let sources = Sources {
        readings: Readings::open(&root).await?,
        dead_letters: DeadLetters::open(&root).await?,
        views: views.clone(),
        amendments: Amendments::open(&root)?,
        restatements: Restatements::open(&root).await?,
    };
    let limits = Limits { threads: 2, ..Limits::default() };
    let parts = EngineParts {
        hub: Arc::clone(&hub),
        sources,
        host: Arc::new(UnknownHost),
        clock: Arc::new(SystemClock::default()),
    };
    let engine = SqlEngine::new(parts, &root, limits)?;
    let texts: Vec<String> = (0..SERIES).map(series).collect();
    let infos: Vec<Arc<SeriesInfo>> = directory
        .resolve(texts.iter().map(String::as_str))
        .into_iter()
        .flatten()
        .map(|id| directory.info(id))
        .collect();

    let before = resident();
    let started = Instant::now();
    fill(&hub, &infos, 0..WINDOWS, Offset::START);
    println!("apply {} windows: {:.2} s", SERIES as i64 * WINDOWS, started.elapsed().as_secs_f64());
    println!("held: {} MB more", resident() - before);
    ask(&engine, "all in epochs").await?;
    latency(&hub, &infos);

    let schema = ViewSchema::of(directory.plans());
    let end = Offset(SERIES as i64 * WINDOWS);
    let mut files = Vec::new();
    for part in infos.chunks(SERIES / 4) {
        let mut writer = views.writer(schema.arrow())?;
        for info in part {
            writer.write(&rows_of(&schema, &directory, info)).await?;
        }
        files.extend(writer.finish().await?);
    }
    let run = RunRecord { definitions: directory.plans().fingerprint().to_string(), ..RunRecord::default() };
    let horizon = Horizon::from_iter([(PARTITION, end)]);
    let schema = Arc::clone(schema.arrow());
    views
        .commit(ViewCommit { schema, files, replaces: Replaces::All, horizon, run, expected_version: None })
        .await?;
    let view = views.latest().await?.expect("it was just committed");
    println!("batch view: {} MB", view.bytes() >> 20);
    let started = Instant::now();
    let context = engine.runtime().task_context();
    let snapshot = BatchSnapshot::load(view, None, &directory, &context).await?;
    println!("load: {:.2} s", started.elapsed().as_secs_f64());
    hub.step(Input::BatchView(Arc::new(snapshot)));
    println!("held: {} MB more", resident() - before);
    ask(&engine, "all in the view").await?;
    fill(&hub, &infos, WINDOWS - 1..WINDOWS + 10, end);
    ask(&engine, "eleven windows of each series in epochs").await?;
    latency(&hub, &infos);
    Ok(())
}

fn series(n: usize) -> String {
    let group: Box<[_]> = Box::new([Some(format!("station-{}", n / 12).into())]);
    SeriesKey { definition: "*".into(), metric: format!("metric-{}", n % 12).into(), group }.encode()
}

/// The start of a window, counted from 1970 on.
fn start_of(window: i64) -> Micros {
    Micros::EPOCH + Span::from_hours(window)
}

fn reading(window: i64) -> Summary {
    let mut summary = Summary::EMPTY;
    summary.add(window as f64 / 8.0, start_of(window));
    summary
}

/// Writes windows hour by hour, as a load in order of time does.
fn fill(hub: &Hub, infos: &[Arc<SeriesInfo>], windows: std::ops::Range<i64>, first: Offset) {
    let definitions = hub.directory().plans().fingerprint();
    let (mut next, mut open) = (first, None);
    for window in windows {
        let epoch = match open {
            Some(epoch) if next.since(epoch) < EPOCH_ROWS => epoch,
            _ => {
                let header = Header::Begin { generation: OWNER, epoch: next, definitions, reset: false };
                hub.apply(PARTITION, &header, &[]);
                *open.insert(next)
            }
        };
        let rows: Vec<RealtimeRow> = infos
            .iter()
            .map(|info| RealtimeRow {
                series: info.id,
                window_start: start_of(window),
                summary: reading(window),
            })
            .collect();
        let header = Header::Rows {
            generation: OWNER,
            epoch,
            through: Offset::START,
            complete: true,
            newest_event_time: None,
        };
        hub.apply(PARTITION, &header, &rows);
        next.0 += rows.len() as i64;
    }
}

async fn ask(engine: &SqlEngine, what: &str) -> Result<()> {
    println!("{what}:");
    for sql in [
        "SELECT count(*), sum(\"count\") FROM unified_series",
        "SELECT device_id, avg(avg) FROM unified_series WHERE metric = 'metric-3' GROUP BY 1",
        "SELECT count(*), sum(\"count\") FROM \"metric-3_1d\"",
        "SELECT count(*) FROM unified_metrics",
        "SELECT * FROM unified_series",
    ] {
        let started = Instant::now();
        let mut rows = engine.query(sql).await?;
        let (mut count, mut bytes) = (0, 0);
        let mut first = None;
        let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &rows.schema)?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            count += batch.num_rows();
            writer.write(&batch)?;
            bytes += writer.get_ref().len();
            writer.get_mut().clear();
            first.get_or_insert(batch);
        }
        let seconds = started.elapsed().as_secs_f64();
        println!("  {seconds:6.2} s {count:8} rows {:5} MB  {sql}", bytes >> 20);
        if let Some(first) = first.filter(|first| first.num_rows() == 1) {
            println!("{}", arrow::util::pretty::pretty_format_batches(&[first])?);
        }
    }
    println!("  resident: {} MB", resident());
    Ok(())
}

fn latency(hub: &Hub, infos: &[Arc<SeriesInfo>]) {
    let mut times: Vec<Duration> = (0..100_000)
        .map(|n| {
            let started = Instant::now();
            let taken = hub.read().current(&infos[n % SERIES..=n % SERIES], Micros::EPOCH);
            assert_eq!(taken.answers.len(), 1);
            started.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "current of one series: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}

/// Megabytes of memory that the process holds; 0 where the system does not say.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<i64>().unwrap_or_default() / 1_024
}

/// All windows of a series as rows of a batch view.
fn rows_of(schema: &ViewSchema, directory: &Directory, info: &SeriesInfo) -> RecordBatch {
    let series = ViewSeries::new(schema, directory.definition(info.definition), &info.key);
    let mut rows = ViewRowsBuilder::with_capacity(schema, WINDOWS as usize);
    for n in 0..WINDOWS {
        let (window, summary) = (series.window_at(start_of(n)), reading(n));
        let evidence = Evidence { summary: &summary, expectation: info.expectation.as_deref(), window };
        rows.append(&series, window, &summary, &settled(evidence));
    }
    rows.finish()
}

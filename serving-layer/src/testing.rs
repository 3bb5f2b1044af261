//! What the tests of this crate share: plans, a directory, realtime rows, and batch views in memory and in a temporary
//! folder.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use wye_domain::horizon::Horizon;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::realtime_row::Header;
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::SeriesKey;
use wye_domain::sketches::Sketches;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span, Window, WindowSize};
use wye_metrics::confidence::{Evidence, LatenessHistogram, settled};
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::failures::Failures;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::builder::{ViewRowsBuilder, ViewSeries};
use wye_metrics::view_rows::{COMPUTATION, ViewSchema};
use wye_tables::amendments::Amendments;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::restatements::Restatements;
use wye_tables::run_record::RunRecord;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, CellRecord, Replaces, ViewCommit, ViewFile};

use crate::directory::Directory;
use crate::hub::{Hub, Input};
use crate::realtime::RealtimeRow;
use crate::snapshot::BatchSnapshot;
use crate::sql::{EngineParts, Limits, Sources, SqlEngine, UnknownHost};
use wye_runtime::clock::{Clock, SystemClock};

/// The only Kafka partition.
pub(crate) const PARTITION: KafkaPartition = KafkaPartition(0);
/// Its only owner.
pub(crate) const OWNER: Generation = Generation(Offset(1));

/// The start of a minute, counted from 1970 on.
pub(crate) fn minute(n: i64) -> Micros {
    Micros::EPOCH + Span::from_mins(n)
}

/// The family, and a named definition by line with all aggregates; device `a` reports every second.
pub(crate) fn plans() -> Arc<MetricPlans> {
    let line = MetricConfig {
        name: "line_heat".to_owned(),
        help: "Heat of a line".to_owned(),
        unit: "Cel".to_owned(),
        filter: Some("metric = 't'".to_owned()),
        value: None,
        by: Some(vec!["line".to_owned()]),
        window: Some("1m".to_owned()),
        rollups: vec!["5m".to_owned()],
        aggregates: Some(vec![
            "avg".to_owned(),
            "max".to_owned(),
            "p50".to_owned(),
            "distinct_devices".to_owned(),
        ]),
    };
    let device = DeviceConfig {
        device_id: "a".to_owned(),
        reporting_interval: Some("1s".to_owned()),
        metrics: vec!["t".to_owned()],
        ..DeviceConfig::default()
    };
    let registry =
        Registry::check(RegistryConfig { device: vec![device], metric_limits: Vec::new() }).unwrap();
    let definitions = vec![Definition::family(), Definition::check(&line).unwrap()];
    Arc::new(MetricPlans::new(definitions, Arc::new(registry)).unwrap())
}

pub(crate) fn directory() -> Directory {
    let plans = plans();
    let expectations = Expectations::new(&plans).unwrap();
    Directory::new(plans, expectations)
}

pub(crate) fn hub() -> Hub {
    Hub::new(Arc::new(directory()), 1)
}

/// The stored text of a series of the family.
pub(crate) fn family(metric: &str, device_id: &str) -> String {
    let group: Box<[_]> = Box::new([Some(device_id.into())]);
    SeriesKey { definition: "*".into(), metric: metric.into(), group }.encode()
}

/// The stored text of a series of `line_heat`.
pub(crate) fn line(name: &str) -> String {
    let group: Box<[_]> = Box::new([Some(name.into())]);
    SeriesKey { definition: "line_heat".into(), metric: "line_heat".into(), group }.encode()
}

/// The summary of readings (value, event time in seconds) of one device.
pub(crate) fn summary(readings: &[(f64, i64)]) -> Summary {
    let mut summary = Summary::EMPTY;
    for (value, seconds) in readings {
        summary.add(*value, Micros::from_secs(*seconds));
    }
    summary
}

/// The same with sketches.
pub(crate) fn sketched(readings: &[(f64, i64)], device_id: &str) -> Summary {
    let needs = wye_domain::sketches::Needs { quantiles: true, distinct: true, devices: false };
    let mut summary = Summary { sketches: Sketches::new(needs), ..summary(readings) };
    for (value, _) in readings {
        summary.sketches.as_mut().unwrap().add(*value, device_id, None);
    }
    summary
}

/// A row of the realtime views, or of a batch view.
pub(crate) type Row = (String, Micros, Summary);

pub(crate) fn begin(hub: &Hub, epoch: i64) {
    let definitions = hub.directory().plans().fingerprint();
    let header = Header::Begin { generation: OWNER, epoch: Offset(epoch), definitions, reset: false };
    hub.apply(PARTITION, &header, &[]);
}

/// Writes rows of an epoch without moving its end.
pub(crate) fn flush(hub: &Hub, epoch: i64, rows: &[Row]) {
    flush_through(hub, epoch, epoch, rows);
}

/// Writes rows of an epoch that hold its readings below an offset.
pub(crate) fn flush_through(hub: &Hub, epoch: i64, through: i64, rows: &[Row]) {
    let rows: Vec<RealtimeRow> = rows
        .iter()
        .map(|(text, window_start, summary)| RealtimeRow {
            series: hub.directory().resolve(std::iter::once(text.as_str()))[0].unwrap(),
            window_start: *window_start,
            summary: summary.clone(),
        })
        .collect();
    hub.apply(PARTITION, &flushed(OWNER, epoch, through), &rows);
}

/// The header of the last record of a flush.
pub(crate) fn flushed(generation: Generation, epoch: i64, through: i64) -> Header {
    let (epoch, through) = (Offset(epoch), Offset(through));
    Header::Rows { generation, epoch, through, complete: true, newest_event_time: None }
}

/// The log answers a question asked at a time.
pub(crate) fn log_ends(hub: &Hub, end: i64, asked_at: Micros) {
    hub.step(Input::LogEnds { ends: &BTreeMap::from([(PARTITION, Offset(end))]), asked_at });
}

pub(crate) fn horizon(offset: i64) -> Horizon {
    Horizon::from_iter([(PARTITION, Offset(offset))])
}

/// Tables in a temporary folder with everything over them.
pub(crate) struct Site {
    pub(crate) hub: Arc<Hub>,
    pub(crate) engine: SqlEngine,
    pub(crate) views: BatchViews,
    _folder: tempfile::TempDir,
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::with(Limits { time: std::time::Duration::from_secs(60), ..Limits::default() }).await
    }

    /// With other limits than usual.
    pub(crate) async fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = TableRoot::directory(folder.path()).unwrap();
        let views = BatchViews::open(&root).unwrap();
        let sources = Sources {
            readings: Readings::open(&root).await.unwrap(),
            dead_letters: DeadLetters::open(&root).await.unwrap(),
            views: views.clone(),
            amendments: Amendments::open(&root).unwrap(),
            restatements: Restatements::open(&root).await.unwrap(),
        };
        let hub = Arc::new(hub());
        hub.step(Input::CaughtUp);
        let limits = Limits {
            memory: 256 << 20,
            threads: 2,
            spill_folder: Some(folder.path().join("spill")),
            ..limits
        };
        let parts = EngineParts {
            hub: Arc::clone(&hub),
            sources,
            host: Arc::new(UnknownHost),
            clock: Arc::new(SystemClock::default()),
        };
        let engine = SqlEngine::new(parts, &root, limits).unwrap();
        Self { hub, engine, views, _folder: folder }
    }

    /// The log answers that it ends here now.
    pub(crate) fn log_ends_at(&self, end: i64) {
        log_ends(&self.hub, end, SystemClock::default().now());
    }

    /// Commits a batch view, a file for each list of rows, and serves it. It does not say its cells.
    pub(crate) async fn batch(&self, horizon: i64, files: &[Vec<Row>]) {
        commit(&self.views, self.hub.directory(), horizon, files).await;
        self.serve_newest().await;
    }

    /// The same where the first reading was ingested at this time.
    pub(crate) async fn batch_ingested_from(&self, first_ingest: Micros, horizon: i64, files: &[Vec<Row>]) {
        let directory = self.hub.directory();
        let written = write(&self.views, directory, files).await;
        let run = RunRecord { first_ingest: Some(first_ingest), ..run(directory.plans()) };
        commit_run(&self.views, directory, horizon, written, Replaces::All, run).await;
        self.serve_newest().await;
    }

    /// The same for cells of a length. Each cell has its rows in files of at most this many.
    pub(crate) async fn batch_in_cells(&self, horizon: i64, length: WindowSize, rows: &[Row], most: usize) {
        let cells = cells(length, rows);
        commit_cells(&self.views, self.hub.directory(), horizon, length, &cells, most, Replaces::All).await;
        self.serve_newest().await;
    }

    async fn serve_newest(&self) {
        let view = self.views.latest().await.unwrap().unwrap();
        let context = self.engine.runtime().task_context();
        let before = self.hub.read().batch_snapshot();
        let directory = self.hub.directory();
        let snapshot = BatchSnapshot::load(view, before.as_deref(), directory, &context).await.unwrap();
        self.hub.step(Input::BatchView(Arc::new(snapshot)));
    }

    /// The error that a query gets.
    pub(crate) async fn refused(&self, sql: &str) -> crate::ServingError {
        match self.engine.query(sql).await {
            Err(error) => error,
            Ok(mut rows) => loop {
                match rows.next().await {
                    Some(Err(error)) => break error,
                    Some(Ok(_)) => {}
                    None => panic!("{sql} was answered"),
                }
            },
        }
    }

    /// The answer to a query, as CSV without its header.
    pub(crate) async fn sql(&self, sql: &str) -> String {
        let mut rows = self.engine.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut csv = Vec::new();
        let mut writer = arrow::csv::WriterBuilder::new().with_header(false).build(&mut csv);
        while let Some(batch) = rows.next().await {
            writer.write(&batch.unwrap()).unwrap();
        }
        drop(writer);
        String::from_utf8(csv).unwrap().trim_end().to_owned()
    }
}

/// Commits a batch view, a file for each list of rows.
pub(crate) async fn commit(views: &BatchViews, directory: &Directory, horizon: i64, files: &[Vec<Row>]) {
    let written = write(views, directory, files).await;
    commit_files(views, directory, horizon, written, Replaces::All).await;
}

/// Rows by the start of their cell.
pub(crate) fn cells(length: WindowSize, rows: &[Row]) -> BTreeMap<Micros, Vec<Row>> {
    let mut cells: BTreeMap<Micros, Vec<Row>> = BTreeMap::new();
    for row in rows {
        cells.entry(length.start_of(row.1)).or_default().push(row.clone());
    }
    cells
}

/// Commits cells of a length, in files of at most so many rows.
pub(crate) async fn commit_cells(
    views: &BatchViews,
    directory: &Directory,
    horizon: i64,
    length: WindowSize,
    cells: &BTreeMap<Micros, Vec<Row>>,
    most: usize,
    replaces: Replaces,
) {
    let mut written = Vec::new();
    for (start, rows) in cells {
        let mut rows = rows.clone();
        rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut files: Vec<Vec<Row>> = rows.chunks(most).map(<[Row]>::to_vec).collect();
        if files.is_empty() {
            files.push(Vec::new());
        }
        let end = length.window_at(*start).end;
        let cell = CellRecord { start: *start, end, ..CellRecord::default() };
        written.extend(ViewFile::of_cell(write(views, directory, &files).await, &cell).unwrap());
    }
    commit_files(views, directory, horizon, written, replaces).await;
}

/// Writes a file for each list of rows.
async fn write(views: &BatchViews, directory: &Directory, files: &[Vec<Row>]) -> Vec<ViewFile> {
    let schema = Arc::clone(ViewSchema::of(directory.plans()).arrow());
    let mut written = Vec::new();
    for rows in files {
        let mut writer = views.writer(&schema).unwrap();
        writer.write(&view_rows(directory.plans(), rows)).await.unwrap();
        written.extend(writer.finish().await.unwrap());
    }
    written
}

async fn commit_files(
    views: &BatchViews,
    directory: &Directory,
    horizon: i64,
    files: Vec<ViewFile>,
    replaces: Replaces,
) {
    commit_run(views, directory, horizon, files, replaces, run(directory.plans())).await;
}

async fn commit_run(
    views: &BatchViews,
    directory: &Directory,
    horizon: i64,
    files: Vec<ViewFile>,
    replaces: Replaces,
    run: RunRecord,
) {
    let schema = Arc::clone(ViewSchema::of(directory.plans()).arrow());
    let expected_version = views.latest_version().await.unwrap();
    let horizon = self::horizon(horizon);
    views.commit(ViewCommit { schema, files, replaces, horizon, run, expected_version }).await.unwrap();
}

/// Replaces one cell by these rows, in a run that has applied an amendment.
pub(crate) async fn commit_amended(views: &BatchViews, directory: &Directory, cell: Window, rows: &[Row]) {
    let record = CellRecord { start: cell.start, end: cell.end, ..CellRecord::default() };
    let view = views.latest().await.unwrap().unwrap();
    let commit = ViewCommit {
        schema: Arc::clone(ViewSchema::of(directory.plans()).arrow()),
        files: ViewFile::of_cell(write(views, directory, &[rows.to_vec()]).await, &record).unwrap(),
        replaces: Replaces::Cells([cell.start].into()),
        horizon: view.horizon.clone(),
        run: RunRecord { amendments: vec!["1".to_owned()], ..run(directory.plans()) },
        expected_version: Some(view.version()),
    };
    views.commit(commit).await.unwrap();
}

/// The record of a batch run.
pub(crate) fn run(plans: &MetricPlans) -> RunRecord {
    let mut lateness = LatenessHistogram::default();
    lateness.add(Span::from_millis(100));
    RunRecord {
        run_id: "r".to_owned(),
        definitions: plans.fingerprint().to_string(),
        computation: COMPUTATION,
        as_of: Micros::from_secs(1_000),
        lateness,
        failures: failures(),
        ..RunRecord::default()
    }
}

/// The readings that `line_heat` could not compute.
fn failures() -> Failures {
    let example = r#"{"message":"no number","device_id":"x","metric":"t","value":1.5,"event_time":0,"tags":"{\"line\":\"L9\"}"}"#;
    serde_json::from_str(&format!(r#"{{"line_heat":{{"readings":3,"example":{example}}}}}"#)).unwrap()
}

/// Rows of a batch view.
pub(crate) fn view_rows(plans: &MetricPlans, rows: &[Row]) -> RecordBatch {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let keys: Vec<SeriesKey> = rows.iter().map(|(text, ..)| SeriesKey::decode(text).unwrap()).collect();
    let schema = ViewSchema::of(plans);
    let series: Vec<ViewSeries> = keys
        .iter()
        .map(|key| ViewSeries::new(&schema, plans.find(&key.definition).unwrap().definition(), key))
        .collect();
    let expectations = Expectations::new(plans).unwrap();
    let mut builder = ViewRowsBuilder::with_capacity(&schema, rows.len());
    for ((key, series), (_, window_start, summary)) in keys.iter().zip(&series).zip(&rows) {
        let (window, expectation) = (series.window_at(*window_start), expectations.of(key));
        let evidence = Evidence { summary, expectation: expectation.map(AsRef::as_ref), window };
        builder.append(series, window, summary, &settled(evidence));
    }
    builder.finish()
}

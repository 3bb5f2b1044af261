//! What the tests of this crate share: a broker and tables in a scratch directory, a clock that tests set, and the views
//! as plain rows.

#![expect(clippy::disallowed_methods, reason = "tests wait in real time")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::prelude::SessionContext;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::horizon::Horizon;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::summary::Summary;
use wye_domain::time::Micros;
use wye_domain::wire::Acceptance;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, DEAD_LETTER, READINGS};
use wye_metrics::plan::MetricPlans;
use wye_metrics::view_rows::reader;
use wye_runtime::telemetry::Telemetry;
use wye_tables::columns::stored_schema;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use crate::archiver::Archiver;
use crate::compute::Compute;
use crate::layer::Parts;
use crate::runner::BatchRunner;
use crate::settings::{ArchiveSettings, BatchSettings};
use crate::telemetry::BatchTelemetry;
use wye_runtime::clock::{Clock, SystemClock};

const DEADLINE: Duration = Duration::from_secs(30);
/// How long runs wait for others.
pub(crate) const PATIENCE: Duration = Duration::from_millis(300);

/// An archiver that appends often.
pub(crate) const ARCHIVE: ArchiveSettings = ArchiveSettings {
    interval: Duration::from_millis(20),
    max_rows: 1_000,
    keep_dead_letters: Duration::from_secs(3600),
};

/// Batch runs on request only, which wait for others so long.
pub(crate) fn batch_settings(patience: Duration) -> BatchSettings {
    BatchSettings {
        interval: Duration::ZERO,
        schedule: None,
        cell_readings: 1_000,
        threads: 0,
        keep_versions: Duration::from_secs(60),
        patience,
    }
}

/// A row of the views: series and window start, and the summary.
pub(crate) type ViewRows = BTreeMap<(String, Micros), Summary>;

/// A time of the day that only tests change; durations are the system's.
#[derive(Debug)]
pub(crate) struct TestClock {
    system: SystemClock,
    now: AtomicI64,
}

impl Default for TestClock {
    fn default() -> Self {
        let system = SystemClock::default();
        let now = AtomicI64::new(system.now().0);
        Self { system, now }
    }
}

impl TestClock {
    /// Sets the time of the day, back too.
    pub(crate) fn set(&self, time: Micros) {
        self.now.store(time.0, Ordering::Relaxed);
    }

    /// Sets the time of the day to this time, unless it is later already.
    pub(crate) fn advance_to(&self, time: Micros) {
        self.now.fetch_max(time.0, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Micros {
        Micros(self.now.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.system.monotonic()
    }
}

/// A broker and tables in a directory of their own.
pub(crate) struct Site {
    pub(crate) log: Log,
    pub(crate) root: TableRoot,
    pub(crate) telemetry: Telemetry,
    pub(crate) clock: Arc<TestClock>,
    producer: Producer,
    _broker: Broker,
    _directory: TempDir,
}

impl Site {
    pub(crate) async fn start(kafka_partitions: i32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::start(BrokerConfig::new(directory.path().join("log"))).await.unwrap();
        let log = Log::new(LogConfig::new(broker.bootstrap_servers(), kafka_partitions)).unwrap();
        log.wait_ready(&CancellationToken::new()).await.unwrap();
        log.ensure_topics().await.unwrap();
        let root = TableRoot::directory(&directory.path().join("tables")).unwrap();
        let producer = Producer::new(&log, Duration::ZERO).unwrap();
        Self {
            log,
            root,
            telemetry: Telemetry::default(),
            clock: Arc::default(),
            producer,
            _broker: broker,
            _directory: directory,
        }
    }

    /// Parts as another process would have them, with the metrics that need no definition.
    pub(crate) fn parts(&self) -> Parts {
        self.parts_with(MetricPlans::new(vec![], Arc::default()).unwrap())
    }

    pub(crate) fn parts_with(&self, plans: MetricPlans) -> Parts {
        Parts {
            log: self.log.clone(),
            root: self.root.clone(),
            plans: Arc::new(plans),
            acceptance: Acceptance::default(),
            compute: Arc::new(Compute::new().unwrap()),
            telemetry: BatchTelemetry::register(&self.telemetry),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            process_id: 7,
        }
    }

    pub(crate) async fn runner(&self) -> BatchRunner {
        BatchRunner::open(self.parts(), &batch_settings(PATIENCE)).await.unwrap()
    }

    pub(crate) async fn runner_with(&self, plans: MetricPlans) -> BatchRunner {
        BatchRunner::open(self.parts_with(plans), &batch_settings(PATIENCE)).await.unwrap()
    }

    pub(crate) async fn send(&self, topic: &str, kafka_partition: i32, payload: &[u8]) -> Offset {
        let kafka_partition = KafkaPartition(kafka_partition);
        let outgoing = Outgoing { topic, kafka_partition, key: None, payload, headers: &[] };
        self.producer.send(outgoing).await.unwrap()
    }

    pub(crate) async fn dead_letter(&self, context: &Context, payload: &[u8]) -> Offset {
        let kafka_partition = KafkaPartition(0);
        let headers: &[(&str, &[u8])] = &[(CONTEXT_HEADER, &context.encode())];
        let outgoing = Outgoing { topic: DEAD_LETTER, kafka_partition, key: None, payload, headers };
        self.producer.send(outgoing).await.unwrap()
    }

    /// One reading, this many seconds after a fixed event time.
    pub(crate) async fn reading(
        &self,
        kafka_partition: i32,
        device: &str,
        second: i64,
        value: f64,
    ) -> Offset {
        let time = 1_700_000_000_000 + second * 1_000;
        let json = format!(r#"{{"device_id":"{device}","metric":"t","value":{value},"event_time":{time}}}"#);
        self.send(READINGS, kafka_partition, json.as_bytes()).await
    }

    pub(crate) async fn control(&self, kafka_partition: i32, record: &ControlRecord) -> Offset {
        self.send(CONTROL, kafka_partition, &record.encode()).await
    }

    pub(crate) async fn control_records(&self, kafka_partition: i32) -> Vec<ControlRecord> {
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || {
            let mut records = Vec::new();
            read_all(&log, (CONTROL, KafkaPartition(kafka_partition)), None, |message| {
                records.push(ControlRecord::decode(message.payload).unwrap());
            })
            .unwrap();
            records
        })
        .await
        .unwrap()
    }

    pub(crate) async fn control_view(&self, kafka_partition: i32) -> ControlView {
        let mut view = ControlView::default();
        for (offset, record) in (0..).zip(self.control_records(kafka_partition).await) {
            view.apply(Offset(offset), &record);
        }
        view
    }

    /// Claims a Kafka partition, and answers each request for a cut by the start that `start` returns for the requested
    /// offset.
    pub(crate) async fn answer_requests(&self, kafka_partition: i32, start: impl Fn(Offset) -> Offset) {
        let claim = ControlRecord::Claim { owner: "test".into() };
        let generation = Some(Generation(self.control(kafka_partition, &claim).await));
        loop {
            if let Some(asked) = self.control_view(kafka_partition).await.unanswered() {
                let (start, answers) = (start(asked.through), Some(asked.request));
                let answer = ControlRecord::Epoch { generation, start, announced_at: None, answers };
                self.control(kafka_partition, &answer).await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn archiver(&self, settings: ArchiveSettings) -> Archiver {
        Archiver::open(self.parts(), settings).await.unwrap()
    }

    pub(crate) async fn archived(&self) -> Horizon {
        Readings::open(&self.root).await.unwrap().archived().await.unwrap()
    }

    /// Archives until each Kafka partition is archived up to its offset.
    pub(crate) async fn archive<const N: usize>(&self, expected: [(i32, i64); N]) {
        let shutdown = CancellationToken::new();
        let expected = horizon(expected);
        let archiver = self.archiver(ARCHIVE).await;
        tokio::join!(archiver.run(shutdown.clone()), async {
            until("everything is archived", async || self.archived().await == expected).await;
            shutdown.cancel();
        });
    }

    pub(crate) async fn view(&self) -> ViewRows {
        view_rows(&BatchViews::open(&self.root).unwrap()).await
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "it did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails if it takes too long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it ends in time")
}

/// A horizon of Kafka partitions and offsets.
pub(crate) fn horizon<const N: usize>(offsets: [(i32, i64); N]) -> Horizon {
    offsets
        .map(|(kafka_partition, offset)| (KafkaPartition(kafka_partition), Offset(offset)))
        .into_iter()
        .collect()
}

/// Readings as the master dataset has them: one a message, in Kafka partition 0 from an offset on.
pub(crate) fn stored(readings: &RecordBatch, from: Offset, ingest_times: &[Micros]) -> RecordBatch {
    let rows = readings.num_rows();
    let times = TimestampMicrosecondArray::from_iter_values(ingest_times.iter().map(|time| time.0));
    let mut columns: Vec<ArrayRef> = readings.columns().to_vec();
    columns.push(Arc::new(times.with_timezone("UTC")));
    columns.push(Arc::new(Int32Array::from(vec![0; rows])));
    columns.push(Arc::new(Int64Array::from_iter_values((from.0..).take(rows))));
    columns.push(Arc::new(Int32Array::from(vec![0; rows])));
    RecordBatch::try_new(stored_schema(), columns).unwrap()
}

/// The rows of the newest views; none where there are no views.
pub(crate) async fn view_rows(views: &BatchViews) -> ViewRows {
    let Some(view) = views.latest().await.unwrap() else { return ViewRows::new() };
    let schema = view.schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let plan = view.scan(&columns, &[]).unwrap();
    let session = SessionContext::new();
    let mut rows = ViewRows::new();
    for batch in datafusion::physical_plan::collect(plan, session.task_ctx()).await.unwrap() {
        let stored = reader::ViewRows::of(&batch).unwrap();
        for row in 0..stored.len() {
            let key = (stored.series.text(row).unwrap().to_owned(), stored.window_start(row));
            let summary = stored.row(row).unwrap().summary;
            assert!(rows.insert(key, summary).is_none(), "each row is there once");
        }
    }
    rows
}

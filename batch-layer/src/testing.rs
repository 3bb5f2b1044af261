//! What the tests of this crate share: a broker and tables in a scratch directory, and the views as plain rows.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::prelude::SessionContext;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::reading::TextColumn;
use wye_domain::summary::Summary;
use wye_domain::summary_columns::SummaryColumns;
use wye_domain::wire::Acceptance;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, DEAD_LETTER, READINGS};
use wye_metrics::plan::MetricPlans;
use wye_runtime::telemetry::Telemetry;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use crate::archiver::{ArchiveSettings, Archiver};
use crate::compute::Compute;
use crate::run::BatchParts;
use crate::telemetry::BatchTelemetry;

const DEADLINE: Duration = Duration::from_secs(30);

/// A row of the views: series and window start, and the summary.
pub(crate) type ViewRows = BTreeMap<(String, i64), Summary>;

/// A broker and tables of their own.
pub(crate) struct Site {
    pub(crate) log: Log,
    pub(crate) root: TableRoot,
    pub(crate) telemetry: Telemetry,
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
        Self { log, root, telemetry: Telemetry::default(), producer, _broker: broker, _directory: directory }
    }

    /// Parts as another process would have them.
    pub(crate) fn parts(&self) -> BatchParts {
        self.parts_with(MetricPlans::new(vec![], Arc::default()).unwrap())
    }

    pub(crate) fn parts_with(&self, plans: MetricPlans) -> BatchParts {
        BatchParts {
            log: self.log.clone(),
            root: self.root.clone(),
            plans: Arc::new(plans),
            compute: Arc::new(Compute::new().unwrap()),
            telemetry: BatchTelemetry::register(&self.telemetry),
            patience: Duration::from_millis(300),
        }
    }

    pub(crate) async fn send(&self, topic: &str, kafka_partition: i32, payload: &[u8]) -> i64 {
        let outgoing = Outgoing { topic, kafka_partition, key: None, payload, headers: &[] };
        self.producer.send(outgoing).await.unwrap()
    }

    pub(crate) async fn dead_letter(&self, context: &Context, payload: &[u8]) -> i64 {
        let headers: &[(&str, &[u8])] = &[(CONTEXT_HEADER, &context.encode())];
        let outgoing = Outgoing { topic: DEAD_LETTER, kafka_partition: 0, key: None, payload, headers };
        self.producer.send(outgoing).await.unwrap()
    }

    /// One reading, one second after the last where `second` counts up.
    pub(crate) async fn reading(&self, kafka_partition: i32, device: &str, second: i64, value: f64) -> i64 {
        let time = 1_700_000_000_000 + second * 1_000;
        let json = format!(r#"{{"device_id":"{device}","metric":"t","value":{value},"event_time":{time}}}"#);
        self.send(READINGS, kafka_partition, json.as_bytes()).await
    }

    pub(crate) async fn control(&self, kafka_partition: i32, record: &ControlRecord) -> i64 {
        self.send(CONTROL, kafka_partition, &record.encode()).await
    }

    pub(crate) async fn control_records(&self, kafka_partition: i32) -> Vec<ControlRecord> {
        let log = self.log.clone();
        let read = move || {
            let mut records = Vec::new();
            read_all(&log, (CONTROL, kafka_partition), None, |message| {
                records.push(ControlRecord::decode(message.payload).unwrap());
            })
            .unwrap();
            records
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    pub(crate) async fn control_view(&self, kafka_partition: i32) -> ControlView {
        let mut view = ControlView::default();
        for (offset, record) in (0..).zip(self.control_records(kafka_partition).await) {
            view.apply(offset, &record);
        }
        view
    }

    pub(crate) async fn archiver(&self) -> Archiver {
        let settings = ArchiveSettings {
            acceptance: Acceptance::default(),
            interval: Duration::from_millis(20),
            max_rows: 1_000,
            keep_dead_letters: Duration::from_secs(3600),
        };
        Archiver::open(self.parts(), settings).await.unwrap()
    }

    pub(crate) async fn archived(&self) -> BTreeMap<i32, i64> {
        Readings::open(&self.root).await.unwrap().archived().await.unwrap()
    }

    /// Archives until so much of each Kafka partition is archived.
    pub(crate) async fn archive(&self, expected: &[(i32, i64)]) {
        let stop = CancellationToken::new();
        let expected: BTreeMap<i32, i64> = expected.iter().copied().collect();
        let archiver = self.archiver().await;
        let archived = until("everything is archived", async || self.archived().await == expected);
        tokio::join!(archiver.run(stop.clone()), async {
            archived.await;
            stop.cancel();
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
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Gives up on what takes too long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
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
        let series = TextColumn::of(&batch, "series").unwrap();
        let summaries = SummaryColumns::of(&batch).unwrap();
        let windows = batch.column_by_name("window_start").unwrap();
        let windows =
            arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(windows);
        for row in 0..batch.num_rows() {
            let key = (series.text(row).unwrap().to_owned(), windows.value(row));
            assert!(rows.insert(key, summaries.summary(row).unwrap()).is_none(), "each row stands once");
        }
    }
    rows
}

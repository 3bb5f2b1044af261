//! The whole layer over a real log and real tables: what is written to the topic shows up, a batch view takes over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::realtime_row::{Header, RowsBuilder, encode};
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::{READINGS, REALTIME_VIEWS};
use wye_runtime::telemetry::Telemetry;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use super::{Serving, ServingConfig, ServingParts};
use crate::fixture::{self, Row, family, summary};

const PATIENCE: Duration = Duration::from_secs(60);

struct Writer {
    producer: Producer,
    definitions: u64,
}

impl Writer {
    async fn write(&self, topic: &str, payload: &[u8]) {
        let message = Outgoing { topic, kafka_partition: 0, key: None, payload, headers: &[] };
        self.producer.send(message).await.unwrap();
    }

    async fn begin(&self, epoch: i64) {
        let header = Header::Begin { generation: 1, epoch, definitions: self.definitions, reset: false };
        self.write(REALTIME_VIEWS, &encode(&header, None)).await;
    }

    async fn flush(&self, epoch: i64, through: i64, rows: &[Row]) {
        let mut builder = RowsBuilder::default();
        rows.iter().for_each(|(series, window, summary)| builder.append(series, *window, summary));
        let header = Header::Rows { generation: 1, epoch, through, complete: true, newest_event_time: 0 };
        self.write(REALTIME_VIEWS, &encode(&header, Some(&builder.finish()))).await;
    }
}

async fn current(serving: &Serving) -> Value {
    let request = Request::get("/v1/metrics/t/current?device_id=a").body(Body::empty()).unwrap();
    let response = serving.router().oneshot(request).await.unwrap();
    serde_json::from_slice(&to_bytes(response.into_body(), usize::MAX).await.unwrap()).unwrap()
}

/// Waits until the current value is this one, and returns how long it took.
async fn until(serving: &Serving, what: impl Fn(&Value) -> bool) -> Duration {
    let started = Instant::now();
    loop {
        let body = current(serving).await;
        if what(&body) {
            return started.elapsed();
        }
        assert!(started.elapsed() < PATIENCE, "{body}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_shows_up_and_a_batch_view_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerConfig::new(folder.path().join("log"))).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
    let shutdown = CancellationToken::new();
    log.wait_ready(&shutdown).await.unwrap();
    log.ensure_topics().await.unwrap();
    let plans = fixture::plans();
    let producer = Producer::new(&log, Duration::ZERO).unwrap();
    let writer = Writer { producer, definitions: plans.fingerprint() };
    for _ in 0..2 {
        writer.write(READINGS, b"[]").await;
    }
    writer.begin(0).await;
    writer.flush(0, 1, &[(family("t", "a"), 0, summary(&[(1.0, 1)]))]).await;

    let tables = TableRoot::directory(&folder.path().join("tables")).unwrap();
    let views = BatchViews::open(&tables).unwrap();
    let config = ServingConfig { poll_interval: Duration::from_millis(20), ..ServingConfig::default() };
    let telemetry = Telemetry::default();
    let parts = ServingParts {
        log: log.clone(),
        tables,
        plans,
        telemetry: telemetry.clone(),
        batch_trigger: None,
        probes: Vec::new(),
        host: Arc::new(crate::sql::UnknownHost),
    };
    let serving = Serving::start(config, parts, shutdown.clone()).await.unwrap();
    serving.until_ready().await;
    until(&serving, |body| body["rows"][0]["value"] == 1.0 && body["coverage"]["lacking"] == 1).await;
    writer.flush(0, 2, &[]).await;
    until(&serving, |body| body["complete"] == true).await;

    writer.write(REALTIME_VIEWS, b"junk").await;
    until(&serving, |body| body["coverage"]["reason"] == "damaged").await;
    writer.flush(0, 2, &[(family("t", "a"), 0, summary(&[(1.0, 1), (2.0, 2)]))]).await;
    until(&serving, |body| body["rows"][0]["value"] == 2.0).await;

    // The view waits for the epoch at its horizon.
    let batch: Vec<Row> = vec![(family("t", "a"), 0, summary(&[(1.0, 1), (2.0, 2)]))];
    let directory = Arc::clone(serving.api.hub.directory());
    fixture::commit(&views, &directory, 2, &[batch]).await;
    for _ in 0..2 {
        writer.write(READINGS, b"[]").await;
    }
    writer.begin(2).await;
    writer.flush(2, 4, &[(family("t", "a"), 0, summary(&[(3.0, 3)]))]).await;
    until(&serving, |body| body["horizon"] == json!({"0": 2}) && body["rows"][0]["data_points"] == 3).await;
    until(&serving, |body| body["complete"] == true).await;
    assert_eq!(current(&serving).await["rows"][0]["source"], "merged");
    assert_eq!(serving.api.hub.size(), (1, 1));
    assert!(
        telemetry.render().contains("wye_serving_realtime_skipped_records_total{reason=\"undecodable\"} 1")
    );

    shutdown.cancel();
    serving.join().await;
    broker.stop().await;
}

//! The whole layer over a real log and real tables: rows that are written to the topic are served, and a batch view takes
//! over.

#![expect(clippy::disallowed_methods, reason = "tests wait in real time")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::place::Offset;
use wye_domain::realtime_row::{Header, RowsBuilder, encode};
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::{READINGS, REALTIME_VIEWS};
use wye_runtime::telemetry::Telemetry;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use super::{Parts, start};
use crate::settings::{DEFAULTS, Settings};
use crate::sql::UnknownHost;
use crate::testing::{self, OWNER, PARTITION, Row, family, flushed, minute, summary};
use wye_runtime::clock::SystemClock;

const PATIENCE: Duration = Duration::from_secs(60);

struct Writer {
    producer: Producer,
    definitions: u64,
}

impl Writer {
    async fn write(&self, topic: &str, payload: &[u8]) {
        let message = Outgoing { topic, kafka_partition: PARTITION, key: None, payload, headers: &[] };
        self.producer.send(message).await.unwrap();
    }

    async fn begin(&self, epoch: i64) {
        let (epoch, definitions) = (Offset(epoch), self.definitions);
        let header = Header::Begin { generation: OWNER, epoch, definitions, reset: false };
        self.write(REALTIME_VIEWS, &encode(&header, None)).await;
    }

    async fn flush(&self, epoch: i64, through: i64, rows: &[Row]) {
        let mut builder = RowsBuilder::default();
        for (series, window_start, summary) in rows {
            builder.append(series, *window_start, summary);
        }
        let header = flushed(OWNER, epoch, through);
        self.write(REALTIME_VIEWS, &encode(&header, Some(&builder.finish()))).await;
    }
}

/// Sends a request without a body on a connection of its own; the body of the answer.
async fn ask(address: SocketAddr, method: &str, path: &str) -> Value {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or(Value::Null)
}

async fn current(address: SocketAddr) -> Value {
    ask(address, "GET", "/v1/metrics/t/current?device_id=a").await
}

/// Waits until the current value is this one.
async fn until(address: SocketAddr, what: impl Fn(&Value) -> bool) {
    let start = Instant::now();
    loop {
        let body = current(address).await;
        if what(&body) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{body}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn written_rows_are_served_and_a_batch_view_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerConfig::new(folder.path().join("log"))).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
    let shutdown = CancellationToken::new();
    log.wait_ready(&shutdown).await.unwrap();
    log.ensure_topics().await.unwrap();
    let plans = testing::plans();
    let producer = Producer::new(&log, Duration::ZERO).unwrap();
    let writer = Writer { producer, definitions: plans.fingerprint() };
    for _ in 0..2 {
        writer.write(READINGS, b"[]").await;
    }
    writer.begin(0).await;
    writer.flush(0, 1, &[(family("t", "a"), minute(0), summary(&[(1.0, 1)]))]).await;

    let root = TableRoot::directory(&folder.path().join("tables")).unwrap();
    let views = BatchViews::open(&root).unwrap();
    let telemetry = Telemetry::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let parts = Parts {
        log: log.clone(),
        root,
        plans: Arc::clone(&plans),
        telemetry: telemetry.clone(),
        clock: Arc::new(SystemClock::default()),
        host: Arc::new(UnknownHost),
        spill_folder: None,
        open_files: None,
        listener,
        other_paths: Router::new().route("/write", post(async || [("Wye-Position", "0:9")])),
        max_body: 1 << 20,
        batch_trigger: None,
        probes: Vec::new(),
    };
    let settings: Settings = toml::from_str(DEFAULTS).unwrap();
    let serving = start(settings, parts, shutdown.clone()).await.unwrap();
    serving.until_ready().await;
    until(address, |body| body["rows"][0]["value"] == 1.0 && body["coverage"]["lacking"] == 1).await;
    writer.flush(0, 2, &[]).await;
    until(address, |body| body["complete"] == true).await;

    writer.write(REALTIME_VIEWS, b"junk").await;
    until(address, |body| body["coverage"]["reason"] == "damaged").await;
    writer.flush(0, 2, &[(family("t", "a"), minute(0), summary(&[(1.0, 1), (2.0, 2)]))]).await;
    until(address, |body| body["rows"][0]["value"] == 2.0).await;

    // The view waits for the epoch at its horizon.
    let batch: Vec<Row> = vec![(family("t", "a"), minute(0), summary(&[(1.0, 1), (2.0, 2)]))];
    testing::commit(&views, serving.hub.directory(), 2, &[batch]).await;
    for _ in 0..2 {
        writer.write(READINGS, b"[]").await;
    }
    writer.begin(2).await;
    writer.flush(2, 4, &[(family("t", "a"), minute(0), summary(&[(3.0, 3)]))]).await;
    until(address, |body| body["horizon"] == json!({"0": 2}) && body["rows"][0]["data_points"] == 3).await;
    until(address, |body| body["complete"] == true).await;
    assert_eq!(current(address).await["rows"][0]["source"], "merged");
    assert_eq!(serving.hub.read().size(), (1, 1));
    assert!(
        telemetry.render().contains("wye_serving_realtime_skipped_records_total{reason=\"undecodable\"} 1")
    );
    assert_eq!(ask(address, "GET", "/nowhere").await["error_code"], "not_found");
    ask(address, "POST", "/write").await;

    shutdown.cancel();
    serving.join().await;
    assert!(TcpStream::connect(address).await.is_err(), "the API is closed");
    broker.stop().await;
}

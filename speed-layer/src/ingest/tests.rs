//! Requests that are left, sent again, and cut off from the log.

use std::path::Path;

use tempfile::TempDir;
use wye_broker::{Broker, BrokerConfig, Port};
use wye_domain::assemble::Assembler;
use wye_log::client::LogConfig;
use wye_log::reader::read_all;

use super::*;

const NOW: i64 = 1_800_000_000_000_000;
const PATIENCE: Duration = Duration::from_secs(30);
const ACK_TIMEOUT: Duration = Duration::from_millis(500);

async fn broker(directory: &Path, port: Port) -> Broker {
    let mut config = BrokerConfig::new(directory);
    config.port = port;
    Broker::start(config).await.unwrap()
}

async fn site(ack_timeout: Duration) -> (Ingest, Log, Broker, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let broker = broker(directory.path(), Port::Free).await;
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 2)).unwrap();
    log.ensure_topics().await.unwrap();
    let settings =
        IngestSettings { acceptance: Acceptance::default(), linger: Duration::from_millis(1), ack_timeout };
    let ingest = Ingest::start(&log, settings, "a".to_owned(), SpeedTelemetry::default()).await.unwrap();
    (ingest, log, broker, directory)
}

/// A request of `devices` readings, one a device.
fn request(key: Option<&str>, devices: usize) -> Request {
    let lines: Vec<String> = (0..devices)
        .map(|device| {
            format!(r#"{{"device_id":"d{device}","metric":"m","value":1,"event_time":1700000000000}}"#)
        })
        .collect();
    let body = Bytes::from(lines.join("\n"));
    Request { body, format: Format::JsonLines, key: key.map(str::to_owned), now: NOW }
}

/// Sends a request until it is taken.
async fn until_taken(ingest: &Ingest, key: &str) -> Receipt {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match ingest.take(request(Some(key), 10)).await {
            Ok(receipt) => return receipt,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
    }
}

/// How many readings the log holds.
async fn logged(log: &Log) -> usize {
    let log = log.clone();
    let count = move || {
        let mut assembler = Assembler::default();
        for kafka_partition in 0..2 {
            read_all(&log, (READINGS, kafka_partition), None, |message| {
                assembler.push(message.payload, message.offset, NOW);
            })
            .unwrap();
        }
        assembler.rows()
    };
    tokio::task::spawn_blocking(count).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_says_where_the_readings_are() {
    let (ingest, log, _broker, _directory) = site(PATIENCE).await;
    let first = ingest.take(request(Some("k"), 20)).await.unwrap();
    assert_eq!((first.accepted, first.duplicate_request), (20, false));
    for (kafka_partition, next) in first.position.iter() {
        assert_eq!(log.offsets(READINGS, kafka_partition).await.unwrap().high, next);
    }
    assert_eq!(first.position.iter().count(), 2);
    let again = ingest.take(request(Some("k"), 20)).await.unwrap();
    assert_eq!((again.accepted, again.duplicate_request), (20, true));
    assert_eq!(again.position, first.position);
    assert_eq!(logged(&log).await, 20);
    let refused = ingest.take(Request { body: Bytes::from("7"), ..request(None, 0) }).await.unwrap();
    assert_eq!((refused.refused(), refused.position.is_empty()), (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_keeps_no_key_and_its_readings_count_once() {
    let (ingest, log, _broker, _directory) = site(PATIENCE).await;
    for number in 0..20 {
        let key = format!("left-{number}");
        // Left at another place each time.
        let leaves = Duration::from_micros(number * 300);
        let _ = tokio::time::timeout(leaves, ingest.take(request(Some(&key), 10))).await;
        let receipt = ingest.take(request(Some(&key), 10)).await.unwrap();
        assert_eq!(receipt.accepted, 10);
    }
    ingest.drained().await;
    assert_eq!(logged(&log).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_log_away_clients_get_an_answer_in_time_and_nothing_counts_twice() {
    let (ingest, log, gone, directory) = site(ACK_TIMEOUT).await;
    assert_eq!(until_taken(&ingest, "before").await.accepted, 10);
    let port = gone.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap();
    gone.stop().await;
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        for key in [Some("during"), None] {
            let refused = ingest.take(request(key, 10)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        }
    }
    // Those with the key wait each; the others are refused at once, since a message is overdue already.
    assert!(begun.elapsed() < ACK_TIMEOUT * 5, "{:?}", begun.elapsed());
    let _broker = broker(directory.path(), Port::Only(port)).await;
    let receipt = until_taken(&ingest, "during").await;
    assert_eq!(receipt.accepted, 10);
    ingest.drained().await;
    assert_eq!(logged(&log).await, 20);
}

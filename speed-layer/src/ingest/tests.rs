//! Requests whose clients disconnect, requests that are sent again, and requests while the log is unavailable.

use std::path::Path;
use std::sync::mpsc;

use tempfile::TempDir;
use wye_broker::{Broker, BrokerConfig, Port};
use wye_domain::assemble::Assembler;
use wye_domain::place::KafkaPartition;
use wye_domain::time::Micros;
use wye_log::client::LogConfig;
use wye_log::reader::read_all;
use wye_log::topics::READINGS;

use super::*;
use wye_runtime::clock::SystemClock;

/// After the event time of [`request`].
const NOW: Micros = Micros(1_800_000_000_000_000);
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
    let settings = IngestSettings {
        max_body: 1 << 20,
        ack_timeout,
        linger: Duration::from_millis(1),
        earliest_event_time: Micros::EPOCH,
        max_future: Duration::from_secs(86_400),
    };
    let parts = Parts {
        log: log.clone(),
        server: "a".to_owned(),
        telemetry: IngestTelemetry::default(),
        clock: Arc::new(SystemClock::default()),
    };
    let ingest = start(settings, parts, CancellationToken::new()).await.unwrap();
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
    Request { body, format: Format::JsonLines, key: key.map(str::to_owned) }
}

/// Sends a request until it is accepted.
async fn until_accepted(ingest: &Ingest, key: &str) -> Receipt {
    let accepted = async {
        loop {
            if let Ok(receipt) = ingest.take(request(Some(key), 10)).await {
                return receipt;
            }
        }
    };
    tokio::time::timeout(PATIENCE, accepted).await.expect("accepted in time")
}

/// How many readings the log has.
async fn logged(log: &Log) -> usize {
    let log = log.clone();
    tokio::task::spawn_blocking(move || {
        let mut assembler = Assembler::default();
        for kafka_partition in KafkaPartition::all(2) {
            read_all(&log, (READINGS, kafka_partition), None, |message| {
                assembler.push(message.payload, message.offset, NOW);
            })
            .unwrap();
        }
        assembler.rows()
    })
    .await
    .unwrap()
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
    let rejected = ingest.take(Request { body: Bytes::from("7"), ..request(None, 0) }).await.unwrap();
    assert_eq!((rejected.rejected_readings(), rejected.position.is_empty()), (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_disconnects_frees_its_key_and_its_readings_count_once() {
    let (ingest, log, _broker, _directory) = site(PATIENCE).await;
    for number in 0..20 {
        let key = format!("left-{number}");
        // At another point each time.
        let leaves = Duration::from_micros(number * 300);
        let _ = tokio::time::timeout(leaves, ingest.take(request(Some(&key), 10))).await;
        let receipt = ingest.take(request(Some(&key), 10)).await.unwrap();
        assert_eq!(receipt.accepted, 10);
    }
    ingest.join().await;
    assert_eq!(logged(&log).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_log_is_unavailable_clients_get_an_answer_in_time_and_nothing_counts_twice() {
    let (ingest, log, gone, directory) = site(ACK_TIMEOUT).await;
    assert_eq!(until_accepted(&ingest, "before").await.accepted, 10);
    let port = gone.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap();
    gone.stop().await;
    let clock = SystemClock::default();
    for _ in 0..3 {
        for key in [Some("during"), None] {
            let refused = ingest.take(request(key, 10)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        }
    }
    // Those with the key wait; the others are refused at once, since a message is overdue already.
    let elapsed = clock.monotonic();
    assert!(elapsed < ACK_TIMEOUT * 5, "{elapsed:?}");
    let _broker = broker(directory.path(), Port::Only(port)).await;
    let receipt = until_accepted(&ingest, "during").await;
    assert_eq!(receipt.accepted, 10);
    ingest.join().await;
    assert_eq!(logged(&log).await, 20);
}

/// The bytes of a body, which says when it is dropped.
struct Body(Vec<u8>, mpsc::Sender<()>);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let _ = self.1.send(());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_held_until_the_log_has_its_readings() {
    let (ingest, _log, gone, directory) = site(ACK_TIMEOUT).await;
    ingest.take(request(None, 10)).await.unwrap();
    let port = gone.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap();
    gone.stop().await;
    let (sender, dropped) = mpsc::channel();
    let mut waiting = request(None, 10);
    waiting.body = Bytes::from_owner(Body(waiting.body.to_vec(), sender));
    ingest.take(waiting).await.unwrap_err();
    // The client has its answer, but the readings are still in memory.
    assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Empty));
    let _broker = broker(directory.path(), Port::Only(port)).await;
    dropped.recv_timeout(PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_shutdown_new_requests_are_refused() {
    let (ingest, log, _broker, _directory) = site(PATIENCE).await;
    ingest.take(request(None, 10)).await.unwrap();
    ingest.shutdown.cancel();
    let refused = ingest.take(request(None, 10)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    ingest.join().await;
    assert_eq!(logged(&log).await, 10);
}

//! Ledgers of one and several servers on the embedded broker.

use tempfile::TempDir;
use wye_broker::{Broker, BrokerConfig};
use wye_log::client::LogConfig;

use super::*;
use wye_runtime::clock::SystemClock;

async fn log() -> (Log, Broker, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 2)).unwrap();
    log.ensure_topics().await.unwrap();
    (log, broker, directory)
}

async fn open(log: &Log) -> Ledger {
    open_as(log, "a").await
}

async fn open_as(log: &Log, server: &str) -> Ledger {
    let producer = Producer::new(log, Duration::ZERO).unwrap();
    let clock = Arc::new(SystemClock::default());
    let opened = Ledger::open(log.clone(), producer, server.to_owned(), clock).await.unwrap();
    Ledger { spare_records: 20, ..opened }
}

/// A message in the second Kafka partition.
fn place(offset: i64) -> Place {
    Place { kafka_partition: KafkaPartition(1), offset: Offset(offset) }
}

async fn progress(ledger: &Ledger, key: &str) -> Progress {
    ledger.catch_up().await.unwrap();
    ledger.progress(key).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_loads_leave_few_records_and_no_key_is_forgotten() {
    let (log, _broker, _directory) = log().await;
    let ledger = open(&log).await;
    // Another process. Only the topic tells the first one of its keys.
    let other = open(&log).await;
    for number in 0..200 {
        let key = format!("file/{number}");
        ledger.begin(&key).await.unwrap();
        ledger.finish(&key).await.unwrap();
        if number < 5 {
            other.begin(&format!("request-{number}")).await.unwrap();
            other.finish(&format!("request-{number}")).await.unwrap();
        }
        let range = log.offsets(LEDGER, LEDGER_PARTITION).await.unwrap();
        assert!(range.high.since(range.low) <= 60, "{range:?}");
    }
    let again = open(&log).await;
    for ledger in [&ledger, &again] {
        assert_eq!(progress(ledger, "request-4").await, Progress::Done);
        assert_eq!(progress(ledger, "file/0").await, Progress::Done);
        assert_eq!(progress(ledger, "file/199").await, Progress::Done);
        assert_eq!(progress(ledger, "file/200").await, Progress::New);
    }
    assert_eq!(progress(&again, "request-4").await, Progress::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_requests_take_little_more_than_a_record_each() {
    let (log, _broker, _directory) = log().await;
    let ledger = open(&log).await;
    for number in 0..150 {
        let key = format!("request-{number}");
        ledger.begin(&key).await.unwrap();
        ledger.finish(&key).await.unwrap();
        let range = log.offsets(LEDGER, LEDGER_PARTITION).await.unwrap();
        assert!(range.high.since(range.low) <= 3 * (number + 1) / 2 + 22, "{range:?}");
    }
    let again = open(&log).await;
    assert_eq!(progress(&again, "request-0").await, Progress::Done);
    assert_eq!(progress(&again, "request-149").await, Progress::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_an_interrupted_key_are_looked_for_in_the_readings() {
    let (log, _broker, _directory) = log().await;
    let ledger = open(&log).await;
    ledger.begin("file/0").await.unwrap();
    for part in [b"0", b"2"] {
        let headers: &[(&str, &[u8])] = &[(KEY_HEADER, b"file/0"), (PART_HEADER, part)];
        let message = Outgoing {
            topic: READINGS,
            kafka_partition: KafkaPartition(1),
            key: None,
            payload: b"x",
            headers,
        };
        ledger.producer.send(message).await.unwrap();
    }
    for number in 1..100 {
        ledger.finish(&format!("file/{number}")).await.unwrap();
    }
    let again = open(&log).await;
    assert_eq!(again.position().to_string(), "1:2");
    assert_eq!(
        progress(&again, "file/0").await,
        Progress::Begun { landed: [(0, place(0)), (2, place(1))].into() }
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_on_one_log_share_their_keys() {
    let (log, _broker, _directory) = log().await;
    let (first, second) = (open_as(&log, "a").await, open_as(&log, "b").await);
    first.begin("file/0").await.unwrap();
    let headers: &[(&str, &[u8])] = &[(KEY_HEADER, b"file/0"), (PART_HEADER, b"0")];
    let message =
        Outgoing { topic: READINGS, kafka_partition: KafkaPartition(1), key: None, payload: b"x", headers };
    first.producer.send(message).await.unwrap();
    // The first server may still work on it; after a while, others may.
    let Progress::Begun { landed } = progress(&second, "file/0").await else { panic!() };
    assert_eq!(landed, [(0, place(0))].into());
    assert!(second.is_elsewhere("file/0", Duration::from_secs(3600)));
    assert!(!second.is_elsewhere("file/0", Duration::ZERO));
    assert!(!first.is_elsewhere("file/0", Duration::from_secs(3600)), "its own key");
    // Until the second one works on it, and the first one reads that.
    second.begin("file/0").await.unwrap();
    first.catch_up().await.unwrap();
    assert!(first.is_elsewhere("file/0", Duration::from_secs(3600)));
    second.finish("file/0").await.unwrap();
    assert_eq!(progress(&first, "file/0").await, Progress::Done);
    assert!(!first.is_elsewhere("file/0", Duration::from_secs(3600)));
    assert_eq!(
        second.position().to_string(),
        "1:1",
        "the readings of the first are covered by what it answers"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_belongs_to_the_tables_that_were_first() {
    let (log, _broker, _directory) = log().await;
    let [one, two, moved] = [("1", "s3://one"), ("2", "s3://two"), ("1", "s3://moved")]
        .map(|(id, root)| Tables { id: id.to_owned(), root: root.to_owned() });
    let (first, second) = (open_as(&log, "a").await, open_as(&log, "b").await);
    assert_eq!(first.claim_tables(one.clone()).await.unwrap(), None);
    assert_eq!(second.claim_tables(two.clone()).await.unwrap(), Some(one.clone()));
    let again = open(&log).await;
    assert_eq!(again.claim_tables(moved).await.unwrap(), None);
    assert_eq!(again.claim_tables(two).await.unwrap(), Some(one));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_read_its_own_records() {
    let (log, _broker, _directory) = log().await;
    let ledger = open(&log).await;
    for number in 0..10 {
        ledger.begin(&format!("file/{number}")).await.unwrap();
        ledger.finish(&format!("file/{number}")).await.unwrap();
    }
    let high = tokio::task::block_in_place(|| log.offsets_blocking(LEDGER, LEDGER_PARTITION)).unwrap().high;
    assert_eq!(ledger.memory().applied.next(), high);
}

//! Tests of the embedded broker only: restarts, crashes, its disk, its port.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};

use super::{
    DEADLINE, FIRST, new_topic, offsets, on_blocking_thread, plain, range, read_numbers, write_numbers,
};
use crate::LogError;
use crate::client::{Log, LogConfig};
use crate::producer::Producer;
use crate::reader::{Reader, read_all};
use wye_broker::{Broker, BrokerConfig, Port};

pub(super) async fn start(directory: &Path, port: Port) -> (Broker, Log) {
    let config = BrokerConfig { port, ..BrokerConfig::new(directory) };
    let since = Instant::now();
    loop {
        match Broker::start(config.clone()).await {
            Ok(broker) => {
                let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 3)).unwrap();
                return (broker, log);
            }
            // A dropped broker releases its directory and its port a moment later.
            Err(error) if error.kind() == ErrorKind::Conflict && since.elapsed() < DEADLINE => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn port_of(broker: &Broker) -> u16 {
    broker.bootstrap_servers().rsplit(':').next().unwrap().parse().unwrap()
}

fn bytes_on_disk(path: &Path) -> u64 {
    let metadata = fs::metadata(path).unwrap();
    if metadata.is_file() {
        return metadata.len();
    }
    fs::read_dir(path).unwrap().map(|entry| bytes_on_disk(&entry.unwrap().path())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, log) = start(directory.path(), Port::Free).await;
    log.ensure_topics().await.unwrap();
    let topic = new_topic(&log, 1).await;
    write_numbers(&log, topic, 0, 1000).await;
    log.delete_records(topic, FIRST, Offset(123)).await.unwrap();
    broker.stop().await;

    let (broker, log) = start(directory.path(), Port::Free).await;
    log.ensure_topics().await.unwrap();
    assert_eq!(log.offsets(topic, FIRST).await.unwrap(), range(123, 1000));
    write_numbers(&log, topic, 1000, 10).await;
    let reading = log.clone();
    on_blocking_thread(move || {
        assert_eq!(read_numbers(&reading, topic, 123, 1010).unwrap(), offsets(123..1010));
    })
    .await;
    // As in a crash: nothing is flushed or closed.
    drop(broker);

    let (broker, log) = start(directory.path(), Port::Free).await;
    assert_eq!(log.offsets(topic, FIRST).await.unwrap(), range(123, 1010));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_restarts_each_message_was_written_and_read_once() {
    const MESSAGES: i64 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let (mut broker, log) = start(directory.path(), Port::Free).await;
    let port = port_of(&broker);
    let topic = new_topic(&log, 1).await;

    let reading_log = log.clone();
    let reading = tokio::task::spawn_blocking(move || read_numbers(&reading_log, topic, 0, MESSAGES));
    let producer = Producer::new(&log, Duration::from_millis(1)).unwrap();
    let mut deliveries = Vec::new();
    for number in 0..MESSAGES {
        deliveries.push(producer.enqueue(plain(topic, number.to_string().as_bytes())).unwrap());
        if number % 500 == 0 {
            // Lets batches form and be sent while the broker restarts.
            tokio::task::yield_now().await;
        }
        if number % 5000 == 4999 {
            // Some of the sent batches are stored but not acknowledged: the client repeats them.
            drop(broker);
            broker = start(directory.path(), Port::Only(port)).await.0;
        }
    }
    for (number, delivery) in (0..).zip(deliveries) {
        let offset = tokio::time::timeout(DEADLINE, delivery).await.unwrap().unwrap();
        assert_eq!(offset, Offset(number), "each message once, in order");
    }
    assert_eq!(log.offsets(topic, FIRST).await.unwrap().high, Offset(MESSAGES));
    let read = tokio::time::timeout(DEADLINE, reading).await.unwrap().unwrap().unwrap();
    assert_eq!(read, offsets(0..MESSAGES));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_records_frees_disk_space() {
    let directory = tempfile::tempdir().unwrap();
    let config = BrokerConfig { segment_bytes: 4 << 20, ..BrokerConfig::new(directory.path()) };
    let broker = Broker::start(config).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
    let topic = new_topic(&log, 1).await;
    let producer = Producer::new(&log, Duration::ZERO).unwrap();
    // Random bytes, which cannot be compressed: 50 MB on disk.
    let mut noise = 1_u64;
    for _ in 0..50 {
        let payload: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        })
        .take(1_000_000)
        .collect();
        producer.send(plain(topic, &payload)).await.unwrap();
    }
    let partition = directory.path().join(format!("{topic}-0"));
    assert!(bytes_on_disk(&partition) > 50_000_000);
    log.delete_records(topic, FIRST, Offset(40)).await.unwrap();
    assert!(bytes_on_disk(&partition) < 15_000_000, "in whole segments");
    log.delete_records(topic, FIRST, Offset(50)).await.unwrap();
    assert!(bytes_on_disk(&partition) < 100_000, "all of it");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_or_a_directory_in_use_is_reported() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (broker, _log) = start(first.path(), Port::Free).await;
    let taken = BrokerConfig { port: Port::Only(port_of(&broker)), ..BrokerConfig::new(second.path()) };
    let error = Broker::start(taken).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains(broker.bootstrap_servers()), "{error}");

    let preferred =
        BrokerConfig { port: Port::Preferred(port_of(&broker)), ..BrokerConfig::new(second.path()) };
    let other = Broker::start(preferred).await.unwrap();
    assert_ne!(port_of(&other), port_of(&broker), "a free port instead");
    Log::new(LogConfig::new(other.bootstrap_servers(), 1)).unwrap().ensure_topics().await.unwrap();
    other.stop().await;

    let error = Broker::start(BrokerConfig::new(first.path())).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("another process"), "{error}");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_waits_for_a_broker() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, log) = start(directory.path(), Port::Free).await;
    let port = port_of(&broker);
    broker.stop().await;

    let shutdown = CancellationToken::new();
    let (cancelled, ()) = tokio::join!(log.wait_ready(&shutdown), async { shutdown.cancel() });
    assert!(matches!(cancelled, Err(LogError::Cancelled)));

    let shutdown = CancellationToken::new();
    let waiting = tokio::time::timeout(DEADLINE, log.wait_ready(&shutdown));
    let (waited, (broker, _log)) = tokio::join!(waiting, start(directory.path(), Port::Only(port)));
    waited.unwrap().unwrap();
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_producers_and_readers_work_at_the_same_time() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, log) = start(directory.path(), Port::Free).await;
    let topic = new_topic(&log, 4).await;
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let producer = Producer::new(&log, Duration::from_millis(1)).unwrap();
        writing.spawn(async move {
            for number in 0..500 {
                let payload = format!("{writer} {number}");
                let message = crate::producer::Outgoing {
                    kafka_partition: KafkaPartition(writer % 4),
                    ..plain(topic, payload.as_bytes())
                };
                producer.send(message).await.unwrap();
            }
        });
    }
    while let Some(written) = writing.join_next().await {
        written.unwrap();
    }
    let reading = KafkaPartition::all(4).map(|kafka_partition| {
        let log = log.clone();
        on_blocking_thread(move || {
            let mut next = [0; 8];
            let end = read_all(&log, (topic, kafka_partition), None, |message| {
                let text = std::str::from_utf8(message.payload).unwrap();
                let (writer, number) = text.split_once(' ').unwrap();
                let writer: usize = writer.parse().unwrap();
                assert_eq!(number.parse::<i32>().unwrap(), next[writer], "in the order of writing");
                next[writer] += 1;
            });
            assert_eq!(end.unwrap(), Offset(1000));
            assert_eq!(next.iter().sum::<i32>(), 1000);
        })
    });
    futures::future::join_all(reading).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_reader_of_a_stopped_broker_does_not_hang() {
    let directory = tempfile::tempdir().unwrap();
    let (broker, log) = start(directory.path(), Port::Free).await;
    let topic = new_topic(&log, 1).await;
    write_numbers(&log, topic, 0, 10).await;
    let mut reader = Reader::new(&log, topic).unwrap();
    reader.assign(&[(FIRST, Offset(0))]).unwrap();
    broker.stop().await;
    let since = Instant::now();
    on_blocking_thread(move || {
        reader.poll_batch(10, Duration::from_millis(100), &mut |_| {}).unwrap();
        drop(reader);
    })
    .await;
    assert!(since.elapsed() < DEADLINE / 4);
}

/// The process that the next test kills; does nothing where it runs as a test.
#[tokio::test(flavor = "multi_thread")]
async fn serves_until_it_is_killed() {
    let Ok(directory) = std::env::var("WYE_TEST_SERVE") else { return };
    let port = std::env::var("WYE_TEST_PORT").unwrap().parse().unwrap();
    let (_broker, _log) = start(Path::new(&directory), Port::Only(port)).await;
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_messages_survive_a_kill() {
    const KILLS: i64 = 5;
    const MESSAGES: i64 = 2000;
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = Log::new(LogConfig::new(format!("127.0.0.1:{port}"), 1)).unwrap();
    let mut child = Served::start(directory.path(), port);
    log.wait_ready(&CancellationToken::new()).await.unwrap();
    let topic = new_topic(&log, 1).await;
    let producer = Producer::new(&log, Duration::ZERO).unwrap();
    for round in 0..KILLS {
        let mut deliveries = Vec::new();
        for number in round * MESSAGES..(round + 1) * MESSAGES {
            deliveries.push(producer.enqueue(plain(topic, number.to_string().as_bytes())).unwrap());
        }
        for (number, delivery) in (round * MESSAGES..).zip(deliveries) {
            if number % MESSAGES == 100 {
                // Many messages are in flight, some of them stored but not acknowledged.
                drop(child);
                child = Served::start(directory.path(), port);
            }
            let offset = tokio::time::timeout(DEADLINE, delivery).await.unwrap().unwrap();
            assert_eq!(offset, Offset(number), "each message once, in order");
        }
    }
    let end = KILLS * MESSAGES;
    let read = on_blocking_thread(move || read_numbers(&log, topic, 0, end).unwrap()).await;
    assert_eq!(read, offsets(0..end));
    drop(child);
}

/// A broker in another process, which is killed when this value is dropped.
struct Served(Child);

impl Served {
    fn start(directory: &Path, port: u16) -> Self {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "conformance::embedded_only::serves_until_it_is_killed"])
            .env("WYE_TEST_SERVE", directory)
            .env("WYE_TEST_PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

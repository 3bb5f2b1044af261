//! What Wye expects of a log: tested on the embedded broker, and on a real Kafka too where `WYE_TEST_KAFKA` is its
//! `host:port`. Wye must not depend on a behaviour that only one of them has.

#![expect(clippy::disallowed_methods, reason = "tests wait in real time")]

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::{Micros, Span};

use crate::LogError;
use crate::client::{Log, LogConfig, OffsetRange};
use crate::end_offsets::EndOffsets;
use crate::producer::{Outgoing, Producer};
use crate::reader::{Reader, first_offset_since, read_all};
use crate::real_time;
use crate::topics::{self, MAX_MESSAGE_BYTES, TopicSpec};
use wye_broker::{Broker, BrokerConfig};

mod embedded_only;
mod secured;
mod settings;
mod timestamps;
mod transactions;
mod unreadable;

/// Longer than any step may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// The only Kafka partition of most test topics.
const FIRST: KafkaPartition = KafkaPartition(0);

/// A log to test, with the broker that it needs.
struct Target {
    log: Log,
    _embedded: Option<(Broker, TempDir)>,
}

/// The embedded broker, and a real Kafka if there is one.
async fn targets() -> Vec<Target> {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 3)).unwrap();
    let mut targets = vec![Target { log, _embedded: Some((broker, directory)) }];
    if let Ok(bootstrap_servers) = std::env::var("WYE_TEST_KAFKA") {
        let log = Log::new(LogConfig::new(bootstrap_servers, 3)).unwrap();
        targets.push(Target { log, _embedded: None });
    }
    targets
}

/// Creates a topic that no other test and no earlier run has, with the settings of `readings`.
async fn new_topic(log: &Log, kafka_partitions: i32) -> &'static str {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("wye-test-{}-{}", real_time::now().0, NEXT.fetch_add(1, Ordering::Relaxed));
    let name: &'static str = Box::leak(name.into_boxed_str());
    let config = topics::specs(1, 1).swap_remove(0).config;
    log.ensure(&[TopicSpec { name, kafka_partitions, config }]).await.unwrap();
    name
}

/// A message for the first Kafka partition, without key and headers.
fn plain<'a>(topic: &'a str, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, kafka_partition: FIRST, key: None, payload, headers: &[] }
}

/// An offset of a Kafka partition.
fn place(kafka_partition: i32, offset: i64) -> (KafkaPartition, Offset) {
    (KafkaPartition(kafka_partition), Offset(offset))
}

/// The offsets that a log has.
fn range(low: i64, high: i64) -> OffsetRange {
    OffsetRange { low: Offset(low), high: Offset(high) }
}

/// Consecutive offsets.
fn offsets(range: Range<i64>) -> Vec<Offset> {
    range.map(Offset).collect()
}

/// Writes the numbers `first`, `first + 1`, .. as messages into the first Kafka partition, in as few batches as
/// possible. Each must get the offset that it says.
async fn write_numbers(log: &Log, topic: &str, first: i64, count: i64) {
    let producer = Producer::new(log, Duration::from_millis(100)).unwrap();
    let mut deliveries = Vec::new();
    for number in first..first + count {
        deliveries.push(producer.enqueue(plain(topic, number.to_string().as_bytes())).unwrap());
    }
    for (number, delivery) in (first..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap(), Offset(number), "offsets follow the order of writing");
    }
}

/// Reads the first Kafka partition from `start` up to the message before `end`; each payload is its offset.
fn read_numbers(log: &Log, topic: &str, start: i64, end: i64) -> Result<Vec<Offset>, LogError> {
    let mut reader = Reader::new(log, topic)?;
    reader.assign(&[(FIRST, Offset(start))])?;
    let (mut offsets, since) = (Vec::new(), Instant::now());
    while offsets.last().map(|last: &Offset| last.next()) != Some(Offset(end)) {
        assert!(since.elapsed() < DEADLINE, "read only {} records from {start}", offsets.len());
        reader.poll_batch(1000, Duration::from_millis(100), &mut |message| {
            assert_eq!(message.payload, message.offset.to_string().as_bytes());
            offsets.push(message.offset);
        })?;
    }
    Ok(offsets)
}

/// The time of this machine's clock, in whole milliseconds as Kafka's times are.
fn now() -> Micros {
    Micros::from_millis(real_time::now().millis())
}

/// Runs a check outside of the async threads.
async fn on_blocking_thread<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(check).await.unwrap()
}

#[tokio::test]
async fn topics_are_created_once_and_their_partitions_are_checked() {
    for Target { log, _embedded } in targets().await {
        log.wait_ready(&CancellationToken::new()).await.unwrap();
        log.ensure_topics().await.unwrap();
        log.ensure_topics().await.unwrap();
        for spec in topics::specs(3, 1) {
            for kafka_partition in KafkaPartition::all(spec.kafka_partitions) {
                log.offsets(spec.name, kafka_partition).await.unwrap();
            }
            let missing = KafkaPartition(spec.kafka_partitions);
            assert!(log.offsets(spec.name, missing).await.is_err());
        }
        let other = Log::new(LogConfig { kafka_partitions: 4, ..log.config().clone() }).unwrap();
        let error = other.ensure_topics().await.unwrap_err();
        assert!(matches!(error, LogError::PartitionCount { found: 3, expected: 4, .. }), "{error}");
    }
}

#[tokio::test]
async fn records_come_back_as_they_were_written() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 3).await;
        let producer = Producer::new(&log, Duration::from_millis(1)).unwrap();
        let before = now();
        for kafka_partition in KafkaPartition::all(3) {
            let headers: [(&str, &[u8]); 2] = [("source", b"test"), ("empty", b"")];
            let full =
                Outgoing { topic, kafka_partition, key: Some(b"k"), payload: b"full", headers: &headers };
            assert_eq!(producer.send(full).await.unwrap(), Offset(0));
            let bare = Outgoing { topic, kafka_partition, key: None, payload: b"", headers: &[] };
            assert_eq!(producer.send(bare).await.unwrap(), Offset(1));
        }
        on_blocking_thread(move || {
            let mut reader = Reader::new(&log, topic).unwrap();
            reader.assign(&[place(0, 0), place(1, 0), place(2, 1)]).unwrap();
            let (mut seen, since) = (Vec::new(), Instant::now());
            while seen.len() < 5 {
                assert!(since.elapsed() < DEADLINE);
                let mut on = |message: crate::reader::Message<'_>| {
                    seen.push((message.kafka_partition, message.offset));
                    assert!(message.ingest_time >= before, "the log sets the ingest time");
                    if message.offset == Offset(0) {
                        assert_eq!((message.key, message.payload), (Some(&b"k"[..]), &b"full"[..]));
                        assert_eq!(message.header("source"), Some(&b"test"[..]));
                        assert_eq!(message.header("empty"), Some(&b""[..]));
                        assert_eq!(message.header("other"), None);
                    } else {
                        assert_eq!((message.key, message.payload), (None, &b""[..]));
                        assert_eq!(message.header("source"), None);
                    }
                };
                reader.poll_batch(100, Duration::from_millis(100), &mut on).unwrap();
            }
            seen.sort_unstable();
            assert_eq!(seen, [place(0, 0), place(0, 1), place(1, 0), place(1, 1), place(2, 1)]);
            let positions = [0, 2, 3].map(|number| reader.position(KafkaPartition(number)));
            assert_eq!(positions, [Some(Offset(2)), Some(Offset(2)), None]);
        })
        .await;
    }
}

#[tokio::test]
async fn a_batch_is_no_larger_than_asked_for() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 50).await;
        on_blocking_thread(move || {
            let mut reader = Reader::new(&log, topic).unwrap();
            reader.assign(&[(FIRST, Offset(0))]).unwrap();
            let (mut total, since) = (0, Instant::now());
            while total < 50 {
                assert!(since.elapsed() < DEADLINE);
                let taken = reader.poll_batch(7, Duration::from_millis(100), &mut |_| {}).unwrap();
                assert!(taken <= 7);
                total += taken;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn reading_may_start_inside_of_a_batch() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 1000).await;
        on_blocking_thread(move || {
            for start in [0, 1, 499, 998, 999] {
                assert_eq!(read_numbers(&log, topic, start, 1000).unwrap(), offsets(start..1000));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn large_messages_are_accepted_and_too_large_ones_are_rejected() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        let producer = Producer::new(&log, Duration::ZERO).unwrap();
        // Random bytes, which cannot be compressed.
        let mut noise = 1_u64;
        let large: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        })
        .take(topics::MAX_PAYLOAD_BYTES)
        .collect();
        for payload in [&large[..], b"small", &large[..6 << 20], &large] {
            producer.send(plain(topic, payload)).await.unwrap();
        }
        let rejected = producer.send(plain(topic, &vec![0; MAX_MESSAGE_BYTES + 1])).await.unwrap_err();
        assert_eq!(rejected.kind(), ErrorKind::Invalid, "{rejected}");
        on_blocking_thread(move || {
            let mut sizes = Vec::new();
            let end = read_all(&log, (topic, FIRST), None, |message| {
                assert!(message.payload == b"small" || large.starts_with(message.payload));
                sizes.push(message.payload.len());
            });
            assert_eq!(end.unwrap(), Offset(4));
            assert_eq!(sizes, [large.len(), 5, 6 << 20, large.len()]);
        })
        .await;
    }
}

#[tokio::test]
async fn records_are_deleted_up_to_the_exact_offset() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 1000).await;
        log.delete_records(topic, FIRST, Offset(0)).await.unwrap();
        // Inside of a batch.
        log.delete_records(topic, FIRST, Offset(555)).await.unwrap();
        log.delete_records(topic, FIRST, Offset(300)).await.unwrap();
        assert_eq!(log.offsets(topic, FIRST).await.unwrap(), range(555, 1000));
        let rejected = log.delete_records(topic, FIRST, Offset(1001)).await.unwrap_err();
        assert!(matches!(rejected, LogError::Administer { .. }), "{rejected}");
        let writing = log.clone();
        on_blocking_thread(move || {
            assert_eq!(read_numbers(&log, topic, 555, 1000).unwrap(), offsets(555..1000));
            for start in [0, 554] {
                let error = read_numbers(&log, topic, start, 1000).unwrap_err();
                assert!(
                    matches!(error, LogError::OffsetGone { wanted, low: Offset(555), .. } if wanted.0 == start),
                    "{error}"
                );
            }
            for (from, first) in [(None, 555), (Some(3), 555), (Some(700), 700)] {
                let mut read = Vec::new();
                let end = read_all(&log, (topic, FIRST), from.map(Offset), |message| read.push(message.offset));
                assert_eq!(end.unwrap(), Offset(1000));
                assert_eq!(read, offsets(first..1000));
            }
        })
        .await;

        writing.delete_records(topic, FIRST, Offset(1000)).await.unwrap();
        let empty = writing.offsets(topic, FIRST).await.unwrap();
        assert_eq!(empty, range(1000, 1000));
        assert!(empty.is_empty());
        write_numbers(&writing, topic, 1000, 3).await;
        on_blocking_thread(move || {
            assert_eq!(read_numbers(&writing, topic, 1000, 1003).unwrap(), offsets(1000..1003));
        })
        .await;
    }
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        let millisecond = Span::from_millis(1);
        let before = now();
        write_numbers(&log, topic, 0, 10).await;
        let between = now() + millisecond;
        tokio::time::sleep(Duration::from_millis(2)).await;
        write_numbers(&log, topic, 10, 10).await;
        let after = now() + millisecond;
        log.delete_records(topic, FIRST, Offset(3)).await.unwrap();
        on_blocking_thread(move || {
            let found = [before, between, after]
                .map(|since| first_offset_since(&log, (topic, FIRST), since).unwrap());
            assert_eq!(found, [Some(Offset(3)), Some(Offset(10)), None]);
        })
        .await;
    }
}

#[tokio::test]
async fn a_reader_notices_that_its_next_record_was_deleted() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 2).await;
        write_numbers(&log, topic, 0, 10).await;
        let mut reader = Reader::new(&log, topic).unwrap();
        let other = KafkaPartition(1);
        reader.assign(&[(FIRST, Offset(3)), (other, Offset(0))]).unwrap();
        log.delete_records(topic, FIRST, Offset(5)).await.unwrap();
        on_blocking_thread(move || {
            let (mut read, since) = (Vec::new(), Instant::now());
            loop {
                assert!(since.elapsed() < DEADLINE);
                let mut on = |message: crate::reader::Message<'_>| read.push(message.offset);
                match reader.poll_batch(100, Duration::from_millis(100), &mut on) {
                    // The reader was faster than the deletion.
                    Ok(_) if read.last() == Some(&Offset(9)) => break,
                    Ok(_) => {}
                    Err(LogError::OffsetGone { kafka_partition: FIRST, wanted: Offset(3), low, .. }) => {
                        assert_eq!(low, Offset(5));
                        reader.seek(FIRST, low).unwrap();
                        assert_eq!(reader.position(other), Some(Offset(0)));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let first = read[0].0;
            assert!(first == 3 || first == 5);
            assert_eq!(read, offsets(first..10));
        })
        .await;
    }
}

#[tokio::test]
async fn an_offset_past_the_end_is_an_error() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 10).await;
        on_blocking_thread(move || {
            let error = read_numbers(&log, topic, 11, 21).unwrap_err();
            assert!(
                matches!(error, LogError::OffsetAhead { wanted: Offset(11), high: Offset(10), .. }),
                "{error}"
            );
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        })
        .await;
    }
}

#[tokio::test]
async fn an_empty_kafka_partition_has_no_records() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        assert_eq!(log.offsets(topic, FIRST).await.unwrap(), range(0, 0));
        log.delete_records(topic, FIRST, Offset(0)).await.unwrap();
        on_blocking_thread(move || {
            for from in [None, Some(Offset(7))] {
                let end = read_all(&log, (topic, FIRST), from, |_| panic!("there are no records"));
                assert_eq!(end.unwrap(), Offset(0));
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_waiting_reader_soon_gets_a_new_record() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 1).await;
        let producer = Producer::new(&log, Duration::ZERO).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let tail = log.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = Reader::new(&tail, topic).unwrap();
            reader.assign(&[(FIRST, Offset(0))]).unwrap();
            let mut next = Offset(0);
            while next < Offset(11) {
                let on = &mut |message: crate::reader::Message<'_>| {
                    next = message.offset.next();
                    sender.send(Instant::now()).unwrap();
                };
                reader.poll_batch(100, Duration::from_millis(100), on).unwrap();
            }
        });
        let receiver = on_blocking_thread(move || {
            receiver.recv_timeout(DEADLINE).unwrap();
            receiver
        })
        .await;
        let mut slowest = Duration::ZERO;
        let mut receiver = receiver;
        for number in 1..11 {
            producer.send(plain(topic, number.to_string().as_bytes())).await.unwrap();
            let acknowledged = Instant::now();
            let (back, arrived) = on_blocking_thread(move || {
                let arrived = receiver.recv_timeout(DEADLINE).unwrap();
                (receiver, arrived)
            })
            .await;
            receiver = back;
            slowest = slowest.max(arrived.saturating_duration_since(acknowledged));
        }
        reading.await.unwrap();
        assert!(slowest < Duration::from_secs(2), "a waiting reader got a record after {slowest:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn end_offsets_of_all_kafka_partitions_are_fetched_together() {
    for target in targets().await {
        let topic = new_topic(&target.log, 3).await;
        write_numbers(&target.log, topic, 0, 7).await;
        let log = target.log.clone();
        let ends =
            on_blocking_thread(move || EndOffsets::new(&log, topic, 3).unwrap().fetch(DEADLINE).unwrap())
                .await;
        assert_eq!(ends, KafkaPartition::all(3).zip([Offset(7), Offset(0), Offset(0)]).collect());
    }
}

//! What Wye expects of a log, tried on the embedded broker always, and on a real Kafka too where `WYE_TEST_KAFKA` holds
//! its `host:port`. Nothing may rest on what only one of them does.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use wye_domain::ErrorKind;

use crate::LogError;
use crate::client::{Log, LogConfig, OffsetRange};
use crate::ends::Ends;
use crate::producer::{Outgoing, Producer};
use crate::reader::{Reader, first_offset_since, read_all};
use crate::topics::{self, MAX_MESSAGE_BYTES, TopicSpec};
use wye_broker::{Broker, BrokerConfig};

mod embedded_only;
mod secured;
mod settings;
mod stamps;
mod transactions;
mod unreadable;

/// Longer than anything may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A log to test, with what keeps it alive.
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
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
    let name = format!("wye-test-{since}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let name: &'static str = Box::leak(name.into_boxed_str());
    let config = topics::specs(1, 1).swap_remove(0).config;
    log.ensure(&[TopicSpec { name, kafka_partitions, config }]).await.unwrap();
    name
}

fn plain<'a>(topic: &'a str, payload: &'a [u8]) -> Outgoing<'a> {
    Outgoing { topic, kafka_partition: 0, key: None, payload, headers: &[] }
}

/// Writes `count` messages "0", "1", .. into partition 0, as few batches as it goes. They are numbered from `first`.
async fn write_numbers(log: &Log, topic: &str, first: i64, count: i64) {
    let producer = Producer::new(log, Duration::from_millis(100)).unwrap();
    let mut deliveries = Vec::new();
    for number in first..first + count {
        deliveries.push(producer.enqueue(plain(topic, number.to_string().as_bytes())).unwrap());
    }
    for (number, delivery) in (first..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap(), number, "offsets follow the order of writing");
    }
}

/// Reads partition 0 from `start` until the message `last`; the payloads are numbers that equal their offsets.
fn read_numbers(log: &Log, topic: &str, start: i64, last: i64) -> Result<Vec<i64>, LogError> {
    let mut reader = Reader::new(log, topic)?;
    reader.assign(&[(0, start)])?;
    let (mut offsets, since) = (Vec::new(), Instant::now());
    while offsets.last() != Some(&last) {
        assert!(since.elapsed() < DEADLINE, "read only {} records from {start}", offsets.len());
        reader.poll_batch(1000, Duration::from_millis(100), &mut |message| {
            assert_eq!(message.payload, message.offset.to_string().as_bytes());
            offsets.push(message.offset);
        })?;
    }
    Ok(offsets)
}

/// Runs blocking checks beside the async threads.
async fn beside<T: Send + 'static>(check: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(check).await.unwrap()
}

#[tokio::test]
async fn topics_are_created_once_and_their_partitions_are_checked() {
    for Target { log, _embedded } in targets().await {
        log.wait_ready(&CancellationToken::new()).await.unwrap();
        log.ensure_topics().await.unwrap();
        log.ensure_topics().await.unwrap();
        for spec in topics::specs(3, 1) {
            for kafka_partition in 0..spec.kafka_partitions {
                log.offsets(spec.name, kafka_partition).await.unwrap();
            }
            assert!(log.offsets(spec.name, spec.kafka_partitions).await.is_err());
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
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        for kafka_partition in 0..3 {
            let headers: [(&str, &[u8]); 2] = [("source", b"test"), ("empty", b"")];
            let full =
                Outgoing { topic, kafka_partition, key: Some(b"k"), payload: b"full", headers: &headers };
            assert_eq!(producer.send(full).await.unwrap(), 0);
            let bare = Outgoing { topic, kafka_partition, key: None, payload: b"", headers: &[] };
            assert_eq!(producer.send(bare).await.unwrap(), 1);
        }
        beside(move || {
            let mut reader = Reader::new(&log, topic).unwrap();
            reader.assign(&[(0, 0), (1, 0), (2, 1)]).unwrap();
            let (mut seen, since) = (Vec::new(), Instant::now());
            while seen.len() < 5 {
                assert!(since.elapsed() < DEADLINE);
                let mut on = |message: crate::reader::Message<'_>| {
                    seen.push((message.kafka_partition, message.offset));
                    assert!(message.timestamp_ms >= before, "the create time is kept");
                    if message.offset == 0 {
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
            assert_eq!(seen, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)]);
            assert_eq!(
                (reader.position(0), reader.position(2), reader.position(3)),
                (Some(2), Some(2), None)
            );
        })
        .await;
    }
}

#[tokio::test]
async fn a_batch_is_no_larger_than_asked_for() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 50).await;
        beside(move || {
            let mut reader = Reader::new(&log, topic).unwrap();
            reader.assign(&[(0, 0)]).unwrap();
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
async fn reading_may_start_within_what_was_written_together() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 1000).await;
        beside(move || {
            for start in [0, 1, 499, 998, 999] {
                let offsets = read_numbers(&log, topic, start, 999).unwrap();
                assert_eq!(offsets, (start..1000).collect::<Vec<_>>());
            }
        })
        .await;
    }
}

#[tokio::test]
async fn large_messages_pass_and_too_large_ones_are_refused() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        let producer = Producer::new(&log, Duration::ZERO).unwrap();
        // Noise, so that compression does not make it small.
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
        let refused = producer.send(plain(topic, &vec![0; MAX_MESSAGE_BYTES + 1])).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
        beside(move || {
            let mut sizes = Vec::new();
            let end = read_all(&log, (topic, 0), None, |message| {
                assert!(message.payload == b"small" || large.starts_with(message.payload));
                sizes.push(message.payload.len());
            });
            assert_eq!(end.unwrap(), 4);
            assert_eq!(sizes, [large.len(), 5, 6 << 20, large.len()]);
        })
        .await;
    }
}

#[tokio::test]
async fn deleted_records_are_gone_to_the_very_offset() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 1000).await;
        log.delete_records(topic, 0, 0).await.unwrap();
        // Within what was written together.
        log.delete_records(topic, 0, 555).await.unwrap();
        log.delete_records(topic, 0, 300).await.unwrap();
        assert_eq!(log.offsets(topic, 0).await.unwrap(), OffsetRange { low: 555, high: 1000 });
        let refused = log.delete_records(topic, 0, 1001).await.unwrap_err();
        assert!(matches!(refused, LogError::Administer { .. }), "{refused}");
        let deleted = log.clone();
        beside(move || {
            assert_eq!(read_numbers(&log, topic, 555, 999).unwrap(), (555..1000).collect::<Vec<_>>());
            for start in [0, 554] {
                let error = read_numbers(&log, topic, start, 999).unwrap_err();
                assert!(
                    matches!(error, LogError::OffsetGone { wanted, low: 555, .. } if wanted == start),
                    "{error}"
                );
            }
            for (from, first) in [(None, 555), (Some(3), 555), (Some(700), 700)] {
                let mut offsets = Vec::new();
                let end = read_all(&log, (topic, 0), from, |message| offsets.push(message.offset));
                assert_eq!(end.unwrap(), 1000);
                assert_eq!(offsets, (first..1000).collect::<Vec<_>>());
            }
        })
        .await;

        deleted.delete_records(topic, 0, 1000).await.unwrap();
        let range = deleted.offsets(topic, 0).await.unwrap();
        assert_eq!(range, OffsetRange { low: 1000, high: 1000 });
        assert!(range.is_empty());
        write_numbers(&deleted, topic, 1000, 3).await;
        beside(move || assert_eq!(read_numbers(&deleted, topic, 1000, 1002).unwrap(), [1000, 1001, 1002]))
            .await;
    }
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let before = now();
        write_numbers(&log, topic, 0, 10).await;
        let between = now() + 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
        write_numbers(&log, topic, 10, 10).await;
        let after = now() + 1;
        log.delete_records(topic, 0, 3).await.unwrap();
        beside(move || {
            let first = |since| first_offset_since(&log, (topic, 0), since).unwrap();
            assert_eq!((first(before), first(between), first(after)), (Some(3), Some(10), None));
        })
        .await;
    }
}

#[tokio::test]
async fn a_head_that_is_deleted_under_a_reader_is_noticed() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 2).await;
        write_numbers(&log, topic, 0, 10).await;
        let mut reader = Reader::new(&log, topic).unwrap();
        reader.assign(&[(0, 3), (1, 0)]).unwrap();
        log.delete_records(topic, 0, 5).await.unwrap();
        beside(move || {
            let (mut offsets, since) = (Vec::new(), Instant::now());
            loop {
                assert!(since.elapsed() < DEADLINE);
                let mut on = |message: crate::reader::Message<'_>| offsets.push(message.offset);
                match reader.poll_batch(100, Duration::from_millis(100), &mut on) {
                    // It was faster than the deletion.
                    Ok(_) if offsets.last() == Some(&9) => break,
                    Ok(_) => {}
                    Err(LogError::OffsetGone { kafka_partition: 0, wanted: 3, low: 5, .. }) => {
                        reader.seek(0, 5).unwrap();
                        assert_eq!(reader.position(1), Some(0));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            let first = offsets[0];
            assert!(first == 3 || first == 5);
            assert_eq!(offsets, (first..10).collect::<Vec<_>>());
        })
        .await;
    }
}

#[tokio::test]
async fn an_offset_past_the_end_is_no_place_to_wait() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 10).await;
        beside(move || {
            let error = read_numbers(&log, topic, 11, 20).unwrap_err();
            assert!(matches!(error, LogError::OffsetAhead { wanted: 11, high: 10, .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        })
        .await;
    }
}

#[tokio::test]
async fn an_empty_partition_reads_as_empty() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        assert_eq!(log.offsets(topic, 0).await.unwrap(), OffsetRange { low: 0, high: 0 });
        log.delete_records(topic, 0, 0).await.unwrap();
        beside(move || {
            let end = read_all(&log, (topic, 0), None, |_| panic!("there is nothing"));
            assert_eq!(end.unwrap(), 0);
            assert_eq!(read_all(&log, (topic, 0), Some(7), |_| panic!("there is nothing")).unwrap(), 0);
        })
        .await;
    }
}

#[tokio::test]
async fn a_waiting_reader_gets_a_new_record_soon() {
    for Target { log, _embedded } in targets().await {
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 1).await;
        let producer = Producer::new(&log, Duration::ZERO).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let tail = log.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = Reader::new(&tail, topic).unwrap();
            reader.assign(&[(0, 0)]).unwrap();
            let mut next = 0;
            while next < 11 {
                let on = &mut |message: crate::reader::Message<'_>| {
                    next = message.offset + 1;
                    sender.send(Instant::now()).unwrap();
                };
                reader.poll_batch(100, Duration::from_millis(100), on).unwrap();
            }
        });
        let receiver = beside(move || {
            receiver.recv_timeout(DEADLINE).unwrap();
            receiver
        })
        .await;
        let mut slowest = Duration::ZERO;
        let mut receiver = receiver;
        for number in 1..11 {
            producer.send(plain(topic, number.to_string().as_bytes())).await.unwrap();
            let acknowledged = Instant::now();
            let (back, arrived) = beside(move || {
                let arrived = receiver.recv_timeout(DEADLINE).unwrap();
                (receiver, arrived)
            })
            .await;
            receiver = back;
            slowest = slowest.max(arrived.saturating_duration_since(acknowledged));
        }
        reading.await.unwrap();
        assert!(slowest < Duration::from_secs(2), "a record took {slowest:?} to a reader that waited for it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ends_of_all_kafka_partitions_come_in_one_answer() {
    for target in targets().await {
        let topic = new_topic(&target.log, 3).await;
        write_numbers(&target.log, topic, 0, 7).await;
        let log = target.log.clone();
        let ends =
            tokio::task::spawn_blocking(move || Ends::new(&log, topic, 3).unwrap().ask(DEADLINE).unwrap());
        let ends: Vec<(i32, i64)> = ends.await.unwrap().into_iter().collect();
        assert_eq!(ends, [(0, 7), (1, 0), (2, 0)]);
    }
}

//! The broker over its port: limits, hostile bytes, responses to every kind of request.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, CreateTopicsRequest, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, ProduceRequest,
    RequestKind, ResponseKind, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tempfile::TempDir;
use wye_domain::place::Offset;

use crate::clock::{self, Timestamp};
use crate::record_batch::{self, HEADER, RecordBatch};
use crate::requests::SUPPORTED;
use crate::testing::{self, DEADLINE, Peer, TOPIC, encoded_sample};
use crate::{Broker, BrokerConfig, Limits, records};

/// A broker in a runtime of its own, with the topic of the samples.
struct Served {
    address: String,
    runtime: Option<tokio::runtime::Runtime>,
    broker: Option<Broker>,
    _directory: TempDir,
}

impl Served {
    fn new(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let config = BrokerConfig { limits, ..BrokerConfig::new(directory.path()) };
        let broker = runtime.block_on(Broker::start(config)).unwrap();
        let address = broker.bootstrap_servers().to_owned();
        let served = Self { address, runtime: Some(runtime), broker: Some(broker), _directory: directory };
        served.create(TOPIC, &[]);
        served
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.address)
    }

    fn create(&self, name: &str, settings: &[(&str, &str)]) {
        assert_eq!(self.try_create(name, settings).0, 0, "{name}");
    }

    /// Creates a topic; the error code and the message.
    fn try_create(&self, name: &str, settings: &[(&str, &str)]) -> (i16, Option<String>) {
        let settings = settings.iter().map(|(name, value)| {
            CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
        });
        let topic = CreatableTopic::default()
            .with_name(TopicName(text(name)))
            .with_num_partitions(1)
            .with_replication_factor(1)
            .with_configs(settings.collect());
        let request = RequestKind::CreateTopics(CreateTopicsRequest::default().with_topics(vec![topic]));
        let ResponseKind::CreateTopics(response) = self.connect().ask(ApiKey::CreateTopics, 5, &request)
        else {
            panic!("another kind of response");
        };
        let result = &response.topics[0];
        (result.error_code, result.error_message.as_ref().map(ToString::to_string))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let (Some(runtime), Some(broker)) = (self.runtime.take(), self.broker.take()) {
            runtime.block_on(broker.stop());
            runtime.shutdown_background();
        }
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn produce(topic: &str, records: Vec<u8>) -> RequestKind {
    let partition = PartitionProduceData::default().with_records(Some(records.into()));
    let topic =
        TopicProduceData::default().with_name(TopicName(text(topic))).with_partition_data(vec![partition]);
    RequestKind::Produce(
        ProduceRequest::default().with_acks(-1).with_timeout_ms(1000).with_topic_data(vec![topic]),
    )
}

/// Error code, offset, and log append time of a produced batch.
fn produced(response: ResponseKind) -> (i16, i64, i64) {
    let ResponseKind::Produce(response) = response else { panic!("another kind of response") };
    let partition = &response.responses[0].partition_responses[0];
    (partition.error_code, partition.base_offset, partition.log_append_time_ms)
}

fn list_offsets(peer: &mut Peer, topic: &str, timestamp: i64) -> ListOffsetsResponse {
    let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
    let topic =
        ListOffsetsTopic::default().with_name(TopicName(text(topic))).with_partitions(vec![partition]);
    let request = RequestKind::ListOffsets(ListOffsetsRequest::default().with_topics(vec![topic]));
    match peer.ask(ApiKey::ListOffsets, 1, &request) {
        ResponseKind::ListOffsets(response) => response,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_version_of_every_kind_is_answered() {
    let served = Served::new(Limits::default());
    let mut peer = served.connect();
    for api in &SUPPORTED {
        for version in api.min..=api.max {
            if api.key == ApiKey::Produce && version < 3 {
                peer.send_frame(&encoded_sample(api.key, version)).unwrap();
                let response = peer.receive().unwrap_or_else(|| panic!("no response to Produce {version}"));
                assert_eq!(response[..4], 7_i32.to_be_bytes());
                continue;
            }
            peer.ask(api.key, version, &testing::sample(api.key, version));
        }
    }
}

#[test]
fn unsupported_requests_are_refused_with_a_response_of_their_kind() {
    let served = Served::new(Limits::default());
    let unsupported = 35_i16.to_be_bytes();
    // Kind, version, and the position of the error code in the response.
    for (key, version, at) in [
        (ApiKey::AddPartitionsToTxn, 4, 9),
        (ApiKey::AddOffsetsToTxn, 0, 8),
        (ApiKey::EndTxn, 0, 8),
        (ApiKey::ConsumerGroupHeartbeat, 0, 9),
        (ApiKey::ShareGroupHeartbeat, 1, 9),
        (ApiKey::JoinGroup, 9, 9),
    ] {
        let mut peer = served.connect();
        let header = [(key as i16).to_be_bytes(), i16::to_be_bytes(version)].concat();
        peer.send_frame(&[header, vec![0, 0, 0, 7, 0xFF, 0xFF, 0, 0, 0]].concat()).unwrap();
        let response = peer.receive().unwrap_or_else(|| panic!("no response to {key:?}"));
        assert_eq!(response[at..at + 2], unsupported, "{key:?}: {response:?}");
        peer.ask(ApiKey::ApiVersions, 0, &testing::sample(ApiKey::ApiVersions, 0));
    }
    let mut peer = served.connect();
    peer.send_frame(&[0x30, 0x39, 0, 0, 0, 0, 0, 7, 0xFF, 0xFF]).unwrap();
    assert!(peer.receive().is_none(), "an unknown kind has no response");
}

#[test]
fn the_broker_sets_the_timestamps_of_a_topic_with_log_append_time() {
    let served = Served::new(Limits::default());
    served.create("by-broker", &[("message.timestamp.type", "LogAppendTime")]);
    let mut peer = served.connect();
    let before = clock::now();
    let mut future = records::single(b"from 2099");
    record_batch::set_max_timestamp(&mut future, Timestamp(4_070_908_800_000));
    let (error, offset, time) = produced(peer.ask(ApiKey::Produce, 7, &produce("by-broker", future.clone())));
    assert_eq!((error, offset), (0, 0));
    assert!((before..=clock::now()).contains(&Timestamp(time)), "{time}");
    for (asked, found) in [(before.0, 0), (time + 1, -1)] {
        assert_eq!(list_offsets(&mut peer, "by-broker", asked).topics[0].partitions[0].offset, found);
    }
    let (error, _, time) = produced(peer.ask(ApiKey::Produce, 7, &produce(TOPIC, future)));
    assert_eq!((error, time), (0, -1), "in other topics the producer sets the timestamps");
}

#[test]
fn a_timestamp_finds_the_first_record_that_has_it() {
    let served = Served::new(Limits::default());
    let mut peer = served.connect();
    let body = [testing::record(0, 100, b"a"), testing::record(1, 300, b"b"), testing::record(2, 200, b"c")]
        .concat();
    let mut batch = record_batch::pack(&body, 3);
    record_batch::set_max_timestamp(&mut batch, Timestamp(300));
    assert_eq!(produced(peer.ask(ApiKey::Produce, 9, &produce(TOPIC, batch))).0, 0);
    for (time, found) in [(0, (0, 100)), (100, (0, 100)), (101, (1, 300)), (300, (1, 300)), (301, (-1, -1))] {
        let partition = &list_offsets(&mut peer, TOPIC, time).topics[0].partitions[0];
        assert_eq!((partition.offset, partition.timestamp), found, "{time}");
    }
}

#[test]
fn unsupported_settings_are_refused() {
    let served = Served::new(Limits::default());
    for (name, value) in [("retention.ms", "1000"), ("cleanup.policy", "compact"), ("made.up", "1")] {
        let (error, message) = served.try_create("refused", &[(name, value)]);
        assert_eq!(error, 40, "{name}");
        assert!(message.unwrap().contains(name));
    }
    served.create("accepted", &[("retention.ms", "-1"), ("segment.bytes", "67108864")]);
    // The sample sets a retention.
    let mut peer = served.connect();
    let refused =
        peer.ask(ApiKey::IncrementalAlterConfigs, 1, &testing::sample(ApiKey::IncrementalAlterConfigs, 1));
    let ResponseKind::IncrementalAlterConfigs(refused) = refused else { panic!("another kind of response") };
    assert_eq!(refused.responses[0].error_code, 40);
    assert!(refused.responses[0].error_message.as_ref().unwrap().contains("retention.ms"));
}

#[test]
fn connections_are_bounded_and_idle_ones_are_closed() {
    let served = Served::new(Limits { connections: 5, idle: Duration::from_secs(1), ..Limits::default() });
    let deadline = clock::monotonic() + DEADLINE;
    let mut peers = Vec::new();
    // The connection that created the topic may still count.
    while peers.len() < 5 {
        assert!(clock::monotonic() < deadline);
        let mut peer = served.connect();
        if is_served(&mut peer) {
            peers.push(peer);
        }
    }
    assert!(!is_served(&mut served.connect()), "one too many is closed");
    for peer in &mut peers {
        assert!(peer.receive().is_none(), "it was idle");
    }
    drop(peers);
    while !is_served(&mut served.connect()) {
        assert!(clock::monotonic() < deadline);
    }
}

/// Whether a connection gets a response.
fn is_served(peer: &mut Peer) -> bool {
    peer.send_frame(&encoded_sample(ApiKey::ApiVersions, 0)).is_ok() && peer.receive().is_some()
}

#[test]
fn stated_lengths_allocate_nothing() {
    let served = Served::new(Limits::default());
    let before = resident_bytes();
    let peers: Vec<Peer> = (0..100)
        .map(|_| {
            let mut peer = served.connect();
            // The start of a produce request of 60 MB; the rest never follows.
            peer.send(&[&60_000_000_i32.to_be_bytes()[..], &[0, 0, 0, 9, 0, 0, 0, 7]].concat()).unwrap();
            peer
        })
        .collect();
    served.connect().ask(ApiKey::ApiVersions, 0, &testing::sample(ApiKey::ApiVersions, 0));
    assert!(resident_bytes() < before + 200_000_000);
    drop(peers);
    for (length, answered) in [(i32::MAX, true), (5_000_000, true), (-1, false), (3, false)] {
        let mut peer = served.connect();
        // Only a produce request may be large.
        peer.send(&[&length.to_be_bytes()[..], &[0, 3, 0, 9, 0, 0, 0, 7]].concat()).unwrap();
        assert_eq!(peer.receive().is_some(), answered, "{length}");
        assert!(peer.receive().is_none());
    }
}

#[test]
fn small_requests_do_not_wait_for_the_memory_of_large_ones() {
    let served = Served::new(Limits { memory: 1024 * 1024, ..Limits::default() });
    let _peers: Vec<Peer> = (0..4)
        .map(|_| {
            let mut peer = served.connect();
            peer.send(&[&8_000_000_i32.to_be_bytes()[..], &[0, 0, 0, 9, 0, 0, 0, 7], &[0; 300_000]].concat())
                .unwrap();
            peer
        })
        .collect();
    let mut peer = served.connect();
    let (error, ..) = produced(peer.ask(ApiKey::Produce, 9, &produce(TOPIC, records::single(b"small"))));
    assert_eq!(error, 0);
}

/// A random generator with the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

/// The number of ways to break a request. Each is applied to each kind in each version.
const WAYS: usize = 10;

/// A valid request, broken.
fn broken(valid: &[u8], way: usize, random: &mut Random) -> Vec<u8> {
    let mut message = valid.to_vec();
    let body = 8 + random.below(message.len() - 8);
    let mut stated = None;
    match way {
        0 => message.truncate(body),
        1 => message[body] ^= 1 << random.below(8),
        2 => (0..8).for_each(|_| {
            let at = 8 + random.below(valid.len() - 8);
            message[at] = random.below(256) as u8;
        }),
        3 => message.splice(body..body, [0x7F, 0xFF, 0xFF, 0xFF]).for_each(drop),
        4 => message.splice(body..body, [0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).for_each(drop),
        5 => message.splice(body..body, (0..1000).map(|_| 0)).for_each(drop),
        6 => message[8..].fill(0xFF),
        7 => stated = Some(message.len() as i32 + 1 + random.below(1 << 20) as i32),
        8 => stated = Some(random.below(message.len()) as i32),
        _ => message.extend((0..random.below(5000)).map(|_| 0xA5)),
    }
    let stated = stated.unwrap_or(message.len() as i32);
    [&stated.to_be_bytes()[..], &message].concat()
}

/// Sends bytes, and reads until the server closes the connection or sends nothing more.
fn attack(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut sink = [0; 4096];
    while stream.read(&mut sink).is_ok_and(|read| read > 0) {}
}

/// Sends valid requests until `stop`, counts them in `asked`, and returns the longest time that a round took.
fn healthy(served: &Served, stop: &AtomicBool, asked: &AtomicU64) -> Duration {
    let (mut peer, mut slowest) = (served.connect(), Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let since = clock::monotonic();
        let metadata = RequestKind::Metadata(MetadataRequest::default().with_topics(None));
        peer.ask(ApiKey::Metadata, 9, &metadata);
        let (error, offset, _) =
            produced(peer.ask(ApiKey::Produce, 9, &produce("healthy", records::single(b"valid"))));
        assert_eq!(error, 0);
        let end = list_offsets(&mut peer, "healthy", -1).topics[0].partitions[0].offset;
        assert_eq!(end, offset + 1, "it is the only producer");
        slowest = slowest.max(clock::monotonic() - since);
        asked.fetch_add(1, Ordering::Relaxed);
    }
    slowest
}

#[test]
fn hostile_bytes_do_not_disturb_other_clients() {
    let served = Served::new(Limits::default());
    served.create("healthy", &[]);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = resident_bytes();
    let mut kinds = 0;
    std::thread::scope(|scope| {
        let healthy = scope.spawn(|| healthy(&served, &stop, &asked));
        let mut random = Random(1);
        for api in &SUPPORTED {
            for version in api.min..=api.max {
                let valid = encoded_sample(api.key, version);
                for way in 0..WAYS {
                    attack(&served.address, &broken(&valid, way, &mut random));
                    kinds += 1;
                }
            }
        }
        // Broken batches with a right checksum.
        for attributes in 0..64_u8 {
            for size in [0, 1, 10, 1000, 100_000] {
                let body: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
                let mut batch = record_batch::pack(&body, 1 + random.below(3) as i32);
                batch[22] = attributes;
                record_batch::set_max_timestamp(&mut batch, Timestamp(0));
                let message = testing::encode(ApiKey::Produce, 9, 7, &produce(TOPIC, batch));
                attack(&served.address, &[&(message.len() as i32).to_be_bytes()[..], &message].concat());
                kinds += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let slowest = healthy.join().expect("the healthy client was served all the time");
        assert!(slowest < DEADLINE, "{slowest:?}");
    });
    assert!(kinds >= 1000, "{kinds} kinds");
    assert!(asked.load(Ordering::Relaxed) > 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 300_000_000, "{grown} bytes more");
    // The log has only valid batches.
    let mut peer = served.connect();
    let end = Offset(list_offsets(&mut peer, TOPIC, -1).topics[0].partitions[0].offset);
    let topic = served.broker.as_ref().unwrap().catalog.topic(TOPIC).unwrap();
    let mut offset = topic.partitions[0].range().low;
    while offset < end {
        let fetched = topic.partitions[0].read(offset, 1 << 20).unwrap();
        let mut rest = &fetched.records[..];
        while rest.len() > HEADER {
            let batch = RecordBatch::check(rest).unwrap();
            let body = records::Body {
                codec: crate::decompress::Codec::of(batch.attributes).unwrap(),
                bytes: &rest[HEADER..batch.size],
                records: batch.records,
                base_timestamp: batch.base_timestamp,
            };
            records::read(&body, u64::MAX, |_| {}).unwrap();
            offset = batch.end_offset();
            rest = &rest[batch.size..];
        }
    }
}

/// Memory of this process, in bytes.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

//! The responses of a broker on a disk that is slow, full or failing.

use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, CreateTopicsRequest, ListOffsetsRequest, ProduceRequest, RequestKind, ResponseHeader,
    ResponseKind, TopicName,
};
use kafka_protocol::protocol::{Decodable, StrBytes};

use crate::clock;
use crate::disk::memory::{MemoryDisk, Operation};
use crate::testing::{DEADLINE, Peer, encode};
use crate::{Broker, BrokerConfig, HealthWatch, records};

const TOPIC: &str = "t";
const PARTITIONS: i32 = 3;
const VERSION: i16 = 8;

struct Served {
    disk: MemoryDisk,
    address: String,
    health: HealthWatch,
    runtime: Option<tokio::runtime::Runtime>,
    broker: Option<Broker>,
}

impl Served {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let start = Broker::start_on(Arc::new(disk.clone()), BrokerConfig::new("/log"));
        let broker = runtime.block_on(start).unwrap();
        let (address, health) = (broker.bootstrap_servers().to_owned(), broker.health());
        let topic = CreatableTopic::default()
            .with_name(name())
            .with_num_partitions(PARTITIONS)
            .with_replication_factor(1);
        let request = RequestKind::CreateTopics(CreateTopicsRequest::default().with_topics(vec![topic]));
        Peer::connect(&address).ask(ApiKey::CreateTopics, 5, &request);
        Self { disk, address, health, runtime: Some(runtime), broker: Some(broker) }
    }

    fn connect(&self) -> Peer {
        Peer::connect(&self.address)
    }

    /// The end of a Kafka partition, asked on a connection of its own.
    fn high(&self, kafka_partition: i32) -> i64 {
        let partition =
            ListOffsetsPartition::default().with_partition_index(kafka_partition).with_timestamp(-1);
        let topic = ListOffsetsTopic::default().with_name(name()).with_partitions(vec![partition]);
        let request = RequestKind::ListOffsets(ListOffsetsRequest::default().with_topics(vec![topic]));
        match self.connect().ask(ApiKey::ListOffsets, 1, &request) {
            ResponseKind::ListOffsets(response) => response.topics[0].partitions[0].offset,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.disk.release_syncs();
        if let (Some(runtime), Some(broker)) = (self.runtime.take(), self.broker.take()) {
            runtime.block_on(broker.stop());
            runtime.shutdown_background();
        }
    }
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str(TOPIC))
}

/// One record for each of these Kafka partitions.
fn produce(acks: i16, kafka_partitions: &[i32]) -> RequestKind {
    let partitions = kafka_partitions.iter().map(|index| {
        PartitionProduceData::default()
            .with_index(*index)
            .with_records(Some(records::single(b"value").into()))
    });
    let topic = TopicProduceData::default().with_name(name()).with_partition_data(partitions.collect());
    RequestKind::Produce(
        ProduceRequest::default().with_acks(acks).with_timeout_ms(1000).with_topic_data(vec![topic]),
    )
}

/// Sends these requests in one write, each with its index as correlation id.
fn send_together(peer: &mut Peer, requests: &[RequestKind]) {
    let mut bytes = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        let message = encode(ApiKey::Produce, VERSION, number as i32, request);
        bytes.extend((message.len() as i32).to_be_bytes());
        bytes.extend(message);
    }
    peer.send(&bytes).unwrap();
}

/// The next response: correlation id, and error code and offset for each Kafka partition.
fn receive(peer: &mut Peer) -> (i32, Vec<(i16, i64)>) {
    let mut message = peer.receive().expect("a response");
    let version = ApiKey::Produce.response_header_version(VERSION);
    let header = ResponseHeader::decode(&mut message, version).unwrap();
    let ResponseKind::Produce(response) =
        ResponseKind::decode(ApiKey::Produce, &mut message, VERSION).unwrap()
    else {
        panic!("another kind of response");
    };
    let partitions = &response.responses[0].partition_responses;
    (header.correlation_id, partitions.iter().map(|answer| (answer.error_code, answer.base_offset)).collect())
}

fn produce_one(peer: &mut Peer, kafka_partition: i32) -> (i16, i64) {
    send_together(peer, &[produce(-1, &[kafka_partition])]);
    receive(peer).1[0]
}

#[test]
fn requests_that_arrive_together_share_a_sync() {
    let served = Served::new();
    let mut peer = served.connect();
    let before = served.disk.syncs();
    send_together(&mut peer, &[-1, -1, 0, 1, -1].map(|acks| produce(acks, &[1])));
    for (number, offset) in [(0, 0), (1, 1), (3, 3), (4, 4)] {
        assert_eq!(receive(&mut peer), (number, vec![(0, offset)]));
    }
    assert_eq!(served.disk.syncs() - before, 1);
    // Requests without a response are synced as well.
    send_together(&mut peer, &[produce(0, &[1])]);
    let deadline = clock::monotonic() + DEADLINE;
    while served.high(1) < 6 {
        assert!(clock::monotonic() < deadline);
    }
}

#[test]
fn kafka_partitions_of_a_request_are_synced_in_parallel() {
    let served = Served::new();
    served.disk.hold_syncs();
    let mut peer = served.connect();
    send_together(&mut peer, &[produce(-1, &[0, 1, 2])]);
    served.disk.until_held(3);
    for kafka_partition in 0..PARTITIONS {
        assert_eq!(served.high(kafka_partition), 0, "a request about offsets does not wait for syncs");
    }
    served.disk.release_syncs();
    assert_eq!(receive(&mut peer), (0, vec![(0, 0), (0, 0), (0, 0)]));
}

#[test]
fn a_failing_disk_is_reported() {
    let served = Served::new();
    let mut peer = served.connect();
    assert_eq!(produce_one(&mut peer, 0), (0, 0));
    served.disk.fail(Operation::Sync, 0, std::io::ErrorKind::Other);
    let refused = (ResponseError::KafkaStorageError.code(), -1);
    assert_eq!(produce_one(&mut peer, 0), refused);
    assert_eq!(produce_one(&mut peer, 0), refused, "until it is opened again");
    assert_eq!(served.high(0), 1);
    assert_eq!(produce_one(&mut peer, 1), (0, 0), "the other Kafka partitions accept writes");
    let troubles: Vec<String> = served.health.troubles().iter().map(ToString::to_string).collect();
    assert_eq!(troubles.len(), 1);
    assert!(troubles[0].starts_with("Kafka partition 0 of topic t: no more writes"), "{}", troubles[0]);
}

#[test]
fn a_full_disk_is_reported_until_there_is_space() {
    let served = Served::new();
    let mut peer = served.connect();
    assert_eq!(produce_one(&mut peer, 0), (0, 0));
    served.disk.set_free(Some(10));
    assert_eq!(produce_one(&mut peer, 0), (ResponseError::KafkaStorageError.code(), -1));
    let troubles = served.health.troubles();
    assert!(troubles[0].to_string().contains("until its disk has free space"), "{troubles:?}");
    served.disk.set_free(None);
    // It is noticed without a write.
    let deadline = clock::monotonic() + DEADLINE;
    while !served.health.troubles().is_empty() {
        assert!(clock::monotonic() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(produce_one(&mut peer, 0), (0, 1));
}

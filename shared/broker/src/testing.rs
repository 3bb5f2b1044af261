//! Test support: a request of every kind, and a client that sends any bytes.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::incremental_alter_configs_request as incremental;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

/// Longer than anything takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The topic of every sample.
pub(crate) const TOPIC: &str = "sampled";

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn topic() -> TopicName {
    TopicName(text(TOPIC))
}

fn group() -> GroupId {
    GroupId(text("group"))
}

/// A request of a kind, with every field that the version has. The server answers it without waiting.
pub(crate) fn sample(key: ApiKey, version: i16) -> RequestKind {
    match key {
        ApiKey::Produce => RequestKind::Produce(
            ProduceRequest::default().with_acks(-1).with_timeout_ms(1000).with_topic_data(vec![
                TopicProduceData::default().with_name(topic()).with_partition_data(vec![
                    PartitionProduceData::default()
                        .with_records(Some(crate::records::single(b"value").into())),
                ]),
            ]),
        ),
        ApiKey::Fetch => {
            let partition = FetchPartition::default().with_partition_max_bytes(1000);
            let request = FetchRequest::default().with_max_bytes(1000).with_topics(vec![
                FetchTopic::default().with_topic(topic()).with_partitions(vec![partition]),
            ]);
            let request = if version >= 7 {
                let forgotten = ForgottenTopic::default().with_topic(topic()).with_partitions(vec![1, 2]);
                request.with_forgotten_topics_data(vec![forgotten])
            } else {
                request
            };
            RequestKind::Fetch(if version >= 11 { request.with_rack_id(text("rack")) } else { request })
        }
        ApiKey::ListOffsets => RequestKind::ListOffsets(ListOffsetsRequest::default().with_topics(vec![
                ListOffsetsTopic::default().with_name(topic()).with_partitions(
                    [-2, -1, 0, i64::MAX]
                        .map(|time| ListOffsetsPartition::default().with_timestamp(time))
                        .to_vec(),
                ),
            ])),
        ApiKey::Metadata => {
            let topics = [TOPIC, "nowhere", "no/topic"]
                .map(|name| MetadataRequestTopic::default().with_name(Some(TopicName(text(name)))));
            RequestKind::Metadata(MetadataRequest::default().with_topics(Some(topics.to_vec())))
        }
        ApiKey::OffsetCommit => {
            let partition = OffsetCommitRequestPartition::default()
                .with_committed_offset(5)
                .with_committed_metadata(Some(text("note")));
            RequestKind::OffsetCommit(
                OffsetCommitRequest::default()
                    .with_group_id(group())
                    .with_generation_id_or_member_epoch(-1)
                    .with_topics(vec![
                        OffsetCommitRequestTopic::default()
                            .with_name(topic())
                            .with_partitions(vec![partition]),
                    ]),
            )
        }
        ApiKey::OffsetFetch => RequestKind::OffsetFetch(
            OffsetFetchRequest::default().with_group_id(group()).with_topics(Some(vec![
                OffsetFetchRequestTopic::default().with_name(topic()).with_partition_indexes(vec![0, 1]),
            ])),
        ),
        ApiKey::FindCoordinator => {
            let request = FindCoordinatorRequest::default().with_key(text("group"));
            // For transactions, so that the refusal is tested as well.
            RequestKind::FindCoordinator(if version >= 2 { request.with_key_type(1) } else { request })
        }
        ApiKey::JoinGroup => {
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(text("range"))
                .with_metadata(Bytes::from_static(b"m"));
            let request = JoinGroupRequest::default()
                .with_group_id(GroupId(text(&format!("joined in {version}"))))
                .with_session_timeout_ms(10_000)
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol]);
            let request = if version >= 1 { request.with_rebalance_timeout_ms(10_000) } else { request };
            let request =
                if version >= 5 { request.with_group_instance_id(Some(text("instance"))) } else { request };
            RequestKind::JoinGroup(if version >= 8 {
                request.with_reason(Some(text("new")))
            } else {
                request
            })
        }
        ApiKey::Heartbeat => RequestKind::Heartbeat(
            HeartbeatRequest::default().with_group_id(group()).with_member_id(text("unknown")),
        ),
        ApiKey::LeaveGroup => {
            let request = LeaveGroupRequest::default().with_group_id(group());
            RequestKind::LeaveGroup(if version < 3 {
                request.with_member_id(text("unknown"))
            } else {
                let member = MemberIdentity::default().with_member_id(text("unknown"));
                request.with_members(vec![if version >= 5 {
                    member.with_reason(Some(text("done")))
                } else {
                    member
                }])
            })
        }
        ApiKey::SyncGroup => {
            let request = SyncGroupRequest::default().with_group_id(group()).with_member_id(text("unknown"));
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(text("unknown"))
                .with_assignment(Bytes::from_static(b"all"));
            let request = request.with_assignments(vec![assignment]);
            RequestKind::SyncGroup(if version >= 5 {
                request.with_protocol_type(Some(text("consumer"))).with_protocol_name(Some(text("range")))
            } else {
                request
            })
        }
        ApiKey::DescribeGroups => RequestKind::DescribeGroups(
            DescribeGroupsRequest::default().with_groups(vec![group(), GroupId(text("none"))]),
        ),
        ApiKey::ListGroups => {
            let request = ListGroupsRequest::default();
            let request = if version >= 4 {
                request.with_states_filter(vec![text("Stable"), text("Empty")])
            } else {
                request
            };
            RequestKind::ListGroups(if version >= 5 {
                request.with_types_filter(vec![text("classic")])
            } else {
                request
            })
        }
        ApiKey::ApiVersions => RequestKind::ApiVersions(if version >= 3 {
            ApiVersionsRequest::default()
                .with_client_software_name(text("test"))
                .with_client_software_version(text("1"))
        } else {
            ApiVersionsRequest::default()
        }),
        ApiKey::CreateTopics => {
            let assignment = CreatableReplicaAssignment::default()
                .with_partition_index(0)
                .with_broker_ids(vec![BrokerId(1)]);
            let config =
                CreatableTopicConfig::default().with_name(text("retention.ms")).with_value(Some(text("5")));
            let created = CreatableTopic::default()
                .with_name(topic())
                .with_num_partitions(-1)
                .with_replication_factor(-1)
                .with_assignments(vec![assignment])
                .with_configs(vec![config]);
            RequestKind::CreateTopics(
                CreateTopicsRequest::default().with_topics(vec![created]).with_timeout_ms(1),
            )
        }
        ApiKey::DeleteTopics => RequestKind::DeleteTopics(
            DeleteTopicsRequest::default()
                .with_topic_names(vec![TopicName(text("nowhere"))])
                .with_timeout_ms(1),
        ),
        ApiKey::DeleteRecords => {
            let partition = DeleteRecordsPartition::default().with_partition_index(9);
            let topic = DeleteRecordsTopic::default().with_name(topic()).with_partitions(vec![partition]);
            RequestKind::DeleteRecords(DeleteRecordsRequest::default().with_topics(vec![topic]))
        }
        ApiKey::InitProducerId => {
            RequestKind::InitProducerId(InitProducerIdRequest::default().with_producer_id(ProducerId(-1)))
        }
        ApiKey::DescribeConfigs => {
            let resource = DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text(TOPIC))
                .with_configuration_keys(Some(vec![text("retention.ms")]));
            RequestKind::DescribeConfigs(DescribeConfigsRequest::default().with_resources(vec![resource]))
        }
        ApiKey::AlterConfigs => {
            let config =
                AlterableConfig::default().with_name(text("retention.ms")).with_value(Some(text("5")));
            let resource = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text(TOPIC))
                .with_configs(vec![config]);
            RequestKind::AlterConfigs(AlterConfigsRequest::default().with_resources(vec![resource]))
        }
        ApiKey::IncrementalAlterConfigs => {
            let config = incremental::AlterableConfig::default()
                .with_name(text("retention.ms"))
                .with_value(Some(text("5")));
            let resource = incremental::AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(text(TOPIC))
                .with_configs(vec![config]);
            RequestKind::IncrementalAlterConfigs(
                IncrementalAlterConfigsRequest::default().with_resources(vec![resource]),
            )
        }
        ApiKey::DeleteGroups => RequestKind::DeleteGroups(
            DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text("none"))]),
        ),
        ApiKey::OffsetDelete => {
            let partition = OffsetDeleteRequestPartition::default();
            let topic =
                OffsetDeleteRequestTopic::default().with_name(topic()).with_partitions(vec![partition]);
            RequestKind::OffsetDelete(
                OffsetDeleteRequest::default().with_group_id(GroupId(text("none"))).with_topics(vec![topic]),
            )
        }
        ApiKey::DescribeCluster => RequestKind::DescribeCluster(DescribeClusterRequest::default()),
        other => panic!("no sample of {other:?}"),
    }
}

/// The bytes of a request without their length.
pub(crate) fn encode(key: ApiKey, version: i16, correlation_id: i32, request: &RequestKind) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(text("test")));
    header.encode(&mut bytes, key.request_header_version(version)).unwrap();
    request.encode(&mut bytes, version).unwrap();
    bytes.to_vec()
}

/// The bytes of a sample, including versions that the encoder does not support any more.
pub(crate) fn encoded_sample(key: ApiKey, version: i16) -> Vec<u8> {
    if key == ApiKey::Produce && version < 3 {
        let mut bytes = encode(key, 3, 7, &sample(key, 3));
        bytes[2..4].copy_from_slice(&version.to_be_bytes());
        // The transactional id, which is null, follows the header with the client id.
        bytes.drain(14..16);
        return bytes;
    }
    encode(key, version, 7, &sample(key, version))
}

/// A client that sends any bytes.
pub(crate) struct Peer {
    stream: TcpStream,
}

impl Peer {
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream }
    }

    /// Sends bytes unchanged.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a message with its length.
    pub(crate) fn send_frame(&mut self, message: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(message.len() + 4);
        frame.put_i32(message.len() as i32);
        frame.put_slice(message);
        self.send(&frame)
    }

    /// Reads one message; `None` where the server has closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Bytes> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("no response within {DEADLINE:?}")
            }
            Err(_) => return None,
            Ok(()) => {}
        }
        let mut message = vec![0; i32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut message).unwrap();
        Some(message.into())
    }

    /// Sends a request and reads the response.
    pub(crate) fn ask(&mut self, key: ApiKey, version: i16, request: &RequestKind) -> ResponseKind {
        self.send_frame(&encode(key, version, 7, request)).unwrap();
        let mut message = self.receive().expect("a response");
        let header = ResponseHeader::decode(&mut message, key.response_header_version(version)).unwrap();
        assert_eq!(header.correlation_id, 7);
        let response = ResponseKind::decode(key, &mut message, version).unwrap();
        assert!(message.is_empty(), "{key:?} {version}: {} bytes after the response", message.len());
        response
    }
}

/// Appends a zigzag varint.
pub(crate) fn varint(into: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}

/// A record with a key, a value and a header.
pub(crate) fn record(offset_delta: i64, timestamp_delta: i64, value: &[u8]) -> Vec<u8> {
    let mut fields = vec![0];
    varint(&mut fields, timestamp_delta);
    varint(&mut fields, offset_delta);
    varint(&mut fields, 3);
    fields.extend(b"key");
    varint(&mut fields, value.len() as i64);
    fields.extend(value);
    varint(&mut fields, 1);
    varint(&mut fields, 4);
    fields.extend(b"name");
    varint(&mut fields, -1);
    let mut record = Vec::new();
    varint(&mut record, fields.len() as i64);
    record.extend(fields);
    record
}

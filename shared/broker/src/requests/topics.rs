//! Requests about topics: metadata, the offsets of their logs, creation and deletion.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest, DeleteRecordsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterResponse, ListOffsetsRequest,
    ListOffsetsResponse, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tracing::error;
use wye_domain::place::{KafkaPartition, Offset};

use super::{NODE, Refused, string};
use crate::catalog::{self, CreateError, Topic};
use crate::clock::Timestamp;
use crate::decompress::Codec;
use crate::offsets;
use crate::partition_log::{Found, PartitionLog, ReadError};
use crate::record_batch::{HEADER, RecordBatch};
use crate::records::{self, Body};
use crate::server::Server;
use crate::topic_settings;

const CLUSTER_ID: &str = "wye-embedded";
/// The number of Kafka partitions of a topic where the request does not set it.
const DEFAULT_PARTITIONS: usize = 1;
/// The first version of ListOffsets that has leader epochs.
const LEADER_EPOCH_SINCE: i16 = 4;

pub(super) fn describe_cluster(server: &Server) -> DescribeClusterResponse {
    let broker = DescribeClusterBroker::default()
        .with_broker_id(NODE)
        .with_host(string(&server.address.ip().to_string()))
        .with_port(i32::from(server.address.port()));
    DescribeClusterResponse::default()
        .with_cluster_id(StrBytes::from_static_str(CLUSTER_ID))
        .with_controller_id(NODE)
        .with_brokers(vec![broker])
}

pub(super) fn metadata(server: &Server, request: &MetadataRequest) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(NODE)
        .with_host(string(&server.address.ip().to_string()))
        .with_port(i32::from(server.address.port()));
    let topics = match &request.topics {
        None => server.catalog.topics().iter().map(|topic| topic_metadata(topic)).collect(),
        Some(wanted) => wanted
            .iter()
            .filter_map(|wanted| wanted.name.clone())
            .map(|name| match server.catalog.topic(&name) {
                Some(topic) => topic_metadata(&topic),
                None => {
                    let error = match catalog::check_creatable(&name, 1) {
                        Err(CreateError::InvalidName) => ResponseError::InvalidTopicException,
                        _ => ResponseError::UnknownTopicOrPartition,
                    };
                    MetadataResponseTopic::default().with_name(Some(name)).with_error_code(error.code())
                }
            })
            .collect(),
    };
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(StrBytes::from_static_str(CLUSTER_ID)))
        .with_controller_id(NODE)
        .with_topics(topics)
}

fn topic_metadata(topic: &Topic) -> MetadataResponseTopic {
    let partitions = (0..topic.partitions.len() as i32).map(|kafka_partition| {
        MetadataResponsePartition::default()
            .with_partition_index(kafka_partition)
            .with_leader_id(NODE)
            .with_leader_epoch(0)
            .with_replica_nodes(vec![NODE])
            .with_isr_nodes(vec![NODE])
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(string(&topic.name))))
        .with_is_internal(topic.name == offsets::TOPIC)
        .with_partitions(partitions.collect())
}

pub(super) fn list_offsets(
    server: &Server,
    request: &ListOffsetsRequest,
    version: i16,
) -> ListOffsetsResponse {
    let topics = request.topics.iter().map(|wanted| {
        let topic = server.catalog.topic(&wanted.name);
        let partitions = wanted.partitions.iter().map(|asked| {
            let response = ListOffsetsPartitionResponse::default()
                .with_partition_index(asked.partition_index)
                .with_timestamp(-1)
                .with_offset(-1);
            let kafka_partition = KafkaPartition(asked.partition_index);
            let Some(partition) = topic.as_ref().and_then(|topic| topic.partition(kafka_partition)) else {
                return response.with_error_code(ResponseError::UnknownTopicOrPartition.code());
            };
            match find_offset(server, partition, Timestamp(asked.timestamp)) {
                Ok(Some(Found { offset, timestamp })) => {
                    let timestamp = timestamp.map_or(-1, |time| time.0);
                    let found = response.with_offset(offset.0).with_timestamp(timestamp);
                    if version >= LEADER_EPOCH_SINCE { found.with_leader_epoch(0) } else { found }
                }
                Ok(None) => response,
                Err(error) => response.with_error_code(read_error(&wanted.name, &error).code()),
            }
        });
        ListOffsetsTopicResponse::default()
            .with_name(wanted.name.clone())
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

/// The offset that a request asks for: the first one with a timestamp, the earliest or the latest one.
fn find_offset(
    server: &Server,
    partition: &PartitionLog,
    timestamp: Timestamp,
) -> Result<Option<Found>, ReadError> {
    const LATEST: Timestamp = Timestamp(-1);
    const EARLIEST: Timestamp = Timestamp(-2);
    match timestamp {
        LATEST => Ok(Some(Found { offset: partition.range().high, timestamp: None })),
        EARLIEST => Ok(Some(Found { offset: partition.range().low, timestamp: None })),
        timestamp => match partition.find_time(timestamp)? {
            Some(batch) => find_record(server, partition, batch, timestamp).map(Some),
            None => Ok(None),
        },
    }
}

/// The first record of a batch with this timestamp or a later one; `found` is the batch.
fn find_record(
    server: &Server,
    partition: &PartitionLog,
    found: Found,
    timestamp: Timestamp,
) -> Result<Found, ReadError> {
    let fetched = partition.read(found.offset, 1)?;
    let Ok(batch) = RecordBatch::read_header(&fetched.records) else { return Ok(found) };
    let codec = Codec::of(batch.attributes).filter(|_| !batch.has_log_append_time());
    let Some(codec) = codec else { return Ok(found) };
    let bytes = &fetched.records[HEADER..batch.size.min(fetched.records.len())];
    let body = Body { codec, bytes, records: batch.records, base_timestamp: batch.base_timestamp };
    let mut first = None;
    let read = records::read(&body, server.limits.unpacked_batch_bytes as u64, |record| {
        let offset = Offset(batch.base_offset.0 + i64::from(record.offset_delta));
        if first.is_none() && offset >= found.offset && record.timestamp >= timestamp {
            first = Some(Found { offset, timestamp: Some(record.timestamp) });
        }
    });
    // A batch that an earlier version stored without checks may be unreadable; then the batch itself is the answer.
    Ok(read.ok().and(first).unwrap_or(found))
}

/// The error of the protocol for a failed read.
pub(crate) fn read_error(topic: &str, error: &ReadError) -> ResponseError {
    match error {
        ReadError::OutOfRange => ResponseError::OffsetOutOfRange,
        // Its position was logged before.
        ReadError::Damaged(_) => ResponseError::CorruptMessage,
        ReadError::Io(cause) => {
            error!(topic, error = %cause, "embedded broker: cannot read records from the disk");
            ResponseError::KafkaStorageError
        }
    }
}

pub(super) fn create_topics(server: &Server, request: &CreateTopicsRequest) -> CreateTopicsResponse {
    let topics = request.topics.iter().map(|topic| {
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        let kafka_partitions = match topic.num_partitions {
            -1 if !topic.assignments.is_empty() => topic.assignments.len(),
            -1 => DEFAULT_PARTITIONS,
            number => usize::try_from(number).unwrap_or(0),
        };
        match create_topic(server, request, topic, kafka_partitions) {
            Ok(()) => result.with_num_partitions(kafka_partitions as i32).with_replication_factor(1),
            Err((error, reason)) => {
                result.with_error_code(error.code()).with_error_message(Some(StrBytes::from_string(reason)))
            }
        }
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

/// Creates one topic of a request, or only checks it if the request asks for that.
fn create_topic(
    server: &Server,
    request: &CreateTopicsRequest,
    topic: &CreatableTopic,
    kafka_partitions: usize,
) -> Result<(), Refused> {
    refuse_internal(&topic.name)?;
    if topic.replication_factor > 1 {
        let reason = "the embedded broker is one node; use a replication factor of 1";
        return Err((ResponseError::InvalidReplicationFactor, reason.to_owned()));
    }
    let settings = topic.configs.iter().map(|setting| {
        (setting.name.to_string(), setting.value.as_ref().map(ToString::to_string).unwrap_or_default())
    });
    let settings: BTreeMap<_, _> = settings.collect();
    topic_settings::check(&settings).map_err(|problem| (ResponseError::InvalidConfig, problem))?;
    let created = if request.validate_only {
        catalog::check_creatable(&topic.name, kafka_partitions)
    } else {
        server.catalog.create(&topic.name, kafka_partitions, settings)
    };
    created.map_err(|refused| {
        let error = match &refused {
            CreateError::Exists => ResponseError::TopicAlreadyExists,
            CreateError::InvalidName => ResponseError::InvalidTopicException,
            CreateError::InvalidPartitions => ResponseError::InvalidPartitions,
            CreateError::Io(cause) => {
                error!(topic = %topic.name.0, error = %cause, "embedded broker: cannot store a new topic on the disk");
                ResponseError::KafkaStorageError
            }
        };
        (error, refused.to_string())
    })
}

/// Refuses changes of the internal topic.
fn refuse_internal(topic: &str) -> Result<(), Refused> {
    if topic == offsets::TOPIC {
        let reason = "this is an internal topic of the broker; clients cannot change it".to_owned();
        return Err((ResponseError::InvalidTopicException, reason));
    }
    Ok(())
}

pub(super) fn delete_topics(server: &Server, request: &DeleteTopicsRequest) -> DeleteTopicsResponse {
    let responses = request.topic_names.iter().map(|name| {
        let result = DeletableTopicResult::default().with_name(Some(name.clone()));
        match delete_topic(server, name) {
            Ok(()) => result,
            Err((error, reason)) => {
                result.with_error_code(error.code()).with_error_message(Some(StrBytes::from_string(reason)))
            }
        }
    });
    DeleteTopicsResponse::default().with_responses(responses.collect())
}

fn delete_topic(server: &Server, name: &TopicName) -> Result<(), Refused> {
    refuse_internal(name)?;
    // The offsets first, so that a new topic of this name never gets the old ones.
    server.coordinator.offsets.forget_topic(name).map_err(|error| not_deleted(name, &error))?;
    match server.catalog.delete(name) {
        Ok(true) => Ok(()),
        Ok(false) => Err((ResponseError::UnknownTopicOrPartition, "there is no such topic".to_owned())),
        Err(error) => Err(not_deleted(name, &error)),
    }
}

/// Logs why a topic cannot be deleted, and returns the refusal.
fn not_deleted(name: &TopicName, error: &dyn std::fmt::Debug) -> Refused {
    error!(topic = %name.0, ?error, "embedded broker: cannot delete a topic");
    let reason = "the broker cannot delete the topic from its disk; see its log".to_owned();
    (ResponseError::KafkaStorageError, reason)
}

pub(super) fn delete_records(server: &Server, request: &DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request.topics.iter().map(|wanted| {
        let topic = server.catalog.topic(&wanted.name);
        let partitions = wanted.partitions.iter().map(|asked| {
            let result = DeleteRecordsPartitionResult::default().with_partition_index(asked.partition_index);
            let kafka_partition = KafkaPartition(asked.partition_index);
            match delete_below(topic.as_ref(), kafka_partition, Offset(asked.offset)) {
                Ok(low) => result.with_low_watermark(low.0),
                Err(error) => result.with_low_watermark(-1).with_error_code(error.code()),
            }
        });
        DeleteRecordsTopicResult::default()
            .with_name(wanted.name.clone())
            .with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

/// Deletes the records below an offset; the new low watermark.
fn delete_below(
    topic: Option<&Arc<Topic>>,
    kafka_partition: KafkaPartition,
    offset: Offset,
) -> Result<Offset, ResponseError> {
    const ALL: Offset = Offset(-1);
    let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
    refuse_internal(&topic.name).map_err(|(error, _)| error)?;
    let partition = topic.partition(kafka_partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let before = if offset == ALL { partition.range().high } else { offset };
    if before < Offset::START {
        return Err(ResponseError::OffsetOutOfRange);
    }
    match partition.delete_before(before) {
        Ok(low) => low.ok_or(ResponseError::OffsetOutOfRange),
        Err(error) => {
            error!(topic = topic.name, %error, "embedded broker: cannot delete records");
            Err(ResponseError::KafkaStorageError)
        }
    }
}

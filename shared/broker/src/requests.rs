//! What the embedded broker answers to each request of the Kafka protocol, fetches aside (see [`crate::fetch`]).
//!
//! Source: the message definitions of the Kafka protocol documentation; versions are offered up to the last one that
//! names topics by name.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsResponse, BrokerId, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
    DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse, DescribeClusterResponse,
    DescribeConfigsRequest, DescribeConfigsResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    InitProducerIdRequest, InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest,
    MetadataResponse, ProduceRequest, ProduceResponse, ProducerId, RequestKind, ResponseKind, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use tracing::error;

use crate::catalog::{self, CreateError, Topic};
use crate::fetch;
use crate::partition_log::{AppendError, ReadError};
use crate::server::Server;

/// The only node there is.
pub(crate) const NODE: BrokerId = BrokerId(1);
const CLUSTER_ID: &str = "wye-embedded";
/// How many Kafka partitions a topic gets that does not say.
const DEFAULT_PARTITIONS: usize = 1;

/// One kind of request and the versions of it that are served.
pub(crate) struct Api {
    pub(crate) key: ApiKey,
    pub(crate) min: i16,
    pub(crate) max: i16,
}

const fn api(key: ApiKey, min: i16, max: i16) -> Api {
    Api { key, min, max }
}

/// All that is served.
pub(crate) const SUPPORTED: [Api; 12] = [
    api(ApiKey::Produce, 3, 9),
    api(ApiKey::Fetch, 4, 12),
    api(ApiKey::ListOffsets, 1, 6),
    api(ApiKey::Metadata, 0, 9),
    api(ApiKey::FindCoordinator, 0, 2),
    api(ApiKey::ApiVersions, 0, 3),
    api(ApiKey::CreateTopics, 2, 6),
    api(ApiKey::DeleteTopics, 1, 5),
    api(ApiKey::DeleteRecords, 0, 2),
    api(ApiKey::InitProducerId, 0, 4),
    api(ApiKey::DescribeConfigs, 1, 4),
    api(ApiKey::DescribeCluster, 0, 1),
];

/// Answers one request; `None` where the client asked for no acknowledgement. An error closes the connection.
pub(crate) async fn answer(server: &Server, request: RequestKind) -> io::Result<Option<ResponseKind>> {
    let response = match request {
        RequestKind::Fetch(request) => ResponseKind::Fetch(fetch::fetch(&server.catalog, request).await?),
        RequestKind::ApiVersions(_) => ResponseKind::ApiVersions(api_versions()),
        RequestKind::FindCoordinator(request) => ResponseKind::FindCoordinator(find_coordinator(&request)),
        RequestKind::DescribeCluster(_) => ResponseKind::DescribeCluster(describe_cluster(server)),
        RequestKind::Metadata(request) => ResponseKind::Metadata(metadata(server, &request)),
        RequestKind::DescribeConfigs(request) => {
            ResponseKind::DescribeConfigs(describe_configs(server, &request))
        }
        // These touch the disk, so they leave the async threads.
        RequestKind::Produce(request) => {
            let silent = request.acks == 0;
            let response = blocking(server, move |server| produce(server, &request)).await?;
            server.catalog.announce_append();
            if silent {
                return Ok(None);
            }
            ResponseKind::Produce(response)
        }
        RequestKind::ListOffsets(request) => {
            ResponseKind::ListOffsets(blocking(server, move |server| list_offsets(server, &request)).await?)
        }
        RequestKind::CreateTopics(request) => {
            ResponseKind::CreateTopics(blocking(server, move |server| create_topics(server, &request)).await?)
        }
        RequestKind::DeleteTopics(request) => {
            ResponseKind::DeleteTopics(blocking(server, move |server| delete_topics(server, &request)).await?)
        }
        RequestKind::DeleteRecords(request) => ResponseKind::DeleteRecords(
            blocking(server, move |server| delete_records(server, &request)).await?,
        ),
        RequestKind::InitProducerId(request) => ResponseKind::InitProducerId(
            blocking(server, move |server| init_producer(server, &request)).await?,
        ),
        _ => return Err(io::Error::from(io::ErrorKind::Unsupported)),
    };
    Ok(Some(response))
}

/// The answer to a client that asks for versions in a version that is too new.
pub(crate) fn unsupported_version() -> ApiVersionsResponse {
    api_versions().with_error_code(ResponseError::UnsupportedVersion.code())
}

fn api_versions() -> ApiVersionsResponse {
    let apis = SUPPORTED.iter().map(|api| {
        ApiVersion::default().with_api_key(api.key as i16).with_min_version(api.min).with_max_version(api.max)
    });
    ApiVersionsResponse::default().with_api_keys(apis.collect())
}

/// There are neither groups nor transactions here. librdkafka takes the presence of this request as the sign that lz4
/// is understood, and cannot assign partitions without naming a group: it asks on in the background, in silence. Who
/// wants transactions is told at once.
fn find_coordinator(request: &FindCoordinatorRequest) -> FindCoordinatorResponse {
    const TRANSACTION: i8 = 1;
    let (error, reason) = if request.key_type == TRANSACTION {
        (ResponseError::TransactionalIdAuthorizationFailed, "the embedded broker has no transactions")
    } else {
        (ResponseError::CoordinatorNotAvailable, "the embedded broker has no consumer groups")
    };
    FindCoordinatorResponse::default()
        .with_error_code(error.code())
        .with_error_message(Some(StrBytes::from_static_str(reason)))
        .with_node_id(BrokerId(-1))
}

fn describe_cluster(server: &Server) -> DescribeClusterResponse {
    let broker = DescribeClusterBroker::default()
        .with_broker_id(NODE)
        .with_host(string(&server.address.ip().to_string()))
        .with_port(i32::from(server.address.port()));
    DescribeClusterResponse::default()
        .with_cluster_id(StrBytes::from_static_str(CLUSTER_ID))
        .with_controller_id(NODE)
        .with_brokers(vec![broker])
}

fn metadata(server: &Server, request: &MetadataRequest) -> MetadataResponse {
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
                None => MetadataResponseTopic::default()
                    .with_name(Some(name))
                    .with_error_code(ResponseError::UnknownTopicOrPartition.code()),
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
        .with_partitions(partitions.collect())
}

fn produce(server: &Server, request: &ProduceRequest) -> ProduceResponse {
    let responses = request.topic_data.iter().map(|data| {
        let topic = server.catalog.topic(&data.name);
        let partitions = data.partition_data.iter().map(|partition| {
            let records = partition.records.as_deref().unwrap_or_default();
            let response = PartitionProduceResponse::default().with_index(partition.index);
            match append(topic.as_ref(), partition.index, records) {
                Ok(base_offset) => response.with_base_offset(base_offset),
                Err(error) => response.with_base_offset(-1).with_error_code(error.code()),
            }
        });
        TopicProduceResponse::default()
            .with_name(data.name.clone())
            .with_partition_responses(partitions.collect())
    });
    ProduceResponse::default().with_responses(responses.collect())
}

fn append(topic: Option<&Arc<Topic>>, kafka_partition: i32, records: &[u8]) -> Result<i64, ResponseError> {
    let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let partition = topic.partition(kafka_partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
    partition.append(records, topic.max_message_bytes()).map_err(|refused| match refused {
        AppendError::Malformed => ResponseError::CorruptMessage,
        AppendError::TooLarge => ResponseError::MessageTooLarge,
        AppendError::Transactional => ResponseError::InvalidTxnState,
        AppendError::OutOfOrder => ResponseError::OutOfOrderSequenceNumber,
        AppendError::Fenced => ResponseError::InvalidProducerEpoch,
        // A client tries these again. The log has said what is wrong.
        AppendError::Full(_) | AppendError::Stopped(_) => ResponseError::KafkaStorageError,
    })
}

fn list_offsets(server: &Server, request: &ListOffsetsRequest) -> ListOffsetsResponse {
    const LATEST: i64 = -1;
    const EARLIEST: i64 = -2;
    let topics = request.topics.iter().map(|wanted| {
        let topic = server.catalog.topic(&wanted.name);
        let partitions = wanted.partitions.iter().map(|asked| {
            let response =
                ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
            let found = topic.as_ref().and_then(|topic| topic.partition(asked.partition_index));
            let Some(partition) = found else {
                return response.with_error_code(ResponseError::UnknownTopicOrPartition.code());
            };
            match asked.timestamp {
                LATEST => response.with_offset(partition.range().high).with_leader_epoch(0),
                EARLIEST => response.with_offset(partition.range().low).with_leader_epoch(0),
                timestamp => match partition.find_time(timestamp) {
                    Ok(Some((offset, timestamp))) => {
                        response.with_offset(offset).with_timestamp(timestamp).with_leader_epoch(0)
                    }
                    Ok(None) => response.with_offset(-1),
                    Err(error) => response.with_error_code(read_error(&wanted.name, &error).code()),
                },
            }
        });
        ListOffsetsTopicResponse::default()
            .with_name(wanted.name.clone())
            .with_partitions(partitions.collect())
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

/// The protocol's word for a failed read.
pub(crate) fn read_error(topic: &str, error: &ReadError) -> ResponseError {
    match error {
        ReadError::OutOfRange => ResponseError::OffsetOutOfRange,
        // The log has said where.
        ReadError::Damaged(_) => ResponseError::CorruptMessage,
        ReadError::Io(cause) => {
            error!(topic, error = %cause, "embedded broker: the disk refuses a read");
            ResponseError::KafkaStorageError
        }
    }
}

fn create_topics(server: &Server, request: &CreateTopicsRequest) -> CreateTopicsResponse {
    let topics = request.topics.iter().map(|topic| {
        let result = CreatableTopicResult::default().with_name(topic.name.clone());
        let kafka_partitions = match topic.num_partitions {
            -1 => DEFAULT_PARTITIONS,
            number => usize::try_from(number).unwrap_or(0),
        };
        match create_topic(server, topic, kafka_partitions, request.validate_only) {
            Ok(()) => result.with_num_partitions(kafka_partitions as i32).with_replication_factor(1),
            Err((error, reason)) => {
                result.with_error_code(error.code()).with_error_message(Some(StrBytes::from_string(reason)))
            }
        }
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

fn create_topic(
    server: &Server,
    topic: &CreatableTopic,
    kafka_partitions: usize,
    validate_only: bool,
) -> Result<(), (ResponseError, String)> {
    if topic.replication_factor > 1 {
        let reason = "the embedded broker is one node: the replication factor is 1".to_owned();
        return Err((ResponseError::InvalidReplicationFactor, reason));
    }
    let settings = topic.configs.iter().map(|setting| {
        (setting.name.to_string(), setting.value.as_ref().map(ToString::to_string).unwrap_or_default())
    });
    let config: BTreeMap<_, _> = settings.collect();
    let created = if validate_only {
        catalog::check_creatable(&topic.name, kafka_partitions)
    } else {
        server.catalog.create(&topic.name, kafka_partitions, config)
    };
    created.map_err(|refused| {
        let error = match &refused {
            CreateError::Exists => ResponseError::TopicAlreadyExists,
            CreateError::InvalidName => ResponseError::InvalidTopicException,
            CreateError::InvalidPartitions => ResponseError::InvalidPartitions,
            CreateError::Io(cause) => {
                error!(topic = %topic.name.0, error = %cause, "embedded broker: the disk refuses a new topic");
                ResponseError::KafkaStorageError
            }
        };
        (error, refused.to_string())
    })
}

fn delete_topics(server: &Server, request: &DeleteTopicsRequest) -> DeleteTopicsResponse {
    let responses = request.topic_names.iter().map(|name| {
        let error_code = match server.catalog.delete(name) {
            Ok(true) => 0,
            Ok(false) => ResponseError::UnknownTopicOrPartition.code(),
            Err(error) => {
                error!(topic = %name.0, %error, "embedded broker: cannot delete a topic");
                ResponseError::KafkaStorageError.code()
            }
        };
        DeletableTopicResult::default().with_name(Some(name.clone())).with_error_code(error_code)
    });
    DeleteTopicsResponse::default().with_responses(responses.collect())
}

fn delete_records(server: &Server, request: &DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request.topics.iter().map(|wanted| {
        let topic = server.catalog.topic(&wanted.name);
        let partitions = wanted.partitions.iter().map(|asked| {
            let result = DeleteRecordsPartitionResult::default().with_partition_index(asked.partition_index);
            let found = topic.as_ref().and_then(|topic| topic.partition(asked.partition_index));
            let Some(partition) = found else {
                return result.with_error_code(ResponseError::UnknownTopicOrPartition.code());
            };
            // -1 is all that is there.
            let before = if asked.offset == -1 { partition.range().high } else { asked.offset };
            match partition.delete_before(before) {
                Ok(Some(low)) => result.with_low_watermark(low),
                Ok(None) => {
                    result.with_low_watermark(-1).with_error_code(ResponseError::OffsetOutOfRange.code())
                }
                Err(error) => {
                    error!(topic = %wanted.name.0, %error, "embedded broker: cannot delete records");
                    result.with_low_watermark(-1).with_error_code(ResponseError::KafkaStorageError.code())
                }
            }
        });
        DeleteRecordsTopicResult::default()
            .with_name(wanted.name.clone())
            .with_partitions(partitions.collect())
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

fn init_producer(server: &Server, request: &InitProducerIdRequest) -> InitProducerIdResponse {
    let refuse = |error: ResponseError| {
        InitProducerIdResponse::default().with_error_code(error.code()).with_producer_id(ProducerId(-1))
    };
    if request.transactional_id.is_some() {
        return refuse(ResponseError::TransactionalIdAuthorizationFailed);
    }
    // A producer that lost track goes on under its number with the next epoch (KIP-360).
    if request.producer_id.0 >= 0 && (0..i16::MAX).contains(&request.producer_epoch) {
        return InitProducerIdResponse::default()
            .with_producer_id(request.producer_id)
            .with_producer_epoch(request.producer_epoch + 1);
    }
    match server.catalog.new_producer() {
        Ok(number) => {
            InitProducerIdResponse::default().with_producer_id(ProducerId(number)).with_producer_epoch(0)
        }
        Err(error) => {
            error!(%error, "embedded broker: cannot number a producer");
            refuse(ResponseError::CoordinatorNotAvailable)
        }
    }
}

fn describe_configs(server: &Server, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request.resources.iter().map(|resource| describe_config(server, resource));
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe_config(server: &Server, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
    const TOPIC: i8 = 2;
    const SET_ON_TOPIC: i8 = 1;
    let result = DescribeConfigsResult::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone());
    if resource.resource_type != TOPIC {
        return result;
    }
    let Some(topic) = server.catalog.topic(&resource.resource_name) else {
        return result.with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    let asked = |name: &str| {
        resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
    };
    let settings = topic.config.iter().filter(|(name, _)| asked(name)).map(|(name, value)| {
        DescribeConfigsResourceResult::default()
            .with_name(string(name))
            .with_value(Some(string(value)))
            .with_config_source(SET_ON_TOPIC)
    });
    result.with_configs(settings.collect())
}

async fn blocking<T: Send + 'static>(
    server: &Server,
    work: impl FnOnce(&Server) -> T + Send + 'static,
) -> io::Result<T> {
    let server = server.clone();
    tokio::task::spawn_blocking(move || work(&server)).await.map_err(io::Error::other)
}

fn string(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

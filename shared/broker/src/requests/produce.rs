//! Writing: what producers send is checked, stamped and appended.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_request::TopicProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse, ProducerId,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::OwnedSemaphorePermit;
use tracing::error;

use super::blocking;
use crate::catalog::Topic;
use crate::offsets;
use crate::partition_log::AppendError;
use crate::produced::{self, Refusal, Rules, Stamp, Zstd};
use crate::server::Server;
use crate::topic_settings;

/// The first version of Produce that knows Zstandard (KIP-110).
const ZSTD_SINCE: i16 = 7;

/// Answers a produce request; `None` where the client wants no answer.
pub(super) async fn produce(
    server: &Server,
    request: ProduceRequest,
    version: i16,
) -> io::Result<Option<ProduceResponse>> {
    let silent = request.acks == 0;
    let unpacking = Arc::clone(&server.unpacking).acquire_owned().await.map_err(io::Error::other)?;
    let response = blocking(server, move |server| {
        let checked = check_all(server, &request, version, unpacking);
        append_all(&request, checked)
    });
    let response = response.await?;
    server.catalog.announce_append();
    Ok((!silent).then_some(response))
}

/// What is to be appended to a Kafka partition, or why nothing is.
type Checked<'a> = Result<Sound<'a>, Refusal>;

struct Sound<'a> {
    topic: Arc<Topic>,
    records: Cow<'a, [u8]>,
    /// When the log took the records, in milliseconds since 1970, where its clock counts.
    log_append_time: Option<i64>,
}

/// Checks the records of all Kafka partitions, in the order of the request. Unpacking takes memory, so `unpacking` says
/// that there is room for it.
fn check_all<'a>(
    server: &Server,
    request: &'a ProduceRequest,
    version: i16,
    unpacking: OwnedSemaphorePermit,
) -> Vec<Checked<'a>> {
    let mut checked = Vec::new();
    for data in &request.topic_data {
        let topic = server.catalog.topic(&data.name);
        for partition in &data.partition_data {
            let records = partition.records.as_deref().unwrap_or_default();
            checked.push(check(server, topic.as_ref(), (&data.name, partition.index), records, version));
        }
    }
    drop(unpacking);
    checked
}

fn check<'a>(
    server: &Server,
    topic: Option<&Arc<Topic>>,
    (name, kafka_partition): (&str, i32),
    records: &'a [u8],
    version: i16,
) -> Checked<'a> {
    if name == offsets::TOPIC {
        return Err(Refusal {
            error: ResponseError::InvalidTopicException,
            reason: "nobody but the broker writes to this topic",
        });
    }
    let topic = topic.filter(|topic| topic.partition(kafka_partition).is_some());
    let topic = topic.ok_or(Refusal {
        error: ResponseError::UnknownTopicOrPartition,
        reason: "there is no such topic or partition; create the topic first",
    })?;
    let log_append_time = topic_settings::is_stamped_by_log(&topic.config).then(now);
    let rules = Rules {
        max_batch_bytes: topic.max_message_bytes(),
        max_unpacked_bytes: server.limits.unpacked_batch_bytes as u64,
        zstd: if version >= ZSTD_SINCE { Zstd::Known } else { Zstd::Unknown },
        stamp: log_append_time.map_or(Stamp::CreateTime, Stamp::LogAppendTime),
    };
    let records = produced::check(records, &rules)?;
    Ok(Sound { topic: Arc::clone(topic), records, log_append_time })
}

/// Appends what was found sound, and answers in the order of the request.
fn append_all(request: &ProduceRequest, checked: Vec<Checked<'_>>) -> ProduceResponse {
    let mut checked = checked.into_iter();
    let responses = request.topic_data.iter().map(|data| append_topic(data, &mut checked)).collect();
    ProduceResponse::default().with_responses(responses)
}

fn append_topic<'a>(
    data: &TopicProduceData,
    checked: &mut impl Iterator<Item = Checked<'a>>,
) -> TopicProduceResponse {
    let partitions = data.partition_data.iter().zip(checked).map(|(partition, checked)| {
        let response =
            PartitionProduceResponse::default().with_index(partition.index).with_log_append_time_ms(-1);
        match checked.and_then(|sound| append(&sound, partition.index)) {
            Ok(Appended { base_offset, log_append_time, log_start_offset }) => response
                .with_base_offset(base_offset)
                .with_log_append_time_ms(log_append_time.unwrap_or(-1))
                .with_log_start_offset(log_start_offset),
            Err(Refusal { error, reason }) => response
                .with_base_offset(-1)
                .with_error_code(error.code())
                .with_error_message(Some(StrBytes::from_static_str(reason))),
        }
    });
    TopicProduceResponse::default()
        .with_name(data.name.clone())
        .with_partition_responses(partitions.collect())
}

struct Appended {
    base_offset: i64,
    log_append_time: Option<i64>,
    log_start_offset: i64,
}

fn append(sound: &Sound<'_>, kafka_partition: i32) -> Result<Appended, Refusal> {
    let Sound { topic, records, log_append_time } = sound;
    let partition = topic.partition(kafka_partition).ok_or(Refusal {
        error: ResponseError::UnknownTopicOrPartition,
        reason: "there is no such partition",
    })?;
    let appended = partition.append(records, topic.max_message_bytes());
    let base_offset = appended.map_err(|refused| refusal(&refused))?;
    let log_start_offset = partition.range().low;
    Ok(Appended { base_offset, log_append_time: *log_append_time, log_start_offset })
}

/// The protocol's word for a refused append. What is the disk's fault, the log has said.
fn refusal(refused: &AppendError) -> Refusal {
    let (error, reason) = match refused {
        AppendError::Malformed => (ResponseError::InvalidRecord, "the record batch is damaged"),
        AppendError::TooLarge => (ResponseError::MessageTooLarge, "the record batch is too large"),
        AppendError::Transactional => {
            (ResponseError::InvalidTxnState, "the embedded broker has no transactions")
        }
        AppendError::OutOfOrder => (
            ResponseError::OutOfOrderSequenceNumber,
            "a batch before this one of the same producer is missing",
        ),
        AppendError::Fenced => (ResponseError::InvalidProducerEpoch, "the producer has a successor"),
        // A client tries these again.
        AppendError::Full(_) => {
            (ResponseError::KafkaStorageError, "the disk of the broker is full; free some of it")
        }
        AppendError::Stopped(_) => (
            ResponseError::KafkaStorageError,
            "the disk of the broker has failed; see its log, and start it again",
        ),
    };
    Refusal { error, reason }
}

/// Gives an idempotent producer its number.
pub(super) fn init_producer(server: &Server, request: &InitProducerIdRequest) -> InitProducerIdResponse {
    if request.transactional_id.is_some() {
        return no_producer(ResponseError::TransactionalIdAuthorizationFailed);
    }
    // A producer that lost track keeps its number and gets the next epoch (KIP-360).
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
            no_producer(ResponseError::CoordinatorNotAvailable)
        }
    }
}

fn no_producer(error: ResponseError) -> InitProducerIdResponse {
    InitProducerIdResponse::default().with_error_code(error.code()).with_producer_id(ProducerId(-1))
}

/// Milliseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

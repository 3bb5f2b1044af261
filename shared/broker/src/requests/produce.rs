//! Produce requests: the records are checked, get their timestamps, and are appended.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use futures::future::try_join_all;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_request::TopicProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{
    InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse, ProducerId,
};
use kafka_protocol::protocol::StrBytes;
use tokio::sync::OwnedSemaphorePermit;
use tracing::error;
use wye_domain::place::{KafkaPartition, Offset};

use super::blocking;
use crate::catalog::Topic;
use crate::clock::{self, Timestamp};
use crate::offsets;
use crate::partition_log::{AppendError, Written};
use crate::produced::{self, Refusal, Rules, TimestampType, Zstd};
use crate::server::Server;
use crate::topic_settings;

/// The first version of Produce that supports Zstandard (KIP-110).
const ZSTD_SINCE: i16 = 7;
const NO_PARTITION: Refusal = Refusal {
    error: ResponseError::UnknownTopicOrPartition,
    reason: "there is no such topic or partition; create the topic first",
};

/// The response to a produce request whose records are written but not synced yet.
#[derive(Debug)]
pub(crate) struct Unsynced {
    response: ProduceResponse,
    /// The client wants no response (`acks=0`).
    silent: bool,
    written: Vec<WrittenPart>,
}

/// What a request has written to one Kafka partition.
#[derive(Debug)]
struct WrittenPart {
    topic: Arc<Topic>,
    kafka_partition: KafkaPartition,
    written: Written,
    entry: Entry,
}

/// The position of a Kafka partition in a response: by topic, and in its topic.
#[derive(Clone, Copy, Debug)]
struct Entry {
    topic: usize,
    partition: usize,
}

/// The outcome of a sync: the number of the request, the entry in its response, and the low watermark after the sync.
struct Synced {
    request: usize,
    entry: Entry,
    outcome: Result<Offset, Refusal>,
}

/// Checks and writes the records of a request. [`sync_all`] acknowledges them.
pub(crate) async fn write(server: &Server, request: ProduceRequest, version: i16) -> io::Result<Unsynced> {
    let permit = Arc::clone(&server.decompressing).acquire_owned().await.map_err(io::Error::other)?;
    blocking(server, move |server| {
        let checked = check_all(server, &request, version, permit);
        write_all(&request, checked)
    })
    .await
}

/// Syncs what several requests have written; the response to each, or `None` where the client wants none. Kafka
/// partitions do not wait for each other.
pub(crate) async fn sync_all(
    server: &Server,
    requests: Vec<Unsynced>,
) -> io::Result<Vec<Option<ProduceResponse>>> {
    let mut responses = Vec::with_capacity(requests.len());
    let mut by_partition: Vec<Vec<(usize, WrittenPart)>> = Vec::new();
    for (number, Unsynced { response, silent, written }) in requests.into_iter().enumerate() {
        responses.push((response, silent));
        for part in written {
            match by_partition.iter_mut().find(|parts| parts[0].1.is_beside(&part)) {
                Some(parts) => parts.push((number, part)),
                None => by_partition.push(vec![(number, part)]),
            }
        }
    }
    let syncs = by_partition.into_iter().map(|parts| blocking(server, move |_| sync_partition(parts)));
    for Synced { request, entry, outcome } in try_join_all(syncs).await?.into_iter().flatten() {
        let (response, _) = &mut responses[request];
        let answer = &mut response.responses[entry.topic].partition_responses[entry.partition];
        match outcome {
            Ok(log_start_offset) => answer.log_start_offset = log_start_offset.0,
            Err(refused) => refuse(answer, &refused),
        }
    }
    server.catalog.announce_append();
    Ok(responses.into_iter().map(|(response, silent)| (!silent).then_some(response)).collect())
}

/// Syncs what several requests have written to one Kafka partition.
fn sync_partition(parts: Vec<(usize, WrittenPart)>) -> Vec<Synced> {
    parts
        .into_iter()
        .map(|(request, part)| Synced { request, entry: part.entry, outcome: part.sync() })
        .collect()
}

impl WrittenPart {
    /// Whether both are in the same Kafka partition.
    fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.topic, &other.topic) && self.kafka_partition == other.kafka_partition
    }

    /// Syncs it; the low watermark after that.
    fn sync(&self) -> Result<Offset, Refusal> {
        let partition = self.topic.partition(self.kafka_partition).ok_or(NO_PARTITION)?;
        partition.sync(&self.written).map_err(|refused| refusal(&refused))?;
        Ok(partition.range().low)
    }
}

/// The records to append to a Kafka partition, or why they are refused.
type Checked<'a> = Result<Accepted<'a>, Refusal>;

struct Accepted<'a> {
    topic: Arc<Topic>,
    records: Cow<'a, [u8]>,
    /// The timestamp of the records, where the broker sets it.
    log_append_time: Option<Timestamp>,
}

/// Checks the records of all Kafka partitions, in the order of the request. `permit` limits the memory that all requests
/// use for decompression.
fn check_all<'a>(
    server: &Server,
    request: &'a ProduceRequest,
    version: i16,
    permit: OwnedSemaphorePermit,
) -> Vec<Checked<'a>> {
    let mut checked = Vec::new();
    for data in &request.topic_data {
        let topic = server.catalog.topic(&data.name);
        for partition in &data.partition_data {
            let records = partition.records.as_deref().unwrap_or_default();
            let partition = (data.name.as_str(), KafkaPartition(partition.index));
            checked.push(check(server, topic.as_ref(), partition, records, version));
        }
    }
    drop(permit);
    checked
}

fn check<'a>(
    server: &Server,
    topic: Option<&Arc<Topic>>,
    (name, kafka_partition): (&str, KafkaPartition),
    records: &'a [u8],
    version: i16,
) -> Checked<'a> {
    if name == offsets::TOPIC {
        return Err(Refusal {
            error: ResponseError::InvalidTopicException,
            reason: "only the broker itself may write to this topic",
        });
    }
    let topic = topic.filter(|topic| topic.partition(kafka_partition).is_some());
    let topic = topic.ok_or(NO_PARTITION)?;
    let log_append_time = topic_settings::has_log_append_time(&topic.config).then(clock::now);
    let rules = Rules {
        max_batch_bytes: topic.max_message_bytes(),
        max_unpacked_bytes: server.limits.unpacked_batch_bytes as u64,
        zstd: if version >= ZSTD_SINCE { Zstd::Supported } else { Zstd::Unsupported },
        timestamps: log_append_time.map_or(TimestampType::CreateTime, TimestampType::LogAppendTime),
    };
    let records = produced::check(records, &rules)?;
    Ok(Accepted { topic: Arc::clone(topic), records, log_append_time })
}

/// Writes the accepted records; the response is in the order of the request.
fn write_all(request: &ProduceRequest, checked: Vec<Checked<'_>>) -> Unsynced {
    let mut checked = checked.into_iter();
    let mut unsynced = Unsynced {
        response: ProduceResponse::default(),
        silent: request.acks == 0,
        written: Vec::with_capacity(checked.len()),
    };
    for data in &request.topic_data {
        let answers = write_topic(data, &mut checked, &mut unsynced);
        unsynced.response.responses.push(answers);
    }
    unsynced
}

fn write_topic<'a>(
    data: &TopicProduceData,
    checked: &mut impl Iterator<Item = Checked<'a>>,
    unsynced: &mut Unsynced,
) -> TopicProduceResponse {
    let mut answers = Vec::with_capacity(data.partition_data.len());
    for (partition, checked) in data.partition_data.iter().zip(checked) {
        let mut answer =
            PartitionProduceResponse::default().with_index(partition.index).with_log_append_time_ms(-1);
        let kafka_partition = KafkaPartition(partition.index);
        let written =
            checked.and_then(|accepted| Ok((write_partition(&accepted, kafka_partition)?, accepted)));
        match written {
            Ok((written, accepted)) => {
                answer.base_offset = written.base_offset.0;
                answer.log_append_time_ms = accepted.log_append_time.map_or(-1, |time| time.0);
                let entry = Entry { topic: unsynced.response.responses.len(), partition: answers.len() };
                unsynced.written.push(WrittenPart { topic: accepted.topic, kafka_partition, written, entry });
            }
            Err(refused) => refuse(&mut answer, &refused),
        }
        answers.push(answer);
    }
    TopicProduceResponse::default().with_name(data.name.clone()).with_partition_responses(answers)
}

fn write_partition(accepted: &Accepted<'_>, kafka_partition: KafkaPartition) -> Result<Written, Refusal> {
    let partition = accepted.topic.partition(kafka_partition).ok_or(NO_PARTITION)?;
    let written = partition.write(&accepted.records, accepted.topic.max_message_bytes());
    written.map_err(|refused| refusal(&refused))
}

fn refuse(answer: &mut PartitionProduceResponse, Refusal { error, reason }: &Refusal) {
    answer.base_offset = -1;
    answer.log_append_time_ms = -1;
    answer.error_code = error.code();
    answer.error_message = Some(StrBytes::from_static_str(reason));
}

/// The error of the protocol for a refused append. Failures of the disk were logged before.
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
        AppendError::Fenced => {
            (ResponseError::InvalidProducerEpoch, "a producer with a newer epoch has replaced this one")
        }
        // Clients retry these.
        AppendError::Full(_) => {
            (ResponseError::KafkaStorageError, "the disk of the broker is full; delete files on it")
        }
        AppendError::Stopped(_) => (
            ResponseError::KafkaStorageError,
            "the disk of the broker has failed; see the log of the broker, and restart it",
        ),
    };
    Refusal { error, reason }
}

/// Gives an idempotent producer its id.
pub(super) fn init_producer(server: &Server, request: &InitProducerIdRequest) -> InitProducerIdResponse {
    if request.transactional_id.is_some() {
        return no_producer(ResponseError::TransactionalIdAuthorizationFailed);
    }
    // A producer that lost its sequence keeps its id and gets the next epoch (KIP-360).
    if request.producer_id.0 >= 0 && (0..i16::MAX).contains(&request.producer_epoch) {
        return InitProducerIdResponse::default()
            .with_producer_id(request.producer_id)
            .with_producer_epoch(request.producer_epoch + 1);
    }
    match server.catalog.new_producer() {
        Ok(id) => InitProducerIdResponse::default().with_producer_id(ProducerId(id)).with_producer_epoch(0),
        Err(error) => {
            error!(%error, "embedded broker: cannot store the next producer id");
            no_producer(ResponseError::CoordinatorNotAvailable)
        }
    }
}

fn no_producer(error: ResponseError) -> InitProducerIdResponse {
    InitProducerIdResponse::default().with_error_code(error.code()).with_producer_id(ProducerId(-1))
}

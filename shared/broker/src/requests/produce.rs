//! Writing: what producers send is checked, stamped and appended.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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

use super::blocking;
use crate::catalog::Topic;
use crate::offsets;
use crate::partition_log::{AppendError, Written};
use crate::produced::{self, Refusal, Rules, Stamp, Zstd};
use crate::server::Server;
use crate::topic_settings;

/// The first version of Produce that knows Zstandard (KIP-110).
const ZSTD_SINCE: i16 = 7;
const NO_PARTITION: Refusal = Refusal {
    error: ResponseError::UnknownTopicOrPartition,
    reason: "there is no such topic or partition; create the topic first",
};

/// The answer to a produce request whose records are written, and not on the disk yet.
#[derive(Debug)]
pub(crate) struct Unsynced {
    response: ProduceResponse,
    silent: bool,
    written: Vec<Slot>,
}

/// What was written to one Kafka partition, and where the answer tells of it.
#[derive(Debug)]
struct Slot {
    topic: Arc<Topic>,
    kafka_partition: i32,
    written: Written,
    /// Among the topics of the answer, and the Kafka partitions of that.
    place: (usize, usize),
}

/// Checks and writes what a request brings. It is acknowledged by [`sync_all`].
pub(crate) async fn write(server: &Server, request: ProduceRequest, version: i16) -> io::Result<Unsynced> {
    let unpacking = Arc::clone(&server.unpacking).acquire_owned().await.map_err(io::Error::other)?;
    blocking(server, move |server| {
        let checked = check_all(server, &request, version, unpacking);
        write_all(&request, checked)
    })
    .await
}

/// Brings what several requests have written to the disk together; the answer to each, or `None` where the client wants
/// none. Kafka partitions do not wait for each other.
pub(crate) async fn sync_all(
    server: &Server,
    requests: Vec<Unsynced>,
) -> io::Result<Vec<Option<ProduceResponse>>> {
    let mut answers = Vec::with_capacity(requests.len());
    let mut by_partition: Vec<Vec<(usize, Slot)>> = Vec::new();
    for (number, Unsynced { response, silent, written }) in requests.into_iter().enumerate() {
        answers.push((response, silent));
        for slot in written {
            match by_partition.iter_mut().find(|slots| slots[0].1.is_beside(&slot)) {
                Some(slots) => slots.push((number, slot)),
                None => by_partition.push(vec![(number, slot)]),
            }
        }
    }
    let syncs = by_partition.into_iter().map(|slots| blocking(server, move |_| sync_partition(slots)));
    for (number, (topic, partition), outcome) in try_join_all(syncs).await?.into_iter().flatten() {
        let answer = &mut answers[number].0.responses[topic].partition_responses[partition];
        match outcome {
            Ok(log_start_offset) => answer.log_start_offset = log_start_offset,
            Err(refused) => refuse(answer, &refused),
        }
    }
    server.catalog.announce_append();
    Ok(answers.into_iter().map(|(response, silent)| (!silent).then_some(response)).collect())
}

/// The request of a slot, its place there, and the low watermark after the sync.
type Synced = (usize, (usize, usize), Result<i64, Refusal>);

/// Syncs what was written to one Kafka partition, slot by slot.
fn sync_partition(slots: Vec<(usize, Slot)>) -> Vec<Synced> {
    let sync = |slot: &Slot| {
        let partition = slot.topic.partition(slot.kafka_partition).ok_or(NO_PARTITION)?;
        partition.sync(&slot.written).map_err(|refused| refusal(&refused))?;
        Ok(partition.range().low)
    };
    slots.into_iter().map(|(number, slot)| (number, slot.place, sync(&slot))).collect()
}

impl Slot {
    /// Whether both are of the same Kafka partition.
    fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.topic, &other.topic) && self.kafka_partition == other.kafka_partition
    }
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
    let topic = topic.ok_or(NO_PARTITION)?;
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

/// Writes what was found sound; the answer is in the order of the request.
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
        let written = checked.and_then(|sound| Ok((write_partition(&sound, partition.index)?, sound)));
        match written {
            Ok((written, sound)) => {
                answer.base_offset = written.base_offset;
                answer.log_append_time_ms = sound.log_append_time.unwrap_or(-1);
                unsynced.written.push(Slot {
                    topic: sound.topic,
                    kafka_partition: partition.index,
                    written,
                    place: (unsynced.response.responses.len(), answers.len()),
                });
            }
            Err(refused) => refuse(&mut answer, &refused),
        }
        answers.push(answer);
    }
    TopicProduceResponse::default().with_name(data.name.clone()).with_partition_responses(answers)
}

fn write_partition(sound: &Sound<'_>, kafka_partition: i32) -> Result<Written, Refusal> {
    let partition = sound.topic.partition(kafka_partition).ok_or(NO_PARTITION)?;
    let written = partition.write(&sound.records, sound.topic.max_message_bytes());
    written.map_err(|refused| refusal(&refused))
}

fn refuse(answer: &mut PartitionProduceResponse, Refusal { error, reason }: &Refusal) {
    answer.base_offset = -1;
    answer.log_append_time_ms = -1;
    answer.error_code = error.code();
    answer.error_message = Some(StrBytes::from_static_str(reason));
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

//! Whether the records at an offset can be decoded, and if not, where readable records may follow. Each offset is probed
//! by a new client, which is closed afterwards. Must not know who reads, nor what a payload means.
//!
//! What librdkafka 2.12 does with a record batch whose body cannot be decoded, although its checksum is right:
//!
//! | body | what the client reports | its position |
//! |---|---|---|
//! | unknown codec, damaged compression | an error for each fetch; the batch's first offset is in its text only | unchanged |
//! | truncated or malformed records, compressed or not | nothing; it counts a partial response (`rxpartial`) and fetches again | after the records that were decoded |
//!
//! One kind cannot be handled: gzip that is truncated after whole blocks keeps the client's thread busy forever
//! (`rd_gz_decompress`), and the client cannot be closed. Brokers that check each batch when they receive it reject such
//! a batch: the embedded broker and Apache Kafka do.
//!
//! A broker sends the first batch of a response whole (KIP-74). So when a new client that reads one Kafka partition
//! counts a partial response before its first record, the batch cannot be decoded. This holds only for a new client,
//! whose counter cannot come from an earlier probe.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};
use wye_domain::place::{KafkaPartition, Offset};

use crate::client::{Log, OffsetRange};
use crate::error::LogError;
use crate::properties::configure;
use crate::real_time::Deadline;

/// How long a probe waits for its result.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a probe waits for each event of its client.
const PROBE_POLL: Duration = Duration::from_millis(10);
/// This many partial responses are proof: the client counts one before it delivers the records that it decoded of the same
/// response, and fetches again after that.
const PROOF_PARTIAL_RESPONSES: u64 = 2;
/// How long decoded records may take to be delivered.
const DELIVERY_TIMEOUT: Duration = Duration::from_millis(5);
/// How many probes run at once where consecutive offsets must be probed.
const CONCURRENT_PROBES: usize = 16;

/// The Kafka partition to probe.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) log: &'a Log,
    pub(super) topic: &'a str,
    pub(super) kafka_partition: KafkaPartition,
    /// The offsets that it has.
    pub(super) range: OffsetRange,
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ProbeResult {
    /// A record.
    Readable,
    /// The end of the log, and no record before it.
    End,
    /// A batch that cannot be decoded, with its first offset where the client reports it.
    Unreadable { batch: Option<Offset>, reason: String },
    /// No result within the timeout.
    Timeout,
}

/// Whether `code` means that a batch cannot be decoded.
pub(super) fn is_undecodable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::BadMessage | Code::BadCompression | Code::NotImplemented)
}

/// What is found at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// A record that can be decoded.
    Readable,
    /// No record up to the end of the log.
    Empty,
    /// Records that cannot be decoded.
    Unreadable {
        /// The first offset after them that is not known to be unreadable.
        next: Offset,
        /// What is wrong, as the client reports it.
        reason: String,
    },
    /// A client that reads there does not answer.
    NoAnswer,
}

/// Finds out whether the records at `from` can be decoded, and which offset follows them if not. Takes about `budget`
/// at most: then `next` is how far it came. Blocks.
///
/// # Errors
/// `Configure` and `Read` when a client cannot be created.
pub(super) fn find(target: Target<'_>, from: Offset, budget: Duration) -> Result<Finding, LogError> {
    let deadline = Deadline::after(budget);
    let (batch, reason) = match target.probe(from)? {
        ProbeResult::Readable => return Ok(Finding::Readable),
        ProbeResult::End => return Ok(Finding::Empty),
        ProbeResult::Timeout => return Ok(Finding::NoAnswer),
        ProbeResult::Unreadable { batch, reason } => (batch, reason),
    };
    let next = match batch {
        Some(batch) => target.end_of(batch, from)?,
        // The bounds of the batch are unknown, and readable records may follow: only probed offsets are skipped.
        None => {
            let mut next = from.next();
            while next < target.range.high && !deadline.has_passed() {
                let offsets: Vec<Offset> =
                    (next.0..target.range.high.0).take(CONCURRENT_PROBES).map(Offset).collect();
                let results = target.probe_all(&offsets)?;
                let readable =
                    results.iter().position(|result| !matches!(result, ProbeResult::Unreadable { .. }));
                if let Some(index) = readable {
                    next = offsets[index];
                    break;
                }
                next = Offset(next.0 + offsets.len() as i64);
            }
            next
        }
    };
    Ok(Finding::Unreadable { next, reason })
}

impl Target<'_> {
    /// The offset after the batch that starts at `batch` and holds `from`: each probe inside of it reports `batch`, and
    /// no probe outside of it does.
    fn end_of(self, batch: Offset, from: Offset) -> Result<Offset, LogError> {
        let (mut inside, mut step) = (from, 1);
        let mut outside = loop {
            let offset = Offset(inside.0 + step).min(self.range.high);
            if offset >= self.range.high || !self.is_in(batch, offset)? {
                break offset;
            }
            inside = offset;
            step *= 2;
        };
        while inside.next() < outside {
            let middle = Offset(inside.0.midpoint(outside.0));
            if self.is_in(batch, middle)? {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        Ok(outside)
    }

    /// Whether the probe at `offset` reports the batch that starts at `batch`.
    fn is_in(self, batch: Offset, offset: Offset) -> Result<bool, LogError> {
        let result = self.probe(offset)?;
        Ok(matches!(result, ProbeResult::Unreadable { batch: Some(reported), .. } if reported == batch))
    }

    fn probe(self, offset: Offset) -> Result<ProbeResult, LogError> {
        Ok(Probe::start(self, offset)?.finish(Deadline::after(PROBE_TIMEOUT)))
    }

    /// Probes several offsets at once.
    fn probe_all(self, offsets: &[Offset]) -> Result<Vec<ProbeResult>, LogError> {
        let probes: Result<Vec<Probe>, LogError> =
            offsets.iter().map(|offset| Probe::start(self, *offset)).collect();
        let (probes, deadline) = (probes?, Deadline::after(PROBE_TIMEOUT));
        Ok(probes.into_iter().map(|probe| probe.finish(deadline)).collect())
    }
}

/// A client that reads at one offset.
struct Probe {
    consumer: BaseConsumer<ProbeContext>,
    offset: Offset,
    range: OffsetRange,
}

impl Probe {
    fn start(target: Target<'_>, offset: Offset) -> Result<Self, LogError> {
        let mut config = target.log.config().client(&[]);
        let own = [
            ("group.id", "wye-reader"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("check.crcs", "true"),
            // One batch is enough, and it is sent whole.
            ("fetch.message.max.bytes", "1"),
            ("fetch.wait.max.ms", "10"),
            ("fetch.error.backoff.ms", "1"),
            ("statistics.interval.ms", "10"),
        ];
        // They override the user's properties, since the result depends on them.
        for (property, value) in own {
            config.set(property, value);
        }
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let consumer: BaseConsumer<ProbeContext> =
            config.create_with_context(ProbeContext::default()).map_err(configure)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(target.topic, target.kafka_partition.0, rdkafka::Offset::Offset(offset.0))
            .and_then(|()| consumer.assign(&list))
            .map_err(|source| LogError::Read { topic: target.topic.to_owned(), source: source.into() })?;
        Ok(Self { consumer, offset, range: target.range })
    }

    /// Waits for the result and closes the client.
    fn finish(self, deadline: Deadline) -> ProbeResult {
        let result = self.wait(deadline);
        if result == ProbeResult::Timeout {
            // Closing a client that does not answer may take forever.
            std::thread::spawn(move || drop(self));
        }
        result
    }

    fn wait(&self, deadline: Deadline) -> ProbeResult {
        loop {
            let left = deadline.left();
            if left.is_zero() {
                return ProbeResult::Timeout;
            }
            match self.consumer.poll(left.min(PROBE_POLL)) {
                Some(Ok(message)) if (self.offset..self.range.high).contains(&Offset(message.offset())) => {
                    return ProbeResult::Readable;
                }
                Some(Ok(message)) => {
                    let reason =
                        format!("a record has offset {}, which the log does not have", message.offset());
                    return ProbeResult::Unreadable { batch: None, reason };
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return ProbeResult::End,
                Some(Err(KafkaError::MessageConsumption(code))) if is_undecodable(code) => {
                    let error = self.consumer.context().last_error();
                    let reason = error.unwrap_or_else(|| code.to_string());
                    return ProbeResult::Unreadable { batch: batch_in(&reason), reason };
                }
                Some(Err(_)) => {}
                None if self.consumer.context().partial_responses() >= PROOF_PARTIAL_RESPONSES => {
                    if let Some(Ok(_)) = self.consumer.poll(DELIVERY_TIMEOUT) {
                        return ProbeResult::Readable;
                    }
                    let reason = "a record is truncated or malformed".to_owned();
                    return ProbeResult::Unreadable { batch: None, reason };
                }
                None => {}
            }
        }
    }
}

/// The first offset of the batch in an error of librdkafka: "... of message at 42 of 117 bytes failed ...".
fn batch_in(error: &str) -> Option<Offset> {
    error.split_once(" of message at ")?.1.split_once(' ')?.0.parse().ok().map(Offset)
}

/// What a client reports besides records.
#[derive(Default)]
struct ProbeContext {
    events: Mutex<ProbeEvents>,
}

#[derive(Default)]
struct ProbeEvents {
    partial_responses: u64,
    /// The last error about a batch.
    error: Option<String>,
}

impl ProbeContext {
    fn events(&self) -> MutexGuard<'_, ProbeEvents> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn partial_responses(&self) -> u64 {
        self.events().partial_responses
    }

    fn last_error(&self) -> Option<String> {
        self.events().error.clone()
    }
}

impl ClientContext for ProbeContext {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code().is_some_and(is_undecodable) {
            self.events().error = Some(reason.to_owned());
        }
    }

    fn stats(&self, statistics: Statistics) {
        let partial_responses = statistics.brokers.values().map(|broker| broker.rxpartial).sum();
        self.events().partial_responses = partial_responses;
    }
}

impl ConsumerContext for ProbeContext {}

#[cfg(test)]
mod tests {
    use wye_domain::place::Offset;

    use super::batch_in;

    #[test]
    fn the_batch_is_read_from_the_error_of_the_client() {
        let error = "Decompression (codec 0x7) of message at 42 of 117 bytes failed: Local: Not implemented";
        assert_eq!(batch_in(error), Some(Offset(42)));
        assert_eq!(batch_in("Local: Bad message format"), None);
    }
}

//! Whether the records at an offset can be decoded at all, and where those that can go on: asked with clients of their
//! own, each of which reads at one offset and is thrown away. Must not know who reads, nor what a payload means.
//!
//! What librdkafka 2.12 does with a record batch whose body does not decode, although its checksum is right:
//!
//! | body | what the client says | its position |
//! |---|---|---|
//! | unknown codec, damaged compression | an error, each time it fetches, with the batch's first offset in its text only | stays |
//! | records that break off or make no sense, compressed or not | nothing; it counts a partial response (`rxpartial`) and fetches again | stays, after what decoded before them |
//!
//! One kind is beyond help: gzip that breaks off after whole blocks keeps the client's thread busy for ever
//! (`rd_gz_decompress`), and the client cannot even be closed. Brokers that look at what they take refuse it, as the
//! embedded one and Apache Kafka do.
//!
//! A broker sends the first batch of an answer whole (KIP-74), so a client that has just started, reads one Kafka
//! partition and has a partial response before its first record has met a batch that does not decode. That evidence is
//! why each question takes a new client: the counter cannot come from an earlier question.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};
use wye_domain::place::{KafkaPartition, Offset};

use crate::client::{Log, OffsetRange};
use crate::error::LogError;
use crate::properties::configure;

/// How long the answer to one question is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many partial responses are proof: the client counts one before it hands over what it has decoded of the same
/// response, and asks for the next one after that.
const ENOUGH_PARTIAL: u64 = 2;
/// How long what was handed over may take to come out.
const DRAIN: Duration = Duration::from_millis(5);
/// How many questions are asked at once where offset after offset must be asked about.
const AT_ONCE: usize = 16;

/// One Kafka partition of a topic.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) log: &'a Log,
    pub(super) topic: &'a str,
    pub(super) kafka_partition: KafkaPartition,
}

/// Records that do not decode: from the offset that was asked about to `next`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The first offset after them that is not known to be unreadable.
    pub(super) next: Offset,
    /// What is wrong, in the client's words.
    pub(super) reason: String,
}

/// What one question finds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// A record.
    Readable,
    /// The end of the log, and no record before it.
    End,
    /// Something that does not decode, with the first offset of its batch where the client names it.
    Unreadable { batch: Option<Offset>, reason: String },
    /// No answer in time.
    Unknown,
}

/// Whether `code` says that a batch does not decode.
pub(super) fn is_undecodable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::BadMessage | Code::BadCompression | Code::NotImplemented)
}

/// What is found about the records at an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// They can be read.
    Readable,
    /// There are none up to the end that was given.
    Nothing,
    /// They cannot.
    Unreadable(Unreadable),
    /// A client that reads there does not answer.
    NoAnswer,
}

/// Whether the records at `from` do not decode, and which come after them; `range` is what the Kafka partition has.
/// Takes about as long as `budget` where many are to be asked about: then `next` is as far as it came. Blocks.
///
/// # Errors
/// `Configure` and `Read` when a client cannot be had.
pub(super) fn find(
    place: Place<'_>,
    from: Offset,
    range: OffsetRange,
    budget: Duration,
) -> Result<Finding, LogError> {
    let started = Instant::now();
    let (batch, reason) = match place.ask(&[from], range)?.swap_remove(0) {
        Found::Readable => return Ok(Finding::Readable),
        Found::End => return Ok(Finding::Nothing),
        Found::Unknown => return Ok(Finding::NoAnswer),
        Found::Unreadable { batch, reason } => (batch, reason),
    };
    let next = match batch {
        Some(batch) => place.end_of(batch, from, range)?,
        // Which batch it is cannot be known, and a sound one may be near: no offset is passed that was not asked about.
        None => {
            let mut next = from.next();
            while next < range.high && started.elapsed() < budget {
                let offsets: Vec<Offset> = (next.0..range.high.0).take(AT_ONCE).map(Offset).collect();
                let found = place.ask(&offsets, range)?;
                let bad = found.iter().take_while(|found| matches!(found, Found::Unreadable { .. })).count();
                next = Offset(next.0 + bad as i64);
                if bad < offsets.len() {
                    break;
                }
            }
            next
        }
    };
    Ok(Finding::Unreadable(Unreadable { next, reason }))
}

impl Place<'_> {
    /// The offset after the batch that starts at `batch` and holds `from`: that offset is named by every question
    /// within it, and by none outside.
    fn end_of(self, batch: Offset, from: Offset, range: OffsetRange) -> Result<Offset, LogError> {
        let (mut inside, mut step) = (from, 1);
        let mut outside = loop {
            let offset = Offset(inside.0 + step).min(range.high);
            if offset >= range.high || !self.is_in(batch, offset, range)? {
                break offset;
            }
            inside = offset;
            step *= 2;
        };
        while inside.next() < outside {
            let middle = Offset(inside.0.midpoint(outside.0));
            if self.is_in(batch, middle, range)? {
                inside = middle;
            } else {
                outside = middle;
            }
        }
        Ok(outside)
    }

    fn is_in(self, batch: Offset, offset: Offset, range: OffsetRange) -> Result<bool, LogError> {
        let found = self.ask(&[offset], range)?;
        Ok(found
            .iter()
            .any(|found| matches!(found, Found::Unreadable { batch: Some(at), .. } if *at == batch)))
    }

    /// Asks about several offsets, each with a client of its own.
    fn ask(self, offsets: &[Offset], range: OffsetRange) -> Result<Vec<Found>, LogError> {
        let questions: Result<Vec<Question>, LogError> =
            offsets.iter().map(|offset| Question::start(self, *offset, range)).collect();
        let (questions, deadline) = (questions?, Instant::now() + PATIENCE);
        Ok(questions
            .into_iter()
            .map(|question| {
                let found = question.answer(deadline);
                if found == Found::Unknown {
                    // Closing a client that does not answer may take for ever.
                    std::thread::spawn(move || drop(question));
                }
                found
            })
            .collect())
    }
}

/// A client that reads at one offset.
struct Question {
    consumer: BaseConsumer<Evidence>,
    offset: Offset,
    range: OffsetRange,
}

impl Question {
    fn start(place: Place<'_>, offset: Offset, range: OffsetRange) -> Result<Self, LogError> {
        let mut config = place.log.config().client(&[]);
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
        // Over all that a user sets: the evidence rests on them.
        for (property, value) in own {
            config.set(property, value);
        }
        config.set_log_level(RDKafkaLogLevel::Emerg);
        let consumer: BaseConsumer<Evidence> =
            config.create_with_context(Evidence::default()).map_err(configure)?;
        let refuse =
            |source: KafkaError| LogError::Read { topic: place.topic.to_owned(), source: source.into() };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(place.topic, place.kafka_partition.0, rdkafka::Offset::Offset(offset.0))
            .map_err(refuse)?;
        consumer.assign(&list).map_err(refuse)?;
        Ok(Self { consumer, offset, range })
    }

    fn answer(&self, deadline: Instant) -> Found {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Found::Unknown;
            }
            match self.consumer.poll(left.min(Duration::from_millis(10))) {
                Some(Ok(message)) if (self.offset..self.range.high).contains(&Offset(message.offset())) => {
                    return Found::Readable;
                }
                Some(Ok(message)) => {
                    let reason = format!("it names offset {}, which the log does not have", message.offset());
                    return Found::Unreadable { batch: None, reason };
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Found::End,
                Some(Err(KafkaError::MessageConsumption(code))) if is_undecodable(code) => {
                    let said = self.consumer.context().said();
                    let reason = if said.is_empty() { code.to_string() } else { said };
                    return Found::Unreadable { batch: batch_in(&reason), reason };
                }
                Some(Err(_)) => {}
                None if self.consumer.context().partial() >= ENOUGH_PARTIAL => {
                    if let Some(Ok(_)) = self.consumer.poll(DRAIN) {
                        return Found::Readable;
                    }
                    let reason = "a record breaks off or makes no sense".to_owned();
                    return Found::Unreadable { batch: None, reason };
                }
                None => {}
            }
        }
    }
}

/// The first offset of the batch that an error of librdkafka is about: "... of message at 42 of 117 bytes failed ...".
fn batch_in(said: &str) -> Option<Offset> {
    said.split_once(" of message at ")?.1.split_once(' ')?.0.parse().ok().map(Offset)
}

/// What the client says beside records.
#[derive(Default)]
struct Evidence {
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    partial: u64,
    said: String,
}

impl Evidence {
    fn partial(&self) -> u64 {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).partial
    }

    fn said(&self) -> String {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).said.clone()
    }
}

impl ClientContext for Evidence {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code().is_some_and(is_undecodable) {
            reason.clone_into(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner).said);
        }
    }

    fn stats(&self, statistics: Statistics) {
        let partial = statistics.brokers.values().map(|broker| broker.rxpartial).sum();
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).partial = partial;
    }
}

impl ConsumerContext for Evidence {}

#[cfg(test)]
mod tests {
    use wye_domain::place::Offset;

    use super::batch_in;

    #[test]
    fn the_batch_is_taken_from_the_words_of_the_client() {
        let said = "Decompression (codec 0x7) of message at 42 of 117 bytes failed: Local: Not implemented";
        assert_eq!(batch_in(said), Some(Offset(42)));
        assert_eq!(batch_in("Local: Bad message format"), None);
    }
}

//! Reading the log: one topic, chosen Kafka partitions, from given offsets on.
//!
//! There is no consumer group, and no offsets are committed: the caller stores its position with its results. This file
//! must not know what a payload means.
//!
//! A record batch that no client can decode stops librdkafka permanently, mostly without an error. So a Kafka partition
//! that makes no progress before its end is checked (`unreadable`), and the reader skips what cannot be decoded: its
//! caller gets [`LogError::Unreadable`] with the offsets.

mod unreadable;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::{Timestamp, TopicPartitionList};
use tracing::{debug, error, warn};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::Micros;

use crate::client::{Log, REQUEST_TIMEOUT};
use crate::error::LogError;
use crate::kafka_logs::{RateLimit, TracingContext};
use crate::properties::configure;
use crate::reader::unreadable::{Finding, Target, is_undecodable};
use crate::real_time::{self, Deadline};

/// How often a broker that cannot be reached is logged.
const NOTICE_INTERVAL: Duration = Duration::from_secs(5);
/// How long [`read_all`] waits for the next record before it returns an error.
const READ_ALL_TIMEOUT: Duration = Duration::from_secs(30);
/// After how long without progress before its end a Kafka partition is checked for the first time. Each check that finds
/// nothing doubles the delay, up to [`MAX_CHECK_DELAY`].
const MIN_CHECK_DELAY: Duration = Duration::from_secs(1);
/// The longest delay between two checks of a Kafka partition.
const MAX_CHECK_DELAY: Duration = Duration::from_secs(60);
/// The delay after a check that got no answer. It is long, since the client of such a check may never be closed.
const NO_ANSWER_DELAY: Duration = Duration::from_secs(3600);
/// How long a check may wait for the offsets of the log.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// About how long one call searches for the end of the unreadable records; the next call continues.
const SEARCH_TIME: Duration = Duration::from_secs(2);
/// How many records [`read_all`] takes per call.
const READ_ALL_MESSAGES: usize = 10_000;
/// How long each call of [`read_all`] waits for a record.
const READ_ALL_POLL: Duration = Duration::from_millis(100);

/// One record, borrowed from the client's buffers.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Its Kafka partition.
    pub kafka_partition: KafkaPartition,
    /// Its offset there.
    pub offset: Offset,
    /// When the log received it; 1970 where the record has no timestamp. For a record of a topic without LogAppendTime
    /// (written before the topic was set up), the producer's time, but never in the future.
    pub ingest_time: Micros,
    /// The key, if any.
    pub key: Option<&'a [u8]>,
    /// The payload; empty where it is null.
    pub payload: &'a [u8],
    inner: &'a BorrowedMessage<'a>,
}

impl<'a> Message<'a> {
    /// The value of the first header called `name`; empty where it is null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let headers = self.inner.headers()?;
        headers.iter().find(|header| header.key == name).map(|header| header.value.unwrap_or_default())
    }

    fn of(inner: &'a BorrowedMessage<'a>) -> Self {
        Self {
            kafka_partition: KafkaPartition(inner.partition()),
            offset: Offset(inner.offset()),
            ingest_time: ingest_time(inner.timestamp()),
            key: inner.key(),
            payload: inner.payload().unwrap_or_default(),
            inner,
        }
    }
}

/// When the log received a record, by its timestamp.
fn ingest_time(timestamp: Timestamp) -> Micros {
    let millis = match timestamp {
        Timestamp::NotAvailable => 0,
        Timestamp::LogAppendTime(millis) => millis,
        Timestamp::CreateTime(millis) => millis.min(real_time::now().millis()),
    };
    Micros::from_millis(millis.max(0))
}

/// Reads records of one topic in offset order per Kafka partition. Blocks; run it on a thread of its own.
pub struct Reader {
    log: Log,
    topic: String,
    consumer: BaseConsumer<TracingContext>,
    assigned: BTreeMap<KafkaPartition, Progress>,
    notice: RateLimit,
}

/// How far an assigned Kafka partition is read.
struct Progress {
    /// The offset that is read next.
    next: Offset,
    /// Whether the client has reported the end.
    at_end: bool,
    /// Whether that end has been checked for offsets without records before it.
    end_is_checked: bool,
    /// The end of the log when it was last asked for.
    high: Offset,
    /// `next` at the last progress.
    last_next: Offset,
    /// After how long without progress it is checked, and when that is.
    check_delay: Duration,
    next_check: Deadline,
}

impl Progress {
    fn from(next: Offset) -> Self {
        Self {
            next,
            at_end: false,
            end_is_checked: false,
            high: next,
            last_next: next,
            check_delay: MIN_CHECK_DELAY,
            next_check: Deadline::after(MIN_CHECK_DELAY),
        }
    }

    /// Whether it is time for a check: no progress for too long.
    fn is_stalled(&mut self) -> bool {
        if self.next != self.last_next || (self.at_end && self.end_is_checked) {
            self.last_next = self.next;
            self.check_after(MIN_CHECK_DELAY);
        }
        self.next_check.has_passed()
    }

    /// Sets the time of the next check.
    fn check_after(&mut self, delay: Duration) {
        (self.check_delay, self.next_check) = (delay, Deadline::after(delay));
    }
}

impl Reader {
    /// Prepares a reader of `topic` without Kafka partitions: see [`Self::assign`].
    ///
    /// # Errors
    /// `Configure` when librdkafka rejects a property.
    pub fn new(log: &Log, topic: &str) -> Result<Self, LogError> {
        let config = log.config().client(&[
            // librdkafka does not assign without a group; no offset is ever committed under this name.
            ("group.id", "wye-reader"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            // TCP has its own checksums, and the broker checks each batch when it receives it.
            ("check.crcs", "false"),
            // The limits of the prefetch, in records and in bytes of records. Each record costs the client some hundred
            // bytes besides its own: ten times as many small records took 90 MB more and were no faster.
            ("queued.min.messages", "100000"),
            ("queued.max.messages.kbytes", "32768"),
            // When a limit is reached, fetch again soon: with the default of a second the reader waits for records.
            ("fetch.queue.backoff.ms", "5"),
            // Per Kafka partition, compressed: so small that decompressing one response does not delay the next.
            ("fetch.message.max.bytes", "1048576"),
            ("fetch.max.bytes", "16777216"),
            // A batch that exceeds these limits is still sent whole.
            ("receive.message.max.bytes", "33554432"),
            // Brokers answer as soon as there are records; this limits the wait only where there are none.
            ("fetch.wait.max.ms", "100"),
            ("fetch.error.backoff.ms", "100"),
        ]);
        let consumer = config.create_with_context(TracingContext).map_err(configure)?;
        let (log, topic) = (log.clone(), topic.to_owned());
        let notice = RateLimit::new(NOTICE_INTERVAL);
        Ok(Self { log, topic, consumer, assigned: BTreeMap::new(), notice })
    }

    /// Replaces the assignment: Kafka partition and first offset of each. Prefetched records are dropped.
    ///
    /// # Errors
    /// `Read` when librdkafka rejects the assignment.
    pub fn assign(&mut self, starts: &[(KafkaPartition, Offset)]) -> Result<(), LogError> {
        self.assign_raw(starts).map_err(|source| self.read_error(source))?;
        self.assigned =
            starts.iter().map(|&(kafka_partition, next)| (kafka_partition, Progress::from(next))).collect();
        Ok(())
    }

    fn assign_raw(&self, starts: &[(KafkaPartition, Offset)]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for (kafka_partition, next) in starts {
            list.add_partition_offset(&self.topic, kafka_partition.0, rdkafka::Offset::Offset(next.0))?;
        }
        self.consumer.assign(&list)
    }

    /// Continues at `next` in one Kafka partition, and at the next offset in the others.
    ///
    /// # Errors
    /// `Read` when librdkafka rejects the assignment.
    pub fn seek(&mut self, kafka_partition: KafkaPartition, next: Offset) -> Result<(), LogError> {
        let mut starts = self.positions();
        starts.retain(|(other, _)| *other != kafka_partition);
        starts.push((kafka_partition, next));
        self.assign(&starts)
    }

    /// The offset that is read next in a Kafka partition, if it is assigned.
    pub fn position(&self, kafka_partition: KafkaPartition) -> Option<Offset> {
        self.assigned.get(&kafka_partition).map(|progress| progress.next)
    }

    /// The offset that is read next in each assigned Kafka partition.
    fn positions(&self) -> Vec<(KafkaPartition, Offset)> {
        self.assigned.iter().map(|(kafka_partition, progress)| (*kafka_partition, progress.next)).collect()
    }

    /// Calls `on` with up to `max_messages` records: waits up to `timeout` for the first, then takes those that have
    /// been fetched already. Returns how many there were. While the broker cannot be reached there are none, and a
    /// warning is logged from time to time.
    ///
    /// # Errors
    /// `OffsetGone` when the next offset of a Kafka partition has been deleted, `OffsetAhead` when it is past the end;
    /// both stop the Kafka partition until [`Self::seek`] or [`Self::assign`]. `Unreadable` when records cannot be
    /// decoded: they are skipped, and the next call continues after them. `Read` when the client fails permanently.
    /// Records before an error count as read: see [`Self::position`].
    pub fn poll_batch(
        &mut self,
        max_messages: usize,
        timeout: Duration,
        on: &mut impl FnMut(Message<'_>),
    ) -> Result<usize, LogError> {
        let deadline = Deadline::after(timeout);
        let (mut count, mut past_the_end) = (0, None);
        while count < max_messages {
            let wait = if count == 0 { deadline.left() } else { Duration::ZERO };
            let Some(polled) = self.consumer.poll(wait) else { break };
            match polled {
                Ok(message) => {
                    let message = Message::of(&message);
                    let Some(progress) = self.assigned.get_mut(&message.kafka_partition) else { continue };
                    // A record that was fetched before `assign` may still arrive.
                    if message.offset < progress.next {
                        continue;
                    }
                    // A batch that cannot be decoded may contain any offset.
                    if message.offset > progress.next && message.offset >= progress.high {
                        let range =
                            self.log.offsets_within(&self.topic, message.kafka_partition, CHECK_TIMEOUT);
                        progress.high = range.map_or(progress.high, |range| range.high);
                        if message.offset >= progress.high {
                            past_the_end = Some((message.kafka_partition, progress.next));
                            break;
                        }
                    }
                    progress.next = message.offset.next();
                    progress.at_end = false;
                    on(message);
                    count += 1;
                }
                Err(KafkaError::PartitionEOF(kafka_partition)) => {
                    if let Some(progress) = self.assigned.get_mut(&KafkaPartition(kafka_partition)) {
                        progress.at_end = true;
                        progress.end_is_checked = false;
                    }
                }
                Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    self.find_out_of_range()?;
                }
                Err(KafkaError::MessageConsumption(code)) if is_undecodable(code) => self.check_all()?,
                Err(KafkaError::MessageConsumption(code)) => self.notice_unreachable(code),
                Err(source) => return Err(self.read_error(source)),
            }
        }
        if let Some((kafka_partition, next)) = past_the_end {
            self.seek(kafka_partition, next)?;
            self.check(kafka_partition)?;
        }
        self.check_stalled()?;
        Ok(count)
    }

    /// Finds the Kafka partition whose next offset is outside of its log. The client does not report which one it is.
    fn find_out_of_range(&mut self) -> Result<(), LogError> {
        let starts = self.positions();
        for &(kafka_partition, wanted) in &starts {
            let topic = self.topic.clone();
            let range = match self.log.offsets_blocking(&topic, kafka_partition) {
                Ok(range) => range,
                Err(error) => {
                    debug!(%error, "cannot look up the offsets of a stopped Kafka partition; retrying");
                    continue;
                }
            };
            if wanted < range.low {
                return Err(LogError::OffsetGone { topic, kafka_partition, wanted, low: range.low });
            }
            if wanted > range.high {
                return Err(LogError::OffsetAhead { topic, kafka_partition, wanted, high: range.high });
            }
        }
        // The log has changed in the meantime: all next offsets are inside of it.
        self.assign(&starts)
    }

    /// Checks the Kafka partitions that have made no progress for too long.
    fn check_stalled(&mut self) -> Result<(), LogError> {
        let stalled: Vec<KafkaPartition> = self
            .assigned
            .iter_mut()
            .filter_map(|(kafka_partition, progress)| progress.is_stalled().then_some(*kafka_partition))
            .collect();
        stalled.into_iter().try_for_each(|kafka_partition| self.check(kafka_partition))
    }

    /// Checks every Kafka partition that is not read to its end: the client does not report which one it cannot decode.
    fn check_all(&mut self) -> Result<(), LogError> {
        let open: Vec<KafkaPartition> = self
            .assigned
            .iter()
            .filter(|(_, progress)| !progress.at_end)
            .map(|(kafka_partition, _)| *kafka_partition)
            .collect();
        open.into_iter().try_for_each(|kafka_partition| self.check(kafka_partition))
    }

    /// Checks whether the next records of a Kafka partition can be decoded, and skips them if not.
    fn check(&mut self, kafka_partition: KafkaPartition) -> Result<(), LogError> {
        let Some(progress) = self.assigned.get_mut(&kafka_partition) else { return Ok(()) };
        let from = progress.next;
        progress.check_after((progress.check_delay * 2).clamp(MIN_CHECK_DELAY, MAX_CHECK_DELAY));
        // An unreachable broker is reported by `poll_batch`.
        let Ok(range) = self.log.offsets_within(&self.topic, kafka_partition, CHECK_TIMEOUT) else {
            return Ok(());
        };
        progress.high = range.high;
        progress.end_is_checked = progress.at_end;
        if from < range.low || from >= range.high {
            return Ok(());
        }
        let target = Target { log: &self.log, topic: &self.topic, kafka_partition, range };
        let (next, reason) = match unreadable::find(target, from, SEARCH_TIME)? {
            Finding::Readable => return Ok(()),
            // The end of a transaction takes an offset, and so do the records of an aborted one.
            Finding::Empty => {
                progress.next = range.high;
                return Ok(());
            }
            Finding::Unreadable { next, reason } => (next, reason),
            Finding::NoAnswer => {
                progress.check_after(NO_ANSWER_DELAY);
                error!(
                    topic = self.topic,
                    %kafka_partition,
                    offset = %from,
                    "Kafka answers, but no client gets a record at this offset; if this persists, the record batch there \
                     is damaged in a way that stops the client: delete the records up to it with kafka-delete-records.sh"
                );
                return Ok(());
            }
        };
        self.seek(kafka_partition, next)?;
        // More unreadable records may follow: check again in the next call.
        if let Some(progress) = self.assigned.get_mut(&kafka_partition) {
            progress.check_after(Duration::ZERO);
        }
        let topic = self.topic.clone();
        Err(LogError::Unreadable { topic, kafka_partition, offsets: from..next, reason })
    }

    fn notice_unreachable(&mut self, code: RDKafkaErrorCode) {
        if self.notice.allows() {
            let bootstrap_servers = &self.log.config().bootstrap_servers;
            warn!(topic = self.topic, error = %code, "cannot read from Kafka at {bootstrap_servers}; waiting");
        }
    }

    fn read_error(&self, source: KafkaError) -> LogError {
        LogError::Read { topic: self.topic.clone(), source: source.into() }
    }
}

/// The first offset of a record that the log received at `since` (to the millisecond) or later; `None` where all are
/// older. A broker may return the first offset of the batch that holds the record. Blocks; call it on a thread that may.
///
/// # Errors
/// `Ask` when the broker cannot be reached.
pub fn first_offset_since(
    log: &Log,
    (topic, kafka_partition): (&str, KafkaPartition),
    since: Micros,
) -> Result<Option<Offset>, LogError> {
    let consumer = Reader::new(log, topic)?.consumer;
    offset_for_time(&consumer, (topic, kafka_partition), since).map_err(|source| {
        log.ask_error(format!("the offset of {topic:?} partition {kafka_partition} at a time"), source)
    })
}

fn offset_for_time(
    consumer: &BaseConsumer<TracingContext>,
    (topic, kafka_partition): (&str, KafkaPartition),
    since: Micros,
) -> KafkaResult<Option<Offset>> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, kafka_partition.0, rdkafka::Offset::Offset(since.millis()))?;
    let found = consumer.offsets_for_times(list, REQUEST_TIMEOUT)?;
    let Some(element) = found.find_partition(topic, kafka_partition.0) else { return Ok(None) };
    element.error()?;
    Ok(match element.offset() {
        rdkafka::Offset::Offset(offset) => Some(Offset(offset)),
        _ => None,
    })
}

/// Reads a Kafka partition from `from` (or its low watermark, whichever is higher) to the high watermark at the time of
/// the call, and returns that: the offset to continue at. For small topics. Blocks; call it on a thread that may.
///
/// Records that are deleted in the meantime are skipped; so are, with a warning, those that cannot be decoded.
///
/// # Errors
/// `Ask` when the broker cannot be reached, `Stalled` when it stops answering, `Read` when the client fails permanently.
pub fn read_all(
    log: &Log,
    (topic, kafka_partition): (&str, KafkaPartition),
    from: Option<Offset>,
    mut on: impl FnMut(Message<'_>),
) -> Result<Offset, LogError> {
    let range = log.offsets_blocking(topic, kafka_partition)?;
    let mut start = from.map_or(range.low, |from| from.max(range.low));
    if start >= range.high {
        return Ok(range.high);
    }
    let mut reader = Reader::new(log, topic)?;
    reader.assign(&[(kafka_partition, start)])?;
    let mut deadline = Deadline::after(READ_ALL_TIMEOUT);
    loop {
        let polled = reader.poll_batch(READ_ALL_MESSAGES, READ_ALL_POLL, &mut |message| {
            if message.offset < range.high {
                on(message);
            }
        });
        match polled {
            Ok(0) => {}
            Ok(_) => deadline = Deadline::after(READ_ALL_TIMEOUT),
            Err(LogError::OffsetGone { low, .. }) if low < range.high => {
                start = low;
                reader.assign(&[(kafka_partition, start)])?;
            }
            Err(LogError::OffsetGone { .. }) => return Ok(range.high),
            Err(error @ LogError::Unreadable { .. }) => {
                warn!(%error, "records are skipped");
                deadline = Deadline::after(READ_ALL_TIMEOUT);
            }
            Err(error) => return Err(error),
        }
        // The last offsets may hold no records (transaction markers), so the end counts as well.
        let done = reader
            .assigned
            .get(&kafka_partition)
            .is_none_or(|progress| progress.next >= range.high || progress.at_end);
        if done {
            return Ok(range.high);
        }
        if deadline.has_passed() {
            return Err(LogError::Stalled {
                topic: topic.to_owned(),
                kafka_partition,
                seconds: READ_ALL_TIMEOUT.as_secs(),
                bootstrap_servers: log.config().bootstrap_servers.clone(),
            });
        }
    }
}

//! Reading the log: one topic, chosen Kafka partitions, from given offsets on, from a thread of one's own.
//!
//! There is no consumer group here and nothing is committed: who reads knows where it stands, because its position
//! is stored with what it made of the records. This file does not know what a payload means.
//!
//! A record batch that no client can decode stops librdkafka for good, mostly without a word. Here a Kafka partition
//! that stands still before its end is looked at more closely (`unreadable`), and the reader goes past what does not
//! decode: its caller gets [`LogError::Unreadable`] with the offsets.

mod unreadable;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message as _};
use rdkafka::{Timestamp, TopicPartitionList};
use tracing::{debug, error, warn};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::Micros;

use crate::client::{ASK_TIMEOUT, Log};
use crate::error::LogError;
use crate::kafka_logs::{RateLimit, TracingContext};
use crate::properties::configure;
use crate::reader::unreadable::{Finding, is_undecodable};

/// How often a broker that is away is reported.
const AWAY_NOTICE: Duration = Duration::from_secs(5);
/// How long [`read_all`] waits for the next record before it gives up.
const STALL: Duration = Duration::from_secs(30);
/// How long a Kafka partition may stand still before its end until it is looked at, at first; each look that finds
/// nothing doubles it, up to [`LAZIEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// See [`FIRST_LOOK`].
const LAZIEST_LOOK: Duration = Duration::from_secs(60);
/// When to look again where a look got no answer: a client that does not answer may not even be closed.
const NO_ANSWER: Duration = Duration::from_secs(3600);
/// How long a look may ask the broker for the end of the log.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// About how long one call searches for the end of what cannot be decoded; the next call goes on.
const SEARCH: Duration = Duration::from_secs(2);

/// One record, borrowed from the client's buffers.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Which Kafka partition it is from.
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

fn ingest_time(timestamp: Timestamp) -> Micros {
    Micros::from_millis(match timestamp {
        Timestamp::NotAvailable => 0,
        Timestamp::LogAppendTime(millis) => millis.max(0),
        Timestamp::CreateTime(millis) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            millis.clamp(0, i64::try_from(now).unwrap_or(i64::MAX))
        }
    })
}

/// Reads records of one topic in offset order per Kafka partition. Blocks; give it a thread.
pub struct Reader {
    log: Log,
    topic: String,
    consumer: BaseConsumer<TracingContext>,
    /// By Kafka partition: what is read next, and whether the end was seen; `None` where not assigned.
    places: Vec<Option<Place>>,
    away: RateLimit,
}

#[derive(Clone, Copy)]
struct Place {
    next: Offset,
    /// Whether the client has come to the end.
    at_end: bool,
    /// Whether it was looked for offsets before that end that hold no records.
    end_is_known: bool,
    /// The end of the log as far as it was asked for.
    high: Offset,
    /// `next` when progress was last looked for, and since when it has been that.
    stood_at: Offset,
    since: Instant,
    /// How long it may stand still before the next look.
    patience: Duration,
}

impl Place {
    fn at(next: Offset) -> Self {
        Self {
            next,
            at_end: false,
            end_is_known: false,
            high: next,
            stood_at: next,
            since: Instant::now(),
            patience: FIRST_LOOK,
        }
    }

    /// Whether it has stood still for so long that it must be looked at.
    fn is_suspect(&mut self, now: Instant) -> bool {
        if self.next != self.stood_at || (self.at_end && self.end_is_known) {
            (self.stood_at, self.since, self.patience) = (self.next, now, FIRST_LOOK);
        }
        now.duration_since(self.since) >= self.patience
    }
}

impl Reader {
    /// Prepares a reader of `topic` with nothing assigned: see [`Self::assign`].
    ///
    /// # Errors
    /// `Configure` when librdkafka refuses a property.
    pub fn new(log: &Log, topic: &str) -> Result<Self, LogError> {
        let config = log.config().client(&[
            // librdkafka assigns nothing without a group; nothing is ever committed under this name.
            ("group.id", "wye-reader"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            // TCP has its own checksums, and the broker checks the batch when it takes it.
            ("check.crcs", "false"),
            // The bounds of what is fetched ahead, in records and in bytes of records. A record costs the client some
            // hundred bytes beside its own, so ten times as many small ones took 90 MB more and were no faster.
            ("queued.min.messages", "100000"),
            ("queued.max.messages.kbytes", "32768"),
            // When a bound is reached, look again soon: the default of a second leaves the reader dry.
            ("fetch.queue.backoff.ms", "5"),
            // Per Kafka partition, compressed: small enough that unpacking one answer does not keep the next waiting.
            ("fetch.message.max.bytes", "1048576"),
            ("fetch.max.bytes", "16777216"),
            // A batch larger than the bounds above is still sent whole.
            ("receive.message.max.bytes", "33554432"),
            // Both brokers answer as soon as there is anything; this only bounds the wait where there is nothing.
            ("fetch.wait.max.ms", "100"),
            ("fetch.error.backoff.ms", "100"),
        ]);
        let consumer = config.create_with_context(TracingContext).map_err(configure)?;
        let (log, topic) = (log.clone(), topic.to_owned());
        Ok(Self { log, topic, consumer, places: Vec::new(), away: RateLimit::new(AWAY_NOTICE) })
    }

    /// Reads from now on exactly these: Kafka partition and first offset of each. What was fetched before is dropped.
    ///
    /// # Errors
    /// `Read` when librdkafka refuses.
    pub fn assign(&mut self, starts: &[(KafkaPartition, Offset)]) -> Result<(), LogError> {
        let topic_name = self.topic.clone();
        let refuse = |source: KafkaError| LogError::Read { topic: topic_name.clone(), source: source.into() };
        let mut list = TopicPartitionList::with_capacity(starts.len());
        let mut places = Vec::new();
        for &(kafka_partition, next) in starts {
            list.add_partition_offset(&self.topic, kafka_partition.0, rdkafka::Offset::Offset(next.0))
                .map_err(refuse)?;
            let Ok(index) = usize::try_from(kafka_partition.0) else { continue };
            if places.len() <= index {
                places.resize(index + 1, None);
            }
            places[index] = Some(Place::at(next));
        }
        self.consumer.assign(&list).map_err(refuse)?;
        self.places = places;
        Ok(())
    }

    /// Goes on at `next` in one Kafka partition, and where it stands in the others.
    ///
    /// # Errors
    /// `Read` when librdkafka refuses.
    pub fn seek(&mut self, kafka_partition: KafkaPartition, next: Offset) -> Result<(), LogError> {
        let others = self.assigned().filter(|(other, _)| *other != kafka_partition);
        let others = others.map(|(other, place)| (other, place.next));
        let starts: Vec<_> = others.chain([(kafka_partition, next)]).collect();
        self.assign(&starts)
    }

    /// The offset that is read next in a Kafka partition, if it is assigned.
    pub fn position(&self, kafka_partition: KafkaPartition) -> Option<Offset> {
        self.place(kafka_partition).map(|place| place.next)
    }

    /// Hands up to `max_messages` records to `on`: waits up to `timeout` for the first, then takes what is already
    /// here. Returns how many there were. A broker that is away is waited for and reported from time to time; it
    /// looks like no records.
    ///
    /// # Errors
    /// `OffsetGone` when the next offset of a Kafka partition has been deleted, `OffsetAhead` when it lies past the
    /// end; both stop the Kafka partition until [`Self::seek`] or [`Self::assign`]. `Unreadable` when records do not
    /// decode: the reader has gone past them, and the next call reads on. `Read` when the client cannot go on. Records
    /// handed over before an error stay handed over: see [`Self::position`].
    pub fn poll_batch(
        &mut self,
        max_messages: usize,
        timeout: Duration,
        on: &mut impl FnMut(Message<'_>),
    ) -> Result<usize, LogError> {
        let deadline = Instant::now() + timeout;
        let (mut count, mut past_the_end) = (0, None);
        while count < max_messages {
            let wait =
                if count == 0 { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            let Some(polled) = self.consumer.poll(wait) else { break };
            match polled {
                Ok(message) => {
                    let message = Message::of(&message);
                    let Some(place) = place_mut(&mut self.places, message.kafka_partition) else { continue };
                    // What was in flight when `assign` was called may still turn up.
                    if message.offset < place.next {
                        continue;
                    }
                    // A batch that does not decode may name any offset.
                    if message.offset > place.next && message.offset >= place.high {
                        let range =
                            self.log.offsets_within(&self.topic, message.kafka_partition, LOOK_TIMEOUT);
                        place.high = range.map_or(place.high, |range| range.high);
                        if message.offset >= place.high {
                            past_the_end = Some((message.kafka_partition, place.next));
                            break;
                        }
                    }
                    place.next = message.offset.next();
                    place.at_end = false;
                    on(message);
                    count += 1;
                }
                Err(KafkaError::PartitionEOF(kafka_partition)) => {
                    if let Some(place) = place_mut(&mut self.places, KafkaPartition(kafka_partition)) {
                        place.at_end = true;
                        place.end_is_known = false;
                    }
                }
                Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    self.out_of_range()?;
                }
                Err(KafkaError::MessageConsumption(code)) if is_undecodable(code) => self.look_at_all()?,
                Err(KafkaError::MessageConsumption(code)) => self.report(code),
                Err(source) => {
                    return Err(LogError::Read { topic: self.topic.clone(), source: source.into() });
                }
            }
        }
        if let Some((kafka_partition, next)) = past_the_end {
            self.seek(kafka_partition, next)?;
            self.look_at(kafka_partition)?;
        }
        self.look_at_suspects()?;
        Ok(count)
    }

    /// Finds out which Kafka partition stands outside of its log. The client does not say.
    fn out_of_range(&mut self) -> Result<(), LogError> {
        let mut starts = Vec::new();
        for (kafka_partition, Place { next: wanted, .. }) in self.assigned() {
            starts.push((kafka_partition, wanted));
            let topic = self.topic.clone();
            let range = match self.log.offsets_blocking(&topic, kafka_partition) {
                Ok(range) => range,
                Err(error) => {
                    debug!(%error, "cannot look up the offsets of a stopped Kafka partition; trying again");
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
        // The broker was asked while it changed: go on where we stand.
        self.assign(&starts)
    }

    /// Looks at the Kafka partitions that have stood still for too long.
    fn look_at_suspects(&mut self) -> Result<(), LogError> {
        let now = Instant::now();
        let places = (0..).map(KafkaPartition).zip(&mut self.places);
        let suspects = places.filter_map(|(kafka_partition, place)| {
            place.as_mut().is_some_and(|place| place.is_suspect(now)).then_some(kafka_partition)
        });
        let suspects: Vec<KafkaPartition> = suspects.collect();
        suspects.into_iter().try_for_each(|kafka_partition| self.look_at(kafka_partition))
    }

    /// Looks at every Kafka partition that is not read to its end: the client does not say which one it cannot decode.
    fn look_at_all(&mut self) -> Result<(), LogError> {
        let open = self.assigned().filter(|(_, place)| !place.at_end);
        let open: Vec<KafkaPartition> = open.map(|(kafka_partition, _)| kafka_partition).collect();
        open.into_iter().try_for_each(|kafka_partition| self.look_at(kafka_partition))
    }

    /// Finds out whether what comes next in a Kafka partition can be decoded, and goes past it if not.
    fn look_at(&mut self, kafka_partition: KafkaPartition) -> Result<(), LogError> {
        let Some(place) = place_mut(&mut self.places, kafka_partition) else { return Ok(()) };
        let from = place.next;
        (place.since, place.patience) =
            (Instant::now(), (place.patience * 2).clamp(FIRST_LOOK, LAZIEST_LOOK));
        // A broker that does not answer is away, and that is reported elsewhere.
        let Ok(range) = self.log.offsets_within(&self.topic, kafka_partition, LOOK_TIMEOUT) else {
            return Ok(());
        };
        place.high = range.high;
        place.end_is_known = place.at_end;
        if from < range.low || from >= range.high {
            return Ok(());
        }
        let asked = unreadable::Place { log: &self.log, topic: &self.topic, kafka_partition };
        let found = match unreadable::find(asked, from, range, SEARCH)? {
            Finding::Readable => return Ok(()),
            // The end of a transaction takes an offset, and so do the records of one that was aborted.
            Finding::Nothing => {
                place.next = range.high;
                return Ok(());
            }
            Finding::Unreadable(found) => found,
            Finding::NoAnswer => {
                place.patience = NO_ANSWER;
                error!(
                    topic = self.topic,
                    %kafka_partition,
                    offset = %from,
                    "Kafka answers, but no client gets a record at this offset; if it stays so, the record batch there \
                     is damaged in a way that stops the client: delete the records up to it with kafka-delete-records.sh"
                );
                return Ok(());
            }
        };
        self.seek(kafka_partition, found.next)?;
        // More of them may follow: look again at once.
        if let Some(place) = place_mut(&mut self.places, kafka_partition) {
            place.patience = Duration::ZERO;
        }
        let (topic, offsets, reason) = (self.topic.clone(), from..found.next, found.reason);
        Err(LogError::Unreadable { topic, kafka_partition, offsets, reason })
    }

    fn report(&mut self, code: RDKafkaErrorCode) {
        if self.away.allows() {
            let bootstrap_servers = &self.log.config().bootstrap_servers;
            warn!(topic = self.topic, error = %code, "cannot read from Kafka at {bootstrap_servers}; waiting");
        }
    }

    fn place(&self, kafka_partition: KafkaPartition) -> Option<Place> {
        self.places.get(usize::try_from(kafka_partition.0).ok()?).copied().flatten()
    }

    /// The Kafka partitions that are assigned.
    fn assigned(&self) -> impl Iterator<Item = (KafkaPartition, Place)> + '_ {
        let places = (0..).map(KafkaPartition).zip(&self.places);
        places.filter_map(|(kafka_partition, place)| Some((kafka_partition, (*place)?)))
    }
}

/// Where a Kafka partition is read, if it is assigned.
fn place_mut(places: &mut [Option<Place>], kafka_partition: KafkaPartition) -> Option<&mut Place> {
    places.get_mut(usize::try_from(kafka_partition.0).ok()?)?.as_mut()
}

/// The first offset of a record that the log received at `since` or later (to the millisecond), `None` where all are older. A broker may
/// name the beginning of the batch that holds the record. Blocks; give it a thread.
///
/// # Errors
/// `Ask` when the broker cannot be reached.
pub fn first_offset_since(
    log: &Log,
    (topic, kafka_partition): (&str, KafkaPartition),
    since: Micros,
) -> Result<Option<Offset>, LogError> {
    let what = || format!("the offset of {topic:?} partition {kafka_partition} at a time");
    let asked = |source: KafkaError| log.ask_error(what(), source);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, kafka_partition.0, rdkafka::Offset::Offset(since.millis()))
        .map_err(asked)?;
    let found = Reader::new(log, topic)?.consumer.offsets_for_times(list, ASK_TIMEOUT).map_err(asked)?;
    let Some(element) = found.find_partition(topic, kafka_partition.0) else { return Ok(None) };
    element.error().map_err(asked)?;
    Ok(match element.offset() {
        rdkafka::Offset::Offset(offset) => Some(Offset(offset)),
        _ => None,
    })
}

/// Reads a Kafka partition from `from` (or its low watermark, whichever is higher) to the high watermark that it has
/// when this is called, and returns that: the place to go on from. For small topics. Blocks; give it a thread.
///
/// A head that is deleted meanwhile is skipped, and so, with a warning, is what cannot be decoded.
///
/// # Errors
/// `Ask` when the broker cannot be reached, `Stalled` when it stops answering on the way, `Read` when the client
/// cannot go on.
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
    let mut progress = Instant::now();
    loop {
        let polled = reader.poll_batch(10_000, Duration::from_millis(100), &mut |message| {
            if message.offset < range.high {
                on(message);
            }
        });
        match polled {
            Ok(0) => {}
            Ok(_) => progress = Instant::now(),
            Err(LogError::OffsetGone { low, .. }) if low < range.high => {
                start = low;
                reader.assign(&[(kafka_partition, start)])?;
            }
            Err(LogError::OffsetGone { .. }) => return Ok(range.high),
            Err(error @ LogError::Unreadable { .. }) => {
                warn!(%error, "records are skipped");
                progress = Instant::now();
            }
            Err(error) => return Err(error),
        }
        // The last offsets may hold nothing to deliver (transaction markers), so the end counts as well.
        let done = reader.place(kafka_partition).is_none_or(|place| place.next >= range.high || place.at_end);
        if done {
            return Ok(range.high);
        }
        if progress.elapsed() >= STALL {
            return Err(LogError::Stalled {
                topic: topic.to_owned(),
                kafka_partition,
                seconds: STALL.as_secs(),
                bootstrap_servers: log.config().bootstrap_servers.clone(),
            });
        }
    }
}

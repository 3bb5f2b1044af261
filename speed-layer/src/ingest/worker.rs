//! What the tasks of requests do: parse the body, write the messages, wait for the log. Must not know HTTP, nor how clients
//! wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use tracing::{info, warn};
use wye_domain::ledger::Tables;
use wye_domain::place::KafkaPartition;
use wye_domain::position::Position;
use wye_domain::time::Micros;
use wye_domain::wire::Acceptance;
use wye_log::LogError;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::topics::READINGS;
use wye_runtime::telemetry::ReasonLabel;

use super::in_flight::{InFlight, Queue, Waiting};
use super::ledger::{Ledger, Place, Progress};
use super::letter::Letter;
use super::parse::{Format, Parsed, parse};
use super::route::{self, Part};
use super::telemetry::IngestTelemetry;
use super::{IngestError, KEY_HEADER, PART_HEADER, Parts, Receipt, Request};
use crate::settings::IngestSettings;
use wye_runtime::clock::Clock;

/// The wait before a message is handed again to a producer whose queue was full.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(2);
/// How often it is checked whether another server has finished a key that it works on.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Bodies from this size on, in bytes, are parsed on a thread for blocking work; parsing smaller ones takes well below a
/// millisecond.
const LARGE_BODY: usize = 64 * 1024;

/// What the tasks share.
pub(super) struct Worker {
    settings: IngestSettings,
    acceptance: Acceptance,
    producer: Producer,
    /// How many Kafka partitions the readings have.
    kafka_partitions: i32,
    ledger: Ledger,
    telemetry: IngestTelemetry,
    in_flight: InFlight,
    clock: Arc<dyn Clock>,
}

/// A parsed request.
struct Intake {
    parsed: Parsed,
    /// The messages of its readings.
    parts: Vec<Part>,
    received: Micros,
}

impl Worker {
    /// Reads the ledger.
    ///
    /// # Errors
    /// When the log's client cannot be started or the log cannot be read.
    pub(super) async fn open(settings: IngestSettings, parts: Parts) -> Result<Self, LogError> {
        let Parts { log, server, telemetry, clock } = parts;
        let producer = Producer::new(&log, settings.linger)?;
        let kafka_partitions = log.config().kafka_partitions;
        let ledger = Ledger::open(log, producer.clone(), server, Arc::clone(&clock)).await?;
        let in_flight = InFlight::new(Arc::clone(&clock));
        let acceptance = settings.acceptance();
        Ok(Self { settings, acceptance, producer, kafka_partitions, ledger, telemetry, in_flight, clock })
    }

    pub(super) fn settings(&self) -> &IngestSettings {
        &self.settings
    }

    /// The time of the day.
    pub(super) fn now(&self) -> Micros {
        self.clock.now()
    }

    /// As [`super::Ingest::tables`].
    pub(super) fn tables(&self) -> Option<Tables> {
        self.ledger.tables()
    }

    /// As [`super::Ingest::claim_tables`].
    pub(super) async fn claim_tables(&self, tables: Tables) -> Result<Option<Tables>, LogError> {
        self.ledger.claim_tables(tables).await
    }

    /// Does what a request asks for.
    ///
    /// # Errors
    /// As [`super::Ingest::take`].
    pub(super) async fn take(
        self: &Arc<Self>,
        request: Request,
        received: Micros,
    ) -> Result<Receipt, IngestError> {
        let Request { body, format, key } = request;
        // The server limits the bodies of all requests in progress, and this one is in progress until the log has it.
        let _in_progress = body.clone();
        let intake = self.parse(body, format, received).await?;
        self.refuse_overdue(&intake.parts)?;
        let receipt = match key {
            None => {
                let position = self.write(&intake.parts, None, &BTreeMap::new()).await?;
                self.finish(intake, position).await?
            }
            Some(key) => self.take_once(&key, intake).await?,
        };
        if !receipt.duplicate_request {
            self.telemetry.accepted.inc_by(receipt.accepted as u64);
        }
        for rejected in &receipt.rejected {
            let label = ReasonLabel { reason: rejected.reason.name() };
            self.telemetry.rejected.get_or_create(&label).inc_by(u64::from(rejected.readings));
        }
        Ok(receipt)
    }

    async fn take_once(&self, key: &str, intake: Intake) -> Result<Receipt, IngestError> {
        let landed = match self.progress(key).await? {
            Progress::Done => {
                let (accepted, position) = (intake.parsed.accepted(), self.ledger.position());
                let rejected = intake.parsed.rejected;
                return Ok(Receipt { accepted, duplicate_request: true, position, rejected });
            }
            Progress::New => BTreeMap::new(),
            Progress::Begun { landed } => {
                let parts = landed.len();
                info!(key, parts, "an interrupted request is resumed; so many parts are in the log already");
                landed
            }
        };
        {
            let _waiting = self.in_flight.begin(Queue::OwnTopics);
            self.ledger.begin(key).await?;
        }
        let written = self.write(&intake.parts, Some(key), &landed).await;
        let position = written.inspect_err(|error| {
            // The log may still have the missing parts. The next try looks for them.
            warn!(key, %error, "the log did not acknowledge all of a request; sending it again resumes it");
        })?;
        let receipt = self.finish(intake, position).await?;
        self.ledger.finish(key).await?;
        Ok(receipt)
    }

    /// How far a key has come, at any server. Waits while another server works on it.
    async fn progress(&self, key: &str) -> Result<Progress, LogError> {
        if self.ledger.is_done(key) {
            return Ok(Progress::Done);
        }
        let patience = self.settings.ack_timeout;
        let deadline = self.clock.monotonic().saturating_add(patience);
        loop {
            {
                let _waiting = self.in_flight.begin(Queue::OwnTopics);
                self.ledger.catch_up().await?;
            }
            if !self.ledger.is_elsewhere(key, patience) || self.clock.monotonic() >= deadline {
                return self.ledger.progress(key).await;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn parse(
        self: &Arc<Self>,
        body: Bytes,
        format: Format,
        received: Micros,
    ) -> Result<Intake, IngestError> {
        if body.len() < LARGE_BODY {
            return self.parse_now(&body, format, received);
        }
        let worker = Arc::clone(self);
        let parsing = tokio::task::spawn_blocking(move || worker.parse_now(&body, format, received));
        parsing.await.unwrap_or_else(|failed| Err(IngestError::Internal(failed.into())))
    }

    fn parse_now(&self, body: &[u8], format: Format, received: Micros) -> Result<Intake, IngestError> {
        let parsed = parse(body, format, received, &self.acceptance);
        let parts = route::parts(&parsed.batches, self.kafka_partitions).map_err(IngestError::Internal)?;
        Ok(Intake { parsed, parts, received })
    }

    /// Refuses a request that would only add to the messages that wait for their acknowledgement.
    fn refuse_overdue(&self, parts: &[Part]) -> Result<(), IngestError> {
        let waited = self.settings.ack_timeout;
        let queues = parts.iter().map(|part| Queue::Readings(part.kafka_partition));
        if queues.chain([Queue::OwnTopics]).any(|queue| self.in_flight.is_overdue(queue, waited)) {
            return Err(IngestError::Unacknowledged { waited });
        }
        Ok(())
    }

    /// Writes the parts that have not `landed` yet, and waits until the log has acknowledged or given up each of them.
    /// Returns the position behind all of them.
    async fn write(
        &self,
        parts: &[Part],
        key: Option<&str>,
        landed: &BTreeMap<u32, Place>,
    ) -> Result<Position, LogError> {
        let mut deliveries = Vec::with_capacity(parts.len());
        let mut outcome = Ok(());
        for (number, part) in (0u32..).zip(parts).filter(|(number, _)| !landed.contains_key(number)) {
            let number = number.to_string();
            let headers: &[(&str, &[u8])] = match key {
                None => &[],
                Some(key) => &[(KEY_HEADER, key.as_bytes()), (PART_HEADER, number.as_bytes())],
            };
            let message = Outgoing {
                topic: READINGS,
                kafka_partition: part.kafka_partition,
                key: part.device_id.as_deref().map(str::as_bytes),
                payload: &part.payload,
                headers,
            };
            match self.enqueue(message, Queue::Readings(part.kafka_partition)).await {
                Ok(delivery) => deliveries.push(delivery),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let mut position = Position::default();
        for place in landed.values() {
            position.include(place.kafka_partition, place.offset);
        }
        for delivered in join_all(deliveries.into_iter().map(Sent::place)).await {
            match delivered {
                Ok(place) => {
                    self.ledger.acknowledged(place);
                    position.include(place.kafka_partition, place.offset);
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome.map(|()| position)
    }

    /// Hands a message to the producer, and waits while its queue is full.
    async fn enqueue(&self, message: Outgoing<'_>, queue: Queue) -> Result<Sent<'_>, LogError> {
        let waiting = self.in_flight.begin(queue);
        let kafka_partition = message.kafka_partition;
        loop {
            match self.producer.enqueue(message) {
                Ok(delivery) => return Ok(Sent { kafka_partition, delivery, _waiting: waiting }),
                Err(LogError::QueueFull) => tokio::time::sleep(QUEUE_FULL_DELAY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes the dead letters of a request whose readings are in the log, and makes its receipt.
    async fn finish(&self, intake: Intake, position: Position) -> Result<Receipt, LogError> {
        let Intake { parsed, received, .. } = intake;
        let mut deliveries = Vec::with_capacity(parsed.rejected.len());
        for rejected in &parsed.rejected {
            let letter = Letter::new(rejected, received);
            deliveries.push(self.enqueue(letter.message(&letter.headers()), Queue::OwnTopics).await?);
        }
        try_join_all(deliveries.into_iter().map(Sent::place)).await?;
        let accepted = parsed.accepted();
        Ok(Receipt { accepted, duplicate_request: false, position, rejected: parsed.rejected })
    }
}

/// A message that was handed to the producer.
struct Sent<'a> {
    kafka_partition: KafkaPartition,
    delivery: Delivery,
    _waiting: Waiting<'a>,
}

impl Sent<'_> {
    /// Waits until the log has acknowledged the message or given it up.
    async fn place(self) -> Result<Place, LogError> {
        Ok(Place { kafka_partition: self.kafka_partition, offset: self.delivery.await? })
    }
}

//! Ingest: readings that come by HTTP are parsed, checked and put into the log; what is refused goes to the dead letters.
//!
//! A reading is acknowledged only once the log has acknowledged it. A request may carry an idempotency key: its
//! readings are then in the log once, however often it is sent (see [`ledger`]).
//!
//! A request is worked on by a task that outlives its client: what was begun is brought to its end, whether or not
//! anybody waits for the answer. A client that sends the request again under the same key waits for that task.

pub mod http;
mod in_flight;
pub mod ledger;
mod parse;
mod route;
#[cfg(test)]
mod tests;
mod turns;

pub use parse::{Format, Parsed};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};
use wye_domain::ErrorKind;
use wye_domain::position::Position;
use wye_domain::wire::{Acceptance, Rejected};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::topics::READINGS;
use wye_runtime::telemetry::ReasonLabel;

use crate::SpeedError;
use crate::letter::{Letter, Origin};
use crate::telemetry::SpeedTelemetry;
use in_flight::{InFlight, Waiting};
use ledger::{Ledger, Place, Progress};
use route::Part;
use turns::Turns;

/// The header of a message that says which idempotent request it belongs to.
pub const KEY_HEADER: &str = "wye-idempotency-key";
/// The header that says which part of the request it is.
pub const PART_HEADER: &str = "wye-part";

/// How long a full producer queue is left alone before the next try.
const QUEUE_FULL_REST: Duration = Duration::from_millis(2);
/// How long to wait before the next look whether another server has done what it began.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bodies from this size on are parsed beside the threads that serve requests: smaller ones take well below a
/// millisecond.
const LARGE_BODY: usize = 64 * 1024;

/// Where messages to topics other than the readings' wait, instead of at a Kafka partition of the readings.
const OWN_TOPICS: i32 = -1;

/// How ingest runs.
#[derive(Clone, Copy, Debug)]
pub struct IngestSettings {
    /// Which readings are accepted.
    pub acceptance: Acceptance,
    /// How long the producer gathers messages into one request to the broker.
    pub linger: Duration,
    /// How long a client waits for the log at most; and how old an unacknowledged message may become before its Kafka
    /// partition is not written to for the time being.
    pub ack_timeout: Duration,
}

/// A request to take in readings.
#[derive(Clone, Debug)]
pub struct Request {
    /// The readings.
    pub body: Bytes,
    /// The form of the body.
    pub format: Format,
    /// What makes the request count once, however often it is sent.
    pub key: Option<String>,
    /// When it came, in µs.
    pub now: i64,
}

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Receipt {
    /// Readings that the log has acknowledged, now or at an earlier try.
    pub accepted: usize,
    /// Whether an earlier try had already brought all of it into the log.
    pub duplicate_request: bool,
    /// Behind every reading of the request.
    pub position: Position,
    /// What was refused, and why.
    pub rejected: Vec<Rejected>,
}

impl Receipt {
    /// How many readings were refused.
    pub fn refused(&self) -> u64 {
        self.rejected.iter().map(|rejected| u64::from(rejected.readings)).sum()
    }
}

/// Why a request cannot be answered with a receipt.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The log does not take readings.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log did not acknowledge in time. The readings may still get there.
    #[error("the log has not acknowledged the readings within {seconds} s")]
    Unacknowledged {
        /// How long it was waited for.
        seconds: f64,
    },
    /// The task that worked on the request has panicked.
    #[error("a fault inside: the request was given up")]
    Fault,
}

impl IngestError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Log(error) => error.kind(),
            Self::Unacknowledged { .. } => ErrorKind::Unavailable,
            Self::Fault => ErrorKind::Internal,
        }
    }
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Ingest {
    worker: Arc<Worker>,
    tasks: TaskTracker,
}

/// What the tasks share.
struct Worker {
    producer: Producer,
    kafka_partitions: i32,
    settings: IngestSettings,
    ledger: Ledger,
    telemetry: SpeedTelemetry,
    turns: Turns,
    in_flight: InFlight,
}

impl Ingest {
    /// Reads the ledger and is ready to take readings. `server` is the name of this server: the same after a restart,
    /// and no other server on the log has it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn start(
        log: &Log,
        settings: IngestSettings,
        server: String,
        telemetry: SpeedTelemetry,
    ) -> Result<Self, SpeedError> {
        let producer = Producer::new(log, settings.linger)?;
        let ledger = Ledger::open(log.clone(), producer.clone(), server).await?;
        let worker = Worker {
            producer,
            kafka_partitions: log.config().kafka_partitions,
            settings,
            ledger,
            telemetry,
            turns: Turns::default(),
            in_flight: InFlight::default(),
        };
        Ok(Self { worker: Arc::new(worker), tasks: TaskTracker::new() })
    }

    /// Takes in a request. Dropping the future does not take anything back.
    ///
    /// # Errors
    /// Of kind `Unavailable` when the log does not acknowledge: some readings may be in it, now or later, so the
    /// request should be sent again, with its idempotency key if it has one.
    pub async fn take(&self, request: Request) -> Result<Receipt, IngestError> {
        let work = async {
            // A client that leaves while it waits for its turn leaves nothing behind.
            let turn = match &request.key {
                Some(key) => Some(self.worker.turns.take(key).await),
                None => None,
            };
            let worker = Arc::clone(&self.worker);
            let task = self.tasks.spawn(async move {
                let _turn = turn;
                worker.take(request).await
            });
            task.await.unwrap_or_else(|failed| {
                error!(error = %failed, "the task of a request has failed");
                Err(IngestError::Fault)
            })
        };
        let patience = self.worker.settings.ack_timeout;
        let outcome = tokio::time::timeout(patience, work).await;
        outcome.unwrap_or(Err(IngestError::Unacknowledged { seconds: patience.as_secs_f64() }))
    }

    /// Notes in the log that its readings are archived in the tables with the identity `id` at `root`. Where they are
    /// archived in others already, returns the place of those: two would delete from the log what only one of them has.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn claim_tables(&self, id: &str, root: &str) -> Result<Option<String>, SpeedError> {
        Ok(self.worker.ledger.claim_tables(id, root).await?)
    }

    /// Waits until every request that was begun has come to its end. No new ones may come.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Worker {
    async fn take(self: &Arc<Self>, request: Request) -> Result<Receipt, IngestError> {
        let (parsed, parts) = self.parse(&request).await?;
        self.refuse_overdue(&parts)?;
        let receipt = match &request.key {
            None => {
                let position = self.write(&parts, None, &BTreeMap::new()).await?;
                self.finish(parsed, position, request.now).await?
            }
            Some(key) => self.take_once(key, parsed, &parts, request.now).await?,
        };
        let accepted = if receipt.duplicate_request { 0 } else { receipt.accepted as u64 };
        self.telemetry.accepted.inc_by(accepted);
        for rejected in &receipt.rejected {
            let label = ReasonLabel { reason: rejected.reason.name() };
            self.telemetry.refused.get_or_create(&label).inc_by(u64::from(rejected.readings));
        }
        Ok(receipt)
    }

    async fn take_once(
        &self,
        key: &str,
        parsed: Parsed,
        parts: &[Part],
        now: i64,
    ) -> Result<Receipt, IngestError> {
        let landed = match self.progress(key).await? {
            Progress::Done => {
                let (accepted, position) = (parsed.accepted(), self.ledger.position());
                return Ok(Receipt {
                    accepted,
                    duplicate_request: true,
                    position,
                    rejected: parsed.rejected,
                });
            }
            Progress::New => {
                let _waiting = self.in_flight.begin(OWN_TOPICS);
                self.ledger.begin(key).await?;
                BTreeMap::new()
            }
            Progress::Begun { landed } => {
                info!(
                    key,
                    parts = landed.len(),
                    "an interrupted request resumes; these parts are in the log already"
                );
                let _waiting = self.in_flight.begin(OWN_TOPICS);
                self.ledger.begin(key).await?;
                landed
            }
        };
        let written = self.write(parts, Some(key), &landed).await;
        let position = written.inspect_err(|error| {
            // Whether the missing parts are in the log is only known by looking, which the next try does.
            warn!(key, %error, "the log did not acknowledge all of a request; sending it again resumes it");
        })?;
        let receipt = self.finish(parsed, position, now).await?;
        self.ledger.finish(key).await?;
        Ok(receipt)
    }

    /// How far a key has come, at whichever server. Waits for another one that has begun to work on it just now.
    async fn progress(&self, key: &str) -> Result<Progress, LogError> {
        if self.ledger.is_done(key) {
            return Ok(Progress::Done);
        }
        let patience = self.settings.ack_timeout;
        let deadline = Instant::now() + patience;
        loop {
            {
                let _waiting = self.in_flight.begin(OWN_TOPICS);
                self.ledger.catch_up().await?;
            }
            if !self.ledger.is_elsewhere(key, patience) || Instant::now() >= deadline {
                return self.ledger.progress(key).await;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The readings of a request, and the messages that they make.
    async fn parse(self: &Arc<Self>, request: &Request) -> Result<(Parsed, Vec<Part>), IngestError> {
        if request.body.len() < LARGE_BODY {
            return Ok(self.parse_now(request));
        }
        let (worker, request) = (Arc::clone(self), request.clone());
        tokio::task::spawn_blocking(move || worker.parse_now(&request)).await.map_err(|error| {
            error!(%error, "parsing a request has failed");
            IngestError::Fault
        })
    }

    fn parse_now(&self, request: &Request) -> (Parsed, Vec<Part>) {
        let parsed = parse::parse(&request.body, request.format, request.now, &self.settings.acceptance);
        let parts = route::parts(&parsed.batches, self.kafka_partitions);
        (parsed, parts)
    }

    /// Refuses what would only add to what is waiting for its acknowledgement already.
    fn refuse_overdue(&self, parts: &[Part]) -> Result<(), IngestError> {
        let patience = self.settings.ack_timeout;
        let places = parts.iter().map(|part| part.kafka_partition).chain([OWN_TOPICS]);
        if places.into_iter().any(|place| self.in_flight.is_overdue(place, patience)) {
            return Err(IngestError::Unacknowledged { seconds: patience.as_secs_f64() });
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
            match self.enqueue(message, part.kafka_partition).await {
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
                    self.ledger.seen(place.kafka_partition, place.offset);
                    position.include(place.kafka_partition, place.offset);
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome.map(|()| position)
    }

    /// Hands a message to the producer, which may have to make room first.
    async fn enqueue(&self, message: Outgoing<'_>, waits_at: i32) -> Result<Sent<'_>, LogError> {
        let waiting = self.in_flight.begin(waits_at);
        let kafka_partition = message.kafka_partition;
        loop {
            match self.producer.enqueue(message) {
                Ok(delivery) => return Ok(Sent { kafka_partition, delivery, _waiting: waiting }),
                Err(LogError::QueueFull) => tokio::time::sleep(QUEUE_FULL_REST).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// The receipt for a request whose readings are in the log, once its dead letters are too.
    async fn finish(&self, parsed: Parsed, position: Position, now: i64) -> Result<Receipt, LogError> {
        let mut deliveries = Vec::with_capacity(parsed.rejected.len());
        for rejected in &parsed.rejected {
            let letter = Letter::new(rejected, Origin::Http, now);
            deliveries.push(self.enqueue(letter.message(&letter.headers()), OWN_TOPICS).await?);
        }
        try_join_all(deliveries.into_iter().map(Sent::place)).await?;
        let accepted = parsed.accepted();
        Ok(Receipt { accepted, duplicate_request: false, position, rejected: parsed.rejected })
    }
}

/// A message that was handed to the producer.
struct Sent<'a> {
    kafka_partition: i32,
    delivery: Delivery,
    _waiting: Waiting<'a>,
}

impl Sent<'_> {
    /// Waits until the log has acknowledged the message or given it up.
    async fn place(self) -> Result<Place, LogError> {
        let offset = self.delivery.await?;
        Ok(Place { kafka_partition: self.kafka_partition, offset })
    }
}

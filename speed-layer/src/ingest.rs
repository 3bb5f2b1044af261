//! Ingest: readings that come by HTTP are parsed, checked and put into the log; what is refused goes to the dead letters.
//!
//! A reading is acknowledged only once the log has acknowledged it. A request may carry an idempotency key: its
//! readings then stand in the log once, however often it is sent (see [`ledger`]).

pub mod http;
pub mod ledger;
mod parse;
mod route;

pub use parse::{Format, Parsed};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use tokio::sync::Mutex;
use tracing::warn;
use wye_domain::wire::{Acceptance, Rejected};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::READINGS;
use wye_runtime::telemetry::ReasonLabel;

use crate::SpeedError;
use crate::letter::{Letter, Origin};
use crate::telemetry::SpeedTelemetry;
use ledger::{Ledger, Progress};
use route::Part;

/// The header of a message that says which idempotent request it belongs to.
pub const KEY_HEADER: &str = "wye-idempotency-key";
/// The header that says which part of the request it is.
pub const PART_HEADER: &str = "wye-part";

/// What became of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Receipt {
    /// Readings that the log has acknowledged, now or at an earlier try.
    pub accepted: usize,
    /// Whether an earlier try had already brought all of it into the log.
    pub already_there: bool,
    /// What was refused, and why.
    pub rejected: Vec<Rejected>,
}

/// Why a request cannot be answered with a receipt.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The log does not take readings.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A request with the same idempotency key is under way.
    #[error("a request with idempotency key {key:?} is under way; wait for its answer, then send this again")]
    UnderWay {
        /// Which key.
        key: String,
    },
}

/// See the module. Clones share everything.
#[derive(Clone)]
pub struct Ingest {
    producer: Producer,
    kafka_partitions: i32,
    acceptance: Acceptance,
    ledger: Arc<Ledger>,
    telemetry: SpeedTelemetry,
    /// Keys of requests under way.
    busy: Arc<Mutex<BTreeSet<String>>>,
}

impl Ingest {
    /// Reads the ledger and is ready to take readings. `linger` is how long messages wait for company.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn start(
        log: &Log,
        acceptance: Acceptance,
        linger: Duration,
        telemetry: SpeedTelemetry,
    ) -> Result<Self, SpeedError> {
        let producer = Producer::new(log, linger)?;
        let ledger = Arc::new(Ledger::open(log.clone(), producer.clone()).await?);
        let kafka_partitions = log.config().kafka_partitions;
        Ok(Self { producer, kafka_partitions, acceptance, ledger, telemetry, busy: Arc::default() })
    }

    /// Takes in the body of a request that came at `now` (µs).
    ///
    /// # Errors
    /// [`IngestError::Log`] when the log does not acknowledge: some readings may be in it, so the request should be
    /// sent again, with its idempotency key if it has one. [`IngestError::UnderWay`] when its key is in use.
    pub async fn take(
        &self,
        body: &[u8],
        format: Format,
        key: Option<&str>,
        now: i64,
    ) -> Result<Receipt, IngestError> {
        let parsed = parse::parse(body, format, now, &self.acceptance);
        let accepted: usize = parsed.batches.iter().map(RecordBatch::num_rows).sum();
        let receipt = match key {
            None => {
                let parts = route::parts(&parsed.batches, self.kafka_partitions);
                self.write(&parts, None, &BTreeSet::new()).await?;
                self.write_dead_letters(&parsed.rejected, now).await?;
                Receipt { accepted, already_there: false, rejected: parsed.rejected }
            }
            Some(key) => {
                if !self.busy.lock().await.insert(key.to_owned()) {
                    return Err(IngestError::UnderWay { key: key.to_owned() });
                }
                let outcome = self.take_once(key, parsed, now).await;
                self.busy.lock().await.remove(key);
                outcome?
            }
        };
        self.telemetry.accepted.inc_by(if receipt.already_there { 0 } else { receipt.accepted as u64 });
        for rejected in &receipt.rejected {
            self.telemetry.refused.get_or_create(&ReasonLabel { reason: rejected.reason.name() }).inc();
        }
        Ok(receipt)
    }

    async fn take_once(&self, key: &str, parsed: Parsed, now: i64) -> Result<Receipt, IngestError> {
        let accepted: usize = parsed.batches.iter().map(RecordBatch::num_rows).sum();
        let landed = match self.ledger.progress(key).await? {
            Progress::Done => {
                return Ok(Receipt { accepted, already_there: true, rejected: parsed.rejected });
            }
            Progress::New => {
                self.ledger.begin(key).await?;
                BTreeSet::new()
            }
            Progress::Begun { landed } => landed,
        };
        let parts = route::parts(&parsed.batches, self.kafka_partitions);
        if let Err(error) = self.write(&parts, Some(key), &landed).await {
            // Whether the missing parts are in the log is only known by looking, which the next try does.
            warn!(key, "the log did not acknowledge all of a load; sending it again will go on where it was");
            return Err(error.into());
        }
        self.write_dead_letters(&parsed.rejected, now).await?;
        self.ledger.finish(key).await?;
        Ok(Receipt { accepted, already_there: false, rejected: parsed.rejected })
    }

    /// Writes the parts that have not `landed` yet, and waits for the log.
    async fn write(&self, parts: &[Part], key: Option<&str>, landed: &BTreeSet<u32>) -> Result<(), LogError> {
        let mut deliveries = Vec::with_capacity(parts.len());
        for (number, part) in (0u32..).zip(parts) {
            if landed.contains(&number) {
                continue;
            }
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
            loop {
                match self.producer.enqueue(message) {
                    Ok(delivery) => {
                        deliveries.push((part.kafka_partition, delivery));
                        break;
                    }
                    Err(LogError::QueueFull) => tokio::time::sleep(Duration::from_millis(2)).await,
                    Err(error) => return Err(error),
                }
            }
        }
        for (kafka_partition, delivery) in deliveries {
            let offset = delivery.await?;
            self.ledger.seen(kafka_partition, offset);
        }
        Ok(())
    }

    async fn write_dead_letters(&self, rejected: &[Rejected], now: i64) -> Result<(), LogError> {
        for rejected in rejected {
            let letter = Letter::new(rejected, Origin::Http, now);
            self.producer.send(letter.message(&letter.headers())).await?;
        }
        Ok(())
    }
}

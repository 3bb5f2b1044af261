//! Ingest: readings that come over HTTP are parsed, checked and written to the log. What is rejected goes to the dead
//! letters. [`start`] is the entry point. It uses nothing of the speed layer.
//!
//! A reading is acknowledged once the log has acknowledged it. A request may carry an idempotency key: its readings are then
//! in the log once, however often it is sent (`ledger`).
//!
//! A task works on each request and outlives its client: it always runs to its end. A client that sends the request again
//! under the same key waits for that task.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;
use wye_domain::ErrorKind;
use wye_domain::position::Position;
use wye_domain::wire::Rejected;
use wye_log::LogError;
use wye_log::client::Log;

use crate::settings::IngestSettings;
use telemetry::IngestTelemetry;
use turns::Turns;
use worker::Worker;
use wye_runtime::clock::Clock;

pub mod http;
mod in_flight;
mod ledger;
mod letter;
mod parse;
mod route;
pub mod telemetry;
#[cfg(test)]
mod tests;
mod turns;
mod worker;

pub use parse::Format;
use wye_domain::ledger::Tables;

/// The header of a message with the idempotency key of its request.
const KEY_HEADER: &str = "wye-idempotency-key";
/// The header of a message that says which part of the request it is.
const PART_HEADER: &str = "wye-part";

/// The components that ingest works with.
#[derive(Clone)]
pub struct Parts {
    /// The log, whose topics exist.
    pub log: Log,
    /// The name of this server: the same after a restart, and no other server on the log has it.
    pub server: String,
    /// Instruments.
    pub telemetry: IngestTelemetry,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// Reads the ledger of idempotent requests and is ready to take requests. Once `shutdown` is cancelled, new requests are
/// refused; those that were begun run to their end, see [`Ingest::join`].
///
/// # Errors
/// When the log's client cannot be started or the log cannot be read.
pub async fn start(
    settings: IngestSettings,
    parts: Parts,
    shutdown: CancellationToken,
) -> Result<Ingest, IngestError> {
    let worker = Arc::new(Worker::open(settings, parts).await?);
    Ok(Ingest { worker, turns: Turns::default(), tasks: TaskTracker::new(), shutdown })
}

/// A request to take readings.
#[derive(Clone, Debug)]
pub struct Request {
    /// The readings.
    pub body: Bytes,
    /// The format of the body.
    pub format: Format,
    /// The idempotency key: requests with the same key count once.
    pub key: Option<String>,
}

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Receipt {
    /// How many readings the log has acknowledged, for this request or for an earlier one with the same key.
    pub accepted: usize,
    /// Whether an earlier request with the same key had already brought all of them into the log.
    pub duplicate_request: bool,
    /// Behind every reading of the request.
    pub position: Position,
    /// What was rejected, and why.
    pub rejected: Vec<Rejected>,
}

impl Receipt {
    /// How many readings were rejected.
    pub fn rejected_readings(&self) -> u64 {
        self.rejected.iter().map(|rejected| u64::from(rejected.readings)).sum()
    }
}

/// Why a request has no receipt.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log did not acknowledge in time. It may still have the readings, now or later.
    #[error("the log has not acknowledged the readings within {} s", waited.as_secs_f64())]
    Unacknowledged {
        /// How long the request has waited.
        waited: Duration,
    },
    /// Ingest is shutting down.
    #[error("ingest is shutting down")]
    ShuttingDown,
    /// The program has a bug.
    #[error("internal error: {0}")]
    Internal(#[source] Box<dyn Error + Send + Sync>),
}

impl IngestError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Log(error) => error.kind(),
            Self::Unacknowledged { .. } | Self::ShuttingDown => ErrorKind::Unavailable,
            Self::Internal(_) => ErrorKind::Internal,
        }
    }
}

/// Running ingest. Clones share everything.
#[derive(Clone)]
pub struct Ingest {
    worker: Arc<Worker>,
    turns: Turns,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

impl Ingest {
    /// Takes a request. Dropping the future takes nothing back.
    ///
    /// # Errors
    /// Of kind `Unavailable` when the log does not acknowledge: it may have some of the readings, now or later. So the
    /// request should be sent again, with its idempotency key if it has one.
    pub async fn take(&self, request: Request) -> Result<Receipt, IngestError> {
        if self.shutdown.is_cancelled() {
            return Err(IngestError::ShuttingDown);
        }
        let waited = self.worker.settings().ack_timeout;
        let outcome = tokio::time::timeout(waited, self.take_in_turn(request)).await;
        outcome.unwrap_or(Err(IngestError::Unacknowledged { waited }))
    }

    async fn take_in_turn(&self, request: Request) -> Result<Receipt, IngestError> {
        let received = self.worker.now();
        // A client that leaves before its turn leaves nothing behind.
        let turn = match &request.key {
            Some(key) => Some(self.turns.take(key).await),
            None => None,
        };
        let worker = Arc::clone(&self.worker);
        let task = self.tasks.spawn(async move {
            let _turn = turn;
            worker.take(request, received).await
        });
        task.await.unwrap_or_else(|failed| {
            error!(error = %failed, "the task of a request has failed");
            Err(IngestError::Internal(failed.into()))
        })
    }

    /// The tables that the log says its readings are archived in; `None` where nobody has claimed any.
    #[must_use]
    pub fn tables(&self) -> Option<Tables> {
        self.worker.tables()
    }

    /// Records in the log that its readings are archived in the given tables. Returns the tables that they are archived in
    /// already, if those are others: with two, each would delete from the log what only the other has archived.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn claim_tables(&self, tables: Tables) -> Result<Option<Tables>, IngestError> {
        Ok(self.worker.claim_tables(tables).await?)
    }

    /// Waits until every request that was begun has ended, after a shutdown.
    pub async fn join(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

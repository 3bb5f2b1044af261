//! The running speed layer: threads that own Kafka partitions, one reader each. [`start`] is the entry point.
//!
//! A worker reads messages and ticks for its slots; a slot is a Kafka partition, with an owner or while one is acquired.
//! An owner that is fenced, fails or panics is dropped, and only its Kafka partition is acquired again. Must not know what
//! an owner does with its inputs.

use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use wye_domain::ErrorKind;
use wye_domain::place::KafkaPartition;
use wye_domain::time::Span;
use wye_domain::wire::Acceptance;
use wye_log::client::Log;
use wye_log::producer::Producer;
use wye_metrics::plan::MetricPlans;

use crate::SpeedError;
use crate::error::panic_message;
use crate::owner::Rules;
use crate::settings::SpeedSettings;
use crate::telemetry::SpeedTelemetry;
use worker::Worker;
use wye_runtime::clock::Clock;

mod acquire;
mod claim;
mod execute;
mod ownership;
mod placement;
mod slot;
#[cfg(test)]
mod tests;
mod worker;

pub use ownership::{Ownership, Ownerships};

/// The batching delay of the producer of realtime views (linger). It is part of the delay of every answer, and a flush
/// hands its records over together.
const VIEWS_LINGER: Duration = Duration::from_millis(2);

/// The components that the speed layer works with.
#[derive(Clone)]
pub struct Parts {
    /// The log, whose topics exist.
    pub log: Log,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// Which readings are accepted: the same rules as those of ingest and of the archiver.
    pub acceptance: Acceptance,
    /// Instruments.
    pub telemetry: SpeedTelemetry,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The name of this process in the control topic, for people. Processes have different names.
    pub name: String,
}

/// Starts the speed layer. It takes over all Kafka partitions of the readings, and owns each until another process claims
/// it. Once `shutdown` is cancelled, it flushes and ends. Must be called within a Tokio runtime.
///
/// # Errors
/// When the log's client or a thread cannot be started.
pub async fn start(
    settings: SpeedSettings,
    parts: Parts,
    shutdown: CancellationToken,
) -> Result<SpeedLayer, SpeedError> {
    let kafka_partitions: Vec<_> = KafkaPartition::all(parts.log.config().kafka_partitions).collect();
    let shared = Arc::new(Shared {
        rules: Rules {
            plans: Arc::clone(&parts.plans),
            acceptance: parts.acceptance,
            duplicate_window: Span::from(settings.duplicate_window),
            duplicate_entries: (settings.duplicate_entries / kafka_partitions.len().max(1)).max(1),
        },
        settings,
        parts,
        runtime: Handle::current(),
        shutdown,
        ownerships: Ownerships::default(),
        #[cfg(test)]
        next_step_panics: AtomicBool::default(),
    });
    let most_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = most_threads.min(kafka_partitions.len());
    let mut running = Vec::with_capacity(threads);
    for thread in 0..threads {
        let own = kafka_partitions.iter().copied().skip(thread).step_by(threads).collect();
        let producer = Producer::new(&shared.parts.log, VIEWS_LINGER)?;
        let worker = Worker::new(&shared, &producer, own);
        let spawned = std::thread::Builder::new()
            .name(format!("wye-speed-{thread}"))
            .spawn(move || worker.run())
            .map_err(SpeedError::Thread)?;
        running.push(spawned);
    }
    Ok(SpeedLayer { threads: running, shared })
}

/// The running speed layer.
pub struct SpeedLayer {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl SpeedLayer {
    /// Which Kafka partitions this process owns, at any time from now on.
    pub fn ownerships(&self) -> Ownerships {
        self.shared.ownerships.clone()
    }

    /// Waits until everything is flushed and all threads have ended, after a shutdown.
    pub async fn join(self) {
        let joined = tokio::task::spawn_blocking(move || {
            for thread in self.threads {
                if let Err(panic) = thread.join() {
                    error!(panic = panic_message(&*panic), "a thread of the speed layer has panicked");
                }
            }
        });
        if let Err(error) = joined.await {
            error!(%error, "cannot wait for the threads of the speed layer");
        }
    }
}

/// What all threads of the layer share.
struct Shared {
    settings: SpeedSettings,
    parts: Parts,
    /// What every owner computes by.
    rules: Rules,
    /// Runs the writes.
    runtime: Handle,
    shutdown: CancellationToken,
    ownerships: Ownerships,
    /// Makes the next step of an owner panic.
    #[cfg(test)]
    next_step_panics: AtomicBool,
}

impl Shared {
    /// Waits for a duration, or until the shutdown. Returns whether the shutdown has begun. Blocks.
    fn is_shut_down_within(&self, duration: Duration) -> bool {
        let shut_down = async { tokio::time::timeout(duration, self.shutdown.cancelled()).await };
        self.runtime.block_on(shut_down).is_ok()
    }
}

/// Logs an error, with what happens next.
fn report(error: &SpeedError, consequence: &str) {
    match error.kind() {
        ErrorKind::Conflict | ErrorKind::Unavailable | ErrorKind::NotFound => warn!(%error, "{consequence}"),
        ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::Internal => error!(%error, "{consequence}"),
    }
}

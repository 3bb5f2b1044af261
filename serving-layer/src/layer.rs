//! The serving layer as a whole: what it works with, its start, and its end.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, info, warn};
use wye_log::client::Log;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_runtime::memory::machine_memory;
use wye_runtime::telemetry::Telemetry;
use wye_tables::amendments::Amendments;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::restatements::Restatements;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use crate::ServingError;
use crate::directory::Directory;
use crate::http::server::{Server, ServerLimits, serve};
use crate::http::{Api, BatchTrigger, Probe, not_found, router, watch_writes};
use crate::hub::Hub;
use crate::log_ends::LogEnds;
use crate::settings::{HttpSettings, Settings, SqlSettings};
use crate::sql::{EngineParts, Host, Limits, Sources, SqlEngine};
use crate::tail::{Tail, TailPositions};
use crate::telemetry::Instruments;
use crate::units::Units;
use crate::watch::Watcher;
use wye_runtime::clock::Clock;

/// Bytes of memory that queries may use at most, where the settings leave it to the machine.
const MOST_QUERY_MEMORY: usize = 4 << 30;
/// How long requests in progress may take after the shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What the serving layer works with.
pub struct Parts {
    /// The log, whose topics exist.
    pub log: Log,
    /// Where the tables are.
    pub root: TableRoot,
    /// The definitions in force.
    pub plans: Arc<MetricPlans>,
    /// Where instruments are registered, and what `GET /metrics` shows.
    pub telemetry: Telemetry,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is known of the machine.
    pub host: Arc<dyn Host>,
    /// The folder for what queries cannot keep in memory, which is emptied at the start; `None`: nothing is spilled.
    pub spill_folder: Option<PathBuf>,
    /// How many files and connections the process may have open; `None` where the system does not say.
    pub open_files: Option<usize>,
    /// Where clients of the API connect; see [`HttpSettings::address`].
    pub listener: TcpListener,
    /// Paths of other layers, such as those for writes. An answer to a write has the position after it in the header
    /// `Wye-Position`.
    pub other_paths: Router,
    /// The largest body of a request in bytes, decompressed.
    pub max_body: usize,
    /// Does a batch run on request; `None` where no batch layer runs in this process.
    pub batch_trigger: Option<BatchTrigger>,
    /// Other parts of the process that `/readyz` asks.
    pub probes: Vec<Probe>,
}

/// A running serving layer.
pub struct Serving {
    hub: Arc<Hub>,
    tasks: JoinSet<()>,
    threads: Vec<JoinHandle<()>>,
    /// Ends tasks and threads, also when this is dropped.
    _end: DropGuard,
}

/// Starts to follow the log and the batch views, and serves the API. Requests are answered at once; see
/// [`Serving::until_ready`].
///
/// After `shutdown`, the requests in progress are answered, for 10 s at most; then everything else ends.
///
/// # Errors
/// [`ServingError::Tables`] when the tables cannot be opened, others when threads or the query engine cannot be set up.
pub async fn start(
    settings: Settings,
    parts: Parts,
    shutdown: CancellationToken,
) -> Result<Serving, ServingError> {
    let Parts { log, root, plans, telemetry, clock, .. } = parts;
    let expectations =
        Expectations::new(&plans).map_err(|source| ServingError::Prepare { source: Box::new(source) })?;
    let kafka_partitions = log.config().kafka_partitions;
    let directory = Arc::new(Directory::new(plans, expectations));
    let hub = Arc::new(Hub::new(Arc::clone(&directory), kafka_partitions));
    let sources = Sources {
        readings: Readings::open(&root).await?,
        dead_letters: DeadLetters::open(&root).await?,
        views: BatchViews::open(&root)?,
        amendments: Amendments::open(&root)?,
        restatements: Restatements::open(&root).await?,
    };
    let views = sources.views.clone();
    let limits = query_limits(&settings.sql, parts.spill_folder);
    let engine_parts =
        EngineParts { hub: Arc::clone(&hub), sources, host: parts.host, clock: Arc::clone(&clock) };
    let engine = SqlEngine::new(engine_parts, &root, limits)?;
    let instruments = Instruments::new(&telemetry);
    let positions = TailPositions::new(kafka_partitions);
    let units = Arc::new(Units::default());
    // What follows the log and the tables ends after the last request was answered.
    let end = CancellationToken::new();
    let guard = end.clone().drop_guard();
    let tail = Tail {
        log: log.clone(),
        hub: Arc::clone(&hub),
        instruments: instruments.clone(),
        positions: positions.clone(),
        shutdown: end.clone(),
    };
    let log_ends = LogEnds {
        log: log.clone(),
        hub: Arc::clone(&hub),
        clock: Arc::clone(&clock),
        instruments: instruments.clone(),
        shutdown: end.clone(),
    };
    let watcher = Watcher {
        hub: Arc::clone(&hub),
        log,
        views,
        runtime: engine.runtime().clone(),
        positions,
        clock: Arc::clone(&clock),
        instruments: instruments.clone(),
    };
    let threads = vec![tail.start()?, log_ends.start()?];
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&units).run(directory, engine.clone(), Arc::clone(&clock), end.clone()));
    tasks.spawn(watcher.run(end.clone()));
    let api = Api {
        hub: Arc::clone(&hub),
        units,
        engine,
        telemetry,
        instruments,
        batch_trigger: parts.batch_trigger,
        probes: parts.probes,
        max_wait: settings.http.max_wait,
        started: clock.now(),
        clock: Arc::clone(&clock),
    };
    let other_paths = watch_writes(parts.other_paths, Arc::clone(&hub), Arc::clone(&clock));
    let server = Server {
        listener: parts.listener,
        router: router(Arc::new(api)).merge(other_paths).fallback(not_found),
        limits: server_limits(&settings.http, parts.max_body, parts.open_files),
        clock,
    };
    tasks.spawn(serve_until_drained(server, shutdown, end));
    Ok(Serving { hub, tasks, threads, _end: guard })
}

/// Serves until `shutdown` and until the requests in progress are answered; then cancels `end`.
async fn serve_until_drained(server: Server, shutdown: CancellationToken, end: CancellationToken) {
    // Also where the server panics.
    let _end = end.drop_guard();
    let mut serving = pin!(serve(server, shutdown.clone()));
    tokio::select! {
        () = serving.as_mut() => {}
        () = shutdown.cancelled() => {
            if tokio::time::timeout(DRAIN_TIMEOUT, serving).await.is_err() {
                warn!("requests that were in progress for {} s are cut off", DRAIN_TIMEOUT.as_secs());
            }
        }
    }
}

/// What queries may use, with what the settings leave to the machine.
fn query_limits(settings: &SqlSettings, spill_folder: Option<PathBuf>) -> Limits {
    let defaults = Limits::default();
    let of_machine = machine_memory().map_or(defaults.memory, |bytes| (bytes / 4).min(MOST_QUERY_MEMORY));
    Limits {
        memory: settings.memory.unwrap_or(of_machine),
        spill: settings.spill as u64,
        spill_folder,
        time: settings.time,
        rows: settings.max_rows,
        threads: settings.threads.map_or(defaults.threads, usize::from),
        long_queries: settings.long_queries,
        waiting: settings.waiting,
        patience: settings.patience,
    }
}

/// The limits of the HTTP server: half of the open files are left to the log, the tables and the queries.
fn server_limits(settings: &HttpSettings, max_body: usize, open_files: Option<usize>) -> ServerLimits {
    let mut max_connections = settings.max_connections;
    if let Some(open_files) = open_files
        && max_connections > open_files / 2
    {
        max_connections = open_files / 2;
        info!(
            "{max_connections} connections at a time instead of {}, since the system allows {open_files} open files; for \
             more, raise that limit (ulimit -Hn)",
            settings.max_connections
        );
    }
    ServerLimits {
        max_connections,
        idle_timeout: settings.idle_timeout,
        stall_timeout: settings.stall_timeout,
        max_body,
        max_bodies: settings.max_bodies,
    }
}

impl Serving {
    /// Waits until answers can be used: the realtime views and the batch view are read. However long it takes.
    pub async fn until_ready(&self) {
        self.hub.until_started().await;
    }

    /// Waits until everything has ended after the shutdown.
    pub async fn join(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(panic) = ended {
                error!(%panic, "a task of the serving layer has panicked");
            }
        }
        for thread in self.threads {
            let ended = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(ended, Ok(Ok(()))) {
                error!("a thread of the serving layer has panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests;

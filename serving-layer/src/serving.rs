//! The serving layer as one running part: started with a configuration and its parts, stopped by a token.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wye_log::client::Log;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_runtime::clock::now_micros;
use wye_runtime::telemetry::Telemetry;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use crate::ServingError;
use crate::directory::Directory;
use crate::http::{Api, BatchTrigger, Probe, router, watch_writes};
use crate::hub::Hub;
use crate::log_ends::LogEnds;
use crate::sql::{Host, Limits, Sources, SqlEngine};
use crate::tail::{Tail, TailPositions};
use crate::telemetry::Instruments;
use crate::units::Units;
use crate::watch::{Patience, Watcher};

/// How often a caller that waits for readiness looks.
const READY_POLL: Duration = Duration::from_millis(20);

/// How the serving layer runs.
#[derive(Clone, Debug)]
pub struct ServingConfig {
    /// How often a new batch view is looked for.
    pub poll_interval: Duration,
    /// How long a new batch view waits for the realtime epochs at its horizon.
    pub coverage_patience: Duration,
    /// What queries may use.
    pub limits: Limits,
    /// How long a question may wait until answers cover a position.
    pub max_wait: Duration,
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self {
            poll_interval: Duration::from_millis(500),
            coverage_patience: Duration::from_secs(10),
            limits: Limits::default(),
            max_wait: Duration::from_secs(60),
        }
    }
}

/// What the serving layer is made of.
#[derive(Clone)]
pub struct ServingParts {
    /// The log; its topics exist.
    pub log: Log,
    /// Where the tables are.
    pub tables: TableRoot,
    /// The definitions in force.
    pub plans: Arc<MetricPlans>,
    /// Where instruments are registered; what `/metrics` shows.
    pub telemetry: Telemetry,
    /// Does a batch run by hand; `None` where no batch layer runs in this process.
    pub batch_trigger: Option<BatchTrigger>,
    /// Other parts of the process that have to be well before `/readyz` says so.
    pub probes: Vec<Probe>,
    /// What is known of the machine.
    pub host: Arc<dyn Host>,
}

/// A running serving layer.
pub struct Serving {
    api: Arc<Api>,
    tasks: JoinSet<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Starts to follow the realtime views and the batch views, until `shutdown`. Answers can be asked for at once, see
    /// [`Serving::ready`].
    ///
    /// # Errors
    /// [`ServingError::Tables`] when the tables cannot be opened, others when threads or the query engine cannot be had.
    pub async fn start(
        config: ServingConfig,
        parts: ServingParts,
        shutdown: CancellationToken,
    ) -> Result<Self, ServingError> {
        let expectations = Expectations::new(&parts.plans)
            .map_err(|source| ServingError::Prepare { source: Box::new(source) })?;
        let kafka_partitions = parts.log.config().kafka_partitions;
        let directory = Arc::new(Directory::new(Arc::clone(&parts.plans), expectations));
        let hub = Arc::new(Hub::new(directory, kafka_partitions));
        let sources = Sources {
            readings: Readings::open(&parts.tables).await?,
            dead_letters: DeadLetters::open(&parts.tables).await?,
            views: BatchViews::open(&parts.tables)?,
        };
        let views = sources.views.clone();
        let engine = SqlEngine::new(Arc::clone(&hub), sources, &parts.tables, config.limits, parts.host)?;
        let instruments = Instruments::new(&parts.telemetry);
        let positions = TailPositions::new(kafka_partitions);
        let tail = Tail {
            log: parts.log.clone(),
            hub: Arc::clone(&hub),
            instruments: instruments.clone(),
            positions: positions.clone(),
            shutdown: shutdown.clone(),
        }
        .start()?;
        let log_ends = LogEnds {
            log: parts.log.clone(),
            hub: Arc::clone(&hub),
            instruments: instruments.clone(),
            shutdown: shutdown.clone(),
        }
        .start()?;
        let looked = Arc::new(AtomicBool::new(false));
        let watcher = Watcher {
            hub: Arc::clone(&hub),
            log: parts.log,
            views,
            runtime: engine.runtime().clone(),
            positions,
            instruments: instruments.clone(),
            patience: Patience { poll: config.poll_interval, coverage: config.coverage_patience },
            looked: Arc::clone(&looked),
        };
        let units = Arc::new(Units::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&units).run(Arc::clone(hub.directory()), engine.clone(), shutdown.clone()));
        tasks.spawn(watcher.run(shutdown));
        let api = Api {
            hub,
            units,
            engine,
            telemetry: parts.telemetry,
            instruments,
            looked,
            batch_trigger: parts.batch_trigger,
            probes: parts.probes,
            max_wait: config.max_wait,
            started: now_micros(),
        };
        Ok(Self { api: Arc::new(api), tasks, threads: vec![tail, log_ends] })
    }

    /// All paths of the serving layer; without a fallback, so that it can be merged with another router.
    pub fn router(&self) -> Router {
        router(Arc::clone(&self.api))
    }

    /// Whether answers can be used.
    ///
    /// # Errors
    /// What is still missing.
    pub fn ready(&self) -> Result<(), &'static str> {
        self.api.waits_for().map_or(Ok(()), Err)
    }

    /// Notes the positions that the answers of a router that takes writes carry in the header `Wye-Position`, so that
    /// answers that lack what was written say so at once.
    pub fn watch_writes(&self, router: Router) -> Router {
        watch_writes(router, Arc::clone(&self.api.hub))
    }

    /// Waits until answers can be used; however long it takes.
    pub async fn until_ready(&self) {
        while self.ready().is_err() {
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Waits until everything has ended, after the token given to [`Serving::start`] was cancelled.
    pub async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
        for thread in self.threads {
            // A panic of the thread has been printed; there is nothing left to end in order.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

#[cfg(test)]
mod tests;

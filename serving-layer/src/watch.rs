//! Watches for new batch views and switches to each, once answers from it and the epochs from its horizon on cover what
//! answers covered before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_log::client::Log;
use wye_log::topics::REALTIME_VIEWS;
use wye_tables::views::{BatchViews, ViewSnapshot};

use crate::ServingError;
use crate::hub::Hub;
use crate::snapshot::BatchSnapshot;
use crate::sql::QueryRuntime;
use crate::tail::TailPositions;
use crate::telemetry::Instruments;

/// How often the epochs at a new horizon are looked for.
const COVERAGE_POLL: Duration = Duration::from_millis(100);
/// How often the lag is reported.
const LAG_REPORT: Duration = Duration::from_secs(5);

/// When to look and how long to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How often a new batch view is looked for.
    pub(crate) poll: Duration,
    /// How long a new batch view waits until answers from it cover no less than before.
    pub(crate) coverage: Duration,
}

/// What the watcher works with.
pub(crate) struct Watcher {
    pub(crate) hub: Arc<Hub>,
    pub(crate) log: Log,
    pub(crate) views: BatchViews,
    pub(crate) runtime: QueryRuntime,
    pub(crate) positions: TailPositions,
    pub(crate) instruments: Instruments,
    pub(crate) patience: Patience,
    /// Set once the batch views were looked at, and loaded if there were any.
    pub(crate) looked: Arc<AtomicBool>,
}

impl Watcher {
    /// Watches until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut failing = false;
        let mut reported: Option<Instant> = None;
        loop {
            let looked = tokio::select! {
                () = shutdown.cancelled() => return,
                looked = self.look() => looked,
            };
            match looked {
                Ok(()) => {
                    self.looked.store(true, Ordering::Release);
                    failing = false;
                }
                Err(error) if !failing => {
                    failing = true;
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot look for new batch views; trying again"
                    );
                }
                Err(_) => {}
            }
            if reported.is_none_or(|at| at.elapsed() >= LAG_REPORT) {
                reported = Some(Instant::now());
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.report() => {}
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.patience.poll) => {}
            }
        }
    }

    async fn look(&self) -> Result<(), ServingError> {
        let version = self.views.latest_version().await?;
        if version.is_some()
            && version != self.hub.version()
            && let Some(view) = self.views.latest().await?
        {
            self.switch(view).await?;
        }
        Ok(())
    }

    async fn switch(&self, view: ViewSnapshot) -> Result<(), ServingError> {
        let (directory, context) = (Arc::clone(self.hub.directory()), self.runtime.task_context());
        let snapshot =
            self.runtime.run(async move { BatchSnapshot::load(view, &directory, &context).await }).await??;
        let deadline = Instant::now() + self.patience.coverage;
        loop {
            let missing = self.hub.would_lose(snapshot.horizon());
            if missing.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                warn!(
                    version = snapshot.version(),
                    kafka_partitions = ?missing,
                    "the realtime views do not resume where the batch view ends; answers are incomplete until they do"
                );
                break;
            }
            tokio::time::sleep(COVERAGE_POLL).await;
        }
        let (version, as_of) = (snapshot.version(), snapshot.facts().as_of);
        self.hub.switch(Arc::new(snapshot));
        self.instruments.version.set(i64::try_from(version).unwrap_or(i64::MAX));
        self.instruments.as_of.set(as_of / wye_domain::time::SECOND);
        info!(version, "serving a new batch view");
        Ok(())
    }

    /// Says in telemetry how far behind the realtime side is, and how much it holds.
    async fn report(&self) {
        for (kafka_partition, position) in self.positions.get() {
            // A broker that is away is reported by those who need it.
            if let Ok(range) = self.log.offsets(REALTIME_VIEWS, kafka_partition).await {
                self.instruments.set_lag(kafka_partition, (range.high - position.max(range.low)).max(0));
            }
        }
        let (epochs, windows) = self.hub.size();
        self.instruments.epochs.set(i64::try_from(epochs).unwrap_or(i64::MAX));
        self.instruments.windows.set(i64::try_from(windows).unwrap_or(i64::MAX));
    }
}

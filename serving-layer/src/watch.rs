//! Watches for new batch views and switches to each, once answers from it and the epochs from its horizon on cover what
//! answers covered before.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_domain::error_chain;
use wye_domain::time::Micros;
use wye_log::client::Log;
use wye_log::topics::REALTIME_VIEWS;
use wye_tables::views::{BatchViews, ViewSnapshot};

use crate::ServingError;
use crate::hub::{Hub, Input};
use crate::snapshot::BatchSnapshot;
use crate::sql::QueryRuntime;
use crate::tail::TailPositions;
use crate::telemetry::Instruments;
use wye_runtime::clock::Clock;

/// How often the table is checked for a new batch view: part of the time until a run's result is in answers.
const POLL: Duration = Duration::from_millis(500);
/// How long a new batch view waits until answers from it cover no less than before. Owners need a moment to rebuild what
/// a pinned start has cut off; a speed layer that does not run must not keep a new view out.
const COVERAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the epochs at a new horizon are checked meanwhile.
const COVERAGE_POLL: Duration = Duration::from_millis(100);
/// How often the lag is reported.
const LAG_REPORT: Duration = Duration::from_secs(5);

/// What the watcher works with.
pub(crate) struct Watcher {
    pub(crate) hub: Arc<Hub>,
    pub(crate) log: Log,
    pub(crate) views: BatchViews,
    pub(crate) runtime: QueryRuntime,
    pub(crate) positions: TailPositions,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) instruments: Instruments,
}

impl Watcher {
    /// Watches until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let watch = async {
            let mut failing = false;
            let mut reported: Option<Duration> = None;
            loop {
                match self.look().await {
                    Ok(()) => {
                        self.hub.step(Input::ViewsChecked);
                        failing = false;
                    }
                    Err(error) if !failing => {
                        failing = true;
                        warn!(error = error_chain(&error), "cannot read the batch views; trying again");
                    }
                    Err(_) => {}
                }
                let now = self.clock.monotonic();
                if reported.is_none_or(|at| now.saturating_sub(at) >= LAG_REPORT) {
                    reported = Some(now);
                    self.report().await;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = watch => {}
        }
    }

    async fn look(&self) -> Result<(), ServingError> {
        let version = self.views.latest_version().await?;
        if version.is_some()
            && version != self.hub.read().version()
            && let Some(view) = self.views.latest().await?
        {
            self.switch(view).await?;
        }
        Ok(())
    }

    async fn switch(&self, view: ViewSnapshot) -> Result<(), ServingError> {
        let (directory, context) = (Arc::clone(self.hub.directory()), self.runtime.task_context());
        let before = self.hub.read().batch_snapshot();
        let loading = async move { BatchSnapshot::load(view, before.as_deref(), &directory, &context).await };
        let snapshot = self.runtime.run(loading).await??;
        let version = snapshot.version();
        if tokio::time::timeout(COVERAGE_TIMEOUT, self.until_nothing_is_lost(&snapshot)).await.is_err() {
            let losing = self.hub.read().would_lose(snapshot.horizon());
            let kafka_partitions: Vec<i32> =
                losing.into_iter().map(|kafka_partition| kafka_partition.0).collect();
            warn!(
                %version,
                ?kafka_partitions,
                "the realtime views do not resume where the batch view ends; answers are incomplete until they do"
            );
        }
        let as_of = snapshot.facts().as_of;
        self.hub.step(Input::BatchView(Arc::new(snapshot)));
        self.instruments.set_version(version);
        self.instruments.as_of.set(as_of.map_or(0, Micros::seconds));
        info!(%version, "serving a new batch view");
        Ok(())
    }

    async fn until_nothing_is_lost(&self, snapshot: &BatchSnapshot) {
        while !self.hub.read().would_lose(snapshot.horizon()).is_empty() {
            tokio::time::sleep(COVERAGE_POLL).await;
        }
    }

    /// Updates the instruments of the realtime side: how far behind it is, and how much it holds.
    async fn report(&self) {
        for (kafka_partition, position) in self.positions.get() {
            // Where the log does not answer, those who need it say so.
            if let Ok(range) = self.log.offsets(REALTIME_VIEWS, kafka_partition).await {
                self.instruments.set_lag(kafka_partition, range.high.since(position.max(range.low)));
            }
        }
        let (epochs, windows) = self.hub.read().size();
        self.instruments.set_size(epochs, windows);
    }
}

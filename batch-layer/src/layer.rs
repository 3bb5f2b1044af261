//! The batch layer as a whole: the archiver and the schedule of batch runs, as tasks of one task set.

use std::fmt;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;
use wye_domain::wire::Acceptance;
use wye_log::client::Log;
use wye_metrics::plan::MetricPlans;
use wye_tables::store::TableRoot;

use crate::archiver::Archiver;
use crate::compute::Compute;
use crate::error::BatchError;
use crate::runner::BatchRunner;
use crate::schedule::{BatchHandle, Schedule};
use crate::settings::Settings;
use crate::telemetry::BatchTelemetry;
use wye_runtime::clock::Clock;

/// What the batch layer works with. Clones share the components.
#[derive(Clone)]
pub struct Parts {
    /// The log, whose topics exist.
    pub log: Log,
    /// Where the tables are.
    pub root: TableRoot,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// Which readings are accepted: the same rules as in the speed layer.
    pub acceptance: Acceptance,
    /// Where batch runs and maintenance compute.
    pub compute: Arc<Compute>,
    /// Instruments.
    pub telemetry: BatchTelemetry,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The id of this process. It names batch runs, together with the time when they start.
    pub process_id: u32,
}

/// The running batch layer.
pub struct BatchLayer {
    tasks: JoinSet<()>,
    handle: BatchHandle,
}

impl fmt::Debug for BatchLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BatchLayer").finish_non_exhaustive()
    }
}

/// Starts the archiver and the schedule; both end when `shutdown` fires. The tables are made where they do not exist.
///
/// # Errors
/// When a table cannot be opened, the log's client cannot be made, or an expectation cannot be computed.
pub async fn start(
    settings: Settings,
    parts: Parts,
    shutdown: CancellationToken,
) -> Result<BatchLayer, BatchError> {
    let archiver = Archiver::open(parts.clone(), settings.archive).await?;
    let runner = Arc::new(BatchRunner::open(parts, &settings.batch).await?);
    let (schedule, handle) = Schedule::new(runner, settings.batch);
    let mut tasks = JoinSet::new();
    tasks.spawn(archiver.run(shutdown.clone()));
    tasks.spawn(schedule.run(shutdown));
    Ok(BatchLayer { tasks, handle })
}

impl BatchLayer {
    /// Asks for batch runs.
    pub fn handle(&self) -> BatchHandle {
        self.handle.clone()
    }

    /// Waits until everything has ended after a shutdown: what was read is appended, and a batch run under way is
    /// cancelled, which loses nothing.
    pub async fn join(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(panic) = ended {
                error!(%panic, "a task of the batch layer has panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BatchError;
    use crate::report::Outcome;
    use crate::runner::RunOptions;
    use crate::testing::{ARCHIVE, PATIENCE, Site, batch_settings, horizon, soon};

    #[tokio::test(flavor = "multi_thread")]
    async fn the_layer_archives_and_runs_on_request_until_the_shutdown() {
        let site = Site::start(2).await;
        for second in 0..3 {
            site.reading(1, "a", second, 1.0).await;
        }
        let batch = batch_settings(PATIENCE * 100);
        let settings = Settings { archive: ARCHIVE, batch };
        let shutdown = CancellationToken::new();
        let layer = start(settings, site.parts(), shutdown.clone()).await.unwrap();
        let handle = layer.handle();
        // An owner answers, so that the run waits for the archiver.
        let report = soon(async {
            tokio::select! {
                () = site.answer_requests(1, |through| through) => unreachable!("it never ends"),
                report = handle.run_now(RunOptions::default()) => report.unwrap(),
            }
        })
        .await;
        assert_eq!((report.outcome, report.readings), (Outcome::Committed, 3));
        assert_eq!(report.horizon, horizon([(0, 0), (1, 3)]));
        shutdown.cancel();
        soon(layer.join()).await;
        let refused = handle.run_now(RunOptions::default()).await;
        assert!(matches!(refused, Err(BatchError::Stopping)), "{refused:?}");
    }
}

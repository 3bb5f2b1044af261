//! When batch runs start: at a fixed interval, at once on request, and at once at the start if the definitions have
//! changed. Must not know what a run does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use wye_domain::{ErrorKind, error_chain};

use crate::error::BatchError;
use crate::report::RunReport;
use crate::runner::{BatchRunner, RunOptions};
use crate::settings::BatchSettings;

/// Old views are removed at most this often.
const CLEANING_INTERVAL: Duration = Duration::from_secs(120);
/// How many requests may wait; more than people ever send at once.
const REQUESTS: usize = 64;

struct Request {
    options: RunOptions,
    answer: oneshot::Sender<Result<RunReport, BatchError>>,
}

/// Asks the schedule for runs. Cheap to clone.
#[derive(Clone)]
pub struct BatchHandle {
    requests: mpsc::Sender<Request>,
}

impl BatchHandle {
    /// Waits for a run that starts now, or as soon as the one under way has ended.
    ///
    /// # Errors
    /// Those of [`BatchRunner::run`]; [`BatchError::Stopping`] when the schedule ends first.
    pub async fn run_now(&self, options: RunOptions) -> Result<RunReport, BatchError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { options, answer };
        self.requests.send(request).await.map_err(|_| BatchError::Stopping)?;
        answered.await.map_err(|_| BatchError::Stopping)?
    }
}

/// Starts batch runs until it is stopped.
pub struct Schedule {
    runner: Arc<BatchRunner>,
    settings: BatchSettings,
    requests: mpsc::Receiver<Request>,
    /// When old views were last removed, on the monotonic clock.
    cleaned: Option<Duration>,
}

impl Schedule {
    /// A schedule, and the handle that requests runs from it.
    pub fn new(runner: Arc<BatchRunner>, settings: BatchSettings) -> (Self, BatchHandle) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        (Self { runner, settings, requests, cleaned: None }, BatchHandle { requests: sender })
    }

    /// Starts runs until `shutdown` fires; a run under way is then cancelled, which loses nothing.
    pub async fn run(mut self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.run_forever()).await;
    }

    async fn run_forever(&mut self) {
        // If the last process crashed between a commit and its announcement, that is announced now.
        if let Err(error) = self.runner.announce_latest().await {
            warn!(
                error = error_chain(&error),
                "cannot announce the horizon of the batch view; the next batch run will"
            );
        }
        match self.runner.has_other_definitions().await {
            Ok(true) => self.run_scheduled().await,
            Ok(false) => {}
            Err(error) => warn!(error = error_chain(&error), "cannot read the batch view"),
        }
        let mut ticks = self.settings.period().map(ticks);
        loop {
            tokio::select! {
                () = next_tick(&mut ticks) => self.run_scheduled().await,
                Some(Request { options, answer }) = self.requests.recv() => {
                    let ended = self.runner.run(options).await;
                    // The caller may have gone away.
                    let _ = answer.send(ended);
                    self.clean().await;
                }
            }
        }
    }

    async fn run_scheduled(&mut self) {
        match self.runner.run(RunOptions::default()).await {
            Ok(_) => self.clean().await,
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable) => {
                warn!(error = error_chain(&error), "batch run failed; the next one tries again");
            }
            Err(error) => error!(error = error_chain(&error), "batch run failed; the last batch view stays"),
        }
    }

    async fn clean(&mut self) {
        let now = self.runner.clock().monotonic();
        if self.cleaned.is_some_and(|last| now.saturating_sub(last) < CLEANING_INTERVAL) {
            return;
        }
        self.cleaned = Some(now);
        if let Err(error) = self.runner.clean(self.settings.keep_versions).await {
            warn!(error = error_chain(&error), "cannot remove old batch views; trying again later");
        }
    }
}

/// The first tick comes after one period. A tick that comes while a run is under way is skipped.
fn ticks(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks.reset();
    ticks
}

/// The next tick; never, where there are none.
async fn next_tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}

//! When batch runs happen: every so often, at once when asked, and at once at the start where the definitions have
//! changed. Must not know what a run does.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use wye_domain::ErrorKind;

use crate::error::BatchError;
use crate::error::chain;
use crate::run::{BatchRunner, RunOptions, RunReport};

/// At most this often old views are looked for.
const CLEANING: Duration = Duration::from_secs(120);
/// How many requests may wait; more than people ever send.
const REQUESTS: usize = 64;

/// How often things happen.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// A run starts; zero: only when asked.
    pub interval: Duration,
    /// How long the files of a replaced view stay.
    pub keep_versions: Duration,
}

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

/// Runs batch runs until it is stopped.
pub struct Schedule {
    runner: Arc<BatchRunner>,
    rhythm: Rhythm,
    requests: mpsc::Receiver<Request>,
    cleaned: Option<Instant>,
}

impl Schedule {
    /// A schedule, and the handle to ask it.
    pub fn new(runner: Arc<BatchRunner>, rhythm: Rhythm) -> (Self, BatchHandle) {
        let (sender, requests) = mpsc::channel(REQUESTS);
        (Self { runner, rhythm, requests, cleaned: None }, BatchHandle { requests: sender })
    }

    /// Runs until `stop` fires; a run under way is then called off, which loses nothing.
    pub async fn run(mut self, stop: CancellationToken) {
        let forever = self.run_forever();
        tokio::select! {
            () = stop.cancelled() => {}
            () = forever => {}
        }
    }

    async fn run_forever(&mut self) {
        // A run that was killed between its commit and its announcement is announced now.
        if let Err(error) = self.runner.announce_latest().await {
            warn!(
                error = chain(&error),
                "cannot announce the horizon of the batch view; the next batch run will"
            );
        }
        match self.runner.has_other_definitions().await {
            Ok(true) => self.run_scheduled().await,
            Ok(false) => {}
            Err(error) => warn!(error = chain(&error), "cannot look at the batch view"),
        }
        let is_timed = !self.rhythm.interval.is_zero();
        let period = if is_timed { self.rhythm.interval } else { Duration::from_secs(3600) };
        let mut ticks = tokio::time::interval_at(Instant::now() + period, period);
        // A tick that comes while a run is under way is skipped.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // Without any handle left there is only the clock.
        let mut is_asked = true;
        loop {
            tokio::select! {
                _ = ticks.tick(), if is_timed => self.run_scheduled().await,
                request = self.requests.recv(), if is_asked => match request {
                    Some(Request { options, answer }) => {
                        let ended = self.runner.run(options).await;
                        // Who asked may have gone away.
                        let _ = answer.send(ended);
                        self.clean().await;
                    }
                    None => is_asked = false,
                },
                else => std::future::pending::<()>().await,
            }
        }
    }

    async fn run_scheduled(&mut self) {
        match self.runner.run(RunOptions::default()).await {
            Ok(_) => self.clean().await,
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable) => {
                warn!(error = chain(&error), "batch run failed; the next one tries again");
            }
            Err(error) => error!(error = chain(&error), "batch run failed; the last batch view stays"),
        }
    }

    async fn clean(&mut self) {
        if self.cleaned.is_some_and(|last| last.elapsed() < CLEANING) {
            return;
        }
        self.cleaned = Some(Instant::now());
        if let Err(error) = self.runner.clean(self.rhythm.keep_versions).await {
            warn!(error = chain(&error), "cannot remove old batch views; trying again later");
        }
    }
}

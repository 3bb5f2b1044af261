//! When batch runs start: at a fixed interval or by a cron expression, at once on request, and at once at the start if the
//! definitions have changed. Must not know what a run does.

use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use croner::Cron;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use wye_domain::time::Micros;
use wye_domain::{ErrorKind, error_chain};
use wye_runtime::clock::Clock;

use crate::error::BatchError;
use crate::report::RunReport;
use crate::runner::{BatchRunner, RunOptions};
use crate::settings::BatchSettings;

/// Old views are removed at most this often.
const CLEANING_INTERVAL: Duration = Duration::from_secs(120);
/// How often the clock is read while a run is waited for.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);
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
        let mut ticks = Ticks::new(&self.settings);
        loop {
            tokio::select! {
                () = ticks.next(self.runner.clock()) => self.run_scheduled().await,
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
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable) => {
                warn!(error = error_chain(&error), "batch run failed; the next one tries again");
            }
            Err(error) => error!(error = error_chain(&error), "batch run failed; the last batch view stays"),
        }
        // A run that failed may have written files too.
        self.clean().await;
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

/// The starts of scheduled runs. Those that come while a run is under way are skipped; of an interval, one run follows at once.
enum Ticks {
    OnRequestOnly,
    Every(Interval),
    By(Box<Cron>),
}

impl Ticks {
    /// The first of an interval comes after one period.
    fn new(settings: &BatchSettings) -> Self {
        match (&settings.schedule, settings.period()) {
            (Some(cron), _) => Self::By(Box::new(cron.clone())),
            (None, Some(period)) => {
                let mut ticks = tokio::time::interval(period);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
                ticks.reset();
                Self::Every(ticks)
            }
            (None, None) => Self::OnRequestOnly,
        }
    }

    /// Waits for the next one.
    async fn next(&mut self, clock: &dyn Clock) {
        match self {
            Self::OnRequestOnly => std::future::pending().await,
            Self::Every(ticks) => {
                ticks.tick().await;
            }
            Self::By(cron) => next_by(cron, clock).await,
        }
    }
}

/// The first time after `now` that an expression names; `None` where there is none.
fn next_time(cron: &Cron, now: Micros) -> Option<Micros> {
    let now = DateTime::from_timestamp_micros(now.0)?;
    let next = cron.find_next_occurrence(&now, false).ok()?;
    Some(Micros(next.timestamp_micros()))
}

/// Waits for the next time that an expression names. The clock may be set meanwhile, so it is read again and again; where it
/// was set back, the next time is another one.
async fn next_by(cron: &Cron, clock: &dyn Clock) {
    let mut before = clock.now();
    let mut time = next_time(cron, before);
    loop {
        let now = clock.now();
        if now < before {
            time = next_time(cron, now);
        }
        before = now;
        let left = match time {
            Some(time) if time <= now => return,
            Some(time) => Duration::from_micros((time - now).0.unsigned_abs()),
            None => CLOCK_INTERVAL,
        };
        tokio::time::sleep(left.min(CLOCK_INTERVAL)).await;
    }
}

#[cfg(test)]
mod tests {
    use datafusion::common::runtime::SpawnedTask;
    use wye_domain::time::{Span, parse_rfc3339};

    use super::*;
    use crate::compute::joined;
    use crate::testing::{PATIENCE, Site, TestClock, batch_settings, soon};

    #[test]
    fn a_cron_expression_names_times_in_utc() {
        let cron: Cron = "*/5 * * * *".parse().unwrap();
        let time = |text: &str| parse_rfc3339(text).unwrap();
        let next = |text| next_time(&cron, time(text)).unwrap();
        assert_eq!(next("2026-01-31T23:57:30Z"), time("2026-02-01T00:00:00Z"));
        assert_eq!(next("2026-02-01T00:00:00Z"), time("2026-02-01T00:05:00Z"));
        let never: Cron = "0 0 30 2 *".parse().unwrap();
        assert_eq!(next_time(&never, time("2026-01-01T00:00:00Z")), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_that_is_set_back_is_followed() {
        let clock = TestClock::default();
        let time = |text: &str| parse_rfc3339(text).unwrap();
        let hourly: Cron = "0 * * * *".parse().unwrap();
        clock.set(time("2036-01-01T00:30:00Z"));
        let mut next = std::pin::pin!(next_by(&hourly, &clock));
        assert!(tokio::time::timeout(Duration::from_millis(100), &mut next).await.is_err(), "too early");
        clock.set(time("2026-01-01T00:30:00Z"));
        assert!(tokio::time::timeout(CLOCK_INTERVAL * 2, &mut next).await.is_err(), "too early");
        clock.set(time("2026-01-01T01:00:00Z"));
        soon(next).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn runs_start_when_the_clock_says_so() {
        let site = Site::start(1).await;
        site.reading(0, "a", 0, 1.0).await;
        let schedule = Some("0 0 1 1 *".parse().unwrap());
        let settings = BatchSettings { schedule, ..batch_settings(PATIENCE) };
        site.archive([(0, 1)]).await;
        let runner = Arc::new(site.runner().await);
        let (schedule, _handle) = Schedule::new(runner, settings);
        let shutdown = CancellationToken::new();
        let running = SpawnedTask::spawn(schedule.run(shutdown.clone()));
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(site.view().await.is_empty());
        site.clock.advance_to(site.clock.now() + Span::from_days(366));
        soon(async {
            while site.view().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        shutdown.cancel();
        soon(joined(running)).await.unwrap();
    }
}

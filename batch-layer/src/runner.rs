//! Carries out batch runs: reads the facts, and does what a [`Run`] decides. Must not know the reasons for a decision.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::{info, warn};
use wye_domain::control::ControlRecord;
use wye_domain::error_chain;
use wye_domain::time::{Micros, Window};
use wye_metrics::amendment::{Amending, Amendment};
use wye_metrics::plan::Expectations;
use wye_metrics::view_rows::COMPUTATION;
use wye_runtime::telemetry::ReasonLabel;
use wye_tables::TablesError;
use wye_tables::amendments::Amendments;
use wye_tables::readings::{Readings, ReadingsSnapshot};
use wye_tables::restatements::Restatements;
use wye_tables::run_record::RunRecord;
use wye_tables::views::{BatchViews, ViewCommit, ViewSnapshot, ViewVersion};

use crate::control_log::ControlLog;
use crate::error::BatchError;
use crate::layer::Parts;
use crate::recompute::{OnProgress, Recomputation, Since, recompute};
use crate::report::{Outcome, RunReport};
use crate::run::{Effect, Facts, Input, Patience, Previous, Rules, Run, Task, missing_announcements};
use crate::settings::BatchSettings;
use wye_runtime::clock::Clock;

mod record;
mod restating;
#[cfg(test)]
mod tests;

use record::report_of;

/// How often the control topic is read while a run waits for answers.
const ANSWER_INTERVAL: Duration = Duration::from_millis(50);
/// How often the master dataset is read while a run waits for the archiver.
const ARCHIVE_INTERVAL: Duration = Duration::from_millis(100);

/// Why a run computes everything.
pub(crate) const ASKED_FOR: &str = "that was asked for";
pub(crate) const FIRST_RUN: &str = "there is no batch view yet";

/// What is asked of one run.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Computes all cells, and commits even if there is nothing new.
    pub force: bool,
    /// Computes the cells of this stretch of time too, and commits even if there is nothing new.
    pub again: Option<Window>,
    /// Called from time to time with the progress of the run.
    pub progress: Option<OnProgress>,
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { force, again, .. } = self;
        f.debug_struct("RunOptions").field("force", force).field("again", again).finish_non_exhaustive()
    }
}

/// Carries out batch runs, one at a time.
pub struct BatchRunner {
    parts: Parts,
    readings: Readings,
    views: BatchViews,
    amendments: Amendments,
    restatements: Restatements,
    control: ControlLog,
    expectations: Arc<Expectations>,
    patience: Duration,
    cell_readings: u64,
    threads: usize,
    turn: Mutex<()>,
}

impl BatchRunner {
    /// Opens the tables, and makes the master dataset if it does not exist.
    ///
    /// # Errors
    /// When a table cannot be opened, or an expectation cannot be computed.
    pub async fn open(parts: Parts, settings: &BatchSettings) -> Result<Self, BatchError> {
        let readings =
            Readings::open(&parts.root).await.map_err(BatchError::tables("open the master dataset"))?;
        let views = BatchViews::open(&parts.root).map_err(BatchError::tables("open the batch views"))?;
        let expectations = Arc::new(Expectations::new(&parts.plans).map_err(BatchError::Compute)?);
        let amendments = Amendments::open(&parts.root).map_err(BatchError::tables("open the amendments"))?;
        let restatements =
            Restatements::open(&parts.root).await.map_err(BatchError::tables("open the restatements"))?;
        let control = ControlLog::new(parts.log.clone())?;
        let BatchSettings { patience, cell_readings, threads, .. } = *settings;
        let cores = parts.compute.threads();
        let threads = if threads == 0 { cores } else { threads.min(cores) };
        let turn = Mutex::new(());
        Ok(Self {
            parts,
            readings,
            views,
            amendments,
            restatements,
            control,
            expectations,
            patience,
            cell_readings,
            threads,
            turn,
        })
    }

    /// Carries out one run. Dropping the returned future cancels it, at any time: the view is then the old one or the new one.
    ///
    /// # Errors
    /// [`BatchError::AnotherRunFirst`] (of kind `Conflict`) when another process has committed in the meantime; else what
    /// failed.
    pub async fn run(&self, options: RunOptions) -> Result<RunReport, BatchError> {
        let _turn = self.turn.lock().await;
        let ended = self.run_in_turn(options).await;
        if let Err(error) = &ended {
            let reason = error.kind().name();
            self.parts.telemetry.failed_runs.get_or_create(&ReasonLabel { reason }).inc();
        }
        ended
    }

    async fn run_in_turn(&self, options: RunOptions) -> Result<RunReport, BatchError> {
        let (started, begin) = (self.parts.clock.now(), self.parts.clock.monotonic());
        let view = self.latest().await?;
        // The process that has committed it may have ended before it added them.
        self.add_restatements(view.as_ref().and_then(|view| view.run.as_ref())).await?;
        let facts = Facts {
            previous: view.as_ref().map(previous),
            control: self.control.views().await?,
            ends: self.control.ends().await?,
        };
        let amendments = self.amendments.all().await.map_err(BatchError::tables("read the amendments"))?;
        let amending = Amending::plan(&amendments).map_err(BatchError::Amendment)?;
        let rules = Rules {
            started,
            definitions: self.definitions(),
            amendments: amending.ids(),
            asked_by: format!("batch run, pid {}", self.parts.process_id),
            force: options.force || options.again.is_some(),
        };
        let mut execution = Execution {
            runner: self,
            progress: options.progress,
            started,
            begin,
            answers: None,
            archive: None,
            readings: None,
            amendments,
            amending,
            everything_because: if options.force { ASKED_FOR } else { FIRST_RUN },
            again: options.again,
            before: view.clone(),
            view: view.clone().filter(|_| !options.force),
            report: report_of(view.as_ref()),
        };
        let (mut run, effects) = Run::start(rules, facts);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match execution.carry_out(effect).await {
                Ok(input) => effects.extend(input.into_iter().flat_map(|input| run.step(input))),
                Err(error) if execution.report.outcome == Outcome::Committed => {
                    let error = error_chain(&error);
                    warn!(error, "cannot announce the new horizon; the next batch run will");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(execution.report)
    }

    /// Announces the horizon of the newest view in the control topic, where that does not have it.
    ///
    /// # Errors
    /// When the views cannot be read, or the log not be read or written.
    pub async fn announce_latest(&self) -> Result<(), BatchError> {
        let Some(latest) = self.latest().await? else { return Ok(()) };
        let control = self.control.views().await?;
        let previous = previous(&latest);
        for (kafka_partition, record) in missing_announcements(&previous.horizon, previous.version, &control)
        {
            self.control.append(kafka_partition, &record).await?;
        }
        Ok(())
    }

    /// Whether there is a view that was computed with other definitions than these.
    ///
    /// # Errors
    /// When the views cannot be read.
    pub async fn has_other_definitions(&self) -> Result<bool, BatchError> {
        let latest = self.latest().await?;
        Ok(latest.is_some_and(|view| !previous(&view).is_current(&self.definitions())))
    }

    /// Removes the files of views that were replaced more than `keep` ago.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn clean(&self, keep: Duration) -> Result<(), BatchError> {
        let cleaned = self.views.vacuum(keep).await.map_err(BatchError::tables("remove old batch views"))?;
        if cleaned.files > 0 {
            info!(files = cleaned.files, bytes = cleaned.bytes, "old batch views removed");
        }
        let latest = self.latest().await?;
        self.add_restatements(latest.as_ref().and_then(|view| view.run.as_ref())).await?;
        // Files of runs that were not committed.
        self.restatements.vacuum(keep).await.map_err(BatchError::tables("clean the restatements"))?;
        Ok(())
    }

    /// The clock of this layer.
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.parts.clock
    }

    async fn latest(&self) -> Result<Option<ViewSnapshot>, BatchError> {
        self.views.latest().await.map_err(BatchError::tables("read the batch views"))
    }

    async fn snapshot(&self) -> Result<ReadingsSnapshot, BatchError> {
        self.readings.snapshot().await.map_err(BatchError::tables("read the master dataset"))
    }

    fn definitions(&self) -> String {
        self.parts.plans.fingerprint().to_string()
    }

    fn registry(&self) -> String {
        self.parts.plans.registry().fingerprint().to_string()
    }

    /// A wait that starts now.
    fn waiting(&self, every: Duration) -> Waiting {
        let mut checks = tokio::time::interval(every);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Waiting { checks, deadline: self.clock().monotonic().saturating_add(self.patience) }
    }
}

/// A run while its effects are carried out.
struct Execution<'a> {
    runner: &'a BatchRunner,
    progress: Option<OnProgress>,
    started: Micros,
    /// When it started, on the monotonic clock.
    begin: Duration,
    /// The wait for answers, once it has started.
    answers: Option<Waiting>,
    /// The wait for the archiver, once it has started.
    archive: Option<Waiting>,
    /// What was last read of the master dataset.
    readings: Option<ReadingsSnapshot>,
    /// The stretch of time that is computed even if nothing has changed.
    again: Option<Window>,
    /// The newest view.
    before: Option<ViewSnapshot>,
    /// The view to start from; `None` where everything is to be computed.
    view: Option<ViewSnapshot>,
    /// All amendments.
    amendments: Arc<Vec<Amendment>>,
    /// Those that are in force.
    amending: Amending,
    /// Why, where there is none.
    everything_because: &'static str,
    /// What the run has done so far.
    report: RunReport,
}

impl Execution<'_> {
    async fn carry_out(&mut self, effect: Effect) -> Result<Option<Input>, BatchError> {
        let runner = self.runner;
        match effect {
            Effect::RequestCut(kafka_partition, record) => {
                let request = runner.control.append(kafka_partition, &record).await?;
                Ok(Some(Input::Requested { kafka_partition, request }))
            }
            Effect::Announce(kafka_partition, record) => {
                if let ControlRecord::Epoch { start, .. } = record {
                    warn!(%kafka_partition, %start, "no owner has answered; the run takes what is archived");
                }
                runner.control.append(kafka_partition, &record).await?;
                Ok(None)
            }
            Effect::ReadControl => {
                let waiting = self.answers.get_or_insert_with(|| runner.waiting(ANSWER_INTERVAL));
                waiting.checks.tick().await;
                let control = runner.control.views().await?;
                Ok(Some(Input::Control(control, waiting.patience(runner.clock()))))
            }
            Effect::ReadArchived => {
                let waiting = self.archive.get_or_insert_with(|| runner.waiting(ARCHIVE_INTERVAL));
                waiting.checks.tick().await;
                let archived = self.readings.insert(runner.snapshot().await?).archived();
                Ok(Some(Input::Archived(archived, waiting.patience(runner.clock()))))
            }
            Effect::Commit(task) => {
                let version = self.commit(task).await?;
                Ok(Some(Input::Committed { version }))
            }
            Effect::KeepView(left_out) => {
                self.finish(left_out);
                Ok(None)
            }
        }
    }

    /// Computes the views and commits them; returns their version.
    async fn commit(&mut self, task: Task) -> Result<ViewVersion, BatchError> {
        let runner = self.runner;
        let readings = match self.readings.take() {
            Some(readings) => readings,
            None => runner.snapshot().await?,
        };
        let readings_table = readings.table_id().to_owned();
        let since = match &self.view {
            Some(view) => Since::view(view, &runner.parts.plans, &self.amendments, &readings),
            None => Err(self.everything_because),
        };
        let since = since.map(|since| Since { again: self.again, ..since });
        let everything_because = since.as_ref().err().map(|reason| (*reason).to_owned());
        let restating = self.before.as_ref().and_then(|view| self.restating(view, &readings_table));
        let recomputation = Recomputation {
            root: runner.parts.root.clone(),
            readings,
            since: since.ok(),
            views: runner.views.clone(),
            plans: Arc::clone(&runner.parts.plans),
            expectations: Arc::clone(&runner.expectations),
            amending: self.amending.clone(),
            horizon: task.horizon.clone(),
            as_of: task.as_of,
            now: self.started,
            threads: runner.threads,
            cell_readings: runner.cell_readings,
            restating,
            progress: self.progress.clone(),
        };
        let computed = runner.parts.compute.run(recompute(recomputation)).await??;
        let run = RunRecord { readings_table, ..self.record(&computed) };
        let (mut report, record) = (RunReport::of(&run, task.horizon.clone()), run.clone());
        let commit = ViewCommit {
            schema: computed.schema,
            files: computed.files,
            replaces: computed.replaces,
            horizon: task.horizon,
            run,
            expected_version: task.replaces,
        };
        let version = runner.views.commit(commit).await.map_err(|source| match source {
            TablesError::Conflict { .. } => BatchError::AnotherRunFirst(Box::new(source)),
            source => BatchError::tables("commit the batch views")(source),
        })?;
        report.outcome = Outcome::Committed;
        report.everything_because = everything_because;
        report.version = Some(version);
        self.report = report;
        self.finish(task.left_out);
        self.measure();
        if let Err(error) = runner.add_restatements(Some(&record)).await {
            let error = error_chain(&error);
            warn!(error, "cannot add the restatements of this run; the next one will");
        }
        Ok(version)
    }
}

/// A wait for another component.
struct Waiting {
    /// When to check: at once, then at an interval.
    checks: Interval,
    /// When the patience ends, on the monotonic clock.
    deadline: Duration,
}

impl Waiting {
    fn patience(&self, clock: &dyn Clock) -> Patience {
        if clock.monotonic() < self.deadline { Patience::Left } else { Patience::Over }
    }
}

/// The facts about a view that a run starts from.
fn previous(view: &ViewSnapshot) -> Previous {
    let run = view.run.as_ref();
    Previous {
        version: view.version(),
        horizon: view.horizon.clone(),
        // The rows of another computation are as those of other definitions.
        definitions: run.filter(|run| run.computation == COMPUTATION).map(|run| run.definitions.clone()),
        amendments: run.map(|run| run.amendments.clone()).unwrap_or_default(),
    }
}

//! A batch run: ask the owners for cuts, choose a horizon, compute everything below it, commit views and horizon
//! together, tell the others.
//!
//! Order of steps, on which the exact merge rests: a horizon that no owner has announced is announced before the commit
//! (**HOR-1**); the commit is one Delta commit; the control topic is told afterwards, and told again by the next run
//! where a run died in between.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::{info, warn};
use wye_domain::control::{ControlRecord, ControlView};
use wye_log::client::Log;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_runtime::clock::now_micros;
use wye_runtime::telemetry::KafkaPartitionLabel;
use wye_tables::TablesError;
use wye_tables::readings::{Readings, ReadingsSnapshot};
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, RunRecord, ViewCommit, ViewSnapshot};

use crate::compute::Compute;
use crate::error::BatchError;
use crate::horizon::{ControlLog, Cuts, Horizons};
use crate::recompute::{OnProgress, Recomputation, Recomputed, recompute};
use crate::telemetry::BatchTelemetry;

/// How often it is looked whether the archiver has come as far as is wanted.
const LOOK: Duration = Duration::from_millis(100);

/// What a batch run works with.
#[derive(Clone)]
pub struct BatchParts {
    /// The log, whose topics exist.
    pub log: Log,
    /// Where the tables are.
    pub root: TableRoot,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// Where to compute.
    pub compute: Arc<Compute>,
    /// Instruments.
    pub telemetry: BatchTelemetry,
    /// How long a run waits for the owners to answer, and then for the archiver to reach their cuts.
    pub patience: Duration,
}

/// How one run is wanted.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Commits even if there is nothing new.
    pub force: bool,
    /// Told how far it is.
    pub progress: Option<OnProgress>,
}

impl fmt::Debug for RunOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions").field("force", &self.force).finish_non_exhaustive()
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There is a new view.
    Committed,
    /// No reading came since the last run, time has settled no window, and the definitions are the same: the view stays.
    NothingNew,
}

/// What a run did. As JSON, it is what `wye batch run --json` prints; fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Readings below the horizon, copies included.
    pub readings: u64,
    /// Copies with the same value.
    pub duplicates: u64,
    /// Copies with another value.
    pub conflicts: u64,
    /// Rows of the view: windows of all series.
    pub windows: u64,
    /// Series.
    pub series: u64,
    /// By Kafka partition: the view has the readings below this offset.
    pub horizon: BTreeMap<i32, i64>,
    /// From start to commit.
    pub duration_ms: u64,
    /// The version of the table that holds the view; absent when there is none yet.
    pub version: Option<u64>,
    /// The Kafka partitions of readings whose owner did not answer, so that the run took what was archived.
    #[serde(default)]
    pub unanswered: Vec<i32>,
    /// By Kafka partition: how many messages were in the log when the run was asked for and are not in the view.
    #[serde(default)]
    pub not_covered: BTreeMap<i32, i64>,
}

/// Runs batch runs, one at a time.
pub struct BatchRunner {
    root: TableRoot,
    readings: Readings,
    views: BatchViews,
    control: ControlLog,
    plans: Arc<MetricPlans>,
    expectations: Arc<Expectations>,
    compute: Arc<Compute>,
    telemetry: BatchTelemetry,
    patience: Duration,
    turn: Mutex<()>,
}

/// What a run has decided to do.
struct Task {
    started: i64,
    clock: Instant,
    previous: Option<ViewSnapshot>,
    cuts: Cuts,
    recomputation: Recomputation,
}

impl BatchRunner {
    /// Opens the tables, and makes the master dataset if it does not exist.
    ///
    /// # Errors
    /// When a table cannot be opened, or an expectation cannot be worked out.
    pub async fn open(parts: BatchParts) -> Result<Self, BatchError> {
        let readings =
            Readings::open(&parts.root).await.map_err(BatchError::tables("open the master dataset"))?;
        let views = BatchViews::open(&parts.root).map_err(BatchError::tables("open the batch views"))?;
        let expectations = Expectations::new(&parts.plans).map_err(BatchError::Compute)?;
        Ok(Self {
            root: parts.root,
            readings,
            views,
            control: ControlLog::new(parts.log)?,
            plans: parts.plans,
            expectations: Arc::new(expectations),
            compute: parts.compute,
            telemetry: parts.telemetry,
            patience: parts.patience,
            turn: Mutex::new(()),
        })
    }

    /// Does one run. Dropping the returned future ends it, at any time: the old view or the new one stands.
    ///
    /// # Errors
    /// [`BatchError::AnotherRunFirst`] (of kind `Conflict`) when another process has committed meanwhile; else what
    /// failed.
    pub async fn run(&self, options: RunOptions) -> Result<RunReport, BatchError> {
        let _turn = self.turn.lock().await;
        let ended = self.run_in_turn(options).await;
        if let Err(error) = &ended {
            let reason = kind_name(error);
            self.telemetry.failed_runs.get_or_create(&wye_runtime::telemetry::ReasonLabel { reason }).inc();
        }
        ended
    }

    async fn run_in_turn(&self, options: RunOptions) -> Result<RunReport, BatchError> {
        let (started, clock) = (now_micros(), Instant::now());
        let previous = self.latest().await?;
        let before = previous.as_ref().map(|view| view.horizon.clone()).unwrap_or_default();
        let cuts = self.control.ask_for_cuts(&before, self.patience).await?;
        if let Some(previous) = &previous {
            self.announce(&previous.horizon, previous.version(), &cuts.control).await?;
        }
        let snapshot = self.archived_up_to(&cuts.wanted()).await?;
        let horizons = Horizons::choose(&cuts, &snapshot.archived(), &before);
        let same_definitions = previous.as_ref().is_none_or(|view| self.is_current(view));
        let as_of = horizons.covers(&cuts.ends).then_some(started);
        let settles = previous.as_ref().is_some_and(|view| is_due(view, as_of));
        if horizons.is_nothing_new(&before) && same_definitions && !settles && !options.force {
            return Ok(nothing_new(previous.as_ref(), clock.elapsed(), &cuts));
        }
        self.pin(&horizons.pinned).await?;
        let recomputation = Recomputation {
            root: self.root.clone(),
            readings: snapshot,
            views: self.views.clone(),
            plans: Arc::clone(&self.plans),
            expectations: Arc::clone(&self.expectations),
            horizon: horizons.offsets,
            as_of,
            threads: self.compute.threads(),
            progress: options.progress,
        };
        let computed = self.compute.run(recompute(recomputation.clone())).await??;
        self.commit(Task { started, clock, previous, cuts, recomputation }, computed).await
    }

    /// The master dataset once it has all of `wanted`, or as it is after the patience.
    async fn archived_up_to(&self, wanted: &BTreeMap<i32, i64>) -> Result<ReadingsSnapshot, BatchError> {
        let deadline = Instant::now() + self.patience;
        loop {
            let snapshot = self.readings.snapshot().await;
            let snapshot = snapshot.map_err(BatchError::tables("read the master dataset"))?;
            let archived = snapshot.archived();
            let lacks = |(place, next): (&i32, &i64)| archived.get(place).copied().unwrap_or(0) < *next;
            if !wanted.iter().any(lacks) || Instant::now() >= deadline {
                return Ok(snapshot);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Announces horizons that no owner has announced.
    async fn pin(&self, pinned: &[(i32, i64)]) -> Result<(), BatchError> {
        for (kafka_partition, start) in pinned {
            warn!(kafka_partition, start, "no owner has answered; the run takes what is archived");
            let record =
                ControlRecord::Epoch { generation: None, start: *start, announced_at: 0, answers: None };
            self.control.append(*kafka_partition, &record).await?;
        }
        Ok(())
    }

    async fn commit(&self, task: Task, computed: Recomputed) -> Result<RunReport, BatchError> {
        let Recomputed { schema, files, tally, windows, series, as_of, settles_at } = computed;
        let horizon = task.recomputation.horizon;
        let mut report = RunReport {
            outcome: Outcome::Committed,
            readings: tally.readings,
            duplicates: tally.duplicates,
            conflicts: tally.conflicts,
            windows,
            series,
            horizon: horizon.clone(),
            duration_ms: 0,
            version: None,
            unanswered: task.cuts.silent.iter().copied().collect(),
            not_covered: task.cuts.not_covered(&horizon),
        };
        let run = RunRecord {
            run_id: format!("{}-{}", task.started, std::process::id()),
            started_at: task.started,
            finished_at: now_micros(),
            readings: report.readings,
            duplicates: report.duplicates,
            conflicts: report.conflicts,
            windows,
            series,
            definitions: self.plans.fingerprint().to_string(),
            as_of,
            lateness: tally.lateness,
            failures: tally.failures,
            settles_at,
        };
        let expected_version = task.previous.as_ref().map(ViewSnapshot::version);
        let commit = ViewCommit { schema, files, horizon: horizon.clone(), run, expected_version };
        let version = self.views.commit(commit).await.map_err(|source| match source {
            TablesError::Conflict { .. } => BatchError::AnotherRunFirst(Box::new(source)),
            source => BatchError::tables("commit the batch views")(source),
        })?;
        report.version = Some(version);
        report.duration_ms = millis(task.clock.elapsed());
        self.measure(&report);
        if !report.not_covered.is_empty() {
            warn!(not_covered = ?report.not_covered, "messages that were there when the run began are left to the next run");
        }
        info!(
            version,
            readings = report.readings,
            windows = report.windows,
            milliseconds = report.duration_ms,
            "batch view committed"
        );
        // The view stands; the next run says so again where this does not get through.
        if let Err(error) = self.announce(&horizon, version, &BTreeMap::new()).await {
            warn!(%error, version, "cannot announce the new horizon; the next batch run will");
        }
        Ok(report)
    }

    /// Tells every Kafka partition of the control topic the horizon, unless `known` says that it has heard of it.
    async fn announce(
        &self,
        horizon: &BTreeMap<i32, i64>,
        version: u64,
        known: &BTreeMap<i32, ControlView>,
    ) -> Result<(), BatchError> {
        for (kafka_partition, offset) in horizon {
            let heard = known.get(kafka_partition).and_then(|view| view.horizon);
            let exists = *kafka_partition < self.control.kafka_partitions();
            if exists && heard.is_none_or(|heard| heard < *offset) {
                let version = i64::try_from(version).unwrap_or(i64::MAX);
                let record = ControlRecord::Horizon { offset: *offset, version };
                self.control.append(*kafka_partition, &record).await?;
            }
        }
        Ok(())
    }

    /// Tells the control topic the horizon of the newest view, where it has not heard of it.
    ///
    /// # Errors
    /// When the views cannot be read, or the log not be read or written.
    pub async fn announce_latest(&self) -> Result<(), BatchError> {
        let Some(latest) = self.latest().await? else { return Ok(()) };
        let control = self.control.views().await?;
        self.announce(&latest.horizon, latest.version(), &control).await
    }

    /// Whether there is a view that was computed with other definitions than these.
    ///
    /// # Errors
    /// When the views cannot be read.
    pub async fn has_other_definitions(&self) -> Result<bool, BatchError> {
        Ok(self.latest().await?.is_some_and(|view| !self.is_current(&view)))
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
        Ok(())
    }

    async fn latest(&self) -> Result<Option<ViewSnapshot>, BatchError> {
        self.views.latest().await.map_err(BatchError::tables("read the batch views"))
    }

    fn is_current(&self, view: &ViewSnapshot) -> bool {
        let fingerprint = self.plans.fingerprint().to_string();
        view.run.as_ref().is_some_and(|run| run.definitions == fingerprint)
    }

    fn measure(&self, report: &RunReport) {
        let telemetry = &self.telemetry;
        telemetry.runs.inc();
        telemetry.run_seconds.observe(report.duration_ms as f64 / 1e3);
        telemetry.windows.set(i64::try_from(report.windows).unwrap_or(i64::MAX));
        telemetry.readings.set(i64::try_from(report.readings).unwrap_or(i64::MAX));
        telemetry.committed_at.set(now_micros() / 1_000_000);
        for (kafka_partition, offset) in &report.horizon {
            let label = KafkaPartitionLabel { kafka_partition: *kafka_partition };
            telemetry.horizon.get_or_create(&label).set(*offset);
        }
    }
}

/// Whether a window of a view that was not settled is so by now, given that everything ingested before `as_of` (µs) is in
/// the view.
fn is_due(view: &ViewSnapshot, as_of: Option<i64>) -> bool {
    let settles_at = view.run.as_ref().and_then(|run| run.settles_at);
    as_of.zip(settles_at).is_some_and(|(as_of, settles_at)| as_of >= settles_at)
}

/// What is reported when the view stays: what the run said that made it.
fn nothing_new(view: Option<&ViewSnapshot>, duration: Duration, cuts: &Cuts) -> RunReport {
    let run = view.and_then(|view| view.run.clone()).unwrap_or_default();
    let horizon = view.map(|view| view.horizon.clone()).unwrap_or_default();
    RunReport {
        outcome: Outcome::NothingNew,
        readings: run.readings,
        duplicates: run.duplicates,
        conflicts: run.conflicts,
        windows: run.windows,
        series: run.series,
        not_covered: cuts.not_covered(&horizon),
        horizon,
        duration_ms: millis(duration),
        version: view.map(ViewSnapshot::version),
        unanswered: cuts.silent.iter().copied().collect(),
    }
}

fn kind_name(error: &BatchError) -> &'static str {
    use wye_domain::ErrorKind;
    match error.kind() {
        ErrorKind::Invalid => "invalid",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Internal => "internal",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

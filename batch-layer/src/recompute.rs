//! Computes all views from the readings below a horizon and writes them to files that nobody sees yet. Must not know
//! Kafka's client, nor commit anything.
//!
//! `sorted scan → DedupExec` in as many plan partitions as there are threads, each folded on its own; then the rows
//! are cut into as many parts as there are threads, each written on its own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use tokio::task::JoinSet;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_tables::readings::ReadingsSnapshot;
use wye_tables::scan::SortedScan;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, ViewFile};

use crate::dedup::DedupExec;
use crate::error::BatchError;
use crate::fold::{Fold, Folded, Tally, combine};
use wye_metrics::view_rows::{AsOf, RowMaker};

/// What a run reads of a reading: what definitions can see, what makes its identity, and its place in the log.
const COLUMNS: [&str; 11] = [
    "device_id",
    "metric",
    "value",
    "event_time",
    "sequence",
    "unit",
    "tags",
    "ingest_time",
    "kafka_partition",
    "kafka_offset",
    "kafka_index",
];
/// Rows that are read at once.
const ROWS_READ: usize = 32 * 1024;
/// Rows that are encoded at once.
const ROWS_WRITTEN: usize = 32 * 1024;
/// More than one, since plan partitions are not of one size.
const FILES_PER_THREAD: usize = 2;
/// Below this many rows a part is not worth a file of its own.
const LEAST_ROWS: usize = 128 * 1024;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Readings read.
    pub done: u64,
    /// Readings in the master dataset; those above the horizon are not read.
    pub total: u64,
}

/// Told from time to time, from several threads, how far a run is.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// What to compute.
#[derive(Clone)]
pub struct Recomputation {
    /// Where the tables are.
    pub root: TableRoot,
    /// What was read.
    pub readings: ReadingsSnapshot,
    /// Where the views go.
    pub views: BatchViews,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// How many readings are expected.
    pub expectations: Arc<Expectations>,
    /// By Kafka partition: only readings below this offset.
    pub horizon: BTreeMap<i32, i64>,
    /// Everything that was ingested before this time (µs) is below the horizon; `None` where that is only known of the
    /// readings themselves.
    pub as_of: Option<i64>,
    /// How many threads compute.
    pub threads: usize,
    /// Told how far it is.
    pub progress: Option<OnProgress>,
}

/// Views that were computed and written, for [`BatchViews::commit`].
#[derive(Debug)]
pub struct Recomputed {
    /// Their columns.
    pub schema: SchemaRef,
    /// Their files.
    pub files: Vec<ViewFile>,
    /// What was read.
    pub tally: Tally,
    /// How many rows: windows of all series.
    pub windows: u64,
    /// How many series.
    pub series: u64,
    /// Everything that was ingested before this time (µs) is in the views.
    pub as_of: i64,
    /// The time (µs) at which the next window is settled; `None` when all are.
    pub settles_at: Option<i64>,
}

/// Computes the views. To be run where computing is allowed: see [`crate::compute`].
///
/// # Errors
/// When the readings cannot be read, a definition fails on them, or the files cannot be written.
pub async fn recompute(task: Recomputation) -> Result<Recomputed, BatchError> {
    let plan = plan(&task)?;
    let folds = fold_all(&task, &plan).await?;
    let (folded, tally) = combine(folds);
    let time = tally.as_of.max(task.as_of).unwrap_or_default();
    let as_of = AsOf { time, lateness: Arc::new(tally.lateness.clone()) };
    let mut parts = Vec::with_capacity(folded.len());
    for folded in folded {
        parts.push(Part::new(&task, folded, &as_of));
    }
    let windows = parts.iter().map(|part| part.order.len() as u64).sum();
    let series = parts.iter().map(Part::series).sum();
    let settles_at = parts.iter().filter_map(|part| part.settles_at(&as_of)).min();
    let schema = wye_metrics::view_rows::schema(&task.plans);
    let files = write_all(&task, parts, &schema).await?;
    Ok(Recomputed { schema, files, tally, windows, series, as_of: time, settles_at })
}

/// The plan whose streams are folded: readings below the horizon, sorted, marked.
///
/// # Errors
/// When the master dataset cannot be planned.
pub fn plan(task: &Recomputation) -> Result<Arc<dyn ExecutionPlan>, BatchError> {
    let scan = SortedScan {
        horizon: Some(&task.horizon),
        columns: &COLUMNS,
        plan_partitions: task.threads,
        batch_size: Some(ROWS_READ),
    };
    let scan = task
        .readings
        .sorted_scan(&scan)
        .map_err(BatchError::tables("plan the reading of the master dataset"))?;
    Ok(Arc::new(DedupExec::new(scan).map_err(BatchError::Compute)?))
}

async fn fold_all(task: &Recomputation, plan: &Arc<dyn ExecutionPlan>) -> Result<Vec<Fold>, BatchError> {
    let session = SessionContext::new_with_config(SessionConfig::new().with_batch_size(ROWS_READ));
    task.root.register(&session.runtime_env()).map_err(BatchError::tables("open the store"))?;
    let done = Arc::new(AtomicU64::new(0));
    let total = task.readings.readings();
    let mut folding = JoinSet::new();
    for plan_partition in 0..plan.output_partitioning().partition_count() {
        let stream = plan.execute(plan_partition, session.task_ctx()).map_err(BatchError::Compute)?;
        let (plans, progress, done) = (Arc::clone(&task.plans), task.progress.clone(), Arc::clone(&done));
        let report = move |rows: usize| {
            let done = done.fetch_add(rows as u64, Ordering::Relaxed) + rows as u64;
            if let Some(progress) = &progress {
                progress(Progress { done, total });
            }
        };
        folding.spawn(async move { (plan_partition, fold(stream, plans, report).await) });
    }
    let mut folds = BTreeMap::new();
    while let Some(folded) = folding.join_next().await {
        let (plan_partition, folded) = finished(folded)?;
        folds.insert(plan_partition, folded.map_err(BatchError::Compute)?);
    }
    Ok(folds.into_values().collect())
}

async fn fold(
    mut stream: SendableRecordBatchStream,
    plans: Arc<MetricPlans>,
    report: impl Fn(usize),
) -> datafusion::error::Result<Fold> {
    let mut fold = Fold::new(plans);
    while let Some(batch) = stream.try_next().await? {
        fold.push(&batch)?;
        report(batch.num_rows());
    }
    Ok(fold)
}

/// The summaries of one plan partition, ready to be written.
struct Part {
    folded: Folded,
    order: Vec<u32>,
    maker: RowMaker,
}

impl Part {
    fn new(task: &Recomputation, folded: Folded, as_of: &AsOf) -> Self {
        let maker = RowMaker::new(&task.plans, &task.expectations, &folded.series, as_of);
        let order = folded.order(&maker.stored());
        Self { folded, order, maker }
    }

    /// How many series have rows here.
    fn series(&self) -> u64 {
        let mut last = None;
        let mut count = 0;
        for slot in &self.order {
            let series = self.folded.entries[*slot as usize].series;
            count += u64::from(last != Some(series));
            last = Some(series);
        }
        count
    }

    /// The time (µs) at which the next window that is not settled will be.
    fn settles_at(&self, as_of: &AsOf) -> Option<i64> {
        let age = as_of.lateness.settling_age();
        let times = self.order.iter().map(|slot| {
            let entry = &self.folded.entries[*slot as usize];
            self.maker.window_end(entry).saturating_add(age)
        });
        times.filter(|time| *time > as_of.time).min()
    }

    /// Where to cut the rows so that `threads` threads have about the same to do.
    fn cuts(&self, rows_in_all: usize, threads: usize) -> Vec<Range<usize>> {
        let share = rows_in_all.div_ceil(FILES_PER_THREAD * threads.max(1)).max(LEAST_ROWS);
        let pieces = (self.order.len() + share / 2) / share;
        let length = self.order.len().div_ceil(pieces.max(1)).max(1);
        let starts = (0..self.order.len()).step_by(length);
        starts.map(|start| start..(start + length).min(self.order.len())).collect()
    }
}

async fn write_all(
    task: &Recomputation,
    parts: Vec<Part>,
    schema: &SchemaRef,
) -> Result<Vec<ViewFile>, BatchError> {
    let rows = parts.iter().map(|part| part.order.len()).sum();
    let mut writing = JoinSet::new();
    let mut place = 0;
    for part in parts {
        let part = Arc::new(part);
        for cut in part.cuts(rows, task.threads) {
            let (part, views, schema) = (Arc::clone(&part), task.views.clone(), Arc::clone(schema));
            writing.spawn(async move { (place, write(&views, &schema, &part, cut).await) });
            place += 1;
        }
    }
    let mut files = BTreeMap::new();
    while let Some(written) = writing.join_next().await {
        let (place, written) = finished(written)?;
        files.insert(place, written?);
    }
    Ok(files.into_values().flatten().collect())
}

async fn write(
    views: &BatchViews,
    schema: &SchemaRef,
    part: &Part,
    cut: Range<usize>,
) -> Result<Vec<ViewFile>, BatchError> {
    let failed = BatchError::tables("write batch views");
    let mut writer = views.writer(schema).map_err(&failed)?;
    for slots in part.order[cut].chunks(ROWS_WRITTEN) {
        let entries = slots.iter().map(|slot| &part.folded.entries[*slot as usize]);
        writer.write(&part.maker.rows(entries)).map_err(&failed)?;
        // A run that was called off ends here, and files in the background get their turn.
        tokio::task::yield_now().await;
    }
    writer.finish().await.map_err(&failed)
}

/// The value of a task that was waited for.
fn finished<T>(joined: Result<T, tokio::task::JoinError>) -> Result<T, BatchError> {
    joined.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => BatchError::Stopping,
    })
}

#[cfg(test)]
mod tests;

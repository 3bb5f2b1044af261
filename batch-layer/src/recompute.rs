//! Computes all views from the readings below a horizon and writes them to files that no reader sees before a commit. Must
//! not know Kafka's client, nor commit anything.
//!
//! `sorted scan → DedupExec` in as many plan partitions as there are threads, each folded on its own; then the rows
//! are cut into pieces of about the same size, each written on its own.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::{ExecutionPlan, execute_stream_partitioned};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use futures::future::try_join_all;
use wye_domain::horizon::Horizon;
use wye_domain::time::Micros;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::ViewSchema;
use wye_metrics::view_rows::maker::{AsOf, RowMaker};
use wye_tables::columns::stored_schema;
use wye_tables::readings::ReadingsSnapshot;
use wye_tables::scan::SortedScan;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, ViewFile};

use crate::compute::joined;
use crate::dedup::DedupExec;
use crate::error::BatchError;
use crate::fold::{Fold, Folded, Tally, combine};

/// Rows of one batch that is read.
const ROWS_READ: usize = 32 * 1024;
/// Rows of one batch that is encoded.
const ROWS_WRITTEN: usize = 32 * 1024;
/// More than one, since plan partitions are not of one size.
const FILES_PER_THREAD: usize = 2;
/// Below this many rows a part is not worth a file of its own.
const LEAST_ROWS: usize = 128 * 1024;

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Readings read.
    pub done: u64,
    /// Readings in the master dataset; those above the horizon are not read.
    pub total: u64,
}

/// Called from time to time, from several threads, with the progress of a run.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// What to compute.
#[derive(Clone)]
pub struct Recomputation {
    /// Where the tables are.
    pub root: TableRoot,
    /// The master dataset.
    pub readings: ReadingsSnapshot,
    /// Where the views go.
    pub views: BatchViews,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// How many readings are expected.
    pub expectations: Arc<Expectations>,
    /// Only readings below are read.
    pub horizon: Horizon,
    /// Everything that was ingested before this time is below the horizon; `None` where that is only known of the
    /// readings themselves.
    pub as_of: Option<Micros>,
    /// How many threads compute.
    pub threads: usize,
    /// Called with the progress.
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
    /// Everything that was ingested before this time is in the views; `None` where that is not known, and there are no
    /// readings.
    pub as_of: Option<Micros>,
    /// The time at which the next window is settled; `None` when all are.
    pub settles_at: Option<Micros>,
}

/// Computes the views. To be run on the threads of [`crate::compute`].
///
/// # Errors
/// When the readings cannot be read, a definition fails on them, or the files cannot be written.
pub async fn recompute(task: Recomputation) -> Result<Recomputed, BatchError> {
    let folds = fold_all(&task, plan(&task)?).await?;
    let (folded, tally) = combine(folds);
    let time = tally.as_of.max(task.as_of);
    // Without a time there are no windows.
    let as_of = AsOf { time: time.unwrap_or_default(), lateness: Arc::new(tally.lateness.clone()) };
    let mut parts = Vec::with_capacity(folded.len());
    for folded in folded {
        parts.push(Part::new(&task, folded, &as_of));
    }
    let windows = parts.iter().map(|part| part.order.len() as u64).sum();
    let series = parts.iter().map(Part::series).sum();
    let settles_at = parts.iter().filter_map(|part| part.settles_at(&as_of)).min();
    let schema = Arc::clone(ViewSchema::of(&task.plans).arrow());
    let files = write_all(&task, parts, &schema).await?;
    Ok(Recomputed { schema, files, tally, windows, series, as_of: time, settles_at })
}

/// The plan whose streams are folded: readings below the horizon, sorted, marked.
///
/// # Errors
/// When the master dataset cannot be planned.
pub fn plan(task: &Recomputation) -> Result<Arc<dyn ExecutionPlan>, BatchError> {
    // All columns: definitions can use them, or they say which reading it is and where it is in the log.
    let schema = stored_schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let scan = SortedScan {
        horizon: Some(&task.horizon),
        columns: &columns,
        plan_partitions: task.threads,
        batch_size: Some(ROWS_READ),
    };
    let scan = task
        .readings
        .sorted_scan(&scan)
        .map_err(BatchError::tables("plan the reading of the master dataset"))?;
    Ok(Arc::new(DedupExec::new(scan).map_err(BatchError::Compute)?))
}

async fn fold_all(task: &Recomputation, plan: Arc<dyn ExecutionPlan>) -> Result<Vec<Fold>, BatchError> {
    let session = SessionContext::new_with_config(SessionConfig::new().with_batch_size(ROWS_READ));
    task.root.register(&session.runtime_env()).map_err(BatchError::tables("open the store"))?;
    let streams = execute_stream_partitioned(plan, session.task_ctx()).map_err(BatchError::Compute)?;
    let read = Arc::new(Read {
        done: AtomicU64::new(0),
        total: task.readings.readings(),
        progress: task.progress.clone(),
    });
    let folding = streams.into_iter().map(|stream| {
        let fold = SpawnedTask::spawn(fold(stream, Arc::clone(&task.plans), Arc::clone(&read)));
        async { joined(fold).await?.map_err(BatchError::Compute) }
    });
    try_join_all(folding).await
}

/// What all plan partitions together have read.
struct Read {
    done: AtomicU64,
    total: u64,
    progress: Option<OnProgress>,
}

impl Read {
    fn add(&self, readings: usize) {
        let done = self.done.fetch_add(readings as u64, Ordering::Relaxed) + readings as u64;
        if let Some(progress) = &self.progress {
            progress(Progress { done, total: self.total });
        }
    }
}

async fn fold(
    mut stream: SendableRecordBatchStream,
    plans: Arc<MetricPlans>,
    read: Arc<Read>,
) -> datafusion::error::Result<Fold> {
    let mut fold = Fold::new(plans);
    while let Some(batch) = stream.try_next().await? {
        fold.push(&batch)?;
        read.add(batch.num_rows());
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

    /// The time at which the next window is settled; `None` when all are.
    fn settles_at(&self, as_of: &AsOf) -> Option<Micros> {
        let age = as_of.lateness.settling_age();
        let times =
            self.order.iter().map(|slot| self.maker.window(&self.folded.entries[*slot as usize]).end + age);
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

/// Writes all rows. The files come in the order of the parts.
async fn write_all(
    task: &Recomputation,
    parts: Vec<Part>,
    schema: &SchemaRef,
) -> Result<Vec<ViewFile>, BatchError> {
    let rows = parts.iter().map(|part| part.order.len()).sum();
    let mut writing = Vec::new();
    for part in parts {
        let part = Arc::new(part);
        for cut in part.cuts(rows, task.threads) {
            let write = write(task.views.clone(), Arc::clone(schema), Arc::clone(&part), cut);
            let write = SpawnedTask::spawn(write);
            writing.push(async { joined(write).await? });
        }
    }
    Ok(try_join_all(writing).await?.into_iter().flatten().collect())
}

async fn write(
    views: BatchViews,
    schema: SchemaRef,
    part: Arc<Part>,
    cut: Range<usize>,
) -> Result<Vec<ViewFile>, BatchError> {
    let failed = BatchError::tables("write batch views");
    let mut writer = views.writer(&schema).map_err(&failed)?;
    for slots in part.order[cut].chunks(ROWS_WRITTEN) {
        let entries = slots.iter().map(|slot| &part.folded.entries[*slot as usize]);
        writer.write(&part.maker.rows(entries)).await.map_err(&failed)?;
        // A run that was cancelled ends here, and uploads in the background get their turn.
        tokio::task::yield_now().await;
    }
    writer.finish().await.map_err(&failed)
}

#[cfg(test)]
mod tests;

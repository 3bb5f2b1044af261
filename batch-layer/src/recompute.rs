//! Computes all views from the readings below a horizon and writes them to files that no reader sees before a commit. Must
//! not know Kafka's client, nor commit anything.
//!
//! `sorted scan → DedupExec`, in ranges of devices with about as many readings each. As many ranges as there are threads are
//! folded at the same time; when one has ended, its rows are written and forgotten. So memory holds the windows of a few
//! ranges, and those of groups that span devices, which are written at the end.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};
use wye_domain::horizon::Horizon;
use wye_domain::time::Micros;
use wye_metrics::confidence::LatenessHistogram;
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
use crate::fold::{Fold, Folded, Share, Shared, Tally};

/// Rows of one batch that is read.
const ROWS_READ: usize = 32 * 1024;
/// Rows of one batch that is encoded.
const ROWS_WRITTEN: usize = 32 * 1024;
/// Rows that are worth a file of their own.
const ROWS_PER_FILE: usize = 1 << 20;

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
    /// About how many windows a range of devices has.
    pub range_windows: u64,
    /// About how many windows there are for each reading, as the last run has found; `None` where that is not known.
    pub windows_per_reading: Option<f64>,
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
    /// How late the readings were.
    pub lateness: Arc<LatenessHistogram>,
    /// The time at which the next window is settled; `None` when all are.
    pub settles_at: Option<Micros>,
}

/// Computes the views. To be run on the threads of [`crate::compute`].
///
/// # Errors
/// When the readings cannot be read, a definition fails on them, or the files cannot be written.
pub async fn recompute(task: Recomputation) -> Result<Recomputed, BatchError> {
    let arrival = task.readings.arrival(&task.horizon).await;
    let arrival = arrival.map_err(BatchError::tables("read when the readings have arrived"))?;
    let time = arrival.newest.max(task.as_of);
    let lateness = Arc::new(arrival.lateness);
    // Without a time there are no windows.
    let as_of = AsOf { time: time.unwrap_or_default(), lateness: Arc::clone(&lateness) };
    let plan = plan(&task)?;
    let ranges = plan.output_partitioning().partition_count();
    let session = SessionContext::new_with_config(SessionConfig::new().with_batch_size(ROWS_READ));
    task.root.register(&session.runtime_env()).map_err(BatchError::tables("open the store"))?;
    let read =
        Read { done: AtomicU64::new(0), total: task.readings.readings(), progress: task.progress.clone() };
    let threads = task.threads.max(1);
    let work = Arc::new(Work { task, as_of, read, plan, session });
    let mut done = Recomputed {
        schema: Arc::clone(ViewSchema::of(&work.task.plans).arrow()),
        files: Vec::new(),
        tally: Tally::default(),
        windows: 0,
        series: 0,
        as_of: time,
        lateness,
        settles_at: None,
    };
    // A range is opened only when its turn comes. They end in their order, so that results do not depend on the timing.
    let mut folding = futures::stream::iter(0..ranges)
        .map(|range| {
            let folding = SpawnedTask::spawn(Work::fold(Arc::clone(&work), range));
            async { joined(folding).await? }
        })
        .buffered(threads);
    let mut shared = Shared::default();
    while let Some((written, share, tally)) = folding.try_next().await? {
        done.add(written);
        done.tally.merge(&tally);
        shared.merge(&share);
    }
    done.add(work.write(shared.finish(), threads).await?);
    Ok(done)
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
        plan_partitions: ranges(task),
        batch_size: Some(ROWS_READ),
    };
    let scan = task
        .readings
        .sorted_scan(&scan)
        .map_err(BatchError::tables("plan the reading of the master dataset"))?;
    Ok(Arc::new(DedupExec::new(scan).map_err(BatchError::Compute)?))
}

/// In how many ranges the devices are read.
fn ranges(task: &Recomputation) -> usize {
    // At most, a reading is alone in a window of each definition.
    let each = task.windows_per_reading.unwrap_or(task.plans.plans().len() as f64);
    let windows = task.readings.readings() as f64 * each;
    let wanted = (windows / task.range_windows.max(1) as f64).ceil();
    (wanted as usize).max(task.threads)
}

/// What all ranges together have read.
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

/// What the threads work with.
struct Work {
    task: Recomputation,
    as_of: AsOf,
    read: Read,
    plan: Arc<dyn ExecutionPlan>,
    session: SessionContext,
}

/// Rows that were written.
struct Written {
    files: Vec<ViewFile>,
    windows: u64,
    series: u64,
    settles_at: Option<Micros>,
}

impl Recomputed {
    fn add(&mut self, written: Written) {
        self.files.extend(written.files);
        self.windows += written.windows;
        self.series += written.series;
        self.settles_at = self.settles_at.into_iter().chain(written.settles_at).min();
    }
}

impl Work {
    /// Folds a range of devices and writes its own series.
    async fn fold(self: Arc<Self>, range: usize) -> Result<(Written, Share, Tally), BatchError> {
        let mut fold = Fold::new(Arc::clone(&self.task.plans));
        let stream = self.plan.execute(range, self.session.task_ctx());
        let mut stream = stream.map_err(BatchError::Compute)?;
        while let Some(batch) = stream.try_next().await.map_err(BatchError::Compute)? {
            fold.push(&batch).map_err(BatchError::Compute)?;
            self.read.add(batch.num_rows());
        }
        drop(stream);
        let (own, share, tally) = fold.finish();
        Ok((self.write(own, 1).await?, share, tally))
    }

    /// Writes summaries that are complete, with several threads where there are many.
    async fn write(&self, folded: Folded, threads: usize) -> Result<Written, BatchError> {
        let part = Arc::new(Part::new(&self.task, folded, &self.as_of));
        let mut written = Written {
            files: Vec::new(),
            windows: part.order.len() as u64,
            series: part.series(),
            settles_at: part.settles_at(&self.as_of),
        };
        let cuts = part.cuts().into_iter();
        let mut writing = futures::stream::iter(cuts)
            .map(|cut| {
                let writing = SpawnedTask::spawn(write(self.task.views.clone(), Arc::clone(&part), cut));
                async { joined(writing).await? }
            })
            .buffered(threads);
        while let Some(files) = writing.try_next().await? {
            written.files.extend(files);
        }
        Ok(written)
    }
}

/// Summaries that are complete, ready to be written.
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

    /// The rows of each file.
    fn cuts(&self) -> Vec<Range<usize>> {
        let pieces = self.order.len().div_ceil(ROWS_PER_FILE).max(1);
        let length = self.order.len().div_ceil(pieces).max(1);
        let starts = (0..self.order.len()).step_by(length);
        starts.map(|start| start..(start + length).min(self.order.len())).collect()
    }
}

async fn write(views: BatchViews, part: Arc<Part>, rows: Range<usize>) -> Result<Vec<ViewFile>, BatchError> {
    let failed = BatchError::tables("write batch views");
    let mut writer = views.writer(part.maker.schema()).map_err(&failed)?;
    for slots in part.order[rows].chunks(ROWS_WRITTEN) {
        let entries = slots.iter().map(|slot| &part.folded.entries[*slot as usize]);
        writer.write(&part.maker.rows(entries)).await.map_err(&failed)?;
        // A run that was cancelled ends here, and uploads in the background get their turn.
        tokio::task::yield_now().await;
    }
    writer.finish().await.map_err(&failed)
}

#[cfg(test)]
mod tests;

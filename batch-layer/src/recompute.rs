//! Computes the cells of a view that have changed, and writes their rows to files that no reader sees before a commit. Must
//! not know Kafka's client, nor commit anything.
//!
//! Each cell is computed by one thread, several cells at the same time. It is read in pieces, some devices at a time; the rows
//! of series that no other device adds to are written at the end of each piece. So memory holds the readings of one piece and
//! the windows of one cell in each thread, whatever the size of the table.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use datafusion::common::runtime::SpawnedTask;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Mutex;
use wye_domain::fingerprint;
use wye_domain::horizon::Horizon;
use wye_domain::time::{Micros, Window};
use wye_metrics::amendment::{Amending, Amendment, in_force};
use wye_metrics::confidence::{Arrival, LatenessHistogram};
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::maker::RowMaker;
use wye_metrics::view_rows::{COMPUTATION, ViewSchema};
use wye_tables::readings::ReadingsSnapshot;
use wye_tables::restatements::{RestatementFile, RestatementWriter, Restatements};
use wye_tables::scan::cells::{FilesBelow, HowToRead};
use wye_tables::store::TableRoot;
use wye_tables::views::{
    BatchViews, CellRecord, Cells, Replaces, ViewFile, ViewSnapshot, ViewVersion, ViewWriter,
};

use crate::cells::{Below, Cell, Grid, Plan, Reason, plan};
use crate::compute::joined;
use crate::dedup::Deduplicator;
use crate::error::BatchError;
use crate::fold::{Fold, Folded, Tally};
use crate::restate::{Comparison, OldRows};

/// Rows of one batch that is read.
const ROWS_READ: usize = 32 * 1024;
/// Bytes of memory for sorting files that are not sorted.
const SORT_MEMORY: usize = 512 << 20;
/// Rows of one batch that is encoded.
const ROWS_WRITTEN: usize = 32 * 1024;

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Readings read.
    pub done: u64,
    /// About how many readings the run reads.
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
    /// The amendments that are applied.
    pub amending: Amending,
    /// Only readings below are read.
    pub horizon: Horizon,
    /// Everything that was ingested before this time is below the horizon; `None` where that is only known of the
    /// readings themselves.
    pub as_of: Option<Micros>,
    /// Now. Readings that say that they were ingested later come from a broker whose clock was wrong.
    pub now: Micros,
    /// The view to start from, of the same definitions; everything is computed where there is none.
    pub since: Option<Since>,
    /// How many threads compute.
    pub threads: usize,
    /// About how many readings a cell has at most, where its windows are short enough.
    pub cell_readings: u64,
    /// What the numbers are compared with, and where those go that were settled and have changed; `None` where there is no
    /// view before.
    pub restating: Option<Restating>,
    /// Called with the progress.
    pub progress: Option<OnProgress>,
}

/// Finds settled numbers that have changed.
#[derive(Clone, Debug)]
pub struct Restating {
    /// What the numbers are compared with.
    pub comparison: Arc<Comparison>,
    /// Where the file of those goes that have changed.
    pub table: Restatements,
    /// The version of the views that the run is to commit.
    pub version: ViewVersion,
}

/// The view that a run starts from.
#[derive(Clone, Debug)]
pub struct Since {
    /// Readings below are in the view.
    pub horizon: Horizon,
    /// Its cells.
    pub cells: Cells,
    /// The stretches of time whose readings have been amended since.
    pub amended: Vec<Window>,
    /// A stretch of time that is computed even if nothing has changed.
    pub again: Option<Window>,
}

impl Since {
    /// Starts from a view, if it has all that is needed, and was computed of the same readings in the same way.
    ///
    /// # Errors
    /// Why everything is to be computed instead, in words for people.
    pub fn view(
        view: &ViewSnapshot,
        plans: &MetricPlans,
        amendments: &[Amendment],
        readings: &ReadingsSnapshot,
    ) -> Result<Self, &'static str> {
        let Some(run) = &view.run else {
            return Err("the log of the batch views no longer has the last run");
        };
        if run.definitions != plans.fingerprint().to_string() {
            return Err("the metric definitions, the registry or the rules of acceptance have changed");
        }
        if run.computation != COMPUTATION {
            return Err("another version of Wye has computed the batch views");
        }
        if run.readings_table != readings.table_id() {
            return Err("the batch views were computed of another table of readings");
        }
        let Some(cells) = view.cells() else {
            return Err("another program has written files of the batch views");
        };
        let known: HashSet<&str> = amendments.iter().map(|amendment| amendment.id.as_str()).collect();
        if run.amendments.iter().any(|applied| !known.contains(applied.as_str())) {
            return Err("an amendment that was applied is not in the table of amendments any more");
        }
        let amended = changed(amendments, &run.amendments);
        Ok(Self { horizon: view.horizon.clone(), cells, amended, again: None })
    }
}

/// The stretches of time of amendments that were made or revoked since those of these IDs were applied.
pub(crate) fn changed(amendments: &[Amendment], applied: &[String]) -> Vec<Window> {
    let now: HashSet<&str> = in_force(amendments).iter().map(|amendment| amendment.id.as_str()).collect();
    let before: HashSet<&str> = applied.iter().map(String::as_str).collect();
    let changed = amendments
        .iter()
        .filter(|amendment| now.contains(amendment.id.as_str()) != before.contains(amendment.id.as_str()));
    changed.map(|amendment| amendment.readings.times).collect()
}

/// Cells that were computed and written, for [`BatchViews::commit`].
#[derive(Debug)]
pub struct Recomputed {
    /// The columns of the view.
    pub schema: SchemaRef,
    /// The files of the computed cells.
    pub files: Vec<ViewFile>,
    /// The files that these replace.
    pub replaces: Replaces,
    /// By reason: how many cells were computed.
    pub computed_cells: BTreeMap<String, u64>,
    /// Readings in the computed cells.
    pub readings_read: u64,
    /// Series in the computed cells.
    pub series: u64,
    /// Settled numbers that have changed.
    pub restated: u64,
    /// The file of them; `None` without any.
    pub restatements: Option<RestatementFile>,
    /// All cells of the view, with those that were not computed.
    pub cells: Cells,
    /// Everything that was ingested before this time is in the views; `None` where that is not known, and there are no
    /// readings.
    pub as_of: Option<Micros>,
    /// When the first reading was ingested; `None` where that is not known.
    pub first_ingest: Option<Micros>,
    /// How late the readings were.
    pub lateness: LatenessHistogram,
}

impl Recomputed {
    /// What the readings of the whole view are.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for cell in self.cells.values() {
            tally.merge(&Tally {
                readings: cell.readings,
                duplicates: cell.duplicates,
                conflicts: cell.conflicts,
                dropped: cell.dropped,
                failures: cell.failures.clone(),
            });
        }
        tally
    }

    /// How many rows the view has: windows of all series.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.cells.values().map(|cell| cell.windows).sum()
    }
}

/// Computes the cells that have changed. To be run on the threads of [`crate::compute`].
///
/// # Errors
/// When the readings cannot be read, a definition fails on them, or the files cannot be written.
pub async fn recompute(task: Recomputation) -> Result<Recomputed, BatchError> {
    let Planned { plan, as_of, first_ingest, lateness } = planned(&task).await?;
    let mut cells = task.since.as_ref().map(|since| since.cells.clone()).unwrap_or_default();
    cells.retain(|start, _| !plan.replaces.contains(start));
    let replaces = if task.since.is_some() { Replaces::Cells(plan.replaces) } else { Replaces::All };
    let mut done = Recomputed {
        schema: Arc::clone(ViewSchema::of(&task.plans).arrow()),
        files: Vec::new(),
        replaces,
        computed_cells: BTreeMap::new(),
        readings_read: 0,
        series: 0,
        restated: 0,
        restatements: None,
        cells,
        as_of,
        first_ingest,
        lateness,
    };
    let session = session().map_err(BatchError::Compute)?;
    task.root.register(&session.runtime_env()).map_err(BatchError::tables("open the store"))?;
    let below = task.readings.below(&task.horizon);
    let below = below.map_err(BatchError::tables("plan the reading of the master dataset"))?;
    let total = plan.compute.iter().map(|cell| cell.readings).sum();
    let read = Read { done: AtomicU64::new(0), total, progress: task.progress.clone() };
    let threads = task.threads.max(1);
    let writer =
        task.restating.as_ref().map(|restating| Mutex::new(restating.table.writer(restating.version)));
    let work = Arc::new(Work { task, read, below, session, restatements: writer });
    let mut computing = futures::stream::iter(plan.compute)
        .map(|cell| {
            let computing = SpawnedTask::spawn(Work::compute(Arc::clone(&work), cell));
            async { joined(computing).await? }
        })
        .buffered(threads);
    let mut series = HashSet::new();
    while let Some(computed) = computing.try_next().await? {
        *done.computed_cells.entry(computed.reason.name().to_owned()).or_default() += 1;
        series.extend(computed.series);
        done.readings_read += computed.record.readings;
        done.restated += computed.restated;
        // Cells without a reading come from counts that are not exact.
        if computed.record.readings > 0 {
            let files = ViewFile::of_cell(computed.files, &computed.record);
            done.files.extend(files.map_err(BatchError::tables("write batch views"))?);
            done.cells.insert(computed.record.start, computed.record);
        }
    }
    done.series = series.len() as u64;
    drop(computing);
    let writer = Arc::into_inner(work).and_then(|work| work.restatements);
    if let Some(writer) = writer {
        let finished = writer.into_inner().finish().await;
        done.restatements = finished.map_err(BatchError::tables("write restatements"))?;
    }
    Ok(done)
}

/// What reads readings. Files that other engines have written are sorted in it, on disk where they are too large.
fn session() -> datafusion::error::Result<SessionContext> {
    let pool = Arc::new(FairSpillPool::new(SORT_MEMORY));
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc()?;
    Ok(SessionContext::new_with_config_rt(SessionConfig::new().with_batch_size(ROWS_READ), runtime))
}

/// What a run will do.
#[derive(Debug)]
pub struct Planned {
    /// The cells to compute.
    pub plan: Plan,
    /// Everything that was ingested before this time is below the horizon; `None` where that is not known, and there are no
    /// readings.
    pub as_of: Option<Micros>,
    /// When the first reading was ingested; `None` where that is not known.
    pub first_ingest: Option<Micros>,
    /// How late the readings were.
    pub lateness: LatenessHistogram,
}

/// Chooses the cells to compute.
///
/// # Errors
/// When the master dataset cannot be read.
pub async fn planned(task: &Recomputation) -> Result<Planned, BatchError> {
    let since = task.since.as_ref().map(|since| since.horizon.clone()).unwrap_or_default();
    let contents = task.readings.contents(&since, &task.horizon).await;
    let contents = contents.map_err(BatchError::tables("read when the readings have arrived"))?;
    let as_of = contents.arrival.newest.max(task.as_of).map(|as_of| as_of.min(task.now));
    let below = Below {
        times: &contents.times,
        new: &contents.new,
        amended: task.since.as_ref().map_or(&[], |since| &since.amended),
        again: task.since.as_ref().and_then(|since| since.again),
    };
    let before = task.since.as_ref().map(|since| &since.cells);
    let plan = plan(&Grid::of(&task.plans), task.cell_readings, below, before);
    let Arrival { oldest: first_ingest, lateness, .. } = contents.arrival;
    Ok(Planned { plan, as_of, first_ingest, lateness })
}

/// What all cells together have read.
struct Read {
    done: AtomicU64,
    total: u64,
    progress: Option<OnProgress>,
}

impl Read {
    fn add(&self, readings: usize) {
        let done = self.done.fetch_add(readings as u64, Ordering::Relaxed) + readings as u64;
        if let Some(progress) = &self.progress {
            progress(Progress { done, total: self.total.max(done) });
        }
    }
}

/// What the threads work with.
struct Work {
    task: Recomputation,
    read: Read,
    below: FilesBelow,
    session: SessionContext,
    restatements: Option<Mutex<RestatementWriter>>,
}

/// A cell that was computed.
struct Computed {
    reason: Reason,
    record: CellRecord,
    files: Vec<ViewFile>,
    /// The fingerprints of its series.
    series: HashSet<u64>,
    /// Settled numbers that have changed.
    restated: u64,
}

impl Work {
    /// Computes a cell and writes its rows.
    async fn compute(self: Arc<Self>, cell: Cell) -> Result<Computed, BatchError> {
        let how =
            HowToRead { batch_rows: ROWS_READ, most_in_memory: self.task.cell_readings.saturating_mul(2) };
        let mut computed = Computed {
            reason: cell.reason,
            record: CellRecord { start: cell.window.start, end: cell.window.end, ..CellRecord::default() },
            files: Vec::new(),
            series: HashSet::new(),
            restated: 0,
        };
        let (plans, context) = (&self.task.plans, self.session.task_ctx());
        let mut old = match &self.task.restating {
            Some(Restating { comparison, .. }) => {
                OldRows::read(comparison, plans, cell.window, &context).await?
            }
            None => None,
        };
        let mut fold = Fold::new(Arc::clone(&self.task.plans));
        let amending = self.task.amending.within(cell.window);
        let mut pieces = self.below.pieces(cell.window, self.task.cell_readings).into_iter().peekable();
        while let Some(piece) = pieces.next() {
            let batches = self.below.read(&piece, how, self.session.task_ctx()).await;
            let mut batches = batches.map_err(BatchError::Compute)?;
            let mut deduplicator = Deduplicator::default();
            while let Some(batch) = batches.try_next().await.map_err(BatchError::Compute)? {
                let marked = deduplicator.marked(&batch).map_err(BatchError::Compute)?;
                let amended = fold.amend(marked, &amending).map_err(BatchError::Compute)?;
                fold.push(&amended).map_err(BatchError::Compute)?;
                self.read.add(batch.num_rows());
                // A run that was cancelled ends here, and uploads in the background get their turn.
                tokio::task::yield_now().await;
            }
            drop(batches);
            if pieces.peek().is_some() {
                self.write(fold.take_complete(), &mut computed, &mut old).await?;
            }
        }
        let (rest, tally) = fold.finish();
        // So that each cell has a file, it may be one without a row.
        if !rest.entries.is_empty() || computed.files.is_empty() {
            self.write(rest, &mut computed, &mut old).await?;
        }
        if let (Some(old), Some(restatements)) = (old, &self.restatements) {
            computed.restated = old.finish(&context, restatements).await?;
        }
        let Tally { readings, duplicates, conflicts, dropped, failures } = tally;
        computed.record =
            CellRecord { readings, duplicates, conflicts, dropped, failures, ..computed.record };
        Ok(computed)
    }

    /// Writes summaries that are complete.
    async fn write(
        &self,
        folded: Folded,
        computed: &mut Computed,
        old: &mut Option<OldRows>,
    ) -> Result<(), BatchError> {
        let failed = BatchError::tables("write batch views");
        let maker = RowMaker::new(&self.task.plans, &self.task.expectations, &folded.series);
        let stored = maker.stored();
        let order = folded.order(&stored);
        computed.series.extend(stored.iter().map(|stored| fingerprint::of_text(stored)));
        computed.record.windows += order.len() as u64;
        let mut writer: ViewWriter = self.task.views.writer(maker.schema()).map_err(&failed)?;
        for slots in order.chunks(ROWS_WRITTEN) {
            let entries = slots.iter().map(|slot| &folded.entries[*slot as usize]);
            let rows = maker.rows(entries);
            if let Some(old) = old {
                old.compare(&rows)?;
            }
            writer.write(&rows).await.map_err(&failed)?;
            tokio::task::yield_now().await;
        }
        computed.files.extend(writer.finish().await.map_err(&failed)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

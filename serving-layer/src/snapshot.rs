//! One batch view as it is served: its rows, its horizon, and the oldest and the newest window of each series.
//!
//! The rows are in the files of a table, or in memory for simulations. The windows are found once, when the view is
//! loaded: first where they are, from three columns, then the newest rows. This file does not know realtime views.

mod windows;

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::common::DFSchema;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, col};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use tracing::warn;
use wye_domain::horizon::Horizon;
use wye_domain::series::SeriesId;
use wye_domain::time::{Micros, Window, WindowSize};
use wye_metrics::confidence::Settling;
use wye_metrics::failures::Failures;
use wye_metrics::merge::BatchRow;
use wye_metrics::view_rows::reader::row_columns;
use wye_metrics::view_rows::{COMPUTATION, ViewColumn};
use wye_tables::columns::time_literal;
use wye_tables::run_record::RunRecord;
use wye_tables::views::{CellRecord, ViewSnapshot, ViewVersion};

use crate::ServingError;
use crate::directory::Directory;
use windows::{SeriesWindows, WindowBounds};

/// What a batch run says of itself that the merge needs.
#[derive(Clone, Debug, Default)]
pub struct RunFacts {
    /// The fingerprint of the definitions that its rows were made with; `None` where the run is not known, or of another version
    /// of the computation.
    pub definitions: Option<u64>,
    /// Everything that was ingested before this time is in the view; `None` where the run is not known.
    pub as_of: Option<Micros>,
    /// When the first reading was ingested; `None` where that is not known.
    pub first_ingest: Option<Micros>,
    /// The amendments that were applied.
    pub amendments: Arc<Vec<String>>,
    /// When readings arrive.
    pub settling: Arc<Settling>,
    /// The readings that definitions could not compute.
    pub failures: Arc<Failures>,
}

/// A batch view in memory.
#[derive(Clone, Debug)]
pub struct MemoryView {
    /// Its version; each view has a higher one than the view before.
    pub version: ViewVersion,
    /// The offsets below which readings are in the view.
    pub horizon: Horizon,
    /// What its run says of itself.
    pub facts: RunFacts,
    /// Its rows, in the columns of [`wye_metrics::view_rows`], sorted by series and window.
    pub rows: Vec<RecordBatch>,
}

/// A batch view with what is known of all its series.
#[derive(Debug)]
pub struct BatchSnapshot {
    version: ViewVersion,
    horizon: Horizon,
    facts: RunFacts,
    usable: bool,
    windows: SeriesWindows,
    rows: ViewRows,
    /// Its cells, where they are known.
    cells: Option<Vec<Window>>,
}

/// What is known of a view from the one before.
struct Known {
    /// The windows of the view before.
    windows: SeriesWindows,
    /// The part that is not known.
    new: ViewSnapshot,
    /// The stretches of time of which the view before has other rows.
    replaced: Vec<Window>,
}

/// Where the rows of a view are.
#[derive(Clone, Debug)]
enum ViewRows {
    Files(Box<ViewSnapshot>),
    Memory(Vec<RecordBatch>),
}

impl BatchSnapshot {
    /// Reads what is needed of a view. Where it has files of the view before, only the other files are read. This is
    /// computation: call it where computing is allowed.
    ///
    /// # Errors
    /// [`ServingError::Tables`], [`ServingError::Run`] or [`ServingError::View`] when its files cannot be read.
    pub async fn load(
        view: ViewSnapshot,
        before: Option<&Self>,
        directory: &Directory,
        context: &Arc<TaskContext>,
    ) -> Result<Self, ServingError> {
        let known = before.and_then(|before| before.known_to(&view));
        let mut loaded = Self::without_windows(
            view.version(),
            view.horizon.clone(),
            view.run.as_ref().map(RunFacts::of).unwrap_or_default(),
            ViewRows::Files(Box::new(view)),
            directory,
        );
        let known = known.filter(|_| loaded.usable);
        let (mut known, mut new, replaced) = match known {
            Some(Known { windows, new, replaced }) => (windows, ViewRows::Files(Box::new(new)), replaced),
            None => (SeriesWindows::default(), loaded.rows.clone(), Vec::new()),
        };
        let mut bounds = loaded.bounds(&known, &new, directory, context).await?;
        if bounds.is_lost(&replaced) {
            // A reading that counted is a duplicate now, since another one was found before it.
            (known, new) = (SeriesWindows::default(), loaded.rows.clone());
            bounds = loaded.bounds(&known, &new, directory, context).await?;
        }
        let first = bounds.first_kept();
        let mut windows = known.within(bounds);
        let Some(first) = first else { return Ok(Self { windows, ..loaded }) };
        let is_newest = col(ViewColumn::WindowStart.name()).gt_eq(time_literal(first));
        if let Some(plan) = loaded.scan_of(&new, &row_columns(), &[is_newest])? {
            let mut batches = Batches::of(plan, context);
            while let Some(batch) = batches.next().await? {
                windows.add(&batch, directory)?;
            }
        }
        loaded.windows = windows;
        Ok(loaded)
    }

    /// The first and the last windows, with those of rows that are added.
    async fn bounds(
        &self,
        known: &SeriesWindows,
        rows: &ViewRows,
        directory: &Directory,
        context: &Arc<TaskContext>,
    ) -> Result<WindowBounds, ServingError> {
        let mut bounds = known.bounds();
        if let Some(plan) = self.scan_of(rows, &WindowBounds::COLUMNS, &[])? {
            let mut batches = Batches::of(plan, context);
            while let Some(batch) = batches.next().await? {
                bounds.add(&batch, directory)?;
            }
        }
        Ok(bounds)
    }

    /// A view whose rows are in memory.
    ///
    /// # Errors
    /// [`ServingError::View`] when the rows do not have the columns of a batch view.
    pub fn in_memory(view: MemoryView, directory: &Directory) -> Result<Self, ServingError> {
        let MemoryView { version, horizon, facts, rows } = view;
        let mut loaded = Self::without_windows(version, horizon, facts, ViewRows::Memory(rows), directory);
        if let Some(rows) = loaded.rows_in_memory() {
            let mut bounds = WindowBounds::default();
            for batch in rows {
                bounds.add(batch, directory)?;
            }
            let mut windows = SeriesWindows::default().within(bounds);
            for batch in rows {
                windows.add(batch, directory)?;
            }
            loaded.windows = windows;
        }
        Ok(loaded)
    }

    /// What is known of a newer view of the same definitions and amendments.
    fn known_to(&self, view: &ViewSnapshot) -> Option<Known> {
        let ViewRows::Files(mine) = &self.rows else { return None };
        let facts = RunFacts::of(view.run.as_ref()?);
        let is_same = self.usable
            && facts.definitions == self.facts.definitions
            && facts.amendments == self.facts.amendments
            && mine.version() < view.version();
        let (new, replaced) = is_same.then(|| view.only_new(mine)).flatten()?;
        Some(Known { windows: self.windows.clone(), new, replaced })
    }

    fn without_windows(
        version: ViewVersion,
        horizon: Horizon,
        facts: RunFacts,
        rows: ViewRows,
        directory: &Directory,
    ) -> Self {
        let usable = facts.definitions == Some(directory.plans().fingerprint());
        if !usable {
            warn!(
                %version,
                "the batch view was made with other metric definitions, or by another version of Wye; its numbers are left out until the next run"
            );
        }
        let cells = match &rows {
            ViewRows::Files(view) => {
                view.cells().map(|cells| cells.values().map(CellRecord::window).collect())
            }
            ViewRows::Memory(_) => None,
        };
        Self { version, horizon, facts, usable, windows: SeriesWindows::default(), rows, cells }
    }

    /// The version of the batch views table.
    pub fn version(&self) -> ViewVersion {
        self.version
    }

    /// The offsets below which readings are in the view.
    pub fn horizon(&self) -> &Horizon {
        &self.horizon
    }

    /// What the run says of itself.
    pub fn facts(&self) -> &RunFacts {
        &self.facts
    }

    /// Whether its rows were made with the definitions in force; otherwise they are left out.
    pub fn usable(&self) -> bool {
        self.usable
    }

    /// The newest row of a series that has readings.
    pub fn newest(&self, series: SeriesId) -> Option<&BatchRow> {
        self.windows.newest(series)
    }

    /// The row of a series and a window that is not older than [`BatchSnapshot::newest`]; it may have conflicts only.
    pub fn row_from_newest_on(&self, series: SeriesId, window: Micros) -> Option<&BatchRow> {
        self.windows.row_from_newest_on(series, window)
    }

    /// The start of the oldest window of a series that has readings.
    pub fn oldest(&self, series: SeriesId) -> Option<Micros> {
        self.windows.oldest(series)
    }

    /// Its rows, where they are in memory and may be used.
    pub fn rows_in_memory(&self) -> Option<&[RecordBatch]> {
        match &self.rows {
            ViewRows::Memory(rows) if self.usable => Some(rows),
            ViewRows::Memory(_) | ViewRows::Files(_) => None,
        }
    }

    /// Whether each plan partition of [`BatchSnapshot::scan`] has all rows of each longer window of this length, one after
    /// the other. Otherwise they are spread over all of them.
    pub fn has_whole(&self, step: WindowSize) -> bool {
        let length = step.span().0;
        let is_whole = |cell: &Window| cell.start.0 % length == 0 && cell.end.0 % length == 0;
        self.cells.as_ref().is_some_and(|cells| cells.iter().all(is_whole))
    }

    /// A plan over its rows, see [`ViewSnapshot::scan`]; `None` where there is no row, or none that may be used.
    ///
    /// # Errors
    /// When a filter cannot be evaluated over the view's columns.
    pub fn scan(
        &self,
        columns: &[&str],
        filters: &[Expr],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>, ServingError> {
        self.scan_of(&self.rows, columns, filters)
    }

    fn scan_of(
        &self,
        rows: &ViewRows,
        columns: &[&str],
        filters: &[Expr],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>, ServingError> {
        if !self.usable {
            return Ok(None);
        }
        match rows {
            ViewRows::Files(view) if view.rows() == 0 => Ok(None),
            ViewRows::Files(view) => Ok(Some(view.scan(columns, filters)?)),
            ViewRows::Memory(rows) => scan_memory(rows, columns, filters).map_err(ServingError::run),
        }
    }
}

impl RunFacts {
    /// The facts in the record of a run.
    pub fn of(run: &RunRecord) -> Self {
        Self {
            definitions: run.definitions.parse().ok().filter(|_| run.computation == COMPUTATION),
            as_of: Some(run.as_of),
            first_ingest: run.first_ingest,
            amendments: Arc::new(run.amendments.clone()),
            settling: Arc::new(run.lateness.settling()),
            failures: Arc::new(run.failures.clone()),
        }
    }
}

/// A plan over batches with one schema; `None` without a batch.
fn scan_memory(
    rows: &[RecordBatch],
    columns: &[&str],
    filters: &[Expr],
) -> Result<Option<Arc<dyn ExecutionPlan>>, DataFusionError> {
    let Some(schema) = rows.first().map(RecordBatch::schema) else { return Ok(None) };
    let mut plan: Arc<dyn ExecutionPlan> =
        MemorySourceConfig::try_new_exec(&[rows.to_vec()], Arc::clone(&schema), None)?;
    if let Some(filter) = filters.iter().cloned().reduce(Expr::and) {
        let filter =
            SessionContext::new().create_physical_expr(filter, &DFSchema::try_from(Arc::clone(&schema))?)?;
        plan = Arc::new(FilterExec::try_new(filter, plan)?);
    }
    let mut wanted = Vec::with_capacity(columns.len());
    for name in columns {
        wanted.push((datafusion::physical_expr::expressions::col(name, &schema)?, (*name).to_owned()));
    }
    Ok(Some(Arc::new(ProjectionExec::try_new(wanted, plan)?)))
}

/// The batches of a plan, plan partition by plan partition.
struct Batches {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    /// The stream of a plan partition, and the number of the next one.
    open: Option<datafusion::execution::SendableRecordBatchStream>,
    next: usize,
}

impl Batches {
    fn of(plan: Arc<dyn ExecutionPlan>, context: &Arc<TaskContext>) -> Self {
        Self { plan, context: Arc::clone(context), open: None, next: 0 }
    }

    async fn next(&mut self) -> Result<Option<RecordBatch>, ServingError> {
        loop {
            if let Some(stream) = &mut self.open
                && let Some(batch) = stream.try_next().await.map_err(ServingError::run)?
            {
                return Ok(Some(batch));
            }
            if self.next == self.plan.properties().output_partitioning().partition_count() {
                return Ok(None);
            }
            let stream = self.plan.execute(self.next, Arc::clone(&self.context));
            self.open = Some(stream.map_err(ServingError::run)?);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests;

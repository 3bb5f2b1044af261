//! What a batch run would compute, without doing it: nothing is archived, announced or written.

use std::sync::Arc;

use serde::Serialize;
use wye_domain::time::{Micros, Window, format_rfc3339};
use wye_metrics::amendment::Amending;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_tables::amendments::Amendments;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, Cells};

use crate::error::BatchError;
use crate::recompute::{Recomputation, Since, planned};
use crate::runner::{ASKED_FOR, FIRST_RUN};

/// What is asked.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// Where the tables are.
    pub root: TableRoot,
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// About how many readings a cell has at most.
    pub cell_readings: u64,
    /// Whether the run is to compute everything.
    pub full: bool,
    /// A stretch of time that the run is to compute even if nothing has changed.
    pub again: Option<Window>,
    /// Now.
    pub now: Micros,
}

/// What a run over what is archived would compute. As JSON, it is what `wye batch run --dry-run --json` prints; fields are
/// only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WouldCompute {
    /// Readings in the master dataset.
    pub readings: u64,
    /// About how many of them the run would read.
    pub readings_to_read: u64,
    /// Cells of the view that would stay as they are.
    pub cells_kept: u64,
    /// The cells that would be computed, in the order of their times.
    pub cells: Vec<WouldComputeCell>,
    /// Why all cells would be computed; absent where only those would be that have changed.
    pub everything_because: Option<&'static str>,
}

/// A cell that a run would compute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WouldComputeCell {
    /// Windows that start at this time or later are in it. RFC 3339.
    pub start: String,
    /// Windows that start at this time or later are not. RFC 3339.
    pub end: String,
    /// About how many readings it has.
    pub readings: u64,
    /// Why it would be computed.
    pub reason: &'static str,
}

impl DryRun {
    /// Finds out what a run would compute of what is archived now.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub async fn run(self) -> Result<WouldCompute, BatchError> {
        let readings = Readings::open(&self.root).await;
        let readings = readings.map_err(BatchError::tables("open the master dataset"))?.snapshot().await;
        let readings = readings.map_err(BatchError::tables("read the master dataset"))?;
        let views = BatchViews::open(&self.root).map_err(BatchError::tables("open the batch views"))?;
        let amendments = Amendments::open(&self.root).map_err(BatchError::tables("open the amendments"))?;
        let amendments = amendments.all().await.map_err(BatchError::tables("read the amendments"))?;
        let view = views.latest().await.map_err(BatchError::tables("read the batch views"))?;
        let since = match view.filter(|_| !self.full) {
            Some(view) => Since::view(&view, &self.plans, &amendments, &readings),
            None => Err(if self.full { ASKED_FOR } else { FIRST_RUN }),
        };
        let since = since.map(|since| Since { again: self.again, ..since });
        let (all, everything_because) = (readings.readings(), since.as_ref().err().copied());
        let task = Recomputation {
            root: self.root,
            horizon: readings.archived(),
            readings,
            views,
            expectations: Arc::new(Expectations::new(&self.plans).map_err(BatchError::Compute)?),
            amending: Amending::plan(&amendments).map_err(BatchError::Amendment)?,
            plans: self.plans,
            as_of: Some(self.now),
            now: self.now,
            since: since.ok(),
            threads: 1,
            cell_readings: self.cell_readings,
            restating: None,
            progress: None,
        };
        let plan = planned(&task).await?.plan;
        let before = task.since.map_or_else(Cells::new, |since| since.cells);
        let cells: Vec<WouldComputeCell> = plan
            .compute
            .iter()
            .map(|cell| WouldComputeCell {
                start: format_rfc3339(cell.window.start),
                end: format_rfc3339(cell.window.end),
                readings: cell.readings,
                reason: cell.reason.name(),
            })
            .collect();
        Ok(WouldCompute {
            readings: all,
            readings_to_read: cells.iter().map(|cell| cell.readings).sum::<u64>().min(all),
            cells_kept: (before.len() - plan.replaces.len()) as u64,
            cells,
            everything_because,
        })
    }
}

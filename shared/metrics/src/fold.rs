//! Folds batches of readings into the summaries of series and windows: what both layers do, the speed layer for an epoch
//! and the batch layer for a run. Must not know how duplicates are found. No clock, no I/O.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use wye_domain::DomainError;
use wye_domain::identity::Novelty;
use wye_domain::place::Offset;
use wye_domain::series::SeriesTable;
use wye_domain::summary::Summary;

use crate::contribution::Contribution;
use crate::failures::Failures;
use crate::plan::MetricPlans;
use crate::window_table::WindowTable;

/// Summaries in the making.
#[derive(Debug)]
pub struct Fold {
    plans: Arc<MetricPlans>,
    /// The series that the windows name by id.
    pub series: SeriesTable,
    /// A summary for each series and window.
    pub windows: WindowTable,
    /// What definitions could not compute.
    pub failures: Failures,
}

impl Fold {
    /// With no readings yet.
    #[must_use]
    pub fn new(plans: Arc<MetricPlans>) -> Self {
        Self {
            plans,
            series: SeriesTable::default(),
            windows: WindowTable::default(),
            failures: Failures::default(),
        }
    }

    /// What is computed.
    #[must_use]
    pub fn plans(&self) -> &Arc<MetricPlans> {
        &self.plans
    }

    /// Takes in a batch with the columns of a reading and `ingest_time`. `novelty` says what each row is; rows without
    /// one are left out. Nothing is marked as changed.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn add(&mut self, batch: &RecordBatch, novelty: impl Fn(usize) -> Option<Novelty>) -> Result<()> {
        self.add_to(batch, novelty, |windows, c| {
            let slot = windows.entry(c.series, c.window_start);
            Some(windows.change_unmarked(slot))
        })
    }

    /// The same for rows at these offsets of the log (by row). What a restored summary holds already is left out, and
    /// windows are marked as changed.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn add_at(
        &mut self,
        batch: &RecordBatch,
        offsets: &[i64],
        novelty: impl Fn(usize) -> Option<Novelty>,
    ) -> Result<()> {
        self.add_to(batch, novelty, |windows, c| {
            let slot = windows.entry(c.series, c.window_start);
            if windows.holds(slot, Offset(offsets[c.row])) {
                return None;
            }
            Some(windows.change(slot))
        })
    }

    /// Adds the rows that count to the summaries that `summary_of` finds.
    fn add_to(
        &mut self,
        batch: &RecordBatch,
        novelty: impl Fn(usize) -> Option<Novelty>,
        summary_of: impl for<'w> Fn(&'w mut WindowTable, &Contribution) -> Option<&'w mut Summary>,
    ) -> Result<()> {
        let contributions = self.plans.contributions(batch, &mut self.series)?;
        for (plan, contributions) in self.plans.plans().iter().zip(contributions) {
            let (name, failed) = (&plan.definition().name, &contributions.failed);
            let counts = |row| novelty(row) == Some(Novelty::First);
            self.failures.add(name, failed, batch, counts).map_err(external)?;
            let step = contributions.step().map_err(external)?;
            let windows = &mut self.windows;
            contributions.for_each(|c| match novelty(c.row) {
                None | Some(Novelty::Duplicate) => {}
                Some(novelty) => {
                    if let Some(summary) = summary_of(windows, &c) {
                        step.add(&c, novelty, summary);
                    }
                }
            });
        }
        Ok(())
    }
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}

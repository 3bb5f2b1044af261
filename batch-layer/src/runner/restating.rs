//! What a run compares its numbers with, and how the settled ones that have changed get into their table.

use std::sync::Arc;

use tracing::warn;
use wye_domain::{ErrorKind, error_chain};
use wye_metrics::view_rows::COMPUTATION;
use wye_tables::run_record::RunRecord;
use wye_tables::views::{ViewSnapshot, ViewVersion};

use super::{BatchRunner, Execution};
use crate::error::BatchError;
use crate::recompute::{Restating, changed};
use crate::restate::{Cause, Comparison};

impl BatchRunner {
    /// Adds what a run has found to the table of restatements, unless that has it. What can never be added is given up, so that it
    /// does not stop all runs.
    pub(super) async fn add_restatements(&self, run: Option<&RunRecord>) -> Result<(), BatchError> {
        let Some(file) = run.and_then(|run| run.restatements.as_ref()) else { return Ok(()) };
        match self.restatements.add(file).await {
            Err(error) if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Conflict) => {
                let error = error_chain(&error);
                warn!(error, "the restatements of the last run cannot be added, and are given up");
                Ok(())
            }
            added => added.map_err(BatchError::tables("add restatements")),
        }
    }
}

impl Execution<'_> {
    /// What the numbers are compared with: those of the view before, where the same computation has made it of the same readings.
    pub(super) fn restating(&self, view: &ViewSnapshot, readings_table: &str) -> Option<Restating> {
        let runner = self.runner;
        let run = view.run.as_ref()?;
        if run.computation != COMPUTATION || run.readings_table != readings_table {
            return None;
        }
        let cause = if run.definitions == runner.definitions() {
            Cause::Readings(changed(&self.amendments, &run.amendments))
        } else if run.registry == runner.registry() {
            Cause::Definition
        } else {
            Cause::Registry
        };
        let comparison = Comparison {
            view: view.clone(),
            settled_until: run.lateness.settling().settled_until(run.as_of),
            cause,
            run_id: self.run_id(),
            started: self.started,
        };
        // Only a run that follows this version commits.
        let version = ViewVersion(view.version().0 + 1);
        Some(Restating { comparison: Arc::new(comparison), table: runner.restatements.clone(), version })
    }
}

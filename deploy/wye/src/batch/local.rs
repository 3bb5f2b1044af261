//! A batch run that this process does itself.

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use wye_batch::BatchError;
use wye_batch::layer::Parts;
use wye_batch::once;
use wye_batch::report::RunReport;
use wye_batch::runner::RunOptions;
use wye_domain::time::Window;

use super::{ATTEMPTS, report};
use crate::alone::{Alone, ended};
use crate::cli::{BatchRun, WhenBusy};
use crate::terminal::{Progress, note};

/// Does the run, and prints its report.
///
/// # Errors
/// `TryAgain` when another run was first, when Kafka or the tables cannot be reached, or when `shutdown` is cancelled; else
/// what failed.
pub(crate) async fn run(
    alone: &Alone,
    arguments: &BatchRun,
    again: Option<Window>,
    shutdown: &CancellationToken,
) -> Result<()> {
    let parts = alone.batch_parts()?;
    let mut attempts = 0;
    let report = loop {
        attempts += 1;
        let outcome =
            shutdown.run_until_cancelled(attempt(alone, parts.clone(), arguments.full, again)).await;
        if let Some(Err(BatchError::AnotherRunFirst(_))) = &outcome
            && arguments.when_busy == WhenBusy::Wait
            && attempts < ATTEMPTS
        {
            note("another batch run committed first; starting again");
            continue;
        }
        break ended(outcome)?;
    };
    report::print(&serde_json::to_value(report)?, arguments.json)
}

async fn attempt(
    alone: &Alone,
    parts: Parts,
    force: bool,
    again: Option<Window>,
) -> Result<RunReport, BatchError> {
    let archiving = Progress::new("archiving", "messages");
    let running = Progress::new("batch run", "readings");
    let progress = Some(running.callback());
    let options = RunOptions { force, again, progress };
    once::run(parts, alone.batch_settings(), options, Some(archiving.callback())).await
}

//! What a batch run would compute: read from the tables alone, beside whatever works on them.

use std::sync::Arc;

use anyhow::{Result, bail};
use tokio_util::sync::CancellationToken;
use wye_batch::dry_run::DryRun;
use wye_domain::time::Window;
use wye_runtime::clock::{Clock, SystemClock};

use super::report;
use crate::alone::{ended, no_data_dir, passing};
use crate::cli::BatchRun;
use crate::site::check::{Given, check};
use crate::site::{data_dir, table_root};

/// Prints what a run over what is archived now would compute, and why.
///
/// # Errors
/// When arguments or settings are wrong, or the tables cannot be read.
pub(super) async fn run(arguments: &BatchRun, again: Option<Window>) -> Result<()> {
    let dir = arguments.local.data_dir.as_path();
    let checked = check(Given { data_dir: dir, config: arguments.local.config.as_deref(), http: None })?;
    if checked.settings.tables.root.is_empty() && !data_dir::is_one(dir) {
        bail!(no_data_dir(dir));
    }
    let dry_run = DryRun {
        root: table_root(&checked, dir, &CancellationToken::new()).await.map_err(passing)?,
        plans: Arc::clone(&checked.plans),
        cell_readings: checked.settings.batch_layer().batch.cell_readings,
        full: arguments.full,
        again,
        now: SystemClock::default().now(),
    };
    let would = ended(Some(dry_run.run().await))?;
    report::print_dry_run(&would, arguments.json)
}

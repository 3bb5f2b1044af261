//! `wye batch`: the commands of the batch layer.
//!
//! `wye batch run` asks the running Wye for a run ([`remote`]); where none is running, it does the run itself ([`local`]).
//! With `--dry-run` it only reads the tables ([`dry_run`]).
//! `wye batch sql` works on files alone ([`sql`]).

mod dry_run;
mod local;
mod remote;
mod report;
pub(crate) mod sql;

use anyhow::{Result, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wye_domain::time::Window;

use crate::alone::{Found, find};
use crate::cli::BatchRun;
use crate::client::{Client, Misused, time};

/// How often a run is started because another one has committed first.
const ATTEMPTS: usize = 10;

/// Runs `wye batch run`.
///
/// # Errors
/// Those of [`remote::run`] and [`local::run`].
pub(crate) async fn run(arguments: &BatchRun) -> Result<()> {
    let again = again(arguments)?;
    if arguments.dry_run {
        return dry_run::run(arguments, again).await;
    }
    if let Some(url) = &arguments.url {
        return remote::run(&Client::at_url(url)?, arguments).await;
    }
    let shutdown = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(wye_runtime::shutdown::cancel_on_signal(shutdown.clone()));
    match find(&arguments.local, arguments.when_busy, &shutdown).await? {
        Found::Running => {
            let client = Client::in_data_dir(&arguments.local.data_dir)?;
            let asked = shutdown.run_until_cancelled(remote::run(&client, arguments)).await;
            asked.unwrap_or_else(|| Err(remote::left()))
        }
        Found::Alone(alone) => {
            let outcome = local::run(&alone, arguments, again, &shutdown).await;
            alone.close().await;
            outcome
        }
    }
}

/// The stretch of time that is to be computed even if nothing has changed.
fn again(arguments: &BatchRun) -> Result<Option<Window>> {
    let (Some(from), Some(to)) = (&arguments.from, &arguments.to) else { return Ok(None) };
    let window = Window { start: time("--from", from)?, end: time("--to", to)? };
    if window.end <= window.start {
        bail!(Misused(format!("--to {to} is not after --from {from}")));
    }
    Ok(Some(window))
}

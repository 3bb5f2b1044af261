//! `wye archive`: stores the log in the master dataset, without a running `wye up`.

use anyhow::Result;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wye_batch::archiver::Archiver;
use wye_batch::once::{self, ArchiveReport};

use crate::alone::{Alone, Found, ended, find};
use crate::cli::{Archive, WhenBusy};
use crate::terminal::{Progress, grouped, note, say};

/// Runs the command.
///
/// # Errors
/// `Misused` or a `ConfigError` when arguments or settings are wrong; `TryAgain` when Kafka or the tables cannot be reached;
/// else what failed.
pub(crate) async fn run(arguments: &Archive) -> Result<()> {
    let shutdown = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(wye_runtime::shutdown::cancel_on_signal(shutdown.clone()));
    let alone = match find(&arguments.local, WhenBusy::Leave, &shutdown).await? {
        Found::Running => {
            note("wye up is running on this data directory, and archives all the time: nothing to do");
            return Ok(());
        }
        Found::Alone(alone) => alone,
    };
    let outcome = if arguments.follow {
        follow(&alone, shutdown).await
    } else {
        catch_up(&alone, arguments.json, &shutdown).await
    };
    alone.close().await;
    outcome
}

/// Archives until the shutdown.
async fn follow(alone: &Alone, shutdown: CancellationToken) -> Result<()> {
    let archiver = Archiver::open(alone.batch_parts()?, alone.checked.settings.archive).await;
    ended(Some(archiver))?.run(shutdown).await;
    Ok(())
}

/// Archives what the log contains now.
async fn catch_up(alone: &Alone, json: bool, shutdown: &CancellationToken) -> Result<()> {
    let progress = Progress::new("archiving", "messages");
    let work = once::archive(alone.batch_parts()?, alone.checked.settings.archive, Some(progress.callback()));
    let outcome = shutdown.run_until_cancelled(work).await;
    drop(progress);
    let report = ended(outcome)?;
    if json { say(serde_json::to_string_pretty(&report)?) } else { print_report(&report) }
}

fn print_report(report: &ArchiveReport) -> Result<()> {
    let numbers = [
        ("messages", report.messages),
        ("readings", report.readings),
        ("files", report.files),
        ("bytes", report.bytes),
    ];
    for (name, number) in numbers {
        say(format!("{name:<14} {:>12}", grouped(number)))?;
    }
    let archived = report.archived.iter();
    let parts: Vec<String> = archived.map(|(partition, offset)| format!("{partition}:{offset}")).collect();
    say(format!("archived       {} (Kafka partition:offset)", parts.join(",")))
}

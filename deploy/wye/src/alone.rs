//! A command that does the work of the batch layer by itself, where no `wye up` is running: by a scheduler such as cron or
//! Kubernetes, or on the data directory of a stopped Wye.
//!
//! Kafka and the tables are those of the settings. Where they are in the data directory, the command starts the embedded
//! broker for itself and locks the directory, as `wye up` does.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use tokio_util::sync::CancellationToken;
use wye_batch::BatchError;
use wye_broker::{Broker, BrokerError, Port};
use wye_domain::{ErrorKind, error_chain};
use wye_log::LogError;
use wye_runtime::clock::SystemClock;
use wye_runtime::telemetry::Telemetry;
use wye_runtime::unique;
use wye_speed::ingest::IngestError;
use wye_tables::TablesError;

use crate::cli::{LocalArguments, WhenBusy};
use crate::client::{ADDRESS_FILE, Misused, TryAgain};
use crate::site::check::{Checked, Given, check};
use crate::site::{self, Site, data_dir};
use crate::terminal::note;

/// How often a command that waits looks again.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);
/// How long Kafka may take to answer.
const KAFKA_WITHIN: Duration = Duration::from_secs(60);

/// What a command finds.
pub(crate) enum Found {
    /// A `wye up` is running on the data directory.
    Running,
    /// None is; the command does the work.
    Alone(Box<Alone>),
}

/// The log and the tables of a command that works by itself.
pub(crate) struct Alone {
    pub(crate) checked: Checked,
    pub(crate) site: Site,
    broker: Option<Broker>,
    /// Keeps other processes from the data directory, where it is used.
    _lock: Option<File>,
}

/// Finds out whether a `wye up` is running on the data directory; where none is, opens the log and the tables.
///
/// # Errors
/// [`Misused`] or a `ConfigError` when arguments or settings are wrong; [`TryAgain`] when another command has the data
/// directory, when Kafka does not answer, or when `shutdown` is cancelled first.
pub(crate) async fn find(
    arguments: &LocalArguments,
    when_busy: WhenBusy,
    shutdown: &CancellationToken,
) -> Result<Found> {
    let found = shutdown.run_until_cancelled(open(arguments, when_busy, shutdown)).await;
    found.unwrap_or_else(|| Err(stopped())).map_err(passing)
}

async fn open(
    arguments: &LocalArguments,
    when_busy: WhenBusy,
    shutdown: &CancellationToken,
) -> Result<Found> {
    let dir = arguments.data_dir.as_path();
    let given = Given { data_dir: dir, config: arguments.config.as_deref(), http: None };
    let Some(lock) = lock(dir, when_busy).await? else { return Ok(Found::Running) };
    let checked = check(given)?;
    let settings = &checked.settings;
    let is_in_use = settings.log.is_embedded() || settings.tables.root.is_empty();
    if is_in_use && lock.is_none() {
        bail!(no_data_dir(dir));
    }
    let root = site::table_root(&checked, dir, shutdown).await?;
    let opening = site::open_log(&checked, dir, Port::Free, shutdown);
    let (broker, log) = if settings.log.is_embedded() {
        // Recovery after a crash takes as long as it takes.
        opening.await?
    } else {
        let opened = tokio::time::timeout(KAFKA_WITHIN, opening).await;
        opened.map_err(|_| no_answer(&settings.log.bootstrap_servers))??
    };
    let site = Site {
        log,
        root,
        telemetry: Telemetry::default(),
        clock: Arc::new(SystemClock::default()),
        name: if is_in_use { data_dir::server_name(dir)? } else { unique::name() },
    };
    let alone = Alone { checked, site, broker, _lock: lock.filter(|_| is_in_use) };
    let claimed = tokio::time::timeout(KAFKA_WITHIN, alone.claim_tables()).await;
    claimed.map_err(|_| no_answer(&alone.site.log.config().bootstrap_servers))??;
    Ok(Found::Alone(Box::new(alone)))
}

/// The error of a folder that is to be a data directory and is none.
pub(crate) fn no_data_dir(dir: &Path) -> Misused {
    Misused(format!(
        "{} is not a data directory: select the one of a stopped `wye up` with --data-dir, or write the Kafka cluster \
         ([log] bootstrap_servers) and the location of the tables ([tables] root) into a file for --config",
        dir.display()
    ))
}

/// Locks the data directory, where there is one; `None` when a `wye up` has it.
async fn lock(data_dir: &Path, when_busy: WhenBusy) -> Result<Option<Option<File>>> {
    let mut is_waiting = false;
    loop {
        if !data_dir::is_one(data_dir) {
            return Ok(Some(None));
        }
        if let Some(lock) = data_dir::try_lock(data_dir)? {
            // A `wye up` that was killed has left its address.
            data_dir::remove_address(data_dir, ADDRESS_FILE)?;
            return Ok(Some(Some(lock)));
        }
        if data_dir.join(ADDRESS_FILE).exists() {
            return Ok(None);
        }
        if when_busy == WhenBusy::Leave {
            let dir = data_dir.display();
            bail!(TryAgain(format!("another process works on the data directory {dir}; try again later")));
        }
        if !std::mem::replace(&mut is_waiting, true) {
            note(format!(
                "another process works on the data directory {}; waiting for it",
                data_dir.display()
            ));
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

impl Alone {
    /// Checks that the tables belong to the log, by the ledger of ingest.
    async fn claim_tables(&self) -> Result<()> {
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        let ingest = site::start_ingest(&self.checked, &self.site, &shutdown).await?;
        site::claim_tables(&ingest, &self.site.root).await?;
        drop(guard);
        ingest.join().await;
        Ok(())
    }

    /// What the batch layer works with.
    pub(crate) fn batch_parts(&self) -> Result<wye_batch::layer::Parts> {
        site::batch_parts(&self.checked, &self.site)
    }

    /// The settings of the batch layer. On the embedded broker no owner can answer, so none is waited for.
    pub(crate) fn batch_settings(&self) -> wye_batch::settings::Settings {
        let mut settings = self.checked.settings.batch_layer();
        if self.broker.is_some() {
            settings.batch.patience = Duration::ZERO;
        }
        settings
    }

    /// Stops the embedded broker.
    pub(crate) async fn close(self) {
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
    }
}

/// The outcome of work that a signal may have stopped, as an outcome of the command.
///
/// # Errors
/// [`TryAgain`] when it was stopped, or when its failure may pass; else its failure.
pub(crate) fn ended<T>(outcome: Option<Result<T, BatchError>>) -> Result<T> {
    match outcome {
        None => Err(stopped()),
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unavailable) => {
            Err(anyhow!(TryAgain(error_chain(&error))))
        }
        Some(Err(error)) => Err(anyhow!(error_chain(&error))),
    }
}

/// An error of the log or the tables as an error of the command: [`TryAgain`] where it may pass.
pub(crate) fn passing(error: anyhow::Error) -> anyhow::Error {
    let kind = error
        .downcast_ref::<TablesError>()
        .map(TablesError::kind)
        .or_else(|| error.downcast_ref::<BatchError>().map(BatchError::kind))
        .or_else(|| error.downcast_ref::<LogError>().map(LogError::kind))
        .or_else(|| error.downcast_ref::<IngestError>().map(IngestError::kind))
        .or_else(|| error.downcast_ref::<BrokerError>().map(BrokerError::kind));
    match kind {
        Some(ErrorKind::Conflict | ErrorKind::Unavailable) => anyhow!(TryAgain(format!("{error:#}"))),
        _ => error,
    }
}

fn no_answer(servers: &str) -> anyhow::Error {
    anyhow!(TryAgain(format!(
        "Kafka at {servers} does not answer within {} s; warnings, if there are any, say why",
        KAFKA_WITHIN.as_secs()
    )))
}

fn stopped() -> anyhow::Error {
    anyhow!(TryAgain("stopped by a signal; nothing is lost, and the next run does the work".to_owned()))
}

#[cfg(test)]
mod tests {
    use wye_tables::store::TableName;

    use super::*;

    #[test]
    fn a_failure_that_may_pass_is_to_be_tried_again() {
        let (table, reason) = (TableName::Readings, "away".to_owned());
        let passes = TablesError::Conflict { table, reason: reason.clone() };
        assert!(passing(passes.into()).is::<TryAgain>());
        let stays = TablesError::Shape { table, reason };
        assert!(passing(stays.into()).is::<TablesError>());
        assert!(passing(LogError::Cancelled.into()).is::<TryAgain>());
    }
}

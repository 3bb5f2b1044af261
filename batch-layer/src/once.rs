//! The work of the batch layer done once, for a command: the log is archived up to its end, or one batch run is done. Nothing
//! continues afterwards. Must not know who asks.
//!
//! Other processes may archive and run at the same time: of two archivers the later one resumes after the earlier, and of
//! two runs that start from one view at most one commits.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use serde::Serialize;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::warn;
use wye_domain::error_chain;
use wye_domain::horizon::Horizon;
use wye_domain::place::Offset;
use wye_log::client::Log;
use wye_log::topics::DEAD_LETTER;
use wye_runtime::clock::Clock;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;

use crate::archiver::{Archiver, LETTERS_PARTITION};
use crate::compute::joined;
use crate::control_log::ControlLog;
use crate::error::BatchError;
use crate::layer::Parts;
use crate::recompute::{OnProgress, Progress};
use crate::report::RunReport;
use crate::runner::{BatchRunner, RunOptions};
use crate::settings::{ArchiveSettings, Settings};

/// How often the tables are asked how far they are.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// So long the archiver may make no progress. It tries again after every failure, and logs why.
const NO_PROGRESS: Duration = Duration::from_secs(60);

/// What is archived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveReport {
    /// By Kafka partition: the readings below this offset are in the master dataset.
    pub archived: Horizon,
    /// Messages that were archived while the command ran.
    pub messages: u64,
    /// Readings in the master dataset.
    pub readings: u64,
    /// Files of the master dataset.
    pub files: u64,
    /// Bytes of these files.
    pub bytes: u64,
}

/// Archives what the log contains now, readings and dead letters. Dropping the returned future cancels it; what was
/// appended stays. `progress` is called with numbers of messages.
///
/// # Errors
/// When a table cannot be opened, the log cannot be reached, or nothing is archived for a minute.
pub async fn archive(
    parts: Parts,
    settings: ArchiveSettings,
    progress: Option<OnProgress>,
) -> Result<ArchiveReport, BatchError> {
    let archiving = Archiving::start(parts, settings).await?;
    let before = archiving.before.clone();
    archiving.catch_up(progress).await?;
    let readings = archiving.readings.clone();
    archiving.end().await?;
    let snapshot = readings.snapshot().await.map_err(BatchError::tables("read the master dataset"))?;
    let archived = snapshot.archived();
    Ok(ArchiveReport {
        messages: messages_between(&before, &archived),
        readings: snapshot.readings(),
        files: snapshot.files() as u64,
        bytes: snapshot.bytes(),
        archived,
    })
}

/// Does one batch run over everything that the log contains now: archives it, computes the views and commits them, and
/// removes old views. Dropping the returned future cancels it, at any time: the view is then the old one or the new one.
/// `archived` is called with numbers of messages.
///
/// # Errors
/// Those of [`archive`] and of [`BatchRunner::run`].
pub async fn run(
    parts: Parts,
    settings: Settings,
    options: RunOptions,
    archived: Option<OnProgress>,
) -> Result<RunReport, BatchError> {
    let archiving = Archiving::start(parts.clone(), settings.archive).await?;
    let runner = BatchRunner::open(parts, &settings.batch).await?;
    if runner.has_other_definitions().await? {
        warn!(
            "the metric definitions are not those of the last batch view; all of it is computed again with these"
        );
    }
    archiving.catch_up(archived).await?;
    // The archiver continues meanwhile: an owner in another process may answer with a start that lies further on.
    let outcome = runner.run(options).await;
    archiving.end().await?;
    // A run that failed may have written files too.
    if let Err(error) = runner.clean(settings.batch.keep_versions).await {
        warn!(error = error_chain(&error), "cannot remove old batch views; the next run does it");
    }
    outcome
}

/// An archiver that works beside something else.
struct Archiving {
    log: Log,
    clock: Arc<dyn Clock>,
    readings: Readings,
    letters: DeadLetters,
    control: ControlLog,
    /// What was archived before it started.
    before: Horizon,
    archiver: SpawnedTask<()>,
    shutdown: DropGuard,
}

impl Archiving {
    async fn start(parts: Parts, settings: ArchiveSettings) -> Result<Self, BatchError> {
        let readings =
            Readings::open(&parts.root).await.map_err(BatchError::tables("open the master dataset"))?;
        let letters = DeadLetters::open(&parts.root).await;
        let letters = letters.map_err(BatchError::tables("open the table of dead letters"))?;
        let control = ControlLog::new(parts.log.clone())?;
        let (log, clock) = (parts.log.clone(), Arc::clone(&parts.clock));
        let before = readings.archived().await.map_err(BatchError::tables("ask what is archived"))?;
        let shutdown = CancellationToken::new();
        let archiver = Archiver::open(parts, settings).await?.run(shutdown.clone());
        let archiver = SpawnedTask::spawn(archiver);
        let shutdown = shutdown.drop_guard();
        Ok(Self { log, clock, readings, letters, control, before, archiver, shutdown })
    }

    async fn archived(&self) -> Result<Horizon, BatchError> {
        self.readings.archived().await.map_err(BatchError::tables("ask what is archived"))
    }

    /// Waits until everything is archived that the log contains now.
    async fn catch_up(&self, progress: Option<OnProgress>) -> Result<(), BatchError> {
        let ends = self.control.ends().await?;
        for (kafka_partition, end) in ends.iter() {
            let archived = self.before.offset(kafka_partition);
            if archived > end {
                return Err(BatchError::OtherLog { kafka_partition, archived, end });
            }
        }
        let total = messages_between(&self.before, &ends);
        let mut watch = Watch::new(Arc::clone(&self.clock));
        loop {
            let archived = self.archived().await?;
            let done = messages_between(&self.before, &archived).min(total);
            if let Some(progress) = &progress {
                progress(Progress { done, total });
            }
            if archived.covers(&ends) {
                break;
            }
            watch.wait(done).await?;
        }
        self.catch_up_with_letters().await
    }

    /// The letters about invalid readings are written before the readings are archived, so all are in the topic by now.
    async fn catch_up_with_letters(&self) -> Result<(), BatchError> {
        let range = self.log.offsets(DEAD_LETTER, LETTERS_PARTITION).await;
        let end = range.map_err(BatchError::log("ask for the end of the dead letters"))?.high;
        let mut watch = Watch::new(Arc::clone(&self.clock));
        loop {
            let archived =
                self.letters.archived().await.map_err(BatchError::tables("ask what is archived"))?;
            let next = archived.offset(LETTERS_PARTITION);
            if next >= end {
                return Ok(());
            }
            watch.wait(next.since(Offset::START)).await?;
        }
    }

    /// Ends the archiver: what it has read is appended.
    async fn end(self) -> Result<(), BatchError> {
        self.shutdown.disarm().cancel();
        joined(self.archiver).await
    }
}

/// How many messages lie between two horizons.
fn messages_between(from: &Horizon, to: &Horizon) -> u64 {
    to.iter().map(|(kafka_partition, offset)| offset.since(from.offset(kafka_partition))).sum()
}

/// Watches that a number grows from time to time.
struct Watch {
    clock: Arc<dyn Clock>,
    last: Option<u64>,
    /// When it last grew, on the monotonic clock.
    grew: Duration,
}

impl Watch {
    fn new(clock: Arc<dyn Clock>) -> Self {
        let grew = clock.monotonic();
        Self { clock, last: None, grew }
    }

    /// Waits a little before the next look.
    async fn wait(&mut self, number: u64) -> Result<(), BatchError> {
        let now = self.clock.monotonic();
        if self.last.replace(number) != Some(number) {
            self.grew = now;
        }
        if now.saturating_sub(self.grew) >= NO_PROGRESS {
            return Err(BatchError::NotArchived { waited: NO_PROGRESS });
        }
        tokio::time::sleep(CHECK_INTERVAL).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wye_domain::place::KafkaPartition;

    use super::*;
    use crate::report::Outcome;
    use crate::testing::{ARCHIVE, PATIENCE, Site, batch_settings, horizon, soon};

    fn settings() -> Settings {
        Settings { archive: ARCHIVE, batch: batch_settings(PATIENCE) }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_in_the_log_is_archived_with_its_dead_letters() {
        let site = Site::start(2).await;
        for second in 0..3 {
            site.reading(1, "a", second, 1.0).await;
        }
        site.send(wye_log::topics::READINGS, 0, b"not a reading").await;
        let report = soon(archive(site.parts(), ARCHIVE, None)).await.unwrap();
        assert_eq!(report.archived, horizon([(0, 1), (1, 3)]));
        assert_eq!((report.messages, report.readings), (4, 3));
        let letters = DeadLetters::open(&site.root).await.unwrap();
        assert_eq!(letters.archived().await.unwrap().offset(KafkaPartition(0)), Offset(1));
        let again = soon(archive(site.parts(), ARCHIVE, None)).await.unwrap();
        assert_eq!(again, ArchiveReport { messages: 0, ..report });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_that_was_replaced_is_not_taken_for_the_archived_one() {
        let (first, second) = (Site::start(1).await, Site::start(1).await);
        first.reading(0, "a", 0, 1.0).await;
        soon(archive(first.parts(), ARCHIVE, None)).await.unwrap();
        let replaced = Parts { log: second.log.clone(), ..first.parts() };
        let ended = soon(archive(replaced.clone(), ARCHIVE, None)).await;
        assert!(matches!(ended, Err(BatchError::OtherLog { .. })), "{ended:?}");
        let ended = soon(run(replaced, settings(), RunOptions::default(), None)).await;
        assert!(matches!(ended, Err(BatchError::OtherLog { .. })), "{ended:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_covers_what_the_log_has_without_any_other_process() {
        let site = Site::start(2).await;
        for second in 0..5 {
            site.reading(1, "a", second, 1.0).await;
        }
        let first = soon(run(site.parts(), settings(), RunOptions::default(), None)).await.unwrap();
        assert_eq!((first.outcome, first.readings), (Outcome::Committed, 5));
        assert_eq!((first.horizon, first.not_covered.len()), (horizon([(0, 0), (1, 5)]), 0));
        let second = soon(run(site.parts(), settings(), RunOptions::default(), None)).await.unwrap();
        assert_eq!(second.outcome, Outcome::NothingNew);
    }
}

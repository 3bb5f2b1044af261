//! The archiver: brings everything in the log into the tables, exactly once, in offset order.
//!
//! An `intake` thread reads and decodes; meanwhile what it read before is appended, rows and offsets in one commit
//! for all Kafka partitions. Where it resumes after any failure is what the table says, so nothing here is state that
//! could be lost. Two archivers at once do no harm: the second loses the race, looks again and resumes.
//!
//! It reads every offset, so it writes the dead letters of what is no reading: before the commit that passes the
//! offsets, so that none is missing. A letter that is written again after a failure is about the same offset and index,
//! by which the table of dead letters leaves it out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use wye_domain::ErrorKind;
use wye_domain::wire::Acceptance;
use wye_log::LogError;
use wye_log::client::Log;
use wye_runtime::telemetry::KafkaPartitionLabel;

use crate::archiver::destination::{Destination, LettersTable, ReadingsTable};
use crate::archiver::intake::{Filled, Intake, Start};
use crate::error::BatchError;
use crate::error::chain;
use crate::run::BatchParts;
use crate::telemetry::BatchTelemetry;

mod destination;
mod intake;
mod maintenance;

/// How long to rest after a failure.
const REST: Duration = Duration::from_secs(1);

/// How the archiver works.
#[derive(Clone, Copy, Debug)]
pub struct ArchiveSettings {
    /// Which readings are accepted: the same rules as in the speed layer.
    pub acceptance: Acceptance,
    /// How often what was read is appended.
    pub interval: Duration,
    /// Or as soon as there are so many rows.
    pub max_rows: usize,
    /// How long archived dead letters stay in their topic.
    pub keep_dead_letters: Duration,
}

/// See the module.
pub struct Archiver {
    parts: BatchParts,
    settings: ArchiveSettings,
    readings: ReadingsTable,
    letters: LettersTable,
}

impl Archiver {
    /// Opens the tables, and makes them if they do not exist.
    ///
    /// # Errors
    /// When a table cannot be opened.
    pub async fn open(parts: BatchParts, settings: ArchiveSettings) -> Result<Self, BatchError> {
        let readings = ReadingsTable::open(&parts, settings.acceptance).await?;
        let letters = LettersTable::open(&parts, settings.keep_dead_letters).await?;
        Ok(Self { parts, settings, readings, letters })
    }

    /// Archives until `stop` fires; then what was read is appended, and it ends.
    pub async fn run(self, stop: CancellationToken) {
        let Self { parts, settings, readings, letters } = self;
        let mut topics = JoinSet::new();
        topics.spawn(Topic::new(&parts, settings, readings, &stop).run());
        topics.spawn(Topic::new(&parts, settings, letters, &stop).run());
        while let Some(ended) = topics.join_next().await {
            if let Err(panicked) = ended.map_err(tokio::task::JoinError::try_into_panic)
                && let Ok(panic) = panicked
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// One topic on its way into one table.
struct Topic<D> {
    log: Log,
    telemetry: BatchTelemetry,
    settings: ArchiveSettings,
    destination: Arc<D>,
    stop: CancellationToken,
    /// Where a Kafka partition can be read, where what comes before has been deleted.
    gaps: BTreeMap<i32, i64>,
}

impl<D: Destination> Topic<D> {
    fn new(parts: &BatchParts, settings: ArchiveSettings, destination: D, stop: &CancellationToken) -> Self {
        Self {
            log: parts.log.clone(),
            telemetry: parts.telemetry.clone(),
            settings,
            destination: Arc::new(destination),
            stop: stop.clone(),
            gaps: BTreeMap::new(),
        }
    }

    async fn run(mut self) {
        loop {
            let Err(error) = self.archive().await else { return };
            if self.note(&error) {
                continue;
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(REST) => {}
            }
        }
    }

    /// Archives until it is stopped or something fails.
    async fn archive(&mut self) -> Result<(), BatchError> {
        let starts = self.starts().await?;
        let (sender, mut filled) = mpsc::channel(1);
        let intake = Intake {
            log: self.log.clone(),
            topic: D::TOPIC,
            lag: D::MEASURES_LAG.then(|| self.telemetry.archive_lag.clone()),
            interval: self.settings.interval,
            max_rows: self.settings.max_rows,
            stop: self.stop.clone(),
        };
        let destination = Arc::clone(&self.destination);
        let mut thread = JoinSet::new();
        thread.spawn_blocking(move || intake.fill(&starts, || destination.collector(), &sender));
        let mut appended = Ok(());
        while let Some(next) = filled.recv().await {
            appended = self.append(next).await;
            if appended.is_err() {
                break;
            }
        }
        // Without a receiver the thread ends.
        drop(filled);
        let read = match thread.join_next().await {
            Some(Ok(read)) => read.map_err(BatchError::log("archive the log")),
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(BatchError::Stopping),
            },
            None => Err(BatchError::Stopping),
        };
        appended.and(read)
    }

    /// Where every Kafka partition goes on.
    async fn starts(&self) -> Result<Vec<Start>, BatchError> {
        let archived =
            self.destination.archived().await.map_err(BatchError::tables("ask what is archived"))?;
        let mut starts = Vec::new();
        for kafka_partition in 0..self.destination.kafka_partitions() {
            let from = match archived.get(&kafka_partition) {
                Some(next) => *next,
                // What was deleted before there was an archive was never meant for it.
                None => {
                    let range = self.log.offsets(D::TOPIC, kafka_partition).await;
                    range.map_err(BatchError::log("ask for the offsets of the log"))?.low
                }
            };
            let gap = self.gaps.get(&kafka_partition).copied().unwrap_or(from);
            starts.push(Start { kafka_partition, from, read: from.max(gap) });
        }
        Ok(starts)
    }

    async fn append(&self, filled: Filled) -> Result<(), BatchError> {
        let rows = filled.rows;
        self.destination.append(filled).await?;
        debug!(topic = D::TOPIC, rows, "archived");
        Ok(())
    }

    /// Says what happened, and whether it is clear how to go on, so that no rest is needed.
    fn note(&mut self, error: &BatchError) -> bool {
        if let BatchError::Log { source, .. } = error
            && let LogError::OffsetGone { kafka_partition, wanted, low, .. } = **source
        {
            let lost = low - wanted;
            let topic = D::TOPIC;
            error!(
                topic,
                kafka_partition, wanted, low, lost, "messages were deleted before they were archived"
            );
            let label = KafkaPartitionLabel { kafka_partition };
            self.telemetry.archive_lost.get_or_create(&label).inc_by(u64::try_from(lost).unwrap_or(0));
            self.gaps.insert(kafka_partition, low);
            return true;
        }
        match error.kind() {
            ErrorKind::Conflict => {
                info!(topic = D::TOPIC, %error, "another archiver was first; looking again");
                return true;
            }
            ErrorKind::Unavailable => {
                warn!(topic = D::TOPIC, error = chain(&error), "the archiver is held up; trying again");
            }
            _ => error!(topic = D::TOPIC, error = chain(&error), "the archiver is held up; trying again"),
        }
        false
    }
}

#[cfg(test)]
mod tests;

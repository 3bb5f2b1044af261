//! The archiver: stores everything in the log in the tables, exactly once, in offset order.
//!
//! An `intake` thread reads and decodes; meanwhile what it read before is appended, rows and offsets in one commit
//! for all Kafka partitions. Where it resumes after any failure is what the table says, so no state here can be lost.
//! Two archivers at once do no harm: the second one gets a conflict, reads the table again and resumes.
//!
//! It reads every offset, so it writes the dead letters of invalid readings: before the commit that passes their
//! offsets, so that none is missing. A letter that is written again after a failure names the same offset and index, so
//! the table of dead letters leaves it out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::{ErrorKind, error_chain};
use wye_log::LogError;
use wye_log::client::Log;
use wye_runtime::telemetry::KafkaPartitionLabel;

use crate::archiver::destination::Destination;
use crate::archiver::intake::{Filled, Intake, Start};
pub(crate) use crate::archiver::letters::LETTERS_PARTITION;
use crate::archiver::letters::LettersTable;
use crate::archiver::readings::ReadingsTable;
use crate::compute::joined;
use crate::error::BatchError;
use crate::layer::Parts;
use crate::settings::ArchiveSettings;
use crate::telemetry::BatchTelemetry;
use wye_runtime::clock::Clock;

mod destination;
mod intake;
mod letters;
mod maintenance;
mod readings;

/// How long to wait after a failure.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Archives the readings and the dead letters.
pub struct Archiver {
    parts: Parts,
    settings: ArchiveSettings,
    readings: ReadingsTable,
    letters: LettersTable,
}

impl Archiver {
    /// Opens the tables, and makes them if they do not exist.
    ///
    /// # Errors
    /// When a table cannot be opened.
    pub async fn open(parts: Parts, settings: ArchiveSettings) -> Result<Self, BatchError> {
        let readings = ReadingsTable::open(&parts).await?;
        let letters = LettersTable::open(&parts, settings.keep_dead_letters).await?;
        Ok(Self { parts, settings, readings, letters })
    }

    /// Archives until `shutdown` fires; then what was read is appended, and it ends.
    ///
    /// # Panics
    /// When decoding a message panics.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { parts, settings, readings, letters } = self;
        tokio::join!(
            Topic::new(&parts, settings, readings, &shutdown).run(),
            Topic::new(&parts, settings, letters, &shutdown).run(),
        );
    }
}

/// One topic that is archived into one table.
struct Topic<D> {
    log: Log,
    telemetry: BatchTelemetry,
    clock: Arc<dyn Clock>,
    settings: ArchiveSettings,
    destination: D,
    shutdown: CancellationToken,
    /// The first offset that can be read, of Kafka partitions where what was to be archived next has been deleted.
    gaps: BTreeMap<KafkaPartition, Offset>,
}

/// When to try again after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retry {
    AtOnce,
    Later,
}

impl<D: Destination> Topic<D> {
    fn new(parts: &Parts, settings: ArchiveSettings, destination: D, shutdown: &CancellationToken) -> Self {
        Self {
            log: parts.log.clone(),
            telemetry: parts.telemetry.clone(),
            clock: Arc::clone(&parts.clock),
            settings,
            destination,
            shutdown: shutdown.clone(),
            gaps: BTreeMap::new(),
        }
    }

    async fn run(mut self) {
        loop {
            let Err(error) = self.archive().await else { return };
            if self.on_error(&error) == Retry::AtOnce {
                continue;
            }
            if self.shutdown.run_until_cancelled(tokio::time::sleep(RETRY_DELAY)).await.is_none() {
                return;
            }
        }
    }

    /// Archives until it is stopped or something fails.
    async fn archive(&mut self) -> Result<(), BatchError> {
        let starts = self.starts().await?;
        let collectors: Vec<D::Collector> = starts.iter().map(|_| self.destination.collector()).collect();
        let (sender, mut filled) = mpsc::channel(1);
        let intake = Intake {
            log: self.log.clone(),
            topic: D::TOPIC,
            lag: self.destination.lag().cloned(),
            clock: Arc::clone(&self.clock),
            interval: self.settings.interval,
            max_rows: self.settings.max_rows,
            shutdown: self.shutdown.clone(),
        };
        let thread = SpawnedTask::spawn_blocking(move || {
            let started = starts.into_iter().zip(collectors).collect();
            intake.fill(started, &sender)
        });
        let mut appended = Ok(());
        while let Some(next) = filled.recv().await {
            appended = self.append(next).await;
            if appended.is_err() {
                break;
            }
        }
        // Without a receiver the thread ends.
        drop(filled);
        let read = joined(thread).await?;
        appended.and(read.map_err(BatchError::log("archive the log")))
    }

    /// Where every Kafka partition is to be read from.
    async fn starts(&self) -> Result<Vec<Start>, BatchError> {
        let archived =
            self.destination.archived().await.map_err(BatchError::tables("ask what is archived"))?;
        let mut starts = Vec::new();
        for kafka_partition in KafkaPartition::all(self.destination.kafka_partitions()) {
            let from = match archived.get(kafka_partition) {
                Some(next) => next,
                // Records that were deleted before the archive existed were never meant for it.
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

    async fn append(&mut self, filled: Filled) -> Result<(), BatchError> {
        let rows = filled.rows;
        self.destination.append(filled).await?;
        debug!(topic = D::TOPIC, rows, "archived");
        Ok(())
    }

    /// Logs an error, and says when to try again.
    fn on_error(&mut self, error: &BatchError) -> Retry {
        let topic = D::TOPIC;
        if let BatchError::Log { source, .. } = error
            && let LogError::OffsetGone { kafka_partition, wanted, low, .. } = **source
        {
            let lost = low.since(wanted);
            error!(
                topic,
                %kafka_partition, %wanted, %low, lost, "messages were deleted before they were archived"
            );
            let label = KafkaPartitionLabel { kafka_partition: kafka_partition.0 };
            self.telemetry.archive_lost.get_or_create(&label).inc_by(lost);
            self.gaps.insert(kafka_partition, low);
            return Retry::AtOnce;
        }
        match error.kind() {
            ErrorKind::Conflict => {
                info!(topic, %error, "another archiver was first; reading the table again");
                Retry::AtOnce
            }
            ErrorKind::Unavailable => {
                warn!(topic, error = error_chain(error), "cannot archive; trying again");
                Retry::Later
            }
            _ => {
                error!(topic, error = error_chain(error), "cannot archive; trying again");
                Retry::Later
            }
        }
    }
}

#[cfg(test)]
mod tests;

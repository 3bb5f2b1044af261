//! The table of dead letters as the destination of their topic, whose head is deleted once it is archived and old. Must
//! not know how topics are read.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use datafusion::common::runtime::SpawnedTask;
use tracing::warn;
use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::{Micros, Span};
use wye_domain::wire::Reason;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::{Message, first_offset_since};
use wye_log::topics::{DEAD_LETTER, READINGS};
use wye_runtime::telemetry::PartitionGauge;
use wye_tables::TablesError;
use wye_tables::dead_letters::{DeadLetters, LetterBatch, LettersBuilder};

use crate::archiver::destination::Destination;
use crate::archiver::intake::{Collect, Filled, Taken};
use crate::archiver::maintenance::Maintenance;
use crate::error::BatchError;
use crate::layer::Parts;
use crate::telemetry::BatchTelemetry;
use wye_runtime::clock::Clock;

/// The only Kafka partition of the dead-letter topic.
pub(crate) const LETTERS_PARTITION: KafkaPartition = KafkaPartition(0);
/// The head of the dead-letter topic is deleted at most this often.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// The archive of dead letters.
pub(super) struct LettersTable {
    table: DeadLetters,
    log: Log,
    clock: Arc<dyn Clock>,
    /// How long archived letters stay in their topic.
    keep: Duration,
    /// When the topic's head was last deleted, on the monotonic clock.
    trimmed: Option<Duration>,
    telemetry: BatchTelemetry,
    maintenance: Maintenance<DeadLetters>,
}

impl LettersTable {
    pub(super) async fn open(parts: &Parts, keep: Duration) -> Result<Self, BatchError> {
        let opened = DeadLetters::open(&parts.root).await;
        let table = opened.map_err(BatchError::tables("open the table of dead letters"))?;
        Ok(Self {
            maintenance: Maintenance::new(table.clone(), parts),
            table,
            log: parts.log.clone(),
            clock: Arc::clone(&parts.clock),
            keep,
            trimmed: None,
            telemetry: parts.telemetry.clone(),
        })
    }

    /// Deletes what is archived and old enough from the topic, if that was not done a short time ago.
    async fn trim(&mut self, archived: Offset) {
        let now = self.clock.monotonic();
        let interval = TRIM_INTERVAL.min(self.keep);
        if self.trimmed.is_some_and(|last| now.saturating_sub(last) < interval) {
            return;
        }
        self.trimmed = Some(now);
        if let Err(error) = self.delete_older_than(self.clock.now() - Span::from(self.keep), archived).await {
            warn!(%error, "cannot delete archived dead letters from their topic; trying again later");
        }
    }

    /// Deletes the head of the topic: what came before a time and lies below the offset up to which it is archived.
    async fn delete_older_than(&self, time: Micros, archived: Offset) -> Result<(), LogError> {
        let log = self.log.clone();
        let found = SpawnedTask::spawn_blocking(move || {
            first_offset_since(&log, (DEAD_LETTER, LETTERS_PARTITION), time)
        });
        let first_kept = found.join_unwind().await.map_err(|_| LogError::Cancelled)??;
        let before = first_kept.map_or(archived, |offset| archived.min(offset));
        self.log.delete_records(DEAD_LETTER, LETTERS_PARTITION, before).await
    }
}

impl Destination for LettersTable {
    const TOPIC: &'static str = DEAD_LETTER;
    type Collector = LettersCollector;

    fn kafka_partitions(&self) -> i32 {
        1
    }

    fn lag(&self) -> Option<&PartitionGauge> {
        None
    }

    fn collector(&self) -> LettersCollector {
        LettersCollector { letters: LettersBuilder::new(READINGS) }
    }

    async fn archived(&self) -> Result<Horizon, TablesError> {
        self.table.archived().await
    }

    async fn append(&mut self, filled: Filled) -> Result<(), BatchError> {
        let archived = filled.parts.iter().map(|part| part.offsets.end).max();
        let batches = filled.parts.into_iter().map(|part| LetterBatch {
            kafka_partition: part.kafka_partition,
            offsets: part.offsets,
            letters: part.taken.batches,
        });
        let appended = self.table.append(batches.collect()).await.map_err(BatchError::tables("archive"))?;
        self.telemetry.letters.inc_by(appended);
        self.maintenance.after_append();
        if let Some(archived) = archived {
            self.trim(archived).await;
        }
        Ok(())
    }
}

/// Collects dead letters.
pub(super) struct LettersCollector {
    letters: LettersBuilder,
}

impl Collect for LettersCollector {
    fn push(&mut self, message: &Message<'_>) {
        let context = Context::decode(message.header(CONTEXT_HEADER).unwrap_or_default());
        // A message that is not a letter is kept as it is: it may be a letter of a later version.
        let context = context
            .unwrap_or_else(|error| no_letter(message.ingest_time, "not_a_dead_letter", error.to_string()));
        self.letters.append(&context, message.payload, message.offset);
    }

    fn pass_unreadable(&mut self, offsets: Range<Offset>, problem: &str, now: Micros) {
        let last = offsets.end.0 - 1;
        let detail = format!("offsets {} to {last} of this topic: {problem}", offsets.start);
        let context = no_letter(now, Reason::UnreadableRecordBatch.name(), detail);
        self.letters.append(&context, &[], offsets.start);
    }

    fn rows(&self) -> usize {
        self.letters.len()
    }

    fn take(&mut self) -> Taken {
        let batch = (!self.letters.is_empty()).then(|| self.letters.finish());
        Taken { batches: batch.into_iter().collect(), rejected: Vec::new() }
    }
}

/// The context of a message in the topic of dead letters that is not a letter.
fn no_letter(received_time: Micros, reason: &str, detail: String) -> Context {
    Context {
        received_time,
        reason: reason.to_owned(),
        detail,
        source: "kafka".to_owned(),
        kafka_partition: None,
        kafka_offset: None,
        item_index: 0,
    }
}

//! The table of dead letters as the destination of their topic, whose head is deleted once it is archived and old. Must
//! not know how topics are read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Array, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondArray,
};
use datafusion::common::runtime::SpawnedTask;
use tracing::warn;
use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::place::Offset;
use wye_domain::time::{Micros, Span};
use wye_domain::wire::Reason;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::reader::{Message, first_offset_since};
use wye_log::topics::{DEAD_LETTER, READINGS};
use wye_runtime::telemetry::PartitionGauge;
use wye_tables::TablesError;
use wye_tables::columns::dead_letter_schema;
use wye_tables::dead_letters::{DeadLetters, LetterBatch};

use crate::archiver::destination::Destination;
use crate::archiver::intake::{Collect, Filled, Taken};
use crate::archiver::maintenance::Maintenance;
use crate::error::BatchError;
use crate::layer::Parts;
use crate::telemetry::BatchTelemetry;
use wye_runtime::clock::Clock;

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
            first_offset_since(&log, (DEAD_LETTER, 0), time.0.div_euclid(1_000))
        });
        let first_kept = found.join_unwind().await.map_err(|_| LogError::Cancelled)??;
        let before = first_kept.map_or(archived, |offset| archived.min(Offset(offset)));
        self.log.delete_records(DEAD_LETTER, 0, before.0).await
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
        LettersCollector::default()
    }

    async fn archived(&self) -> Result<BTreeMap<i32, i64>, TablesError> {
        self.table.archived().await
    }

    async fn append(&mut self, filled: Filled) -> Result<(), BatchError> {
        let archived = filled.parts.iter().map(|part| Offset(part.offsets.next)).max();
        let batches = filled.parts.into_iter().map(|part| LetterBatch {
            kafka_partition: part.kafka_partition.0,
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

/// Dead letters in the columns of [`dead_letter_schema`].
#[derive(Default)]
pub(super) struct LettersCollector {
    received_time: Vec<i64>,
    reason: StringBuilder,
    detail: StringBuilder,
    source: StringBuilder,
    kafka_topic: StringBuilder,
    kafka_partition: Int32Builder,
    kafka_offset: Int64Builder,
    item_index: Int32Builder,
    payload: BinaryBuilder,
    letter_offset: Vec<i64>,
}

impl Collect for LettersCollector {
    fn push(&mut self, message: &Message<'_>) {
        let context = Context::decode(message.header(CONTEXT_HEADER).unwrap_or_default());
        // A message that is not a letter is kept as it is: it may be a letter of a later version.
        let received = Micros::from_millis(message.timestamp_ms);
        let context =
            context.unwrap_or_else(|error| no_letter(received, "not_a_dead_letter", error.to_string()));
        self.append(&context, message.payload, Offset(message.offset));
    }

    fn pass_unreadable(&mut self, offsets: Range<Offset>, problem: &str, now: Micros) {
        let last = offsets.end.0 - 1;
        let detail = format!("offsets {} to {last} of this topic: {problem}", offsets.start);
        self.append(&no_letter(now, Reason::UnreadableRecordBatch.name(), detail), &[], offsets.start);
    }

    fn rows(&self) -> usize {
        self.letter_offset.len()
    }

    fn take(&mut self) -> Taken {
        if self.letter_offset.is_empty() {
            return Taken::default();
        }
        let mut built = std::mem::take(self);
        let received = TimestampMicrosecondArray::from(built.received_time).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(received),
            Arc::new(built.reason.finish()),
            Arc::new(built.detail.finish()),
            Arc::new(built.source.finish()),
            Arc::new(built.kafka_topic.finish()),
            Arc::new(built.kafka_partition.finish()),
            Arc::new(built.kafka_offset.finish()),
            Arc::new(built.item_index.finish()),
            Arc::new(built.payload.finish()),
            Arc::new(Int64Array::from(built.letter_offset)),
        ];
        let batch = RecordBatch::try_new(dead_letter_schema(), columns);
        let batch = batch.expect("the builders have the types of the schema, and one length");
        Taken { batches: vec![batch], rejected: Vec::new() }
    }
}

impl LettersCollector {
    fn append(&mut self, context: &Context, payload: &[u8], letter_offset: Offset) {
        self.received_time.push(context.received_time);
        self.reason.append_value(&context.reason);
        self.detail.append_value(&context.detail);
        self.source.append_value(&context.source);
        self.kafka_topic.append_option(context.kafka_offset.map(|_| READINGS));
        self.kafka_partition.append_option(context.kafka_partition);
        self.kafka_offset.append_option(context.kafka_offset);
        self.item_index.append_option(i32::try_from(context.item_index).ok());
        self.payload.append_value(payload);
        self.letter_offset.push(letter_offset.0);
    }
}

/// The context of a message in the topic of dead letters that is not a letter.
fn no_letter(received_time: Micros, reason: &str, detail: String) -> Context {
    Context {
        received_time: received_time.0,
        reason: reason.to_owned(),
        detail,
        source: "kafka".to_owned(),
        kafka_partition: None,
        kafka_offset: None,
        item_index: 0,
    }
}

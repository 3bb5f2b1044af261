//! The two tables that topics are archived into, and how messages become their rows. Must not know how topics are
//! read.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Array, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondArray,
};
use tracing::warn;
use wye_domain::assemble::{Assembler, RejectedAt};
use wye_domain::dead_letter::{CONTEXT_HEADER, Context, Letter, Origin};
use wye_domain::wire::{Acceptance, Reason};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::reader::{Message, first_offset_since};
use wye_log::topics::{DEAD_LETTER, MAX_PAYLOAD_BYTES, READINGS};
use wye_runtime::clock::now_micros;
use wye_tables::TablesError;
use wye_tables::columns::dead_letter_schema;
use wye_tables::dead_letters::{DeadLetters, LetterBatch};
use wye_tables::readings::{ArchiveBatch, Readings};

use crate::archiver::intake::{Collect, Filled, Taken};
use crate::archiver::maintenance::Maintenance;
use crate::error::BatchError;
use crate::run::BatchParts;
use crate::telemetry::BatchTelemetry;

/// At most this often is the head of the dead-letter topic deleted.
const TRIMMING: Duration = Duration::from_secs(60);
/// The batching delay of the producer of dead letters.
const LINGER: Duration = Duration::from_millis(5);
/// How long to rest before a full producer queue is tried again.
const QUEUE_FULL_REST: Duration = Duration::from_millis(1);
/// About what a reading takes in memory: refused bytes count as so many rows, so that they are bounded too.
const BYTES_PER_ROW: usize = 128;

/// A table that a topic is archived into.
pub(super) trait Destination: Send + Sync + 'static {
    /// The topic.
    const TOPIC: &'static str;
    /// Whether the lag behind the log is shown.
    const MEASURES_LAG: bool;
    /// What turns messages into rows.
    type Collector: Collect;

    fn kafka_partitions(&self) -> i32;

    fn collector(&self) -> Self::Collector;

    /// By Kafka partition the first offset that is not archived.
    fn archived(&self) -> impl Future<Output = Result<BTreeMap<i32, i64>, TablesError>> + Send;

    /// Appends in one commit.
    fn append(&self, filled: Filled) -> impl Future<Output = Result<(), BatchError>> + Send;
}

/// The master dataset.
pub(super) struct ReadingsTable {
    table: Readings,
    kafka_partitions: i32,
    acceptance: Acceptance,
    /// Writes the dead letters of what is no reading.
    letters: Producer,
    telemetry: BatchTelemetry,
    maintenance: Maintenance<Readings>,
}

impl ReadingsTable {
    pub(super) async fn open(parts: &BatchParts, acceptance: Acceptance) -> Result<Self, BatchError> {
        let table =
            Readings::open(&parts.root).await.map_err(BatchError::tables("open the master dataset"))?;
        let maintenance =
            Maintenance::new(table.clone(), Arc::clone(&parts.compute), parts.telemetry.clone());
        let kafka_partitions = parts.log.config().kafka_partitions;
        let letters =
            Producer::new(&parts.log, LINGER).map_err(BatchError::log("write the dead-letter topic"))?;
        let telemetry = parts.telemetry.clone();
        Ok(Self { table, kafka_partitions, acceptance, letters, telemetry, maintenance })
    }

    /// Writes the dead letters of one Kafka partition, and waits until they are acknowledged.
    async fn write_letters(&self, kafka_partition: i32, refused: &[RejectedAt]) -> Result<(), LogError> {
        let mut deliveries = Vec::with_capacity(refused.len());
        for RejectedAt { kafka_offset, ingest_time, rejected } in refused {
            let origin = Origin::Kafka { kafka_partition, kafka_offset: *kafka_offset };
            let letter = Letter::new(rejected, origin, *ingest_time, MAX_PAYLOAD_BYTES);
            let context = letter.context.encode();
            let headers: [(&str, &[u8]); 1] = [(CONTEXT_HEADER, &context)];
            let payload = letter.payload;
            let message =
                Outgoing { topic: DEAD_LETTER, kafka_partition: 0, key: None, payload, headers: &headers };
            loop {
                match self.letters.enqueue(message) {
                    Ok(delivery) => break deliveries.push(delivery),
                    Err(LogError::QueueFull) => {
                        await_all(&mut deliveries).await?;
                        tokio::time::sleep(QUEUE_FULL_REST).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        await_all(&mut deliveries).await
    }
}

impl Destination for ReadingsTable {
    const TOPIC: &'static str = READINGS;
    const MEASURES_LAG: bool = true;
    type Collector = ReadingsCollector;

    fn kafka_partitions(&self) -> i32 {
        self.kafka_partitions
    }

    fn collector(&self) -> ReadingsCollector {
        ReadingsCollector { assembler: Assembler::new(self.acceptance) }
    }

    async fn archived(&self) -> Result<BTreeMap<i32, i64>, TablesError> {
        self.table.archived().await
    }

    async fn append(&self, filled: Filled) -> Result<(), BatchError> {
        for part in &filled.parts {
            let written = self.write_letters(part.kafka_partition, &part.taken.refused).await;
            written.map_err(BatchError::log("write the dead-letter topic"))?;
            self.telemetry.refused.inc_by(part.taken.refused.len() as u64);
        }
        let batches = filled.parts.into_iter().map(|part| ArchiveBatch {
            kafka_partition: part.kafka_partition,
            offsets: part.offsets,
            readings: part.taken.batches,
        });
        let appended = self.table.append(batches.collect()).await.map_err(BatchError::tables("archive"))?;
        self.telemetry.archive_commits.inc();
        self.telemetry.archived.inc_by(appended.readings);
        self.telemetry.archive_bytes.inc_by(appended.bytes);
        self.maintenance.after_append();
        Ok(())
    }
}

/// Empties `deliveries`, each waited for.
async fn await_all(deliveries: &mut Vec<Delivery>) -> Result<(), LogError> {
    for delivery in deliveries.drain(..) {
        delivery.await?;
    }
    Ok(())
}

/// Readings as they are accepted everywhere.
pub(super) struct ReadingsCollector {
    assembler: Assembler,
}

impl Collect for ReadingsCollector {
    #[inline]
    fn push(&mut self, message: &Message<'_>) {
        self.assembler.push(message.payload, message.offset, message.timestamp_ms.saturating_mul(1_000));
    }

    fn pass_unreadable(&mut self, offsets: Range<i64>, problem: &str) {
        self.assembler.pass_unreadable(offsets, problem, now_micros());
    }

    fn rows(&self) -> usize {
        self.assembler.rows() + self.assembler.rejected_bytes() / BYTES_PER_ROW
    }

    fn take(&mut self) -> Taken {
        let batches = self.assembler.take().into_iter().map(|placed| placed.batch).collect();
        Taken { batches, refused: self.assembler.take_rejected() }
    }
}

/// The archive of dead letters.
pub(super) struct LettersTable {
    table: DeadLetters,
    log: Log,
    /// How long archived letters stay in their topic.
    keep: Duration,
    /// When the topic's head was last deleted.
    trimmed: Mutex<Option<Instant>>,
    telemetry: BatchTelemetry,
    maintenance: Maintenance<DeadLetters>,
}

impl LettersTable {
    pub(super) async fn open(parts: &BatchParts, keep: Duration) -> Result<Self, BatchError> {
        let opened = DeadLetters::open(&parts.root).await;
        let table = opened.map_err(BatchError::tables("open the table of dead letters"))?;
        let maintenance =
            Maintenance::new(table.clone(), Arc::clone(&parts.compute), parts.telemetry.clone());
        let (log, telemetry) = (parts.log.clone(), parts.telemetry.clone());
        Ok(Self { table, log, keep, trimmed: Mutex::default(), telemetry, maintenance })
    }

    /// Deletes what is archived and old enough from the topic, now and then.
    async fn trim(&self, archived: i64) {
        let is_due = {
            let mut trimmed = self.trimmed.lock().expect("no holder of this lock panics");
            let is_due = trimmed.is_none_or(|last| last.elapsed() >= TRIMMING.min(self.keep));
            if is_due {
                *trimmed = Some(Instant::now());
            }
            is_due
        };
        if !is_due {
            return;
        }
        let since = now_micros() / 1_000 - i64::try_from(self.keep.as_millis()).unwrap_or(i64::MAX);
        let log = self.log.clone();
        let found =
            tokio::task::spawn_blocking(move || first_offset_since(&log, (DEAD_LETTER, 0), since)).await;
        let deleted = match found.unwrap_or(Err(LogError::Cancelled)) {
            Ok(young) => {
                let before = young.unwrap_or(archived).min(archived);
                self.log.delete_records(DEAD_LETTER, 0, before).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = deleted {
            warn!(%error, "cannot delete archived dead letters from their topic; trying again later");
        }
    }
}

impl Destination for LettersTable {
    const TOPIC: &'static str = DEAD_LETTER;
    const MEASURES_LAG: bool = false;
    type Collector = LettersCollector;

    fn kafka_partitions(&self) -> i32 {
        1
    }

    fn collector(&self) -> LettersCollector {
        LettersCollector::default()
    }

    async fn archived(&self) -> Result<BTreeMap<i32, i64>, TablesError> {
        self.table.archived().await
    }

    async fn append(&self, filled: Filled) -> Result<(), BatchError> {
        let archived = filled.parts.iter().map(|part| part.offsets.next).max().unwrap_or(0);
        let batches = filled.parts.into_iter().map(|part| LetterBatch {
            kafka_partition: part.kafka_partition,
            offsets: part.offsets,
            letters: part.taken.batches,
        });
        let appended = self.table.append(batches.collect()).await.map_err(BatchError::tables("archive"))?;
        self.telemetry.letters.inc_by(appended);
        self.maintenance.after_append();
        self.trim(archived).await;
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
        // What stands in the topic and is no letter is kept as it is: it may be a letter of a later version.
        let received = message.timestamp_ms.saturating_mul(1_000);
        let context =
            context.unwrap_or_else(|error| no_letter(received, "not_a_dead_letter", error.to_string()));
        self.append(&context, message.payload, message.offset);
    }

    fn pass_unreadable(&mut self, offsets: Range<i64>, problem: &str) {
        let detail = format!("offsets {} to {} of this topic: {problem}", offsets.start, offsets.end - 1);
        let reason = Reason::UnreadableRecordBatch.name();
        self.append(&no_letter(now_micros(), reason, detail), &[], offsets.start);
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
        let batch = batch.expect("the builders have the schema's types and one length");
        Taken { batches: vec![batch], refused: Vec::new() }
    }
}

impl LettersCollector {
    fn append(&mut self, context: &Context, payload: &[u8], offset: i64) {
        self.received_time.push(context.received_time);
        self.reason.append_value(&context.reason);
        self.detail.append_value(&context.detail);
        self.source.append_value(&context.source);
        self.kafka_topic.append_option(context.kafka_offset.map(|_| READINGS));
        self.kafka_partition.append_option(context.kafka_partition);
        self.kafka_offset.append_option(context.kafka_offset);
        self.item_index.append_option(i32::try_from(context.item_index).ok());
        self.payload.append_value(payload);
        self.letter_offset.push(offset);
    }
}

/// The context of something in the topic of dead letters that is none.
fn no_letter(received_time: i64, reason: &str, detail: String) -> Context {
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

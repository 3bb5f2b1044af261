//! The master dataset as the destination of the readings topic, and the dead letters of invalid readings. Must not know
//! how topics are read.

use std::ops::Range;
use std::time::Duration;

use wye_domain::assemble::{Assembler, RejectedAt};
use wye_domain::dead_letter::{CONTEXT_HEADER, Letter, Origin};
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::time::Micros;
use wye_domain::wire::Acceptance;
use wye_log::LogError;
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::reader::Message;
use wye_log::topics::{DEAD_LETTER, MAX_PAYLOAD_BYTES, READINGS};
use wye_runtime::telemetry::PartitionGauge;
use wye_tables::TablesError;
use wye_tables::readings::{ArchiveBatch, Readings};

use crate::archiver::destination::Destination;
use crate::archiver::intake::{Collect, Filled, Taken};
use crate::archiver::letters::LETTERS_PARTITION;
use crate::archiver::maintenance::Maintenance;
use crate::error::BatchError;
use crate::layer::Parts;
use crate::telemetry::BatchTelemetry;

/// The batching delay (linger) of the producer of dead letters.
const LINGER: Duration = Duration::from_millis(5);
/// How long to wait before a full producer queue is tried again.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(1);
/// About how many bytes a reading takes in memory. Rejected bytes count as rows of this size, so that they are bounded
/// too.
const BYTES_PER_ROW: usize = 128;

/// The master dataset.
pub(super) struct ReadingsTable {
    table: Readings,
    kafka_partitions: i32,
    acceptance: Acceptance,
    /// Writes the dead letters of invalid readings.
    letters: Producer,
    telemetry: BatchTelemetry,
    maintenance: Maintenance<Readings>,
}

impl ReadingsTable {
    pub(super) async fn open(parts: &Parts) -> Result<Self, BatchError> {
        let table =
            Readings::open(&parts.root).await.map_err(BatchError::tables("open the master dataset"))?;
        let letters =
            Producer::new(&parts.log, LINGER).map_err(BatchError::log("write the dead-letter topic"))?;
        Ok(Self {
            maintenance: Maintenance::new(table.clone(), parts),
            table,
            kafka_partitions: parts.log.config().kafka_partitions,
            acceptance: parts.acceptance,
            letters,
            telemetry: parts.telemetry.clone(),
        })
    }

    /// Writes the dead letters of one Kafka partition, and waits until they are acknowledged.
    async fn write_letters(
        &self,
        kafka_partition: KafkaPartition,
        rejected: &[RejectedAt],
    ) -> Result<(), LogError> {
        let mut deliveries = Vec::with_capacity(rejected.len());
        for RejectedAt { kafka_offset, ingest_time, rejected } in rejected {
            let origin = Origin::Kafka { kafka_partition, kafka_offset: *kafka_offset };
            let letter = Letter::new(rejected, origin, *ingest_time, MAX_PAYLOAD_BYTES);
            let context = letter.context.encode();
            let headers: [(&str, &[u8]); 1] = [(CONTEXT_HEADER, &context)];
            let payload = letter.payload;
            let message = Outgoing {
                topic: DEAD_LETTER,
                kafka_partition: LETTERS_PARTITION,
                key: None,
                payload,
                headers: &headers,
            };
            loop {
                match self.letters.enqueue(message) {
                    Ok(delivery) => break deliveries.push(delivery),
                    Err(LogError::QueueFull) => {
                        await_all(&mut deliveries).await?;
                        tokio::time::sleep(QUEUE_FULL_DELAY).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        await_all(&mut deliveries).await
    }
}

/// Waits for each delivery, and empties the list.
async fn await_all(deliveries: &mut Vec<Delivery>) -> Result<(), LogError> {
    for delivery in deliveries.drain(..) {
        delivery.await?;
    }
    Ok(())
}

impl Destination for ReadingsTable {
    const TOPIC: &'static str = READINGS;
    type Collector = ReadingsCollector;

    fn kafka_partitions(&self) -> i32 {
        self.kafka_partitions
    }

    fn lag(&self) -> Option<&PartitionGauge> {
        Some(&self.telemetry.archive_lag)
    }

    fn collector(&self) -> ReadingsCollector {
        ReadingsCollector { assembler: Assembler::new(self.acceptance) }
    }

    async fn archived(&self) -> Result<Horizon, TablesError> {
        self.table.archived().await
    }

    async fn append(&mut self, filled: Filled) -> Result<(), BatchError> {
        for part in &filled.parts {
            let written = self.write_letters(part.kafka_partition, &part.taken.rejected).await;
            written.map_err(BatchError::log("write the dead-letter topic"))?;
            self.telemetry.refused.inc_by(part.taken.rejected.len() as u64);
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

/// Collects readings, which it accepts by the same rules as the speed layer.
pub(super) struct ReadingsCollector {
    assembler: Assembler,
}

impl Collect for ReadingsCollector {
    #[inline]
    fn push(&mut self, message: &Message<'_>) {
        self.assembler.push(message.payload, message.offset, message.ingest_time);
    }

    fn pass_unreadable(&mut self, offsets: Range<Offset>, problem: &str, now: Micros) {
        self.assembler.pass_unreadable(offsets, problem, now);
    }

    fn rows(&self) -> usize {
        self.assembler.rows() + self.assembler.rejected_bytes() / BYTES_PER_ROW
    }

    fn take(&mut self) -> Taken {
        let batches = self.assembler.take().into_iter().map(|placed| placed.batch).collect();
        Taken { batches, rejected: self.assembler.take_rejected() }
    }
}

//! From messages of one Kafka partition to batches of readings with their places in the log: the first step of the speed
//! layer and of the archiver.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::DomainError;
use crate::batch;
use crate::place::Offset;
use crate::reading::{self, ReadingColumns, time_type};
use crate::time::Micros;
use crate::wire::{Acceptance, AcceptedRows, Collected, Decoded, Reason, Rejected, decode};

/// Readings with their places in the log.
///
/// The batch has the columns of [`crate::reading`], then `ingest_time` (µs), `kafka_offset` (Int64) and `kafka_index`
/// (Int32, the reading's index in its message).
#[derive(Clone, Debug)]
pub struct Placed {
    /// The columns that the type describes.
    pub batch: RecordBatch,
}

/// The schema of a batch of placed readings.
pub fn placed_schema() -> SchemaRef {
    let mut fields: Vec<Field> =
        reading::schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("ingest_time", time_type(), false));
    fields.push(Field::new("kafka_offset", DataType::Int64, false));
    fields.push(Field::new("kafka_index", DataType::Int32, false));
    Arc::new(Schema::new(fields))
}

/// A message of the log, or a part of one, that was not accepted.
#[derive(Clone, Debug)]
pub struct RejectedAt {
    /// Its offset.
    pub kafka_offset: Offset,
    /// Its ingest time.
    pub ingest_time: Micros,
    /// The bytes and the reason.
    pub rejected: Rejected,
}

/// About how much memory a rejection takes without its payload.
const REJECTED_BYTES: usize = 256;

/// Collects messages of one Kafka partition, in order.
#[derive(Debug, Default)]
pub struct Assembler {
    acceptance: Acceptance,
    collected: Collected,
    ingest_time: Vec<i64>,
    kafka_offset: Vec<i64>,
    rejected: Vec<RejectedAt>,
    rejected_bytes: usize,
    ready: Vec<Placed>,
    ready_rows: usize,
    next_offset: Option<Offset>,
}

impl Assembler {
    /// An assembler that accepts by these rules.
    pub fn new(acceptance: Acceptance) -> Self {
        Self { acceptance, ..Self::default() }
    }

    /// Takes in one message.
    #[inline]
    pub fn push(&mut self, payload: &[u8], kafka_offset: Offset, ingest_time: Micros) {
        match decode(payload, ingest_time, &self.acceptance, &mut self.collected) {
            Decoded::Collected(count) => {
                self.ingest_time.extend(std::iter::repeat_n(ingest_time.0, count));
                self.kafka_offset.extend(std::iter::repeat_n(kafka_offset.0, count));
            }
            Decoded::Batches(batches) => {
                self.close();
                for AcceptedRows { batch, item_index } in batches {
                    let rows = batch.num_rows();
                    if rows > 0 {
                        let places = Places {
                            ingest_time: vec![ingest_time.0; rows],
                            kafka_offset: vec![kafka_offset.0; rows],
                            kafka_index: item_index,
                        };
                        self.finish(&batch, places);
                    }
                }
            }
        }
        if !self.collected.rejected.is_empty() {
            let rejected = std::mem::take(&mut self.collected.rejected);
            self.rejected_bytes +=
                rejected.iter().map(|one| REJECTED_BYTES + one.payload.len()).sum::<usize>();
            self.rejected.extend(rejected.into_iter().map(|rejected| RejectedAt {
                kafka_offset,
                ingest_time,
                rejected,
            }));
        }
        self.next_offset = Some(kafka_offset.next());
    }

    /// Skips messages that no reader of the log can decode, and keeps one rejection for all of them.
    pub fn pass_unreadable(&mut self, offsets: Range<Offset>, problem: &str, now: Micros) {
        let detail = format!("offsets {} to {}: {problem}", offsets.start, offsets.end.0 - 1);
        let reason = Reason::UnreadableRecordBatch;
        let rejected = Rejected { item_index: 0, readings: 1, reason, detail, payload: Vec::new() };
        self.rejected.push(RejectedAt { kafka_offset: offsets.start, ingest_time: now, rejected });
        self.next_offset = Some(offsets.end);
    }

    /// How many readings [`Assembler::take`] would return.
    pub fn rows(&self) -> usize {
        self.ready_rows + self.collected.readings.len()
    }

    /// How much memory the rejections take that [`Assembler::take_rejected`] would return, in bytes.
    pub fn rejected_bytes(&self) -> usize {
        self.rejected_bytes
    }

    /// The offset after the last message taken in; `None` before the first.
    pub fn next_offset(&self) -> Option<Offset> {
        self.next_offset
    }

    /// Takes out the batches so far, in log order.
    pub fn take(&mut self) -> Vec<Placed> {
        self.close();
        self.ready_rows = 0;
        std::mem::take(&mut self.ready)
    }

    /// Takes out the rejections so far.
    pub fn take_rejected(&mut self) -> Vec<RejectedAt> {
        self.rejected_bytes = 0;
        std::mem::take(&mut self.rejected)
    }

    fn close(&mut self) {
        if self.collected.readings.is_empty() {
            return;
        }
        let batch = self.collected.readings.finish();
        let places = Places {
            ingest_time: std::mem::take(&mut self.ingest_time),
            kafka_offset: std::mem::take(&mut self.kafka_offset),
            kafka_index: std::mem::take(&mut self.collected.item_index),
        };
        self.finish(&batch, places);
    }

    fn finish(&mut self, readings: &RecordBatch, places: Places) {
        let mut columns: Vec<ArrayRef> = readings.columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from(places.ingest_time).with_timezone("UTC")));
        columns.push(Arc::new(Int64Array::from(places.kafka_offset)));
        columns.push(Arc::new(Int32Array::from(places.kafka_index)));
        let batch = batch::of_columns(placed_schema(), columns);
        self.ready_rows += batch.num_rows();
        self.ready.push(Placed { batch });
    }
}

/// The places of readings, one entry for each reading.
struct Places {
    ingest_time: Vec<i64>,
    kafka_offset: Vec<i64>,
    kafka_index: Vec<i32>,
}

/// The columns of placed readings with their types resolved.
#[derive(Clone, Copy, Debug)]
pub struct PlacedColumns<'a> {
    /// The readings.
    pub readings: ReadingColumns<'a>,
    /// Ingest times in µs.
    pub ingest_time: &'a [i64],
    /// Offsets in the Kafka partition.
    pub kafka_offset: &'a [i64],
}

impl<'a> PlacedColumns<'a> {
    /// Resolves the columns by name; further columns are ignored.
    ///
    /// # Errors
    /// [`DomainError::Shape`] naming the first column that is absent or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        Ok(Self {
            readings: ReadingColumns::of(batch)?,
            ingest_time: reading::column::<TimestampMicrosecondArray>(batch, "ingest_time")?.values(),
            kafka_offset: reading::column::<Int64Array>(batch, "kafka_offset")?.values(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Reading, ReadingBatchBuilder};
    use crate::wire;

    #[test]
    fn messages_of_both_forms_keep_their_order_and_offsets() {
        let mut assembler = Assembler::default();
        let json = br#"[{"device_id":"a","metric":"m","value":1,"event_time":1700000000000},7,{"device_id":"b","metric":"m","value":2,"event_time":1700000000000}]"#;
        let mut builder = ReadingBatchBuilder::default();
        builder.append(&Reading {
            device_id: "c",
            metric: "m",
            value: 3.0,
            event_time: Micros(1_700_000_000_000_000),
            sequence: None,
            unit: None,
            tags: None,
        });
        let now = Micros(1_700_000_001_000_000);
        assembler.push(json, Offset(5), now);
        assembler.push(&wire::encode(&[builder.finish()]), Offset(6), now);
        assembler.push(json, Offset(8), now);
        assert_eq!((assembler.rows(), assembler.next_offset()), (5, Some(Offset(9))));
        let mut places: Vec<(i64, i32, String)> = Vec::new();
        for Placed { batch } in assembler.take() {
            let columns = PlacedColumns::of(&batch).unwrap();
            let index = reading::column::<Int32Array>(&batch, "kafka_index").unwrap();
            places.extend((0..batch.num_rows()).map(|row| {
                let device_id = columns.readings.reading(row).device_id.to_owned();
                (columns.kafka_offset[row], index.value(row), device_id)
            }));
        }
        let expected = [(5, 0, "a"), (5, 2, "b"), (6, 0, "c"), (8, 0, "a"), (8, 2, "b")]
            .map(|(o, i, d)| (o, i, d.to_owned()));
        assert_eq!(places, expected);
        let rejected = assembler.take_rejected();
        let rejected: Vec<_> = rejected.iter().map(|r| (r.kafka_offset, r.rejected.item_index)).collect();
        assert_eq!(rejected, [(Offset(5), 1), (Offset(8), 1)]);
        assert_eq!(assembler.rows(), 0);
    }

    #[test]
    fn undecodable_messages_are_rejected_as_one_and_skipped() {
        let mut assembler = Assembler::default();
        assembler.pass_unreadable(Offset(10)..Offset(13), "broken", Micros(7));
        assert_eq!((assembler.rows(), assembler.next_offset()), (0, Some(Offset(13))));
        let refused = assembler.take_rejected();
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].kafka_offset, refused[0].ingest_time), (Offset(10), Micros(7)));
        assert_eq!(refused[0].rejected.reason.name(), "unreadable_record_batch");
        assert_eq!(refused[0].rejected.detail, "offsets 10 to 12: broken");
    }
}

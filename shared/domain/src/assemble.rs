//! From messages of one Kafka partition to batches of readings with their places: what both the speed layer and the
//! archiver do first.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::reading::{self, time_type};
use crate::wire::{Acceptance, Collected, Decoded, Reason, Rejected, decode};

/// Readings with their places.
///
/// The batch has the columns of [`crate::reading`], then `ingest_time` (µs), `kafka_offset` (Int64) and `kafka_index`
/// (Int32, the reading's index in its message).
#[derive(Clone, Debug)]
pub struct Placed {
    /// See the type.
    pub batch: RecordBatch,
}

/// What a batch of placed readings looks like.
pub fn placed_schema() -> SchemaRef {
    let mut fields: Vec<Field> =
        reading::schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new("ingest_time", time_type(), false));
    fields.push(Field::new("kafka_offset", DataType::Int64, false));
    fields.push(Field::new("kafka_index", DataType::Int32, false));
    Arc::new(Schema::new(fields))
}

/// Something of the log that was not accepted.
#[derive(Clone, Debug)]
pub struct RejectedAt {
    /// Its offset.
    pub kafka_offset: i64,
    /// Its ingest time in µs.
    pub ingest_time: i64,
    /// What and why.
    pub rejected: Rejected,
}

/// What a rejected thing takes in memory beside its bytes, about.
const LETTER_BYTES: usize = 256;

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
    next_offset: Option<i64>,
}

impl Assembler {
    /// An assembler that accepts by these rules.
    pub fn new(acceptance: Acceptance) -> Self {
        Self { acceptance, ..Self::default() }
    }

    /// Takes in one message; `ingest_time` in µs.
    #[inline]
    pub fn push(&mut self, payload: &[u8], kafka_offset: i64, ingest_time: i64) {
        match decode(payload, ingest_time, &self.acceptance, &mut self.collected) {
            Decoded::Collected(count) => {
                self.ingest_time.extend(std::iter::repeat_n(ingest_time, count));
                self.kafka_offset.extend(std::iter::repeat_n(kafka_offset, count));
            }
            Decoded::Batches(batches) => {
                self.close();
                for (batch, index) in batches {
                    if batch.num_rows() > 0 {
                        let rows = batch.num_rows();
                        self.finish(&batch, vec![ingest_time; rows], vec![kafka_offset; rows], index);
                    }
                }
            }
        }
        if !self.collected.rejected.is_empty() {
            let rejected = std::mem::take(&mut self.collected.rejected);
            self.rejected_bytes += rejected.iter().map(|one| LETTER_BYTES + one.payload.len()).sum::<usize>();
            self.rejected.extend(rejected.into_iter().map(|rejected| RejectedAt {
                kafka_offset,
                ingest_time,
                rejected,
            }));
        }
        self.next_offset = Some(kafka_offset + 1);
    }

    /// Goes past messages that no reader of the log can decode, and takes note of them as refused; `now` in µs.
    pub fn pass_unreadable(&mut self, offsets: Range<i64>, problem: &str, now: i64) {
        let detail = format!("offsets {} to {}: {problem}", offsets.start, offsets.end - 1);
        let reason = Reason::UnreadableRecordBatch;
        let rejected = Rejected { item_index: 0, readings: 1, reason, detail, payload: Vec::new() };
        self.rejected.push(RejectedAt { kafka_offset: offsets.start, ingest_time: now, rejected });
        self.next_offset = Some(offsets.end);
    }

    /// How many readings wait to be taken.
    pub fn rows(&self) -> usize {
        self.ready_rows + self.collected.readings.len()
    }

    /// How many bytes wait to be taken as not accepted.
    pub fn rejected_bytes(&self) -> usize {
        self.rejected_bytes
    }

    /// The offset after the last message taken in; `None` before the first.
    pub fn next_offset(&self) -> Option<i64> {
        self.next_offset
    }

    /// The batches so far, in log order.
    pub fn take(&mut self) -> Vec<Placed> {
        self.close();
        self.ready_rows = 0;
        std::mem::take(&mut self.ready)
    }

    /// What was not accepted since this was last asked.
    pub fn take_rejected(&mut self) -> Vec<RejectedAt> {
        self.rejected_bytes = 0;
        std::mem::take(&mut self.rejected)
    }

    fn close(&mut self) {
        if self.collected.readings.is_empty() {
            return;
        }
        let batch = self.collected.readings.finish();
        let index = std::mem::take(&mut self.collected.item_index);
        let (ingest_time, kafka_offset) =
            (std::mem::take(&mut self.ingest_time), std::mem::take(&mut self.kafka_offset));
        self.finish(&batch, ingest_time, kafka_offset, index);
    }

    fn finish(
        &mut self,
        readings: &RecordBatch,
        ingest_time: Vec<i64>,
        kafka_offset: Vec<i64>,
        index: Vec<i32>,
    ) {
        let mut columns: Vec<ArrayRef> = readings.columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from(ingest_time).with_timezone("UTC")));
        columns.push(Arc::new(Int64Array::from(kafka_offset)));
        columns.push(Arc::new(Int32Array::from(index)));
        let batch = RecordBatch::try_new(placed_schema(), columns).expect("one place for each reading");
        self.ready_rows += batch.num_rows();
        self.ready.push(Placed { batch });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reading::{Reading, ReadingBatchBuilder};
    use crate::wire;

    #[test]
    fn messages_of_both_forms_keep_their_order_and_place() {
        let mut assembler = Assembler::default();
        let json = br#"[{"device_id":"a","metric":"m","value":1,"event_time":1700000000000},7,{"device_id":"b","metric":"m","value":2,"event_time":1700000000000}]"#;
        let mut builder = ReadingBatchBuilder::default();
        builder.append(&Reading {
            device_id: "c",
            metric: "m",
            value: 3.0,
            event_time: 1_700_000_000_000_000,
            sequence: None,
            unit: None,
            tags: None,
        });
        let now = 1_700_000_001_000_000;
        assembler.push(json, 5, now);
        assembler.push(&wire::encode(&[builder.finish()]), 6, now);
        assembler.push(json, 8, now);
        assert_eq!((assembler.rows(), assembler.next_offset()), (5, Some(9)));
        let places: Vec<(i64, i32, String)> = assembler
            .take()
            .iter()
            .flat_map(|placed| {
                let offsets = placed
                    .batch
                    .column_by_name("kafka_offset")
                    .unwrap()
                    .as_any()
                    .downcast_ref::<Int64Array>()
                    .unwrap()
                    .clone();
                let index = placed
                    .batch
                    .column_by_name("kafka_index")
                    .unwrap()
                    .as_any()
                    .downcast_ref::<Int32Array>()
                    .unwrap()
                    .clone();
                let columns = crate::reading::ReadingColumns::of(&placed.batch).unwrap();
                (0..placed.batch.num_rows())
                    .map(|row| {
                        (offsets.value(row), index.value(row), columns.reading(row).device_id.to_owned())
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        let expected = [(5, 0, "a"), (5, 2, "b"), (6, 0, "c"), (8, 0, "a"), (8, 2, "b")]
            .map(|(o, i, d)| (o, i, d.to_owned()));
        assert_eq!(places, expected);
        let rejected: Vec<(i64, u32)> =
            assembler.take_rejected().iter().map(|r| (r.kafka_offset, r.rejected.item_index)).collect();
        assert_eq!(rejected, [(5, 1), (8, 1)]);
        assert_eq!(assembler.rows(), 0);
    }

    #[test]
    fn what_no_reader_can_decode_is_refused_as_one_and_passed() {
        let mut assembler = Assembler::default();
        assembler.pass_unreadable(10..13, "broken", 7);
        assert_eq!((assembler.rows(), assembler.next_offset()), (0, Some(13)));
        let refused = assembler.take_rejected();
        assert_eq!((refused.len(), refused[0].kafka_offset, refused[0].ingest_time), (1, 10, 7));
        assert_eq!(refused[0].rejected.reason.name(), "unreadable_record_batch");
        assert_eq!(refused[0].rejected.detail, "offsets 10 to 12: broken");
    }
}

//! Marks repeated readings: the first of an identity in log order counts, a later one is a duplicate, or a conflict if its
//! value differs. The same rule as in the speed layer, here on the fields themselves and without a limit, also where a
//! device is in several Kafka partitions (see [`READING_ORDER`] for which reading is the first).
//!
//! Readings come sorted by [`READING_ORDER`], so that readings of one identity are adjacent, the first in log order first.
//! It must not know what is computed of the readings.
//!
//! [`READING_ORDER`]: wye_tables::columns::READING_ORDER

use std::sync::Arc;

use arrow::array::{Array, Int32Array, RecordBatch, UInt8Array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::error::{DataFusionError, Result};
use wye_domain::DomainError;
use wye_domain::assemble::PlacedColumns;
use wye_domain::identity::{Novelty, copy_of};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{ReadingColumns, TextColumn, column};
use wye_domain::time::Micros;

/// The column that says what a reading is: a UInt8 with one of the codes below.
pub const NOVELTY: &str = "novelty";
/// [`Novelty::First`]
pub const FIRST: u8 = 0;
/// [`Novelty::Duplicate`]
pub const DUPLICATE: u8 = 1;
/// [`Novelty::Conflict`]
pub const CONFLICT: u8 = 2;
/// The same reading of the log a second time. A table has it twice after two engines have merged the same files at once.
pub const REPEATED: u8 = 3;

/// A reading that an amendment leaves out.
pub const DROPPED: u8 = 4;

/// The code of a novelty in the column [`NOVELTY`].
pub fn code(novelty: Novelty) -> u8 {
    match novelty {
        Novelty::First => FIRST,
        Novelty::Duplicate => DUPLICATE,
        Novelty::Conflict => CONFLICT,
    }
}

/// The novelty of a code in the column [`NOVELTY`]; `None` for [`REPEATED`] and [`DROPPED`].
#[inline]
pub fn novelty(code: u8) -> Option<Novelty> {
    match code {
        FIRST => Some(Novelty::First),
        DUPLICATE => Some(Novelty::Duplicate),
        CONFLICT => Some(Novelty::Conflict),
        _ => None,
    }
}

/// The last reading of a batch.
#[derive(Clone, Debug, PartialEq)]
struct Last {
    device_id: String,
    metric: String,
    event_time: Micros,
    sequence: Option<i64>,
    /// The value that counts for this identity.
    counting: f64,
    place: Place,
}

/// Where a reading is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    kafka_partition: KafkaPartition,
    offset: Offset,
    /// In its message.
    index: i32,
}

/// Marks the readings of one sorted stream, batch by batch.
#[derive(Debug, Default)]
pub struct Deduplicator {
    last: Option<Last>,
}

impl Deduplicator {
    /// The next batch with the column [`NOVELTY`] as its last one.
    ///
    /// # Errors
    /// When the batch lacks a column of a reading.
    pub fn marked(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let novelty = self.mark(batch).map_err(|error| DataFusionError::External(error.into()))?;
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(UInt8Array::from(novelty)));
        Ok(RecordBatch::try_new(marked_schema(&batch.schema()), columns)?)
    }

    /// What each reading of the next batch is, as codes.
    ///
    /// Rows are compared by their numbers first; texts are only compared where the numbers are equal and the dictionary
    /// codes are not. (`arrow::compute::partition` would compare the texts of all rows.)
    ///
    /// # Errors
    /// When the batch lacks a column of a reading.
    pub fn mark(&mut self, batch: &RecordBatch) -> std::result::Result<Vec<u8>, DomainError> {
        let rows = Rows::of(batch)?;
        let mut novelty = vec![FIRST; batch.num_rows()];
        let Some(last_row) = batch.num_rows().checked_sub(1) else { return Ok(novelty) };
        let values = rows.columns.value;
        // The value that counts for the identity of the row before.
        let mut counting = values[0];
        if let Some(last) = self.last.as_ref().filter(|last| rows.has_identity(0, last)) {
            let is_repeated = rows.place(0) == last.place;
            novelty[0] = if is_repeated { REPEATED } else { code(copy_of(last.counting, values[0])) };
            counting = last.counting;
        }
        for (before, novelty) in novelty[1..].iter_mut().enumerate() {
            let row = before + 1;
            if !rows.have_one_identity(before, row) {
                counting = values[row];
            } else if rows.place(row) == rows.place(before) {
                *novelty = REPEATED;
            } else {
                *novelty = code(copy_of(counting, values[row]));
            }
        }
        self.last = Some(rows.last(last_row, counting));
        Ok(novelty)
    }
}

/// The columns of a batch by which its rows are compared.
struct Rows<'a> {
    columns: ReadingColumns<'a>,
    has_sequences: bool,
    kafka_partition: &'a [i32],
    kafka_offset: &'a [i64],
    kafka_index: &'a [i32],
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> std::result::Result<Self, DomainError> {
        let PlacedColumns { readings: columns, kafka_offset, .. } = PlacedColumns::of(batch)?;
        Ok(Self {
            columns,
            has_sequences: columns.sequence.null_count() < batch.num_rows(),
            kafka_partition: column::<Int32Array>(batch, "kafka_partition")?.values(),
            kafka_offset,
            kafka_index: column::<Int32Array>(batch, "kafka_index")?.values(),
        })
    }

    #[inline]
    fn sequence(&self, row: usize) -> Option<i64> {
        let column = self.columns.sequence;
        (self.has_sequences && column.is_valid(row)).then(|| column.value(row))
    }

    #[inline]
    fn place(&self, row: usize) -> Place {
        Place {
            kafka_partition: KafkaPartition(self.kafka_partition[row]),
            offset: Offset(self.kafka_offset[row]),
            index: self.kafka_index[row],
        }
    }

    #[inline]
    fn have_one_identity(&self, before: usize, row: usize) -> bool {
        self.columns.event_time[row] == self.columns.event_time[before]
            && self.sequence(row) == self.sequence(before)
            && same_text(&self.columns.device_id, row, before)
            && same_text(&self.columns.metric, row, before)
    }

    fn has_identity(&self, row: usize, last: &Last) -> bool {
        self.columns.event_time[row] == last.event_time.0
            && self.sequence(row) == last.sequence
            && self.columns.device_id.text(row) == Some(last.device_id.as_str())
            && self.columns.metric.text(row) == Some(last.metric.as_str())
    }

    fn last(&self, row: usize, counting: f64) -> Last {
        Last {
            device_id: self.columns.device_id.text(row).unwrap_or_default().to_owned(),
            metric: self.columns.metric.text(row).unwrap_or_default().to_owned(),
            event_time: Micros(self.columns.event_time[row]),
            sequence: self.sequence(row),
            counting,
            place: self.place(row),
        }
    }
}

#[inline]
fn same_text(column: &TextColumn<'_>, row: usize, before: usize) -> bool {
    column.code(row) == column.code(before) || column.text(row) == column.text(before)
}

/// The columns of a batch, and [`NOVELTY`] as the last one.
pub(crate) fn marked_schema(given: &Schema) -> SchemaRef {
    let fields = given.fields().iter().cloned();
    let fields = fields.chain([Arc::new(Field::new(NOVELTY, DataType::UInt8, false))]);
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

#[cfg(test)]
mod tests;

//! The master dataset and the batch views, in memory.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Int32Array, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{Field, Schema};
use wye_batch::dedup::Deduplicator;
use wye_batch::fold::{Fold, Folded, Tally};
use wye_domain::assemble::{Assembler, PlacedColumns};
use wye_domain::place::Offset;
use wye_domain::reading::TextColumn;
use wye_domain::time::Micros;
use wye_metrics::confidence::{Arrival, LatenessHistogram};
use wye_metrics::view_rows::maker::RowMaker;
use wye_tables::columns::READING_ORDER;

use super::{Plans, acceptance};

/// The master dataset of one Kafka partition.
pub(crate) struct Archive {
    kafka_partition: i32,
    assembler: Assembler,
    /// With the columns of the master dataset.
    batches: Vec<RecordBatch>,
}

impl Archive {
    pub(crate) fn new(kafka_partition: i32, accepts_early: bool) -> Self {
        let assembler = Assembler::new(acceptance(accepts_early));
        Self { kafka_partition, assembler, batches: Vec::new() }
    }

    pub(crate) fn message(&mut self, offset: i64, time: i64, payload: &[u8]) -> Result<()> {
        self.assembler.push(payload, Offset(offset), Micros(time));
        self.assembler.take_rejected();
        for placed in self.assembler.take() {
            let partitions = Int32Array::from(vec![self.kafka_partition; placed.batch.num_rows()]);
            self.batches.push(with_column(&placed.batch, "kafka_partition", Arc::new(partitions))?);
        }
        Ok(())
    }

    /// The readings below an offset.
    fn below(&self, end: i64) -> impl Iterator<Item = &RecordBatch> {
        // Each batch is of one message.
        self.batches.iter().filter(move |batch| offset_of(batch).is_some_and(|offset| offset < end))
    }
}

fn offset_of(batch: &RecordBatch) -> Option<i64> {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    batch.column_by_name("kafka_offset")?.as_primitive_opt::<Int64Type>()?.values().first().copied()
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> Result<RecordBatch> {
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
    let mut columns = batch.columns().to_vec();
    columns.push(column);
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// A batch view in memory.
#[derive(Clone)]
pub(crate) struct BatchView {
    pub(super) horizon: Vec<i64>,
    pub(super) definitions: u64,
    pub(super) as_of: i64,
    /// When the first reading was ingested (µs).
    pub(super) first_ingest: Option<i64>,
    pub(super) tally: Tally,
    pub(super) lateness: LatenessHistogram,
    pub(super) rows: Vec<RecordBatch>,
}

/// Computes a batch view from the readings below a horizon, in two pieces. `as_of` (µs) where everything that
/// was ingested before is below the horizon. Every n-th reading is there twice, as after two merges of the same files.
pub(crate) fn recompute(
    plans: &Plans,
    archives: &[Archive],
    horizon: &[i64],
    as_of: Option<i64>,
    repeat: usize,
) -> Result<BatchView> {
    let below: Vec<&RecordBatch> =
        archives.iter().zip(horizon).flat_map(|(archive, end)| archive.below(*end)).collect();
    let mut arrival = Arrival::default();
    for batch in &below {
        let columns = PlacedColumns::of(batch)?;
        let times = columns.readings.event_time.iter().zip(columns.ingest_time);
        times.for_each(|(event_time, ingest_time)| arrival.add(Micros(*event_time), Micros(*ingest_time)));
    }
    let (folded, tally) = match below.first() {
        None => (Vec::new(), Tally::default()),
        Some(first) => fold(plans, &concat_batches(&first.schema(), below)?, repeat)?,
    };
    let time = arrival.newest.max(as_of.map(Micros)).unwrap_or_default();
    let mut rows = Vec::new();
    for folded in folded {
        let maker = RowMaker::new(&plans.plans, &plans.expectations, &folded.series);
        let order = folded.order(&maker.stored());
        rows.push(maker.rows(order.iter().map(|slot| &folded.entries[*slot as usize])));
    }
    let definitions = plans.plans.fingerprint();
    Ok(BatchView {
        horizon: horizon.to_vec(),
        definitions,
        as_of: time.0,
        first_ingest: arrival.oldest.map(|oldest| oldest.0),
        tally,
        lateness: arrival.lateness,
        rows,
    })
}

/// The summaries of all readings, which are read in two pieces of different devices.
fn fold(plans: &Plans, readings: &RecordBatch, repeat: usize) -> Result<(Vec<Folded>, Tally)> {
    let column = |name: &&str| {
        let values = Arc::clone(readings.column_by_name(name).context("a column of the order is missing")?);
        let options = Some(SortOptions { descending: false, nulls_first: true });
        Ok(SortColumn { values, options })
    };
    let order = READING_ORDER.iter().map(column).collect::<Result<Vec<_>>>()?;
    let sorted = lexsort_to_indices(&order, None)?;
    let devices = TextColumn::of(readings, "device_id")?;
    let mut fold = Fold::new(Arc::clone(&plans.plans));
    let mut folded = Vec::new();
    for piece in 0..2u8 {
        let is_here = |row: &u32| {
            let device = devices.text(*row as usize).unwrap_or_default();
            device.bytes().last().unwrap_or_default() % 2 == piece
        };
        let rows = sorted.values().iter().copied().filter(is_here);
        let rows: Vec<u32> = rows
            .enumerate()
            .flat_map(|(nth, row)| std::iter::repeat_n(row, if nth % repeat == repeat - 1 { 2 } else { 1 }))
            .collect();
        let mut deduplicator = Deduplicator::default();
        // In two batches, so that readings of one identity are in both.
        for rows in rows.chunks(rows.len().div_ceil(2).max(1)) {
            let batch = take_record_batch(readings, &UInt32Array::from(rows.to_vec()))?;
            fold.push(&deduplicator.marked(&batch)?)?;
        }
        if piece == 0 {
            folded.push(fold.take_complete());
        }
    }
    let (rest, tally) = fold.finish();
    folded.push(rest);
    Ok((folded, tally))
}

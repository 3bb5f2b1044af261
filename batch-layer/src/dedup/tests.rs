//! The first reading of an identity counts, wherever batches end and whatever their dictionaries are.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use proptest::prelude::*;
use wye_domain::place::Offset;
use wye_domain::reading::{Reading, ReadingBatchBuilder, ReadingColumns};
use wye_domain::time::Micros;

use super::{CONFLICT, DUPLICATE, Deduplicator, FIRST, REPEATED};
use crate::testing::stored;

#[derive(Clone, Copy, Debug)]
struct Row(&'static str, i64, Option<i64>, f64);

/// Rows that follow each other in the log, the first at this offset.
fn batch_at(from: Offset, rows: &[Row]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for Row(device_id, event_time, sequence, value) in rows {
        builder.append(&Reading {
            device_id,
            metric: "m",
            value: *value,
            event_time: Micros(*event_time),
            sequence: *sequence,
            unit: None,
            tags: None,
        });
    }
    stored(&builder.finish(), from, &vec![Micros::EPOCH; rows.len()])
}

fn batch(rows: &[Row]) -> RecordBatch {
    batch_at(Offset::START, rows)
}

/// The same batch with a dictionary that has a word for each row, equal ones too.
fn with_repeated_words(batch: &RecordBatch) -> RecordBatch {
    let columns = ReadingColumns::of(batch).unwrap();
    let rows = batch.num_rows();
    let words: StringArray = (0..rows).map(|row| columns.device_id.text(row)).collect();
    let codes = Int32Array::from_iter_values(0..rows as i32);
    let mut arrays = batch.columns().to_vec();
    arrays[0] = Arc::new(DictionaryArray::<Int32Type>::new(codes, Arc::new(words))) as ArrayRef;
    RecordBatch::try_new(batch.schema(), arrays).unwrap()
}

fn marks(batches: &[RecordBatch]) -> Vec<u8> {
    let mut deduplicator = Deduplicator::default();
    batches.iter().flat_map(|batch| deduplicator.mark(batch).unwrap()).collect()
}

#[test]
fn the_first_in_log_order_counts() {
    let rows = [
        Row("a", 1, None, 1.0),
        Row("a", 1, None, 1.0),
        Row("a", 1, None, 2.0),
        Row("a", 1, None, 1.0),
        Row("a", 1, Some(0), 2.0),
        Row("a", 1, Some(0), 2.0),
        Row("a", 1, Some(1), 2.0),
        Row("a", 2, None, 2.0),
        Row("b", 2, None, 2.0),
        Row("b", 3, None, 0.0),
        Row("b", 3, None, -0.0),
    ];
    let expected =
        [FIRST, DUPLICATE, CONFLICT, DUPLICATE, FIRST, DUPLICATE, FIRST, FIRST, FIRST, FIRST, DUPLICATE];
    assert_eq!(marks(&[batch(&rows)]), expected);
    assert_eq!(marks(&[with_repeated_words(&batch(&rows))]), expected);
}

#[test]
fn an_empty_batch_changes_nothing() {
    let rows = [Row("a", 1, None, 1.0)];
    assert_eq!(marks(&[batch(&rows), batch(&[]), batch_at(Offset(1), &rows)]), [FIRST, DUPLICATE]);
}

#[test]
fn a_reading_that_is_stored_twice_is_read_once() {
    let rows = [Row("a", 1, None, 1.0)];
    assert_eq!(
        marks(&[batch(&rows), batch(&rows), batch_at(Offset(1), &rows)]),
        [FIRST, REPEATED, DUPLICATE]
    );
    let doubled = arrow::compute::concat_batches(&batch(&rows).schema(), &[batch(&rows), batch(&rows)]);
    assert_eq!(marks(&[doubled.unwrap()]), [FIRST, REPEATED]);
}

proptest! {
    #[test]
    fn batches_may_end_anywhere(
        mut keys in prop::collection::vec((0usize..3, 0i64..3, prop::option::of(0i64..2), 0u8..3), 1..40),
        cuts in prop::collection::vec(0usize..40, 0..6),
    ) {
        keys.sort_by_key(|(device, time, sequence, _)| (*device, *time, *sequence));
        let rows: Vec<Row> = keys
            .iter()
            .map(|(device, time, sequence, value)| Row(["a", "b", "c"][*device], *time, *sequence, f64::from(*value)))
            .collect();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows.len())).chain([0, rows.len()]).collect();
        cuts.sort_unstable();
        let parts: Vec<RecordBatch> =
            cuts.windows(2).map(|cut| batch_at(Offset(cut[0] as i64), &rows[cut[0]..cut[1]])).collect();
        prop_assert_eq!(marks(&parts), marks(&[batch(&rows)]));
    }
}

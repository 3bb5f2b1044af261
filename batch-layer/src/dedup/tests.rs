//! The first of an identity counts, whatever lies between batches and dictionaries.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::Int32Type;
use proptest::prelude::*;
use wye_domain::reading::{Reading, ReadingBatchBuilder};

use super::{CONFLICT, DUPLICATE, Deduplicator, FIRST};

#[derive(Clone, Copy, Debug)]
struct Row(&'static str, i64, Option<i64>, f64);

fn batch(rows: &[Row]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for Row(device_id, event_time, sequence, value) in rows {
        builder.append(&Reading {
            device_id,
            metric: "m",
            value: *value,
            event_time: *event_time,
            sequence: *sequence,
            unit: None,
            tags: None,
        });
    }
    builder.finish()
}

/// The same batch with a dictionary that has each row's word for itself.
fn with_repeated_words(batch: &RecordBatch) -> RecordBatch {
    let columns = wye_domain::reading::ReadingColumns::of(batch).unwrap();
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
        [FIRST, DUPLICATE, CONFLICT, DUPLICATE, FIRST, DUPLICATE, FIRST, FIRST, FIRST, FIRST, CONFLICT];
    assert_eq!(marks(&[batch(&rows)]), expected);
    assert_eq!(marks(&[with_repeated_words(&batch(&rows))]), expected);
}

#[test]
fn an_empty_batch_changes_nothing() {
    let rows = [Row("a", 1, None, 1.0)];
    assert_eq!(marks(&[batch(&rows), batch(&[]), batch(&rows)]), [FIRST, DUPLICATE]);
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
        let parts: Vec<RecordBatch> = cuts.windows(2).map(|cut| batch(&rows[cut[0]..cut[1]])).collect();
        prop_assert_eq!(marks(&parts), marks(&[batch(&rows)]));
    }
}

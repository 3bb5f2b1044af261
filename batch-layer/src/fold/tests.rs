//! A cell that is read in pieces gives the same summaries as one that is read at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt8Array};
use wye_domain::place::Offset;
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::Registry;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::MetricPlans;

use super::Fold;
use crate::dedup::{CONFLICT, DUPLICATE, FIRST, marked_schema};
use crate::testing::stored;

fn plans() -> Arc<MetricPlans> {
    let spanning = MetricConfig {
        name: "all".into(),
        by: Some(vec!["metric AS reading_name".into()]),
        window: Some("1m".into()),
        aggregates: Some(vec!["avg".into(), "p95".into(), "distinct_devices".into()]),
        ..MetricConfig::default()
    };
    let definitions = vec![Definition::check(&spanning).unwrap(), Definition::family()];
    Arc::new(MetricPlans::new(definitions, Arc::new(Registry::default())).unwrap())
}

/// Device, value, event time in seconds, novelty.
fn batch(rows: &[(&str, f64, i64, u8)]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for (device_id, value, second, _) in rows {
        builder.append(&Reading {
            device_id,
            metric: "t",
            value: *value,
            event_time: Micros::from_secs(*second),
            sequence: None,
            unit: None,
            tags: None,
        });
    }
    let late: Vec<Micros> = rows.iter().map(|row| Micros::from_secs(row.2 + 2)).collect();
    let stored = stored(&builder.finish(), Offset::START, &late);
    let mut columns = stored.columns().to_vec();
    columns.push(Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.3))));
    RecordBatch::try_new(marked_schema(&stored.schema()), columns).unwrap()
}

/// The rows of the views after a cell was read in these pieces, of different devices each.
fn found(pieces: &[&[(&str, f64, i64, u8)]]) -> BTreeMap<(String, Micros), Summary> {
    let mut all = BTreeMap::new();
    let mut fold = Fold::new(plans());
    let mut parts = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        fold.push(&batch(piece)).unwrap();
        if at + 1 < pieces.len() {
            parts.push(fold.take_complete());
        }
    }
    parts.push(fold.finish().0);
    for folded in parts {
        let stored: Vec<String> = folded.series.keys().iter().map(|key| key.encode()).collect();
        let order = folded.order(&stored);
        let keys: Vec<(String, Micros)> = order
            .iter()
            .map(|slot| {
                let entry = &folded.entries[*slot as usize];
                (stored[entry.series.0 as usize].clone(), entry.window_start)
            })
            .collect();
        assert!(keys.is_sorted());
        for (key, slot) in keys.into_iter().zip(order) {
            let before = all.insert(key, folded.entries[slot as usize].summary.clone());
            assert!(before.is_none(), "a row is in one part only");
        }
    }
    all
}

#[test]
fn pieces_make_no_difference() {
    let rows = [
        ("a", 1.0, 0, FIRST),
        ("a", 9.0, 0, CONFLICT),
        ("a", 1.0, 0, DUPLICATE),
        ("a", 2.0, 61, FIRST),
        ("b", 3.0, 61, FIRST),
        ("c", 4.0, 1, FIRST),
    ];
    let whole = found(&[&rows]);
    let parts = found(&[&rows[..4], &rows[4..5], &rows[5..]]);
    assert_eq!(parts, whole);
    let all = &whole[&(r#"["all","all",["t"]]"#.to_owned(), Micros::EPOCH)];
    assert_eq!((all.count, all.conflicts, all.sum.value()), (2, 1, 5.0));
    assert_eq!(all.distinct_devices(), Some(2));
    assert_eq!(whole.len(), 2 + 4);
}

#[test]
fn duplicates_and_conflicts_are_counted_apart() {
    let mut fold = Fold::new(plans());
    fold.push(&batch(&[("a", 1.0, 0, FIRST), ("a", 2.0, 0, CONFLICT)])).unwrap();
    fold.take_complete();
    fold.push(&batch(&[("b", 1.0, 5, DUPLICATE)])).unwrap();
    let (_, tally) = fold.finish();
    assert_eq!((tally.readings, tally.duplicates, tally.conflicts), (3, 1, 1));
}

#[test]
fn a_window_with_duplicates_only_is_not_a_row() {
    assert!(found(&[&[("a", 1.0, 0, DUPLICATE)]]).is_empty());
}

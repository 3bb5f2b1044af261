//! Folds of parts, merged, equal the fold of the whole (**AGG-1**).

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, TimestampMicrosecondArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema};
use wye_domain::reading::{Reading, ReadingBatchBuilder, time_type};
use wye_domain::registry::Registry;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::MetricPlans;

use super::{Fold, combine};
use crate::dedup::{CONFLICT, DUPLICATE, FIRST, NOVELTY};

fn plans() -> Arc<MetricPlans> {
    let spanning = MetricConfig {
        name: "all".into(),
        help: String::new(),
        unit: String::new(),
        filter: None,
        value: None,
        by: Some(vec!["metric AS reading_name".into()]),
        window: Some("1m".into()),
        rollups: vec![],
        aggregates: Some(vec!["avg".into(), "p95".into(), "distinct_devices".into()]),
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
            event_time: second * 1_000_000,
            sequence: None,
            unit: None,
            tags: None,
        });
    }
    let plain = builder.finish();
    let mut fields: Vec<_> = plain.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("ingest_time", time_type(), false)));
    fields.push(Arc::new(Field::new(NOVELTY, DataType::UInt8, false)));
    let mut columns = plain.columns().to_vec();
    let late = rows.iter().map(|row| (row.2 + 2) * 1_000_000);
    columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(late).with_timezone("UTC")));
    columns.push(Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.3))));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn fold(rows: &[(&str, f64, i64, u8)]) -> Fold {
    let mut fold = Fold::new(plans());
    fold.push(&batch(rows)).unwrap();
    fold
}

fn found(folds: Vec<Fold>) -> BTreeMap<(String, i64), Summary> {
    let mut all = BTreeMap::new();
    for folded in combine(folds).0 {
        let stored: Vec<String> = folded.series.keys().iter().map(|key| key.encode()).collect();
        let order = folded.order(&stored);
        let keys: Vec<(String, i64)> = order
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
fn groups_that_span_parts_are_merged() {
    let rows = [
        ("a", 1.0, 0, FIRST),
        ("a", 9.0, 0, CONFLICT),
        ("a", 1.0, 0, DUPLICATE),
        ("a", 2.0, 61, FIRST),
        ("b", 3.0, 61, FIRST),
        ("c", 4.0, 1, FIRST),
    ];
    let whole = found(vec![fold(&rows)]);
    let parts = found(vec![fold(&rows[..4]), fold(&rows[4..5]), fold(&rows[5..])]);
    assert_eq!(parts, whole);
    let all = &whole[&(r#"["all","all",["t"]]"#.to_owned(), 0)];
    assert_eq!((all.count, all.conflicts, all.sum.value()), (2, 1, 5.0));
    assert_eq!(all.distinct_devices(), Some(2));
    assert_eq!(whole.len(), 2 + 4);
}

#[test]
fn duplicates_and_conflicts_are_counted_apart() {
    let (_, tally) = combine(vec![
        fold(&[("a", 1.0, 0, FIRST), ("a", 2.0, 0, CONFLICT)]),
        fold(&[("b", 1.0, 5, DUPLICATE)]),
    ]);
    assert_eq!((tally.readings, tally.duplicates, tally.conflicts), (3, 1, 1));
    assert_eq!(tally.as_of, Some(Micros(7_000_000)));
    assert_eq!(tally.lateness.settledness(4_096_000), 1.0);
}

#[test]
fn a_window_with_duplicates_only_is_not_a_row() {
    assert!(found(vec![fold(&[("a", 1.0, 0, DUPLICATE)])]).is_empty());
}

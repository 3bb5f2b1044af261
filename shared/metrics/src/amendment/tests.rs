//! Amendments change the readings that they are about, and no others.

use arrow::array::TimestampMicrosecondArray;
use wye_domain::reading::{Reading, ReadingBatchBuilder};

use super::*;
use crate::plan::expectations::with_ingest_time;

/// Device, metric, second, value, tags.
type Row = (&'static str, &'static str, i64, f64, Option<&'static str>);

const ROWS: [Row; 4] = [
    ("a", "t", 0, 1.0, Some(r#"{"line":"1"}"#)),
    ("b", "t", 0, 2.0, None),
    ("a", "p", 10, 3.0, Some(r#"{"line":"1","shift":"n"}"#)),
    ("a", "t", 20, 0.0, Some(r#"{"line":"1"}"#)),
];

fn batch() -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for (device_id, metric, second, value, tags) in ROWS {
        let event_time = Micros::from_secs(second);
        builder.append(&Reading { device_id, metric, value, event_time, sequence: None, unit: None, tags });
    }
    let ingest_time = TimestampMicrosecondArray::from(vec![0; ROWS.len()]).with_timezone("UTC");
    with_ingest_time(&builder.finish(), Arc::new(ingest_time)).unwrap()
}

fn amendment(id: &str, devices: &[&str], seconds: std::ops::Range<i64>, change: Change) -> Amendment {
    Amendment {
        id: id.to_owned(),
        created_at: Micros::EPOCH,
        author: "ann".to_owned(),
        reason: "a test".to_owned(),
        readings: Selection {
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
            metrics: BTreeSet::new(),
            times: Window { start: Micros::from_secs(seconds.start), end: Micros::from_secs(seconds.end) },
        },
        change,
    }
}

/// The values after amendments, and the rows that are left out.
fn amended(all: &[Amendment]) -> (Vec<f64>, Vec<usize>, Amended) {
    let amended = Amending::plan(all).unwrap().apply(batch()).unwrap();
    let values = ReadingColumns::of(&amended.batch).unwrap().value.to_vec();
    let dropped = amended.dropped.clone().unwrap_or_default();
    (values, (0..dropped.len()).filter(|row| dropped[*row]).collect(), amended)
}

#[test]
fn an_amendment_is_about_its_devices_metrics_and_times() {
    let all = amendment("1", &[], 0..100, Change::Drop);
    assert_eq!(amended(std::slice::from_ref(&all)).1, [0, 1, 2, 3]);
    assert_eq!(amended(&[amendment("1", &["a"], 0..20, Change::Drop)]).1, [0, 2]);
    let mut pressure = all;
    pressure.readings.metrics = ["p".to_owned()].into();
    assert_eq!(amended(&[pressure]).1, [2]);
    let (values, dropped, unchanged) = amended(&[amendment("1", &["c"], 0..100, Change::Drop)]);
    assert_eq!((values, dropped, unchanged.batch), (vec![1.0, 2.0, 3.0, 0.0], vec![], batch()));
}

#[test]
fn values_are_corrected_in_the_order_of_amendments() {
    let double = amendment("1", &["a"], 0..15, Change::Correct("value * 2".to_owned()));
    let add = amendment("2", &[], 0..100, Change::Correct("value + 1".to_owned()));
    assert_eq!(amended(&[double.clone(), add.clone()]).0, [3.0, 3.0, 7.0, 1.0]);
    assert_eq!(amended(&[add, double]).0, [4.0, 3.0, 8.0, 1.0]);
}

#[test]
fn a_value_that_cannot_be_computed_is_left_out_and_reported() {
    let divide = amendment("1", &["a"], 0..100, Change::Correct("6 / CAST(value AS BIGINT)".to_owned()));
    let (values, dropped, amended) = amended(&[divide]);
    assert_eq!((&values[..3], dropped), (&[6.0, 2.0, 2.0][..], vec![3]));
    assert_eq!((amended.failed[0].0.as_str(), amended.failed[0].1[0].row), ("1", 3));
    assert!(amended.failed[0].1[0].message.contains("zero"), "{:?}", amended.failed);
    let wrong = amendment("7", &[], 0..1, Change::Correct("no_such_column".to_owned()));
    assert!(Amending::plan(&[wrong]).unwrap_err().to_string().contains("no_such_column"));
}

#[test]
fn tags_are_set_and_removed() {
    let tags = [("line".to_owned(), Some("9".to_owned())), ("shift".to_owned(), None)];
    let (.., amended) = amended(&[amendment("1", &["a"], 0..15, Change::Retag(tags.into()))]);
    let column = TextColumn::of(&amended.batch, "tags").unwrap();
    let texts: Vec<Option<&str>> = (0..4).map(|row| column.text(row)).collect();
    let new = Some(r#"{"line":"9"}"#);
    assert_eq!(texts, [new, None, new, Some(r#"{"line":"1"}"#)]);
    assert_eq!(amended.batch.schema(), batch().schema());
}

#[test]
fn a_revocation_can_be_revoked() {
    let drop = amendment("1", &[], 0..100, Change::Drop);
    let revoke = |id: &str, of: &str| amendment(id, &[], 0..100, Change::Revoke(of.to_owned()));
    let ids = |all: &[Amendment]| Amending::plan(all).unwrap().ids();
    assert_eq!(ids(&[drop.clone(), revoke("2", "1")]), Vec::<String>::new());
    assert_eq!(ids(&[drop.clone(), revoke("2", "1"), revoke("3", "2")]), ["1"]);
    // Only what was made before can be revoked.
    assert_eq!(ids(&[revoke("2", "1"), drop]), ["1"]);
}

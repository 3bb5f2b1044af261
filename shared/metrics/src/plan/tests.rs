//! Definitions are planned, rejected with a remedy, and evaluated.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::definition::{Definition, MetricConfig};
use crate::expectation::Stretch;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_plan::PhysicalExpr;
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::time::{Micros, Window};

use super::expectations::with_ingest_time;
use super::isolate::isolate;
use super::{Expectations, MetricPlans};
use crate::failures::{FailedRow, Failures};

const MINUTE: Stretch = Stretch::Whole(Window { start: Micros::EPOCH, end: Micros::from_secs(60) });

fn definition(filter: &str, value: &str, by: &[&str]) -> Definition {
    Definition::check(&MetricConfig {
        name: "line_temperature".into(),
        unit: "Cel".into(),
        filter: Some(filter.into()),
        value: Some(value.into()),
        by: Some(by.iter().map(|s| (*s).to_owned()).collect()),
        window: Some("1m".into()),
        ..MetricConfig::default()
    })
    .unwrap()
}

fn registry() -> Arc<Registry> {
    let device = [("a", "north"), ("b", "north"), ("c", "south")].map(|(id, line)| DeviceConfig {
        device_id: id.into(),
        reporting_interval: Some("10s".into()),
        metrics: vec!["temperature".into(), "pressure".into()],
        attributes: [("line".to_owned(), line.to_owned())].into(),
        ..DeviceConfig::default()
    });
    Arc::new(Registry::check(RegistryConfig { device: device.into(), metric_limits: vec![] }).unwrap())
}

fn batch(readings: &[(&str, &str, f64, i64, Option<&str>)]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for (device_id, metric, value, event_time, tags) in readings {
        builder.append(&Reading {
            device_id,
            metric,
            value: *value,
            event_time: Micros(*event_time),
            sequence: None,
            unit: None,
            tags: *tags,
        });
    }
    let batch = builder.finish();
    let ingest_time = Arc::clone(batch.column_by_name("event_time").unwrap());
    with_ingest_time(&batch, ingest_time).unwrap()
}

fn evaluate(plans: &MetricPlans, batch: &RecordBatch) -> Vec<(String, i64, f64)> {
    let mut series = SeriesTable::default();
    let mut found = Vec::new();
    for (plan, contributions) in plans.plans().iter().zip(plans.contributions(batch, &mut series).unwrap()) {
        contributions.for_each(|c| {
            found.push((
                series.key(c.series).metric_key(&plan.definition().dimension_names()),
                c.window_start.0,
                c.value,
            ));
        });
    }
    found
}

#[test]
fn the_default_family_has_a_series_for_each_device_and_name() {
    let plans = MetricPlans::new(vec![], registry()).unwrap();
    let found = evaluate(&plans, &batch(&[("a", "t", 1.0, 61_000_000, None), ("b", "p", 2.0, -1, None)]));
    assert_eq!(
        found,
        [
            ("t{device_id=\"a\"}".to_owned(), 60_000_000, 1.0),
            ("p{device_id=\"b\"}".to_owned(), -60_000_000, 2.0)
        ]
    );
}

#[test]
fn tags_and_attributes_are_columns() {
    let plans = MetricPlans::new(
        vec![definition("metric = 'temperature' AND line IS NOT NULL", "value * 2", &["line"])],
        registry(),
    )
    .unwrap();
    let found = evaluate(
        &plans,
        &batch(&[
            ("a", "temperature", 1.0, 0, None),
            ("a", "pressure", 1.0, 0, None),
            ("c", "temperature", 2.0, 0, Some(r#"{"line":"east"}"#)),
            ("unknown", "temperature", 3.0, 0, None),
        ]),
    );
    let [north, east] = ["north", "east"].map(|line| format!("line_temperature{{line=\"{line}\"}}"));
    assert_eq!(found, [(north, 0, 2.0), (east, 0, 4.0)]);
}

#[test]
fn expectations_follow_the_groups() {
    let plans = MetricPlans::new(
        vec![definition("metric = 'temperature'", "value", &["line"]), Definition::family()],
        registry(),
    )
    .unwrap();
    let expectations = Expectations::new(&plans).unwrap();
    let mut series = SeriesTable::default();
    plans
        .contributions(
            &batch(&[("a", "temperature", 1.0, 0, None), ("z", "temperature", 1.0, 0, None)]),
            &mut series,
        )
        .unwrap();
    let per_minute: Vec<Option<i64>> = series
        .keys()
        .iter()
        .map(|key| expectations.of(key).map(|expected| expected.readings(MINUTE).round() as i64))
        .collect();
    assert_eq!(per_minute, [Some(12), None, Some(6), None]);
}

/// What a definition expects of the line `north` in a minute, and whether it counts devices.
fn expected_of_north(filter: &str, value: &str) -> (Option<f64>, bool) {
    let plans = MetricPlans::new(vec![definition(filter, value, &["line"])], registry()).unwrap();
    let key = SeriesKey {
        definition: "line_temperature".into(),
        metric: "line_temperature".into(),
        group: Box::new([Some("north".into())]),
    };
    let expectations = Expectations::new(&plans).unwrap();
    let expected = expectations.of(&key).map(|expectation| expectation.readings(MINUTE).round());
    (expected, plans.plans()[0].needs().devices)
}

#[test]
fn a_filter_on_values_expects_nothing() {
    for (filter, value, expected) in [
        ("metric = 'temperature'", "value", Some(12.0)),
        ("metric <> 'pressure' AND device_id <> 'a'", "value", Some(6.0)),
        ("line = 'north'", "value / 2", Some(24.0)),
        ("metric = 'temperature'", "ln(value)", Some(12.0)),
        // These look at more of a reading than device, name and attributes.
        ("value > 100", "value", None),
        ("value >= 0", "value", None),
        ("metric = 'temperature' AND unit IS NULL", "value", None),
        ("quality = 'good'", "value", None),
        ("quality IS NULL", "value", None),
        ("event_time > '2020-01-01'", "value", None),
        ("sequence IS NULL", "value", None),
        ("metric = 'temperature'", "CAST(level AS DOUBLE)", None),
    ] {
        let counts_devices =
            !["value >", "unit", "event_time", "sequence"].iter().any(|word| filter.contains(word));
        assert_eq!(expected_of_north(filter, value), (expected, counts_devices), "{filter} {value}");
    }
}

#[test]
fn only_groups_that_span_devices_count_them() {
    let plans =
        MetricPlans::new(vec![Definition::family(), definition("true", "value", &["line"])], registry())
            .unwrap();
    let needs: Vec<bool> = plans.plans().iter().map(|plan| plan.needs().devices).collect();
    assert_eq!(needs, [false, true]);
    let without =
        MetricPlans::new(vec![definition("true", "value", &["metric AS m"])], Arc::default()).unwrap();
    assert!(!without.plans()[0].needs().devices);
}

#[test]
fn the_fingerprint_follows_the_registry() {
    let [one, same, other] = [registry(), registry(), Arc::default()]
        .map(|registry| MetricPlans::new(vec![], registry).unwrap().fingerprint());
    assert_eq!(one, same);
    assert_ne!(one, other);
}

/// The values that a definition gives, and which rows it fails on, with the message.
fn values_and_failures(plans: &MetricPlans, batch: &RecordBatch) -> (Vec<f64>, Vec<(usize, String)>) {
    let mut found = plans.contributions(batch, &mut SeriesTable::default()).unwrap();
    let contributions = found.remove(0);
    let mut values = Vec::new();
    contributions.for_each(|c| values.push(c.value));
    let failed = contributions.failed.iter().map(|failed| (failed.row, failed.message.to_string()));
    (values, failed.collect())
}

fn level(text: &str) -> Option<String> {
    Some(format!(r#"{{"kind":"{}","level":"{text}"}}"#, if text == "?" { "text" } else { "number" }))
}

#[test]
fn a_reading_that_an_expression_fails_on_adds_nothing_stops_nothing_and_is_named() {
    let plans =
        MetricPlans::new(vec![definition("true", "CAST(level AS DOUBLE)", &["device_id"])], registry())
            .unwrap();
    let tags: Vec<Option<String>> =
        vec![level("1"), level("high"), level("2"), None, level("3"), level("high")];
    let readings: Vec<_> = tags.iter().map(|tags| ("a", "t", 0.0, 0, tags.as_deref())).collect();
    let (values, failed) = values_and_failures(&plans, &batch(&readings));
    assert_eq!(values, [1.0, 2.0, 3.0]);
    assert_eq!(failed.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [1, 5]);
    assert!(failed.iter().all(|(_, message)| message.contains("high")), "{failed:?}");
}

#[test]
fn a_reading_that_is_not_wanted_cannot_fail() {
    let plans = MetricPlans::new(
        vec![definition("kind = 'number'", "CAST(level AS DOUBLE)", &["device_id"])],
        registry(),
    )
    .unwrap();
    let tags = [level("1"), level("?"), level("2")];
    let readings: Vec<_> = tags.iter().map(|tags| ("a", "t", 0.0, 0, tags.as_deref())).collect();
    assert_eq!(values_and_failures(&plans, &batch(&readings)), (vec![1.0, 2.0], vec![]));
}

#[test]
fn failures_of_every_expression_are_named_and_infinite_values_too() {
    let readings = [("a", "t", 1.0, 0, None), ("b", "t", 0.0, 1, None), ("c", "t", 2.0, 2, None)];
    for (filter, value, by, word) in [
        ("1 / CAST(value AS INT) >= 0", "value", "device_id", "Divide by zero"),
        ("true", "1 / CAST(value AS INT)", "device_id", "Divide by zero"),
        ("true", "value", "1 / CAST(value AS INT) AS inverse", "Divide by zero"),
        ("true", "1 / value", "device_id", "the value is inf"),
        ("true", "ln(value)", "device_id", "the value is -inf"),
    ] {
        let plans = MetricPlans::new(vec![definition(filter, value, &[by])], registry()).unwrap();
        let (values, failed) = values_and_failures(&plans, &batch(&readings));
        assert_eq!((values.len(), failed.len()), (2, 1), "{filter} {value} {by}: {failed:?}");
        assert!(failed[0].0 == 1 && failed[0].1.contains(word), "{failed:?}");
    }
}

#[test]
fn many_bad_readings_among_many_are_found() {
    let plans = MetricPlans::new(
        vec![definition("true", "CAST(level AS DOUBLE) + value", &["device_id"])],
        registry(),
    )
    .unwrap();
    for bad in [|i: usize| i % 97 == 5, |i: usize| i > 300, |_: usize| true] {
        let tags: Vec<Option<String>> =
            (0..1_000).map(|i| level(&if bad(i) { format!("x{i}") } else { i.to_string() })).collect();
        let readings: Vec<_> = tags.iter().map(|tags| ("a", "t", 0.5, 0, tags.as_deref())).collect();
        let (values, failed) = values_and_failures(&plans, &batch(&readings));
        assert_eq!(values, (0..1_000).filter(|i| !bad(*i)).map(|i| i as f64 + 0.5).collect::<Vec<_>>());
        assert_eq!(
            failed.iter().map(|(row, _)| *row).collect::<Vec<_>>(),
            (0..1_000).filter(|i| bad(*i)).collect::<Vec<_>>()
        );
    }
}

/// An expression that counts how often it is evaluated.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn PhysicalExpr>,
    count: Arc<AtomicUsize>,
}

impl PartialEq for Counting {
    fn eq(&self, other: &Self) -> bool {
        self.inner.as_ref() == other.inner.as_ref()
    }
}

impl Eq for Counting {}

impl std::hash::Hash for Counting {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl std::fmt::Display for Counting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.inner, f)
    }
}

impl PhysicalExpr for Counting {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        Ok(Arc::new(Self { inner: children.remove(0), count: Arc::clone(&self.count) }))
    }

    fn fmt_sql(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt_sql(f)
    }
}

/// How often `CAST(level AS DOUBLE)` is evaluated on readings with these levels.
fn evaluations(levels: impl Iterator<Item = String>) -> usize {
    let plans =
        MetricPlans::new(vec![definition("true", "CAST(level AS DOUBLE)", &["device_id"])], registry())
            .unwrap();
    let tags: Vec<Option<String>> = levels.map(|text| level(&text)).collect();
    let readings: Vec<_> = tags.iter().map(|tags| ("a", "t", 0.0, 0, tags.as_deref())).collect();
    let batch = plans.with_attributes(&batch(&readings)).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let inner = Arc::clone(&plans.plans[0].value);
    let counting: Arc<dyn PhysicalExpr> = Arc::new(Counting { inner, count: Arc::clone(&count) });
    isolate(&counting, &batch).unwrap();
    count.load(Ordering::Relaxed)
}

#[test]
fn the_cost_of_bad_readings_is_bounded() {
    const ROWS: usize = 8_192;
    let one = evaluations((0..ROWS).map(|i| if i == 4_711 { "x".to_owned() } else { i.to_string() }));
    assert!(one <= 40, "one bad reading: {one}");
    let same = evaluations((0..ROWS).map(|_| "x".to_owned()));
    assert!(same <= 2, "the same bad text everywhere: {same}");
    let all = evaluations((0..ROWS).map(|i| format!("x{i}")));
    assert!(all * 10 <= ROWS * 12, "all are bad: {all}");
}

/// The failures of some rows, of which row 2 is a duplicate.
fn failures_of(batch: &RecordBatch, rows: &[usize]) -> Failures {
    let failed: Vec<FailedRow> =
        rows.iter().map(|row| FailedRow { row: *row, message: "bad".into() }).collect();
    let mut failures = Failures::default();
    failures.add("m", &failed, batch, |row| row != 2).unwrap();
    failures
}

#[test]
fn failures_of_parts_add_up_whatever_their_order() {
    let batch = batch(&[("b", "t", 1.0, 7, None), ("a", "t", 2.0, 5, None), ("c", "t", 3.0, 5, None)]);
    let whole = failures_of(&batch, &[0, 1, 2]);
    let failure = whole.of("m").unwrap();
    assert_eq!((failure.readings, failure.example.device_id.as_str()), (2, "a"));
    for (first, second) in [([0], [1]), ([1], [0])] {
        let mut merged = failures_of(&batch, &first);
        merged.merge(&failures_of(&batch, &second));
        assert_eq!(merged, whole);
    }
    assert!(failures_of(&batch, &[2]).is_empty() && failures_of(&batch, &[]).is_empty());
    let stored = serde_json::to_string(&whole).unwrap();
    assert_eq!(serde_json::from_str::<Failures>(&stored).unwrap(), whole);
}

#[test]
fn definitions_that_cannot_be_planned_are_rejected_with_a_remedy() {
    for (definition, key, word) in [
        (definition("value >", "value", &["line"]), "where", "not an SQL expression"),
        (definition("value", "value", &["line"]), "where", "a condition"),
        (definition("true", "metric", &["line"]), "value", "a number"),
        (definition("event_time < now()", "value", &["line"]), "where", "changes"),
        (definition("nonsense(value) > 1", "value", &["line"]), "where", "nonsense"),
    ] {
        let error = MetricPlans::new(vec![definition], registry()).unwrap_err();
        assert_eq!(error.key, key);
        assert!(error.to_string().contains(word), "{error}");
    }
}

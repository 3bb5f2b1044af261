//! Definitions are planned, refused with a remedy, and evaluated.

use std::sync::Arc;

use arrow::array::RecordBatch;
use wye_domain::definition::{Definition, MetricConfig};
use wye_domain::reading::{self, Reading, ReadingBatchBuilder};
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::SeriesTable;

use super::{Expectations, MetricPlans, PlanError};

fn definition(filter: &str, value: &str, by: &[&str]) -> Definition {
    Definition::check(&MetricConfig {
        name: "line_temperature".into(),
        help: String::new(),
        unit: "Cel".into(),
        filter: Some(filter.into()),
        value: Some(value.into()),
        by: Some(by.iter().map(|s| (*s).to_owned()).collect()),
        window: Some("1m".into()),
        rollups: vec![],
        aggregates: None,
    })
    .unwrap()
}

fn registry() -> Arc<Registry> {
    let device = |id: &str, line: &str| DeviceConfig {
        device_id: id.into(),
        reporting_interval: Some("10s".into()),
        metrics: vec!["temperature".into(), "pressure".into()],
        attributes: [("line".to_owned(), line.to_owned())].into(),
    };
    let config = RegistryConfig {
        device: vec![device("a", "north"), device("b", "north"), device("c", "south")],
        metric_limits: vec![],
    };
    Arc::new(Registry::check(config).unwrap())
}

fn batch(readings: &[(&str, &str, f64, i64, Option<&str>)]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for (device_id, metric, value, event_time, tags) in readings {
        builder.append(&Reading {
            device_id,
            metric,
            value: *value,
            event_time: *event_time,
            sequence: None,
            unit: None,
            tags: *tags,
        });
    }
    let plain = builder.finish();
    let mut fields: Vec<_> = plain.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(arrow::datatypes::Field::new("ingest_time", reading::time_type(), false)));
    let mut columns = plain.columns().to_vec();
    columns.push(columns[3].clone());
    RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns).unwrap()
}

fn evaluate(plans: &MetricPlans, batch: &RecordBatch) -> Vec<(String, i64, f64)> {
    let mut series = SeriesTable::default();
    let mut found = Vec::new();
    for (plan, contributions) in plans.plans().iter().zip(plans.contributions(batch, &mut series).unwrap()) {
        contributions.for_each(|c| {
            found.push((
                series.key(c.series).metric_key(&plan.definition().dimension_names()),
                c.window_start,
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
    let key = |line: &str| format!("line_temperature{{line=\"{line}\"}}");
    assert_eq!(found, [(key("north"), 0, 2.0), (key("east"), 0, 4.0)]);
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
        .map(|key| expectations.rate(key).map(|rate| (rate * 60e6).round() as i64))
        .collect();
    assert_eq!(per_minute, [Some(12), None, Some(6), None]);
}

#[test]
fn a_reading_that_an_expression_fails_on_adds_nothing_and_stops_nothing() {
    let plans =
        MetricPlans::new(vec![definition("true", "CAST(level AS DOUBLE)", &["device_id"])], registry())
            .unwrap();
    let tagged = |level: &'static str| ("a", "t", 0.0, 0, Some(level));
    let found = evaluate(
        &plans,
        &batch(&[
            tagged(r#"{"level":"1"}"#),
            tagged(r#"{"level":"high"}"#),
            tagged(r#"{"level":"2"}"#),
            ("a", "t", 0.0, 0, None),
            tagged(r#"{"level":"3"}"#),
        ]),
    );
    assert_eq!(found.iter().map(|(_, _, value)| *value).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
}

#[test]
fn what_cannot_be_planned_is_refused_with_a_remedy() {
    let refuse =
        |definition: Definition| -> PlanError { MetricPlans::new(vec![definition], registry()).unwrap_err() };
    for (definition, key, word) in [
        (definition("value >", "value", &["line"]), "where", "not an SQL expression"),
        (definition("value", "value", &["line"]), "where", "a condition"),
        (definition("true", "metric", &["line"]), "value", "a number"),
        (definition("event_time < now()", "value", &["line"]), "where", "changes"),
        (definition("nonsense(value) > 1", "value", &["line"]), "where", "nonsense"),
    ] {
        let error = refuse(definition);
        assert_eq!(error.key, key);
        assert!(error.to_string().contains(word), "{error}");
    }
}

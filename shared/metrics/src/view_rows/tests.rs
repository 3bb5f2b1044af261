//! Rows say what was expected, what came, and how far that can be trusted.

use std::sync::Arc;

use crate::confidence::LatenessHistogram;
use crate::definition::{Definition, MetricConfig};
use crate::plan::{Expectations, MetricPlans};
use crate::window_table::WindowTable;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use wye_domain::reading::TextColumn;
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::time::{Micros, Span};

use super::ViewSchema;
use super::maker::{AsOf, RowMaker};

fn registry() -> Registry {
    let device = DeviceConfig {
        device_id: "known".into(),
        reporting_interval: Some("10s".into()),
        metrics: vec![],
        attributes: Default::default(),
    };
    Registry::check(RegistryConfig { device: vec![device], metric_limits: vec![] }).unwrap()
}

/// One window from 0 to 60 s for each device, with so many readings, judged as of `as_of`.
fn rows(devices: &[(&str, u64)], as_of: Micros) -> RecordBatch {
    let plans = MetricPlans::new(vec![], Arc::new(registry())).unwrap();
    let expectations = Expectations::new(&plans).unwrap();
    let mut series = SeriesTable::default();
    let mut windows = WindowTable::default();
    for (device, count) in devices {
        let group = Box::new([Some(Arc::from(*device))]);
        let id = series.id(SeriesKey { definition: "*".into(), metric: "t".into(), group });
        for reading in 0..*count {
            let slot = windows.entry(id, Micros::EPOCH);
            windows.change_unmarked(slot).add(1.0, Micros(reading as i64));
        }
    }
    let mut lateness = LatenessHistogram::default();
    lateness.add(Span::from_secs(1));
    let as_of = AsOf { time: as_of, lateness: Arc::new(lateness) };
    let maker = RowMaker::new(&plans, &expectations, &series, &as_of);
    let rows = maker.rows(windows.entries().iter());
    assert_eq!(rows.schema(), *ViewSchema::of(&plans).arrow());
    rows
}

fn number(rows: &RecordBatch, column: &str, row: usize) -> Option<f64> {
    let column = rows.column_by_name(column).unwrap().as_primitive::<Float64Type>();
    column.is_valid(row).then(|| column.value(row))
}

fn text<'a>(rows: &'a RecordBatch, column: &'static str, row: usize) -> Option<&'a str> {
    TextColumn::of(rows, column).unwrap().text(row)
}

#[test]
fn a_closed_window_is_scored_against_what_was_expected() {
    let rows = rows(&[("known", 3), ("unknown", 3)], Micros::from_secs(3_600));
    let factors = |row| ["expected", "completeness", "confidence_score"].map(|name| number(&rows, name, row));
    assert_eq!(factors(0), [Some(6.0), Some(0.5), Some(0.5)]);
    assert_eq!(factors(1), [None, Some(1.0), Some(0.9)]);
    assert_eq!(
        (text(&rows, "expected_source", 0), text(&rows, "expected_source", 1)),
        (Some("registry"), Some("unknown"))
    );
    assert_eq!(text(&rows, "state", 0), Some("SETTLED"));
    assert_eq!(text(&rows, "metric_key", 1), Some(r#"t{device_id="unknown"}"#));
    assert_eq!(text(&rows, "device_id", 0), Some("known"));
}

#[test]
fn of_an_open_window_only_the_part_that_has_passed_is_expected() {
    let rows = rows(&[("known", 3)], Micros::from_secs(30));
    assert_eq!(number(&rows, "expected", 0), Some(3.0));
    assert_eq!(number(&rows, "confidence_score", 0), Some(1.0));
    assert_eq!(text(&rows, "state", 0), Some("PRELIMINARY"));
}

/// Definitions are refused before they get here.
#[test]
fn no_dimension_can_have_the_name_of_another_column() {
    let plans = MetricPlans::new(vec![], Arc::default()).unwrap();
    for field in ViewSchema::of(&plans).arrow().fields().iter().filter(|field| field.name() != "device_id") {
        let config = MetricConfig {
            name: "x".into(),
            by: Some(vec![format!("device_id AS {}", field.name())]),
            ..MetricConfig::default()
        };
        assert!(Definition::check(&config).is_err(), "{}", field.name());
    }
}

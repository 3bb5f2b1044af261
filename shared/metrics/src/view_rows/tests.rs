//! Rows have the expected and the received readings, and how far the number can be trusted.

use std::sync::Arc;

use crate::confidence::{Confidence, ExpectedSource, Judged, LatenessHistogram, State};
use crate::definition::{Definition, MetricConfig};
use crate::merge::BatchRow;
use crate::plan::{Expectations, MetricPlans};
use crate::window_table::WindowTable;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use wye_domain::reading::TextColumn;
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::sketches::{Needs, Sketches};
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span};

use super::ViewSchema;
use super::builder::{ViewRowsBuilder, ViewSeries};
use super::maker::{AsOf, RowMaker};
use super::reader::{ViewRows, row_columns};

const SKETCHES: Needs = Needs { quantiles: true, distinct: true, devices: false };

fn registry() -> Registry {
    let device = DeviceConfig {
        device_id: "known".into(),
        reporting_interval: Some("10s".into()),
        metrics: vec![],
        attributes: Default::default(),
    };
    Registry::check(RegistryConfig { device: vec![device], metric_limits: vec![] }).unwrap()
}

/// One window from 0 to 60 s for each device, with this many readings, judged as of `as_of`.
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
    for (row, factors) in
        [[Some(6.0), Some(0.5), Some(0.5)], [None, Some(1.0), Some(0.9)]].into_iter().enumerate()
    {
        let names = ["expected", "completeness", "confidence_score"];
        assert_eq!(names.map(|name| number(&rows, name, row)), factors);
    }
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

/// Stability contract: these names and types are stored in the table `batch_views`.
#[test]
fn the_columns_stay() {
    let plans = MetricPlans::new(vec![], Arc::default()).unwrap();
    let columns: Vec<String> = ViewSchema::of(&plans)
        .arrow()
        .fields()
        .iter()
        .map(|field| {
            let kind = match field.data_type() {
                DataType::Dictionary(..) => "text",
                DataType::Timestamp(..) => "time",
                DataType::Float64 => "float",
                DataType::Int64 => "int",
                DataType::Binary => "bytes",
                other => panic!("{other}"),
            };
            format!("{} {kind}{}", field.name(), if field.is_nullable() { "?" } else { "" })
        })
        .collect();
    let pinned = "metric_key text, definition text, metric text, device_id text?, series text, window_start time, \
        window_end time, count int, invalid int, conflicts int, sum_high float, sum_low float, m2 float, min float?, \
        max float?, first float?, last float?, first_time time?, last_time time?, quantiles bytes?, distinct bytes?, \
        device_counts bytes?, expected float?, expected_source text, completeness float, validity float, \
        precision float, confidence_score float, state text";
    assert_eq!(columns.join(", "), pinned);
}

#[test]
fn the_reader_reads_what_the_builder_writes() {
    let line =
        MetricConfig { name: "by_line".into(), by: Some(vec!["line".into()]), ..MetricConfig::default() };
    let definitions = vec![Definition::family(), Definition::check(&line).unwrap()];
    let plans = MetricPlans::new(definitions, Arc::default()).unwrap();
    let schema = ViewSchema::of(&plans);
    let mut summary = Summary { sketches: Sketches::new(SKETCHES), ..Summary::EMPTY };
    summary.add(2.5, Micros(7));
    summary.conflicts = 1;
    summary.sketches.as_mut().unwrap().add(2.5, "d", None);
    let confidence = Confidence {
        expected: Some(60.0),
        expected_source: ExpectedSource::Registry,
        completeness: 0.5,
        validity: 0.75,
        precision: 0.875,
        score: 0.25,
    };
    let settled = Judged { confidence, state: State::Settled };
    let unknown = Confidence { expected: None, expected_source: ExpectedSource::Unknown, ..confidence };
    let preliminary = Judged { confidence: unknown, state: State::Preliminary };
    let keys =
        [("*", Some("d")), ("by_line", None), ("by_line", Some("north"))].map(|(definition, group)| {
            SeriesKey {
                definition: definition.into(),
                metric: "m".into(),
                group: Box::new([group.map(Arc::from)]),
            }
        });
    let series = keys
        .each_ref()
        .map(|key| ViewSeries::new(&schema, plans.find(&key.definition).unwrap().definition(), key));
    let mut builder = ViewRowsBuilder::with_capacity(&schema, 4);
    let rows = [(0, 0, settled), (0, 60, preliminary), (1, 0, settled), (2, 0, preliminary)];
    for (place, start, judged) in rows {
        let window = series[place].window_at(Micros::from_secs(start));
        builder.append(&series[place], window, &summary, judged);
    }
    let batch = builder.finish();
    assert_eq!(batch.schema(), *schema.arrow());
    let read = ViewRows::of(&batch).unwrap();
    for (row, (place, start, judged)) in rows.into_iter().enumerate() {
        let window_start = Micros::from_secs(start);
        let expected = BatchRow { window_start, summary: summary.clone(), judged };
        assert_eq!((read.series.text(row), read.row(row).unwrap()), (Some(&*keys[place].encode()), expected));
    }
    assert_eq!([0, 2, 3].map(|row| text(&batch, "device_id", row)), [Some("d"), None, None]);
    assert_eq!([0, 2, 3].map(|row| text(&batch, "line", row)), [None, None, Some("north")]);
    // A merge of counts needs no more than these.
    let some = ["series", "window_start", "count"].map(|name| batch.schema().index_of(name).unwrap());
    let some = batch.project(&some).unwrap();
    let row = ViewRows::of(&some).unwrap().row(0).unwrap();
    assert_eq!((row.summary.count, row.summary.sum.value()), (1, 0.0));
    // What makes a whole row is what is read to merge it.
    let whole =
        row_columns().into_iter().map(|name| batch.schema().index_of(name).unwrap()).collect::<Vec<_>>();
    let whole = batch.project(&whole).unwrap();
    assert_eq!(ViewRows::of(&whole).unwrap().row(0).unwrap(), read.row(0).unwrap());
}

/// Such definitions are rejected before they get here.
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

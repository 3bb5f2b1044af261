//! Rows have the expected and the received readings, and how far the number can be trusted.

use std::sync::Arc;

use crate::confidence::{Confidence, Evidence, ExpectedSource, LatenessHistogram, judge, settled};
use crate::definition::{Aggregate, Definition, MetricConfig};
use crate::merge::{BatchRow, Judge};
use crate::plan::{Expectations, MetricPlans};
use crate::window_table::WindowTable;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use wye_domain::reading::TextColumn;
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::sketches::{Needs, Sketches};
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span, WindowSize};

use super::builder::{ViewRowsBuilder, ViewSeries};
use super::maker::RowMaker;
use super::reader::{ViewRows, row_columns};
use super::{ViewSchema, judged};

const SKETCHES: Needs = Needs { quantiles: true, distinct: true, devices: false };

fn registry() -> Registry {
    let device = DeviceConfig {
        device_id: "known".into(),
        reporting_interval: Some("10s".into()),
        ..DeviceConfig::default()
    };
    Registry::check(RegistryConfig { device: vec![device], metric_limits: vec![] }).unwrap()
}

fn plans() -> MetricPlans {
    MetricPlans::new(vec![], Arc::new(registry())).unwrap()
}

/// One window from 0 to 60 s for each device, with this many readings.
fn windows(devices: &[(&str, u64)]) -> (SeriesTable, WindowTable) {
    let (mut series, mut windows) = (SeriesTable::default(), WindowTable::default());
    for (device, count) in devices {
        let group = Box::new([Some(Arc::from(*device))]);
        let id = series.id(SeriesKey { definition: "*".into(), metric: "t".into(), group });
        let slot = windows.entry(id, Micros::EPOCH);
        for reading in 0..*count {
            windows.change_unmarked(slot).add(reading as f64, Micros(reading as i64));
        }
        windows.change_unmarked(slot).conflicts = 1;
    }
    (series, windows)
}

fn rows(devices: &[(&str, u64)]) -> RecordBatch {
    let plans = plans();
    let expectations = Expectations::new(&plans).unwrap();
    let (series, windows) = windows(devices);
    let rows = RowMaker::new(&plans, &expectations, &series).rows(windows.entries().iter());
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
fn a_window_is_scored_against_what_was_expected_of_it() {
    let rows = rows(&[("known", 3), ("unknown", 3)]);
    for (row, factors) in [
        [Some(6.0), Some(0.5), Some(2.0 / 3.0), Some(0.5 * 2.0 / 3.0)],
        [None, Some(1.0), Some(2.0 / 3.0), Some(2.0 / 3.0)],
    ]
    .into_iter()
    .enumerate()
    {
        let names = ["expected", "completeness", "validity", "confidence_score"];
        assert_eq!(names.map(|name| number(&rows, name, row)), factors);
    }
    assert_eq!(
        (text(&rows, "expected_source", 0), text(&rows, "expected_source", 1)),
        (Some("registry"), Some("unknown"))
    );
    assert_eq!(text(&rows, "metric_key", 1), Some(r#"t{device_id="unknown"}"#));
    assert_eq!(text(&rows, "device_id", 0), Some("known"));
    assert_eq!(
        ["sum", "avg", "stddev", "p50"].map(|name| number(&rows, name, 0)),
        [Some(3.0), Some(1.0), Some(1.0), None]
    );
}

#[test]
fn both_ways_to_judge_agree() {
    let (plans, devices) = (plans(), [("known", 3), ("unknown", 3), ("other", 0)]);
    let expectations = Expectations::new(&plans).unwrap();
    let mut lateness = LatenessHistogram::default();
    [1, 1, 1, 20].into_iter().for_each(|seconds| lateness.add(Span::from_secs(seconds)));
    let settling = lateness.settling();
    let rows = rows(&devices);
    let (series, windows) = windows(&devices);
    for at in [93, 100, 3_600].map(Micros::from_secs) {
        let by_column = Judge { settling: &settling, now: Micros::EPOCH, as_of: at };
        assert!(!by_column.is_open(WindowSize::MINUTE.window_at(Micros::EPOCH)));
        let states = judged::states(&rows, by_column).unwrap();
        let scores = judged::scores(&rows, by_column).unwrap();
        let completeness = judged::completeness(&rows, by_column).unwrap();
        for (row, entry) in windows.entries().iter().enumerate().filter(|(_, entry)| entry.summary.count > 0)
        {
            let expectation = expectations.of(series.key(entry.series)).map(AsRef::as_ref);
            let window = WindowSize::MINUTE.window_at(entry.window_start);
            let judged = judge(Evidence { summary: &entry.summary, expectation, window }, at, &settling);
            let by_row = (judged.state, judged.confidence.score, judged.confidence.completeness);
            assert_eq!((states[row], scores[row], completeness.value(row)), by_row, "row {row} at {at:?}");
        }
    }
    let needed = [&judged::OF_SCORES[..], &judged::OF_STATES, &judged::OF_COMPLETENESS].concat();
    let places: Vec<usize> = needed.iter().map(|name| rows.schema().index_of(name).unwrap()).collect();
    let some = rows.project(&places[..judged::OF_SCORES.len()]).unwrap();
    let judge = Judge { settling: &settling, now: Micros::EPOCH, as_of: Micros::MAX };
    assert_eq!(judged::scores(&some, judge).unwrap(), judged::scores(&rows, judge).unwrap());
}

/// Every aggregate is a column of the view, with the answer that its summary gives.
#[test]
fn answers_are_stored() {
    let needs = [SKETCHES, Needs { quantiles: false, ..SKETCHES }];
    let plans = plans();
    let schema = ViewSchema::of(&plans);
    let key = SeriesKey { definition: "*".into(), metric: "t".into(), group: Box::new([None]) };
    let series = ViewSeries::new(&schema, plans.find("*").unwrap().definition(), &key);
    let mut builder = ViewRowsBuilder::with_capacity(&schema, 4);
    let mut summaries = vec![Summary { conflicts: 1, ..Summary::EMPTY }];
    for (needs, values) in needs.into_iter().zip([&[1.5, -2.25, 7.0][..], &[0.1]]) {
        let mut summary = Summary { sketches: Sketches::new(needs), ..Summary::EMPTY };
        for (time, value) in values.iter().enumerate() {
            summary.add(*value, Micros(time as i64));
            summary.sketches.as_mut().unwrap().add(*value, &format!("device {}", time % 2), None);
        }
        summaries.push(summary);
    }
    for summary in &summaries {
        let window = series.window_at(Micros::EPOCH);
        builder.append(&series, window, summary, &settled(Evidence { summary, expectation: None, window }));
    }
    let rows = builder.finish();
    for aggregate in Aggregate::ALL {
        let column = rows.column_by_name(aggregate.name()).unwrap();
        let column = cast(column, &DataType::Float64).unwrap();
        let column = column.as_primitive::<Float64Type>();
        for (row, summary) in summaries.iter().enumerate() {
            let stored = column.is_valid(row).then(|| column.value(row));
            assert_eq!(stored, aggregate.finish(summary), "{} of row {row}", aggregate.name());
        }
    }
}

/// Stability contract: these names and types are stored in the table `batch_metrics`.
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
        device_counts bytes?, sum float?, avg float?, stddev float?, p50 float?, p95 float?, p99 float?, \
        distinct_devices int?, expected float?, expected_source text, completeness float, validity float, \
        precision float, confidence_score float";
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
    let unknown = Confidence { expected: None, expected_source: ExpectedSource::Unknown, ..confidence };
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
    let rows = [(0, 0, confidence), (0, 60, unknown), (1, 0, confidence), (2, 0, unknown)];
    for (place, start, confidence) in rows {
        let window = series[place].window_at(Micros::from_secs(start));
        builder.append(&series[place], window, &summary, &confidence);
    }
    let batch = builder.finish();
    assert_eq!(batch.schema(), *schema.arrow());
    let read = ViewRows::of(&batch).unwrap();
    for (row, (place, start, confidence)) in rows.into_iter().enumerate() {
        let window_start = Micros::from_secs(start);
        let expected = BatchRow { window_start, summary: summary.clone() };
        assert_eq!((read.series.text(row), read.row(row).unwrap()), (Some(&*keys[place].encode()), expected));
        assert_eq!(number(&batch, "expected", row), confidence.expected);
        assert_eq!(text(&batch, "expected_source", row), Some(confidence.expected_source.name()));
        let factors = ["completeness", "validity", "precision", "confidence_score"];
        assert_eq!(factors.map(|name| number(&batch, name, row)), [0.5, 0.75, 0.875, 0.25].map(Some));
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

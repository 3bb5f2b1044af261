//! Two scenes of a plant of 400 devices, in simulated time: a fifth of them is silent for two hours, then sends everything that
//! it has kept. The score of the plant says so at once, and only as long as it is so.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema};
use wye_domain::identity::Novelty;
use wye_domain::reading::{Reading, ReadingBatchBuilder, time_type};
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::time::{Micros, Span, WindowSize};
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::fold::Fold;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::maker::RowMaker;
use wye_tables::views::ViewVersion;

use super::{Hub, Input};
use crate::directory::Directory;
use crate::snapshot::{BatchSnapshot, MemoryView, RunFacts};
use crate::testing::{Row, begin, flush_through, horizon, log_ends};
use crate::windows::Question;

const DEVICES: i64 = 400;
/// The silent ones.
const SILENT: i64 = DEVICES / 5;
/// How often a device reports, in seconds.
const INTERVAL: i64 = 10;
/// When the outage begins and ends, in seconds.
const OUTAGE: std::ops::Range<i64> = 600..600 + 7_200;
const END: i64 = OUTAGE.end + 600;
/// How often the batch layer runs, in seconds.
const RUN_EVERY: i64 = 60;

fn plans() -> Arc<MetricPlans> {
    let device = (0..DEVICES).map(|device| DeviceConfig {
        device_id: format!("d{device}"),
        reporting_interval: Some(format!("{INTERVAL}s")),
        metrics: vec!["temperature".to_owned()],
        attributes: BTreeMap::from([("line".to_owned(), "north".to_owned())]),
        ..DeviceConfig::default()
    });
    let registry = RegistryConfig { device: device.collect(), metric_limits: Vec::new() };
    let line = MetricConfig { name: "line".into(), by: Some(vec!["line".into()]), ..MetricConfig::default() };
    let registry = Arc::new(Registry::check(registry).unwrap());
    Arc::new(MetricPlans::new(vec![Definition::check(&line).unwrap()], registry).unwrap())
}

/// By the second in which they arrive: device and event time of each reading.
fn arrivals() -> BTreeMap<i64, Vec<(i64, Micros, Micros)>> {
    let mut arrivals: BTreeMap<i64, Vec<_>> = BTreeMap::new();
    for device in 0..DEVICES {
        let phase = device * 7_919 % (INTERVAL * 1_000);
        for nth in 0..END / INTERVAL {
            let sent = Micros::from_millis(nth * INTERVAL * 1_000 + phase);
            let latency = Span::from_millis(50 + (device * 31 + nth * 17) % 450);
            let is_kept = device < SILENT && OUTAGE.contains(&sent.seconds());
            // What was kept is sent within five seconds, the oldest first.
            let kept_for = Span::from_millis((sent.seconds() - OUTAGE.start) * 5_000 / 7_200);
            let arrived = if is_kept { Micros::from_secs(OUTAGE.end) + kept_for } else { sent } + latency;
            arrivals.entry(arrived.seconds() + 1).or_default().push((device, sent, arrived));
        }
    }
    arrivals
}

fn batch(readings: &[(i64, Micros, Micros)]) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for (device, event_time, _) in readings {
        builder.append(&Reading {
            device_id: &format!("d{device}"),
            metric: "temperature",
            value: 20.0,
            event_time: *event_time,
            sequence: None,
            unit: None,
            tags: None,
        });
    }
    let batch = builder.finish();
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("ingest_time", time_type(), false)));
    let ingest_time = readings.iter().map(|(_, _, arrived)| arrived.0);
    let ingest_time = TimestampMicrosecondArray::from_iter_values(ingest_time).with_timezone("UTC");
    let columns = batch.columns().iter().cloned().chain([Arc::new(ingest_time) as ArrayRef]);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect()).unwrap()
}

fn rows(fold: &Fold) -> Vec<Row> {
    let entries = fold.windows.entries().iter();
    entries
        .map(|entry| (fold.series.key(entry.series).encode(), entry.window_start, entry.summary.clone()))
        .collect()
}

/// The plant with both layers.
struct Plant {
    plans: Arc<MetricPlans>,
    hub: Hub,
    /// Everything, and what has come since the last batch run.
    all: Fold,
    epoch: Fold,
    lateness: LatenessHistogram,
    offset: i64,
    horizon: i64,
    runs: u64,
}

impl Plant {
    fn new() -> Self {
        let plans = plans();
        let directory = Directory::new(Arc::clone(&plans), Expectations::new(&plans).unwrap());
        let hub = Hub::new(Arc::new(directory), 1);
        hub.step(Input::CaughtUp);
        begin(&hub, 0);
        let [all, epoch] = [0, 1].map(|_| Fold::new(Arc::clone(&plans)));
        let lateness = LatenessHistogram::default();
        Self { plans, hub, all, epoch, lateness, offset: 0, horizon: 0, runs: 0 }
    }

    fn receive(&mut self, readings: &[(i64, Micros, Micros)], now: Micros) {
        let batch = batch(readings);
        self.all.add(&batch, |_| Some(Novelty::First)).unwrap();
        self.epoch.add(&batch, |_| Some(Novelty::First)).unwrap();
        readings.iter().for_each(|(_, event_time, arrived)| self.lateness.add(*arrived - *event_time));
        self.offset += readings.len() as i64;
        flush_through(&self.hub, self.horizon, self.offset, &rows(&self.epoch));
        log_ends(&self.hub, self.offset, now);
    }

    fn run(&mut self, now: Micros) {
        let expectations = Expectations::new(&self.plans).unwrap();
        let maker = RowMaker::new(&self.plans, &expectations, &self.all.series);
        let mut entries: Vec<_> = self.all.windows.entries().iter().collect();
        entries.sort_by_key(|entry| (entry.series.0, entry.window_start));
        self.runs += 1;
        self.horizon = self.offset;
        let facts = RunFacts {
            definitions: Some(self.plans.fingerprint()),
            as_of: Some(now),
            first_ingest: Some(Micros::EPOCH),
            settling: Arc::new(self.lateness.settling()),
            ..RunFacts::default()
        };
        let rows = vec![maker.rows(entries.into_iter())];
        let view =
            MemoryView { version: ViewVersion(self.runs), horizon: horizon(self.horizon), facts, rows };
        begin(&self.hub, self.horizon);
        let snapshot = BatchSnapshot::in_memory(view, self.hub.directory()).unwrap();
        self.hub.step(Input::BatchView(Arc::new(snapshot)));
        self.epoch = Fold::new(Arc::clone(&self.plans));
    }

    fn score(&self, now: Micros) -> f64 {
        let current = self.hub.read().current(&self.hub.directory().infos(), now);
        assert!(current.coverage.complete());
        let [(_, answer)] = current.answers.as_slice() else { panic!("{current:?}") };
        answer.confidence.score
    }
}

#[test]
fn an_outage_shows_within_a_reporting_interval_and_ends_with_it() {
    let mut plant = Plant::new();
    let mut arrivals = arrivals();
    let settled = INTERVAL + 2;
    for second in 1..END {
        let now = Micros::from_secs(second);
        let arrived = arrivals.remove(&second).unwrap_or_default();
        plant.receive(&arrived, now);
        if second % RUN_EVERY == 0 {
            plant.run(now);
        }
        let expected = match second {
            ..120 => continue,
            120..600 => 0.99..=1.0,
            second if (OUTAGE.start + settled..OUTAGE.end).contains(&second) => 0.78..=0.82,
            second if second >= OUTAGE.end + settled => 0.99..=1.0,
            _ => 0.78..=1.0,
        };
        let score = plant.score(now);
        assert!(expected.contains(&score), "at {second} s the score is {score}, not in {expected:?}");
    }
    // What was sent afterwards has completed the windows of the outage.
    let now = Micros::from_secs(END - 1);
    let windows = Micros::from_secs(OUTAGE.start)..Micros::from_secs(OUTAGE.end);
    let question = Question { infos: plant.hub.directory().infos(), windows, step: WindowSize::MINUTE };
    let answers = plant.hub.capture(now).merged(question, plant.hub.directory()).unwrap();
    assert_eq!(answers[0].1.len(), 120);
    assert!(answers[0].1.iter().all(|answer| answer.confidence.score == 1.0));
}

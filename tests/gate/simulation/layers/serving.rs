//! A process of the serving layer.

use std::sync::Arc;

use anyhow::{Context, Result};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::position::Position;
use wye_domain::time::{Micros, Span, WindowSize};
use wye_metrics::definition::Aggregate;
use wye_metrics::merge::Answer;
use wye_metrics::plan::Expectations;
use wye_serving::coverage::Reason;
use wye_serving::directory::{Directory, SeriesInfo};
use wye_serving::hub::{self, Capture, Hub};
use wye_serving::realtime::Record;
use wye_serving::snapshot::{BatchSnapshot, MemoryView, RunFacts};
use wye_serving::windows::Question;
use wye_tables::views::ViewVersion;

use super::{BatchView, Plans, horizon};

/// What an answer covers of one Kafka partition.
pub(crate) struct Covered {
    /// Readings below this offset are in the answer.
    pub(crate) offset: i64,
    /// Why it is not complete.
    pub(crate) reason: Option<&'static str>,
    /// Since when (µs) the oldest missing record has been in the log.
    pub(crate) lacking_since: Option<i64>,
}

/// One answer of the serving layer: a series in a window.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) metric: String,
    pub(crate) group: Option<String>,
    pub(crate) window_start: i64,
    pub(crate) window_end: i64,
    /// By name.
    pub(crate) aggregates: Vec<(&'static str, Option<f64>)>,
    pub(crate) count: u64,
    pub(crate) invalid: u64,
    pub(crate) conflicts: u64,
    pub(crate) source: &'static str,
    pub(crate) state: &'static str,
    pub(crate) expected_source: &'static str,
    pub(crate) expected: Option<f64>,
    pub(crate) completeness: f64,
    pub(crate) validity: f64,
    pub(crate) precision: f64,
    pub(crate) score: f64,
}

/// A process of the serving layer.
pub(crate) struct Serving {
    hub: Hub,
}

impl Serving {
    pub(crate) fn new(plans: &Plans, kafka_partitions: usize) -> Result<Self> {
        let expectations = Expectations::new(&plans.plans)?;
        let directory = Directory::new(Arc::clone(&plans.plans), expectations);
        Ok(Self { hub: Hub::new(Arc::new(directory), kafka_partitions as i32) })
    }

    /// The next record of a Kafka partition of the realtime views.
    pub(crate) fn record(&mut self, kafka_partition: usize, payload: &[u8]) {
        let kafka_partition = KafkaPartition(kafka_partition as i32);
        match Record::decode(payload, self.hub.directory()) {
            Ok(Record { header, rows }) => self.hub.apply(kafka_partition, &header, &rows),
            Err(_) => self.hub.step(hub::Input::Undecodable { kafka_partition }),
        };
    }

    /// A Kafka partition of the realtime views is read from its start again.
    pub(crate) fn restart_from_oldest(&mut self, kafka_partition: usize) {
        let kafka_partition = KafkaPartition(kafka_partition as i32);
        self.hub.step(hub::Input::FromStart { kafka_partition });
    }

    pub(crate) fn caught_up(&mut self) {
        self.hub.step(hub::Input::CaughtUp);
    }

    /// It has looked for a new batch view, and serves the newest.
    pub(crate) fn views_checked(&mut self) {
        self.hub.step(hub::Input::ViewsChecked);
    }

    /// Whether it gives answers.
    pub(crate) fn is_started(&self) -> bool {
        self.hub.read().starting().is_none()
    }

    /// Serves a batch view from now on.
    pub(crate) fn serve(&mut self, version: u64, view: &BatchView) -> Result<()> {
        let facts = RunFacts {
            definitions: Some(view.definitions),
            as_of: Some(Micros(view.as_of)),
            first_ingest: view.first_ingest.map(Micros),
            amendments: Arc::default(),
            settling: Arc::new(view.lateness.settling()),
            failures: Arc::new(view.tally.failures.clone()),
        };
        let view = MemoryView {
            version: ViewVersion(version),
            horizon: horizon(&view.horizon),
            facts,
            rows: view.rows.clone(),
        };
        let snapshot = BatchSnapshot::in_memory(view, self.hub.directory())?;
        self.hub.step(hub::Input::BatchView(Arc::new(snapshot)));
        Ok(())
    }

    /// Whether answers with a batch view would cover less than they do now.
    pub(crate) fn would_lose(&self, view: &BatchView) -> bool {
        !self.hub.read().would_lose(&horizon(&view.horizon)).is_empty()
    }

    /// What the log answered when it was asked (µs) for its ends.
    pub(crate) fn log_ends(&mut self, ends: &[i64], asked_at: i64) {
        let ends = horizon(ends).iter().collect();
        self.hub.step(hub::Input::LogEnds { ends: &ends, asked_at: Micros(asked_at) });
    }

    /// The Kafka partitions of which the oldest offset must be asked for.
    pub(crate) fn without_start(&self, now: i64) -> Vec<usize> {
        let without = self.hub.read().without_start(Micros(now));
        without.into_iter().map(|KafkaPartition(p)| p as usize).collect()
    }

    pub(crate) fn log_start(&mut self, kafka_partition: usize, oldest: i64) {
        let kafka_partition = KafkaPartition(kafka_partition as i32);
        self.hub.step(hub::Input::LogStart { kafka_partition, oldest: Offset(oldest) });
    }

    /// The log has acknowledged everything below an offset.
    pub(crate) fn written(&mut self, kafka_partition: usize, next: i64, at: i64) {
        let mut position = Position::default();
        position.include(KafkaPartition(kafka_partition as i32), Offset(next - 1));
        self.hub.step(hub::Input::Written { position: &position, at: Micros(at) });
    }

    pub(crate) fn covered(&self, now: i64) -> Vec<Covered> {
        let coverage = self.hub.read().coverage(Micros(now));
        let partitions = coverage.kafka_partitions.iter();
        partitions
            .map(|partition| Covered {
                offset: partition.covered.0,
                reason: partition.reason.map(Reason::name),
                lacking_since: partition.lacking_since.map(|since| since.0),
            })
            .collect()
    }

    /// What answers at a time (µs) are made of.
    pub(crate) fn take(&self, now: i64) -> TakenState<'_> {
        let directory = self.hub.directory();
        TakenState { directory, infos: directory.infos(), capture: self.hub.capture(Micros(now)) }
    }

    /// The newest window of each series, with the place of its definition.
    pub(crate) fn current(&self, now: i64) -> Vec<(usize, Answered)> {
        let infos = self.hub.directory().infos();
        let newest = self.hub.read().current(&infos, Micros(now)).answers;
        newest.iter().map(|(info, answer)| (info.definition, answered(info, answer))).collect()
    }
}

/// What the answers of one moment are made of.
pub(crate) struct TakenState<'a> {
    directory: &'a Directory,
    infos: Vec<Arc<SeriesInfo>>,
    capture: Capture,
}

impl TakenState<'_> {
    /// The windows of so many µs of all series of a metric definition, by its place.
    pub(crate) fn answers(&self, definition: usize, length: i64) -> Result<Vec<Answered>> {
        let step = WindowSize::new(Span(length)).context("a window has a length")?;
        let infos = self.infos.iter().filter(|info| info.definition == definition).cloned().collect();
        let question = Question { infos, windows: Micros::MIN..Micros::MAX, step };
        let series = self.capture.merged(question, self.directory)?;
        let mut windows = Vec::new();
        for (info, answers) in &series {
            windows.extend(answers.iter().map(|answer| answered(info, answer)));
        }
        Ok(windows)
    }
}

fn answered(info: &SeriesInfo, answer: &Answer) -> Answered {
    let summary = &answer.summary;
    let confidence = &answer.confidence;
    let aggregates = Aggregate::ALL.map(|aggregate| (aggregate.name(), aggregate.finish(summary)));
    Answered {
        metric: info.key.metric.to_string(),
        group: info.key.group[0].as_ref().map(|word| word.to_string()),
        window_start: answer.window_start.0,
        window_end: answer.window_end.0,
        aggregates: aggregates.to_vec(),
        count: summary.count,
        invalid: summary.invalid,
        conflicts: summary.conflicts,
        source: answer.source.name(),
        state: answer.state.name(),
        expected_source: confidence.expected_source.name(),
        expected: confidence.expected,
        completeness: confidence.completeness,
        validity: confidence.validity,
        precision: confidence.precision,
        score: confidence.score,
    }
}

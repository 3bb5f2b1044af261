//! The layers as the simulation drives them: the only file that knows their types. Everything else of the simulation has
//! bytes, offsets and times as plain numbers.

use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, Int32Array, RecordBatch, UInt8Array, UInt32Array};
use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use wye_batch::dedup::{Deduplicator, NOVELTY};
use wye_batch::fold::{Fold, Tally, combine};
pub(crate) use wye_batch::run::Patience;
use wye_batch::run::{self, ControlViews, Facts, Previous, Run};
use wye_domain::assemble::Assembler;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::Recovery;
use wye_domain::horizon::Horizon;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::position::Position;
use wye_domain::reading::{Reading, ReadingBatchBuilder, TextColumn};
use wye_domain::realtime_row::{self, Header};
use wye_domain::registry::{DeviceConfig, LimitsConfig, Registry, RegistryConfig};
use wye_domain::time::{Micros, Span, WindowSize};
use wye_domain::wire::{self, Acceptance};
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_metrics::definition::{Aggregate, Definition, MetricConfig};
use wye_metrics::merge::Answer;
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::maker::{AsOf, RowMaker};
use wye_serving::coverage::Reason;
use wye_serving::directory::{Directory, SeriesInfo};
use wye_serving::hub::{self, Capture, Hub};
use wye_serving::realtime::Record;
use wye_serving::snapshot::{BatchSnapshot, MemoryView, RunFacts};
use wye_serving::windows::Question;
use wye_speed::SpeedError;
use wye_speed::owner::{self, Due, Rules};
use wye_speed::takeover::{Claimed, ViewsState, decide};
use wye_tables::columns::READING_ORDER;
use wye_tables::views::ViewVersion;

use super::log::{ControlAbout, TopicName, ViewAbout, ViewKind};
use super::readings::Sent;
use super::versions::{DAY, SECOND, Version, device_name};

/// The earliest event time that is accepted where readings before 1990 are.
const EARLY: Micros = Micros(-400 * DAY);

/// A planned configuration.
#[derive(Clone)]
pub(crate) struct Plans {
    plans: Arc<MetricPlans>,
    expectations: Arc<Expectations>,
}

impl Plans {
    pub(crate) fn new(version: &Version) -> Result<Self> {
        let definitions = version.metrics.iter().map(|metric| {
            let text = |text: &str| text.to_owned();
            Ok(Definition::check(&MetricConfig {
                name: text(metric.name),
                help: String::new(),
                unit: String::new(),
                filter: metric.filter.map(text),
                value: metric.expression.map(text),
                by: Some(vec![text(metric.by)]),
                window: Some(text(metric.window)),
                rollups: Vec::new(),
                aggregates: Some(metric.aggregates.iter().map(|name| text(name)).collect()),
            })?)
        });
        let devices = version.devices.iter().map(|device| DeviceConfig {
            device_id: device_name(device.number),
            reporting_interval: device.interval.map(|interval| format!("{}s", interval / SECOND)),
            metrics: device.metrics.iter().map(|metric| format!("m{metric}")).collect(),
            attributes: device.line.map(|line| ("line".to_owned(), line.to_owned())).into_iter().collect(),
        });
        let limits = version.limits.iter().map(|limits| LimitsConfig {
            metric: format!("m{}", limits.metric),
            unit: limits.unit.map(str::to_owned),
            min: limits.min,
            max: limits.max,
        });
        let registry =
            Registry::check(RegistryConfig { device: devices.collect(), metric_limits: limits.collect() })?;
        let plans = MetricPlans::new(definitions.collect::<Result<_>>()?, Arc::new(registry))?;
        let expectations = Arc::new(Expectations::new(&plans)?);
        Ok(Self { plans: Arc::new(plans), expectations })
    }
}

fn acceptance(accepts_early: bool) -> Acceptance {
    let acceptance = Acceptance::default();
    if accepts_early { Acceptance { earliest: EARLY, ..acceptance } } else { acceptance }
}

/// The earliest event time (µs) that is accepted.
pub(crate) fn earliest(accepts_early: bool) -> i64 {
    acceptance(accepts_early).earliest.0
}

/// Readings as an Arrow message.
pub(crate) fn arrow_message(readings: &[Sent]) -> Vec<u8> {
    let mut builder = ReadingBatchBuilder::default();
    for sent in readings {
        builder.append(&Reading {
            device_id: &device_name(sent.device),
            metric: &sent.metric_name(),
            value: sent.value,
            event_time: Micros(sent.event_time),
            sequence: sent.sequence,
            unit: sent.unit,
            tags: sent.tags().as_deref(),
        });
    }
    wire::encode(&[builder.finish()])
}

/// What every owner of one configuration computes by.
pub(crate) struct OwnerRules(Rules);

impl OwnerRules {
    /// `duplicate_window` in µs.
    pub(crate) fn new(plans: &Plans, accepts_early: bool, duplicate_window: i64) -> Self {
        Self(Rules {
            plans: Arc::clone(&plans.plans),
            acceptance: acceptance(accepts_early),
            duplicate_window: Span(duplicate_window),
            duplicate_entries: usize::MAX,
        })
    }
}

/// What a process of the speed layer does for an owner.
pub(crate) enum Effect {
    /// Appends a record to `realtime-views`.
    View(Vec<u8>, ViewAbout),
    /// Appends a record to `control`.
    Control(Vec<u8>, ControlAbout),
    /// Deletes what is below an offset of a topic.
    Trim(TopicName, i64),
}

/// Why an owner has ended.
pub(crate) enum Ended {
    /// Another one has claimed the Kafka partition.
    Fenced,
    /// A start was announced inside of what its rows hold.
    Overtaken,
    /// An error that must not happen.
    Failed(anyhow::Error),
}

impl From<SpeedError> for Ended {
    fn from(error: SpeedError) -> Self {
        match error {
            SpeedError::Fenced { .. } => Self::Fenced,
            SpeedError::Overtaken { .. } => Self::Overtaken,
            error => Self::Failed(error.into()),
        }
    }
}

/// The claim that a new owner writes to `control`.
pub(crate) fn claim() -> (Vec<u8>, ControlAbout) {
    (ControlRecord::Claim { owner: String::new() }.encode(), ControlAbout::Claim)
}

/// The claim that a new owner writes to `realtime-views`.
pub(crate) fn claim_marker(generation: i64) -> (Vec<u8>, ViewAbout) {
    let claim = Header::Claim { generation: Generation(Offset(generation)) };
    (realtime_row::encode(&claim, None), ViewAbout { generation, kind: ViewKind::Claim })
}

/// How a new owner begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    Resumed,
    ResumedInsideIncompleteFlush,
    Rebuilt,
}

/// A new owner that reads both topics up to its claim.
#[derive(Default)]
pub(crate) struct Takeover {
    control: ControlView,
    views: ViewsState,
}

impl Takeover {
    pub(crate) fn control(&mut self, offset: i64, payload: &[u8]) {
        apply_control(&mut self.control, offset, payload);
    }

    pub(crate) fn view(&mut self, offset: i64, payload: &[u8]) {
        // A record that does not decode is skipped; it is noted what may be missing.
        let _ = self.views.apply(Offset(offset), payload);
    }

    /// Decides where the owner resumes.
    pub(crate) fn owner(self, rules: &OwnerRules, place: (i32, i64), log_start: i64) -> (Owner, Recovered) {
        let (kafka_partition, generation) = place;
        let claimed = Claimed {
            generation: Generation(Offset(generation)),
            control: self.control,
            views: self.views,
            log_start: Offset(log_start),
        };
        let taken = decide(claimed, rules.0.plans.fingerprint());
        let recovered = match taken.recovery {
            Recovery::Rebuild { .. } => Recovered::Rebuilt,
            Recovery::Resume { position, .. } if taken.rows_through > Some(position) => {
                Recovered::ResumedInsideIncompleteFlush
            }
            Recovery::Resume { .. } => Recovered::Resumed,
        };
        (Owner(owner::Owner::new(&rules.0, KafkaPartition(kafka_partition), taken)), recovered)
    }
}

/// A record of a later version is skipped.
fn apply_control(view: &mut ControlView, offset: i64, payload: &[u8]) {
    if let Ok(record) = ControlRecord::decode(payload) {
        view.apply(Offset(offset), &record);
    }
}

/// What happens to an owner.
#[derive(Clone, Copy)]
pub(crate) enum OwnerInput<'a> {
    Message { offset: i64, time: i64, payload: &'a [u8] },
    Empty { next: i64 },
    Unreadable { next: i64 },
    Flush,
    Epoch,
    Control { offset: i64, payload: &'a [u8] },
    Begun { epoch: i64, offset: i64 },
}

/// The owner of a Kafka partition.
pub(crate) struct Owner(owner::Owner);

impl Owner {
    pub(crate) fn start(&mut self) -> Result<Vec<Effect>, Ended> {
        Ok(effects(self.0.start()?, 1))
    }

    /// Takes in what happened. The rows of a flush are written in so many records, as larger ones are.
    pub(crate) fn step(&mut self, input: OwnerInput<'_>, records: usize) -> Result<Vec<Effect>, Ended> {
        let record;
        let input = match input {
            OwnerInput::Message { offset, time, payload } => {
                owner::Input::Message { offset: Offset(offset), ingest_time: Micros(time), payload }
            }
            OwnerInput::Empty { next } => owner::Input::Empty { next: Offset(next) },
            OwnerInput::Unreadable { next } => owner::Input::Skip { next: Offset(next) },
            OwnerInput::Flush => owner::Input::Tick(Due::Flush),
            OwnerInput::Epoch => owner::Input::Tick(Due::Epoch),
            OwnerInput::Begun { epoch, offset } => {
                owner::Input::Begun { epoch: Offset(epoch), offset: Offset(offset) }
            }
            OwnerInput::Control { offset, payload } => {
                let Ok(decoded) = ControlRecord::decode(payload) else { return Ok(Vec::new()) };
                record = decoded;
                owner::Input::Control { offset: Offset(offset), record: &record }
            }
        };
        Ok(effects(self.0.step(input)?, records))
    }

    /// The next readings offset.
    pub(crate) fn next(&self) -> i64 {
        self.0.next().0
    }

    /// The next offset of the control topic.
    pub(crate) fn next_control(&self) -> i64 {
        self.0.next_control().0
    }

    /// From which readings offset on it must be shown everything below [`Owner::next`] first.
    pub(crate) fn remembers_from(&self) -> i64 {
        self.0.remembers_from().map_or(0, |offset| offset.0)
    }

    pub(crate) fn remember(&mut self, offset: i64, time: i64, payload: &[u8]) -> Result<()> {
        Ok(self.0.remember(Offset(offset), Micros(time), payload)?)
    }

    pub(crate) fn remembered(&mut self) -> Result<()> {
        Ok(self.0.end_remembering()?)
    }
}

fn effects(effects: Vec<owner::Effect>, records: usize) -> Vec<Effect> {
    let mut all = Vec::with_capacity(effects.len());
    for effect in effects {
        match effect {
            owner::Effect::Append(header, rows) => append(&header, rows.as_ref(), records, &mut all),
            owner::Effect::Announce(record) => {
                all.push(Effect::Control(record.encode(), control_about(&record)));
            }
            owner::Effect::Trim { topic, before } => all.push(Effect::Trim(topic_name(topic), before.0)),
        }
    }
    all
}

/// A record, or several where it has rows.
fn append(header: &Header, rows: Option<&RecordBatch>, records: usize, all: &mut Vec<Effect>) {
    let Some(rows) = rows else {
        all.push(Effect::View(realtime_row::encode(header, None), view_about(header)));
        return;
    };
    let length = rows.num_rows().div_ceil(records.max(1)).max(1);
    let mut start = 0;
    while start < rows.num_rows() {
        let length = length.min(rows.num_rows() - start);
        let mut header = header.clone();
        if let Header::Rows { complete, .. } = &mut header {
            *complete &= start + length == rows.num_rows();
        }
        let record = realtime_row::encode(&header, Some(&rows.slice(start, length)));
        all.push(Effect::View(record, view_about(&header)));
        start += length;
    }
}

fn view_about(header: &Header) -> ViewAbout {
    let kind = match *header {
        Header::Claim { .. } => ViewKind::Claim,
        Header::Begin { epoch, reset, .. } => ViewKind::Begin { epoch: epoch.0, reset },
        Header::Rows { epoch, through, complete, .. } => {
            ViewKind::Rows { epoch: epoch.0, through: through.0, complete }
        }
    };
    ViewAbout { generation: header.generation().claim().0, kind }
}

fn control_about(record: &ControlRecord) -> ControlAbout {
    match *record {
        ControlRecord::Claim { .. } => ControlAbout::Claim,
        ControlRecord::Epoch { generation, start, answers, .. } => ControlAbout::Epoch {
            generation: generation.map(|generation| generation.claim().0),
            start: start.0,
            answers: answers.is_some(),
        },
        ControlRecord::CutRequest { .. } => ControlAbout::CutRequest,
        ControlRecord::Horizon { offset, .. } => ControlAbout::Horizon { offset: offset.0 },
    }
}

fn topic_name(topic: &str) -> TopicName {
    match topic {
        READINGS => TopicName::Readings,
        REALTIME_VIEWS => TopicName::RealtimeViews,
        CONTROL => TopicName::Control,
        other => panic!("nothing is deleted from {other}"),
    }
}

/// What the control topic of one Kafka partition says, for a batch run.
#[derive(Clone, Default)]
pub(crate) struct Control(ControlView);

impl Control {
    pub(crate) fn read<'a>(records: impl Iterator<Item = (i64, &'a Vec<u8>)>) -> Self {
        let mut control = Self::default();
        records.for_each(|(offset, payload)| apply_control(&mut control.0, offset, payload));
        control
    }
}

/// The master dataset of one Kafka partition.
pub(crate) struct Archive {
    kafka_partition: i32,
    assembler: Assembler,
    /// With the columns of the master dataset.
    batches: Vec<RecordBatch>,
}

impl Archive {
    pub(crate) fn new(kafka_partition: i32, accepts_early: bool) -> Self {
        let assembler = Assembler::new(acceptance(accepts_early));
        Self { kafka_partition, assembler, batches: Vec::new() }
    }

    pub(crate) fn message(&mut self, offset: i64, time: i64, payload: &[u8]) -> Result<()> {
        self.assembler.push(payload, Offset(offset), Micros(time));
        self.assembler.take_rejected();
        for placed in self.assembler.take() {
            let partitions = Int32Array::from(vec![self.kafka_partition; placed.batch.num_rows()]);
            self.batches.push(with_column(&placed.batch, "kafka_partition", Arc::new(partitions))?);
        }
        Ok(())
    }

    /// The readings below an offset.
    fn below(&self, end: i64) -> impl Iterator<Item = &RecordBatch> {
        // Each batch is of one message.
        self.batches.iter().filter(move |batch| offset_of(batch).is_some_and(|offset| offset < end))
    }
}

fn offset_of(batch: &RecordBatch) -> Option<i64> {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    batch.column_by_name("kafka_offset")?.as_primitive_opt::<Int64Type>()?.values().first().copied()
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> Result<RecordBatch> {
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
    let mut columns = batch.columns().to_vec();
    columns.push(column);
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// A batch view in memory.
#[derive(Clone)]
pub(crate) struct BatchView {
    horizon: Vec<i64>,
    definitions: u64,
    as_of: i64,
    tally: Tally,
    rows: Vec<RecordBatch>,
    /// The next time (µs) at which a window is settled.
    settles_at: Option<i64>,
}

/// Computes a batch view from the readings below a horizon, in two plan partitions. `as_of` (µs) where everything that
/// was ingested before is below the horizon. Every n-th reading is there twice, as after two merges of the same files.
pub(crate) fn recompute(
    plans: &Plans,
    archives: &[Archive],
    horizon: &[i64],
    as_of: Option<i64>,
    repeat: usize,
) -> Result<BatchView> {
    let below: Vec<&RecordBatch> =
        archives.iter().zip(horizon).flat_map(|(archive, end)| archive.below(*end)).collect();
    let folds = match below.first() {
        None => Vec::new(),
        Some(first) => fold(plans, &concat_batches(&first.schema(), below)?, repeat)?,
    };
    let (folded, tally) = combine(folds);
    let time = tally.as_of.max(as_of.map(Micros)).unwrap_or_default();
    let judged = AsOf { time, lateness: Arc::new(tally.lateness.clone()) };
    let age = tally.lateness.settling_age();
    let (mut rows, mut settles_at) = (Vec::new(), None::<i64>);
    for folded in folded {
        let maker = RowMaker::new(&plans.plans, &plans.expectations, &folded.series, &judged);
        let order = folded.order(&maker.stored());
        let entries = order.iter().map(|slot| &folded.entries[*slot as usize]);
        rows.push(maker.rows(entries.clone()));
        let settling = entries.map(|entry| maker.window(entry).end + age);
        settles_at = settling.filter(|at| *at > time).map(|at| at.0).chain(settles_at).min();
    }
    let definitions = plans.plans.fingerprint();
    Ok(BatchView { horizon: horizon.to_vec(), definitions, as_of: time.0, tally, rows, settles_at })
}

fn fold(plans: &Plans, readings: &RecordBatch, repeat: usize) -> Result<Vec<Fold>> {
    let column = |name: &&str| {
        let values = Arc::clone(readings.column_by_name(name).context("a column of the order is missing")?);
        let options = Some(SortOptions { descending: false, nulls_first: true });
        Ok(SortColumn { values, options })
    };
    let order = READING_ORDER.iter().map(column).collect::<Result<Vec<_>>>()?;
    let sorted = lexsort_to_indices(&order, None)?;
    let devices = TextColumn::of(readings, "device_id")?;
    let mut folds = Vec::new();
    for plan_partition in 0..2u8 {
        let is_here = |row: &u32| {
            let device = devices.text(*row as usize).unwrap_or_default();
            device.bytes().last().unwrap_or_default() % 2 == plan_partition
        };
        let rows = sorted.values().iter().copied().filter(is_here);
        let rows: Vec<u32> = rows
            .enumerate()
            .flat_map(|(nth, row)| std::iter::repeat_n(row, if nth % repeat == repeat - 1 { 2 } else { 1 }))
            .collect();
        let mut fold = Fold::new(Arc::clone(&plans.plans));
        let mut deduplicator = Deduplicator::default();
        // In two batches, so that readings of one identity are in both.
        for rows in rows.chunks(rows.len().div_ceil(2).max(1)) {
            let batch = take_record_batch(readings, &UInt32Array::from(rows.to_vec()))?;
            let novelty = UInt8Array::from(deduplicator.mark(&batch)?);
            debug_assert_eq!(DataType::UInt8, *arrow::array::Array::data_type(&novelty));
            fold.push(&with_column(&batch, NOVELTY, Arc::new(novelty))?)?;
        }
        folds.push(fold);
    }
    Ok(folds)
}

/// What a batch run starts from.
pub(crate) struct RunStart<'a> {
    /// In µs.
    pub(crate) started: i64,
    /// The newest batch view with its version.
    pub(crate) previous: Option<(u64, &'a BatchView)>,
    pub(crate) control: Vec<Control>,
    /// The end of the readings of each Kafka partition.
    pub(crate) ends: Vec<i64>,
}

/// What is done for a batch run.
pub(crate) enum RunEffect {
    /// Appends a request for a cut to `control`.
    Request(usize, Vec<u8>, ControlAbout),
    /// Appends another record to `control`.
    Announce(usize, Vec<u8>, ControlAbout),
    ReadControl,
    ReadArchived,
    Commit {
        horizon: Vec<i64>,
        as_of: Option<i64>,
        replaces: Option<u64>,
    },
    /// The view stays.
    Keep,
}

/// What happens to a batch run.
pub(crate) enum RunInput {
    Requested { kafka_partition: usize, offset: i64 },
    Control(Vec<Control>, Patience),
    Archived(Vec<i64>, Patience),
    Committed(u64),
}

/// A batch run that decides.
pub(crate) struct BatchRun(Run);

impl BatchRun {
    pub(crate) fn start(plans: &Plans, start: RunStart<'_>) -> (Self, Vec<RunEffect>) {
        let rules = run::Rules {
            started: Micros(start.started),
            definitions: plans.plans.fingerprint().to_string(),
            asked_by: String::new(),
            force: false,
        };
        let previous = start.previous.map(|(version, view)| Previous {
            version: ViewVersion(version),
            horizon: horizon(&view.horizon),
            definitions: Some(view.definitions.to_string()),
            settles_at: view.settles_at.map(Micros),
        });
        let facts = Facts { previous, control: control_views(start.control), ends: horizon(&start.ends) };
        let (run, effects) = Run::start(rules, facts);
        (Self(run), run_effects(effects))
    }

    pub(crate) fn step(&mut self, input: RunInput) -> Vec<RunEffect> {
        run_effects(self.0.step(match input {
            RunInput::Requested { kafka_partition, offset } => {
                let kafka_partition = KafkaPartition(kafka_partition as i32);
                run::Input::Requested { kafka_partition, request: Offset(offset) }
            }
            RunInput::Control(control, patience) => run::Input::Control(control_views(control), patience),
            RunInput::Archived(archived, patience) => run::Input::Archived(horizon(&archived), patience),
            RunInput::Committed(version) => run::Input::Committed { version: ViewVersion(version) },
        }))
    }
}

fn control_views(control: Vec<Control>) -> ControlViews {
    (0..).map(KafkaPartition).zip(control.into_iter().map(|control| control.0)).collect()
}

fn horizon(offsets: &[i64]) -> Horizon {
    (0..).map(KafkaPartition).zip(offsets.iter().map(|offset| Offset(*offset))).collect()
}

fn run_effects(effects: Vec<run::Effect>) -> Vec<RunEffect> {
    let effect = |effect| match effect {
        run::Effect::RequestCut(KafkaPartition(p), record) => {
            RunEffect::Request(p as usize, record.encode(), control_about(&record))
        }
        run::Effect::Announce(KafkaPartition(p), record) => {
            RunEffect::Announce(p as usize, record.encode(), control_about(&record))
        }
        run::Effect::ReadControl => RunEffect::ReadControl,
        run::Effect::ReadArchived => RunEffect::ReadArchived,
        run::Effect::Commit(task) => RunEffect::Commit {
            horizon: task.horizon.iter().map(|(_, offset)| offset.0).collect(),
            as_of: task.as_of.map(|as_of| as_of.0),
            replaces: task.replaces.map(|version| version.0),
        },
        run::Effect::KeepView(_) => RunEffect::Keep,
    };
    effects.into_iter().map(effect).collect()
}

/// What an answer covers of one Kafka partition.
pub(crate) struct Covered {
    /// Readings below this offset are in the answer.
    pub(crate) offset: i64,
    /// Why it is not complete.
    pub(crate) reason: Option<&'static str>,
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
            lateness: Arc::new(view.tally.lateness.clone()),
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

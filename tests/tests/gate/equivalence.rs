//! EQ-1: what the batch layer computes from a prefix, merged with what the speed layer computed from the rest, is what
//! a naive computation finds in all of it. For random readings (disorder, any lateness, duplicates, conflicts, what is no
//! reading), several Kafka partitions, epochs, flushes that break off, owners that die, owners that come back from
//! the dead, and batch runs at any time. HOR-1 and HOR-3 are checked on the way.
//!
//! The layers' own code runs; only the log and the tables are vectors. `WYE_TEST_HISTORIES` says how many histories
//! (1,500 without it), `WYE_TEST_SEED` where to start. A failure names its seed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Result, ensure};
use arrow::array::{
    Array, ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt8Array,
};
use arrow::datatypes::{DataType, Field, Schema};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wye_batch::dedup::{Deduplicator, NOVELTY};
use wye_batch::fold::{Fold, combine};
use wye_domain::assemble::Assembler;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::definition::{Definition, MetricConfig};
use wye_domain::epoch::{Recovery, choose_horizon};
use wye_domain::reading::{Reading, ReadingBatchBuilder, ReadingColumns};
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::sketches::{Needs, Sketches};
use wye_domain::summary::Summary;
use wye_domain::wire;
use wye_serving::realtime::{CapturedRows, Reach, RealtimeRow, RealtimeStore, Selection, Start};
use wye_speed::duplicates::DuplicateWindow;
use wye_speed::operator::Operator;
use wye_speed::takeover::{ViewsState, decide};
use wye_tables::plan::MetricPlans;

const NOW: i64 = 1_800_000_000_000_000;
const MINUTE: i64 = 60_000_000;
const HISTORIES: u64 = 1_500;
/// So many of the devices are in the registry.
const REGISTERED: usize = 3;

type View = BTreeMap<(String, i64), Summary>;

/// Values with their event times and devices, and how many conflicts.
type Collected = (Vec<(f64, i64, String)>, u64);

#[test]
fn both_layers_together_equal_the_naive_computation() -> Result<()> {
    let setting =
        |name: &str, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (first, count) = (setting("WYE_TEST_SEED", 1), setting("WYE_TEST_HISTORIES", HISTORIES));
    let plans = plans()?;
    let mut checks = 0;
    for seed in first..first + count {
        let mut world = World::new(&plans, seed);
        checks += world
            .live()
            .map_err(|error| error.context(format!("WYE_TEST_SEED={seed} WYE_TEST_HISTORIES=1")))?;
    }
    wye_tests::datasets::say(&format!("{count} histories, {checks} comparisons"));
    Ok(())
}

fn plans() -> Result<Arc<MetricPlans>> {
    let by_line = Definition::check(&MetricConfig {
        name: "by_line".into(),
        help: String::new(),
        unit: String::new(),
        filter: Some("metric <> 'm0' AND value > -50".into()),
        value: Some("value * 2".into()),
        by: Some(vec!["line".into()]),
        window: Some("2m".into()),
        rollups: vec![],
        aggregates: Some(vec!["count".into(), "p50".into(), "distinct_devices".into()]),
    })?;
    // Groups that span devices and Kafka partitions, with readings counted by device.
    let everyone = Definition::check(&MetricConfig {
        name: "everyone".into(),
        help: String::new(),
        unit: String::new(),
        filter: Some("metric <> 'm0'".into()),
        value: None,
        by: Some(vec!["metric AS reading_name".into()]),
        window: Some("2m".into()),
        rollups: vec![],
        aggregates: None,
    })?;
    let device = |device: usize| DeviceConfig {
        device_id: format!("d{device}"),
        reporting_interval: Some("10s".into()),
        metrics: vec!["m0".into(), "m1".into()],
        attributes: BTreeMap::new(),
    };
    let registry = RegistryConfig { device: (0..REGISTERED).map(device).collect(), metric_limits: vec![] };
    let definitions = vec![Definition::family(), by_line, everyone];
    Ok(Arc::new(MetricPlans::new(definitions, Arc::new(Registry::check(registry)?))?))
}

/// A message of the log: its payload; its offset is its place.
type Message = Vec<u8>;

/// One Kafka partition: its topics, and the owner that lives.
struct Partition {
    readings: Vec<Message>,
    views: Vec<Vec<u8>>,
    control: Vec<ControlRecord>,
    owner: Owner,
    /// An owner that was replaced and does not know it.
    zombie: Option<Owner>,
}

/// What `wye_speed::owner::Owner` does, without its log.
struct Owner {
    generation: i64,
    epoch: i64,
    position: i64,
    rows_through: i64,
    operator: Operator,
    starts: ControlView,
}

struct World {
    random: StdRng,
    plans: Arc<MetricPlans>,
    partitions: Vec<Partition>,
    batch: View,
    horizon: Vec<i64>,
    sent: Vec<(usize, i64, i64, Option<i64>, f64)>,
}

impl World {
    fn new(plans: &Arc<MetricPlans>, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..=3);
        let mut world = Self {
            random,
            plans: Arc::clone(plans),
            partitions: Vec::new(),
            batch: View::new(),
            horizon: vec![0; count],
            sent: Vec::new(),
        };
        for _ in 0..count {
            let empty = Operator::new(Arc::clone(plans), DuplicateWindow::new(i64::MAX / 2, usize::MAX));
            let nobody = Owner {
                generation: -1,
                epoch: 0,
                position: 0,
                rows_through: 0,
                operator: empty,
                starts: ControlView::default(),
            };
            let mut partition = Partition {
                readings: Vec::new(),
                views: Vec::new(),
                control: Vec::new(),
                owner: nobody,
                zombie: None,
            };
            partition.take_over(plans);
            world.partitions.push(partition);
        }
        world
    }

    /// A random life; how often the answer was compared.
    fn live(&mut self) -> Result<u64> {
        let mut checks = 0;
        for _ in 0..self.random.random_range(10..60) {
            let place = self.random.random_range(0..self.partitions.len());
            match self.random.random_range(0..100) {
                0..40 => self.send(place),
                40..60 => {
                    let most = self.random.random_range(1..6);
                    self.partitions[place].read(most)?;
                }
                60..70 => self.partitions[place].flush(true),
                70..74 => {
                    // A flush that breaks off: its rows are there, the record that completes it is not.
                    self.partitions[place].flush(false);
                    self.partitions[place].take_over(&self.plans);
                }
                74..80 => self.partitions[place].start_epoch(),
                80..84 => self.partitions[place].take_over(&self.plans),
                84..88 => self.partitions[place].let_zombie_write()?,
                88..96 => self.batch_run()?,
                _ => {
                    self.compare()?;
                    checks += 1;
                }
            }
        }
        self.compare()?;
        self.batch_run()?;
        self.compare()?;
        Ok(checks + 2)
    }

    fn send(&mut self, place: usize) {
        let random = &mut self.random;
        if random.random_bool(0.05) {
            self.partitions[place].readings.push(b"not a reading".to_vec());
            return;
        }
        let mut readings = Vec::new();
        for _ in 0..random.random_range(1..8) {
            let again = self.sent.iter().filter(|sent| sent.0 % self.horizon.len() == place).count();
            let fresh = (
                random.random_range(0..4usize) * self.horizon.len() + place,
                random.random_range(0..3i64),
                NOW - random.random_range(0..6) * MINUTE / 2,
                random.random_bool(0.5).then(|| random.random_range(0..3)),
                f64::from(random.random_range(-800..800)) / 8.0,
            );
            let mut reading = fresh;
            if again > 0 && random.random_bool(0.3) {
                let nth = random.random_range(0..again);
                let known = self.sent.iter().filter(|sent| sent.0 % self.horizon.len() == place).nth(nth);
                reading = *known.unwrap_or(&fresh);
                if random.random_bool(0.3) {
                    reading.4 += 1.0;
                }
            }
            self.sent.push(reading);
            readings.push(reading);
        }
        let texts: Vec<_> = readings
            .iter()
            .map(|(device, metric, ..)| {
                let tags = (device % 3 > 0).then(|| format!(r#"{{"line":"{}"}}"#, device % 3));
                (format!("d{device}"), format!("m{metric}"), tags)
            })
            .collect();
        let borrowed: Vec<Reading<'_>> = readings
            .iter()
            .zip(&texts)
            .map(|((_, _, event_time, sequence, value), (device_id, metric, tags))| Reading {
                device_id,
                metric,
                value: *value,
                event_time: *event_time,
                sequence: *sequence,
                unit: None,
                tags: tags.as_deref(),
            })
            .collect();
        let payload = if random.random_bool(0.5) {
            wire::encode_json(&borrowed)
        } else {
            let mut builder = ReadingBatchBuilder::default();
            borrowed.iter().for_each(|reading| builder.append(reading));
            wire::encode(&[builder.finish()])
        };
        self.partitions[place].readings.push(payload);
    }

    /// A batch run that sees some of what was archived.
    fn batch_run(&mut self) -> Result<()> {
        for place in 0..self.partitions.len() {
            let partition = &self.partitions[place];
            let archived = self.random.random_range(self.horizon[place]..=partition.readings.len() as i64);
            let control = partition.control_view();
            let horizon = choose_horizon(&control, archived, self.horizon[place], 0).offset();
            ensure!(control.starts.contains_key(&horizon), "HOR-1: {horizon} is no epoch start");
            ensure!(horizon >= self.horizon[place] && horizon <= archived, "a horizon of {horizon}");
            self.horizon[place] = horizon;
        }
        self.batch = self.recompute(&self.horizon.clone())?;
        for (partition, horizon) in self.partitions.iter_mut().zip(&self.horizon) {
            partition.control.push(ControlRecord::Horizon { offset: *horizon, version: 1 });
        }
        Ok(())
    }

    /// The batch layer's way: sort by identity and place, mark copies, fold; in two parts that are combined.
    fn recompute(&self, horizon: &[i64]) -> Result<View> {
        let mut placed = Vec::new();
        for (place, (partition, horizon)) in self.partitions.iter().zip(horizon).enumerate() {
            for (order, batch, row) in decoded(&partition.readings[..*horizon as usize]) {
                placed.push((place, order, batch, row));
            }
        }
        let key = |(place, order, batch, row): &(usize, (i64, i32), RecordBatch, usize)| {
            let columns = ReadingColumns::of(batch).expect("decoded batches are readings");
            let reading = columns.reading(*row);
            (
                reading.device_id.to_owned(),
                reading.metric.to_owned(),
                reading.event_time,
                reading.sequence,
                *place,
                *order,
            )
        };
        placed.sort_by_key(key);
        let mut folds = Vec::new();
        for part in 0..2 {
            let mut builder = ReadingBatchBuilder::default();
            for (.., batch, row) in placed.iter().filter(|found| key(found).0.len() % 2 == part) {
                builder.append(&ReadingColumns::of(batch)?.reading(*row));
            }
            let batch = with_places(&builder.finish())?;
            let novelty = Deduplicator::default().mark(&batch)?;
            let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
            fields.push(Arc::new(Field::new(NOVELTY, DataType::UInt8, false)));
            let mut columns = batch.columns().to_vec();
            columns.push(Arc::new(UInt8Array::from(novelty)));
            let mut fold = Fold::new(Arc::clone(&self.plans));
            fold.push(&RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)?;
            folds.push(fold);
        }
        let mut view = View::new();
        for folded in combine(folds).0 {
            let stored: Vec<String> = folded.series.keys().iter().map(|key| key.encode()).collect();
            for slot in folded.order(&stored) {
                let entry = &folded.entries[slot as usize];
                let key = (stored[entry.series.0 as usize].clone(), entry.window_start);
                ensure!(
                    view.insert(key, entry.summary.clone()).is_none(),
                    "a window stands twice in the batch view"
                );
            }
        }
        Ok(view)
    }

    /// Lets every owner read and flush all there is, merges, and compares with the naive computation.
    fn compare(&mut self) -> Result<()> {
        for partition in &mut self.partitions {
            partition.read(usize::MAX)?;
            partition.flush(true);
        }
        let mut store = RealtimeStore::new(self.plans.fingerprint());
        let mut series = SeriesTable::default();
        for (place, partition) in (0..).zip(&self.partitions) {
            for payload in &partition.views {
                let record = realtime_row::decode(payload)?;
                let rows = match &record.rows {
                    None => Vec::new(),
                    Some(batch) => resolve(&mut series, batch)?,
                };
                store.apply(place, &record.header, &rows, &mut Vec::new());
            }
        }
        let horizon: BTreeMap<i32, i64> = (0..).zip(self.horizon.iter().copied()).collect();
        store.trim(&horizon);
        for (place, partition) in (0..).zip(&self.partitions) {
            let end = partition.readings.len() as i64;
            let reach = store.reach(place, Start::Horizon(horizon[&place]));
            ensure!(reach == Reach { covered: end, flaw: None }, "HOR-3: {reach:?} does not cover {end}");
        }
        let rows = CapturedRows::collect(&store.capture(), &Selection::all());
        let mut served = self.batch.clone();
        for group in 0..rows.len() {
            let (id, window_start) = rows.key(group);
            served.entry((series.key(id).encode(), window_start)).or_default().merge(&rows.summary(group));
        }
        served.retain(|_, summary| summary.count > 0 || summary.conflicts > 0);
        let expected = self.naive()?;
        for key in served.keys().chain(expected.keys()) {
            let (served, expected) = (served.get(key), expected.get(key));
            let same = match (served, expected) {
                (Some(served), Some(expected)) => equal(served, expected),
                _ => false,
            };
            ensure!(
                same,
                "EQ-1: {key:?}: served {served:#?}, expected {expected:#?}; horizon {:?}",
                self.horizon
            );
        }
        Ok(())
    }

    /// Straight from the messages: the first of each identity counts, whatever the layers do.
    fn naive(&self) -> Result<View> {
        let mut first: HashMap<(String, String, i64, Option<i64>), f64> = HashMap::new();
        let mut values: BTreeMap<(String, i64), Collected> = BTreeMap::new();
        for partition in &self.partitions {
            for (_, batch, row) in decoded(&partition.readings) {
                let reading = ReadingColumns::of(&batch)?.reading(row);
                let identity = (
                    reading.device_id.to_owned(),
                    reading.metric.to_owned(),
                    reading.event_time,
                    reading.sequence,
                );
                let known = first.get(&identity).copied();
                let mut add = |key: SeriesKey, window: i64, value: f64| {
                    let entry = values
                        .entry((key.encode(), reading.event_time.div_euclid(window) * window))
                        .or_default();
                    match known {
                        None => entry.0.push((value, reading.event_time, reading.device_id.to_owned())),
                        Some(counted) if counted != reading.value => entry.1 += 1,
                        Some(_) => {}
                    }
                };
                let device: Arc<str> = reading.device_id.into();
                let family = SeriesKey {
                    definition: "*".into(),
                    metric: reading.metric.into(),
                    group: [Some(device)].into(),
                };
                add(family, MINUTE, reading.value);
                if reading.metric != "m0" && reading.value > -50.0 {
                    let line = reading.tags.map(|tags| tags[9..10].into());
                    let key = SeriesKey {
                        definition: "by_line".into(),
                        metric: "by_line".into(),
                        group: [line].into(),
                    };
                    add(key, 2 * MINUTE, reading.value * 2.0);
                }
                if reading.metric != "m0" {
                    let key = SeriesKey {
                        definition: "everyone".into(),
                        metric: "everyone".into(),
                        group: [Some(reading.metric.into())].into(),
                    };
                    add(key, 2 * MINUTE, reading.value);
                }
                first.entry(identity).or_insert(reading.value);
            }
        }
        let mut view = View::new();
        for (key, (mut values, conflicts)) in values {
            if values.is_empty() && conflicts == 0 {
                continue;
            }
            values.sort_by(|a, b| a.1.cmp(&b.1).then(a.0.total_cmp(&b.0)));
            let mut summary = Summary { conflicts, ..Summary::EMPTY };
            let needs =
                Needs { devices: key.0.contains("everyone") && !values.is_empty(), ..Needs::default() };
            summary.sketches = Sketches::new(needs);
            for (value, event_time, device_id) in values {
                summary.add(value, event_time);
                let number = self.plans.registry().device(&device_id).map(|device| device.number);
                if let Some(sketches) = &mut summary.sketches {
                    sketches.add(value, &device_id, number);
                }
            }
            view.insert(key, summary);
        }
        Ok(view)
    }
}

/// Values are eighths, so that sums are exact and must be equal.
fn equal(served: &Summary, expected: &Summary) -> bool {
    let exact = |s: &Summary| (s.count, s.conflicts, s.sum.value(), s.min, s.max, s.first, s.last);
    let same_spread = match (served.stddev(), expected.stddev()) {
        (Some(a), Some(b)) => (a - b).abs() < 1e-9,
        (a, b) => a == b,
    };
    let same_devices = served.device_counts() == expected.device_counts();
    exact(served) == exact(expected) && same_spread && same_devices
}

impl Partition {
    fn control_view(&self) -> ControlView {
        let mut view = ControlView::default();
        for (offset, record) in (0..).zip(&self.control) {
            view.apply(offset, record);
        }
        view
    }

    /// A new owner takes over; the old one is a zombie from now on.
    fn take_over(&mut self, plans: &Arc<MetricPlans>) {
        let generation = self.control.len() as i64;
        self.control.push(ControlRecord::Claim { owner: String::new() });
        self.views.push(realtime_row::encode(&Header::Claim { generation }, None));
        let mut state = ViewsState::default();
        for (offset, record) in (0..).zip(&self.views) {
            state.apply(offset, record).expect("the records were encoded here");
        }
        let taken = decide(generation, self.control_view(), state, plans.fingerprint(), 0);
        let mut operator = Operator::new(Arc::clone(plans), DuplicateWindow::new(i64::MAX / 2, usize::MAX));
        for row in taken.rows {
            operator
                .restore(&row.series, row.window_start, row.summary, row.through)
                .expect("the series was encoded here");
        }
        let (position, epoch, reset) = match taken.recovery {
            Recovery::Resume { position, epoch } => (position, epoch, false),
            Recovery::Rebuild { from } => (from, from, true),
        };
        let mut assembler = Assembler::default();
        for (offset, payload) in self.readings[..position as usize].iter().enumerate() {
            assembler.push(payload, offset as i64, NOW);
        }
        for placed in assembler.take() {
            operator.remember(&placed).expect("decoded batches are readings");
        }
        let owner = Owner {
            generation,
            epoch,
            position,
            rows_through: taken.rows_through,
            operator,
            starts: taken.control,
        };
        let old = std::mem::replace(&mut self.owner, owner);
        self.zombie = (old.generation >= 0).then_some(old);
        self.begin(reset);
    }

    fn begin(&mut self, reset: bool) {
        let Owner { generation, epoch, ref starts, .. } = self.owner;
        self.views.push(realtime_row::encode(
            &Header::Begin { generation, epoch, definitions: self.definitions(), reset },
            None,
        ));
        if starts.starts.get(&epoch).is_none_or(|known| known.announced_at == 0) {
            self.control.push(ControlRecord::Epoch {
                generation: Some(generation),
                start: epoch,
                announced_at: 1,
            });
        }
        self.owner.starts = self.control_view();
    }

    fn definitions(&self) -> u64 {
        self.owner.operator.definitions()
    }

    /// Reads up to `most` messages, and starts an epoch where one was announced.
    fn read(&mut self, most: usize) -> Result<()> {
        for _ in 0..most {
            let Some(payload) = self.readings.get(self.owner.position as usize) else { break };
            let mut assembler = Assembler::default();
            assembler.push(payload, self.owner.position, NOW);
            for placed in assembler.take() {
                self.owner.operator.on_batch(&placed)?;
            }
            self.owner.position += 1;
            if self.owner.starts.next_start_after(self.owner.epoch) == Some(self.owner.position) {
                self.start_epoch();
            }
        }
        Ok(())
    }

    fn flush(&mut self, complete: bool) {
        let views = &mut self.views;
        self.owner.flush(complete, |record| views.push(record));
    }

    fn start_epoch(&mut self) {
        self.flush(true);
        if self.owner.position > self.owner.epoch && self.owner.position >= self.owner.rows_through {
            self.owner.epoch = self.owner.position;
            self.owner.operator.start_epoch();
            self.begin(false);
        }
    }

    /// An owner that was replaced goes on as if nothing had happened.
    fn let_zombie_write(&mut self) -> Result<()> {
        let Some(mut zombie) = self.zombie.take() else { return Ok(()) };
        if let Some(payload) = self.readings.get(zombie.position as usize) {
            let mut assembler = Assembler::default();
            assembler.push(payload, zombie.position, NOW);
            for placed in assembler.take() {
                zombie.operator.on_batch(&placed)?;
            }
            zombie.position += 1;
        }
        zombie.flush(true, |record| self.views.push(record));
        let (generation, epoch) = (zombie.generation, zombie.position);
        let header = Header::Begin { generation, epoch, definitions: self.definitions(), reset: true };
        self.views.push(realtime_row::encode(&header, None));
        self.control.push(ControlRecord::Epoch {
            generation: Some(generation),
            start: epoch,
            announced_at: 1,
        });
        Ok(())
    }
}

impl Owner {
    fn flush(&mut self, complete: bool, mut write: impl FnMut(Vec<u8>)) {
        let mut batches = Vec::new();
        self.operator.flush(3, |batch| batches.push(batch));
        let last = batches.pop();
        let header = |complete| Header::Rows {
            generation: self.generation,
            epoch: self.epoch,
            through: self.position,
            complete,
            newest_event_time: 0,
        };
        for batch in &batches {
            write(realtime_row::encode(&header(false), Some(batch)));
        }
        if complete {
            write(realtime_row::encode(&header(true), last.as_ref()));
        }
    }
}

/// The accepted readings of messages, each with its offset and index.
fn decoded(messages: &[Message]) -> Vec<((i64, i32), RecordBatch, usize)> {
    let mut found = Vec::new();
    for (offset, payload) in messages.iter().enumerate() {
        let mut assembler = Assembler::default();
        assembler.push(payload, offset as i64, NOW);
        let mut index = 0;
        for placed in assembler.take() {
            for row in 0..placed.batch.num_rows() {
                found.push(((offset as i64, index), placed.batch.clone(), row));
                index += 1;
            }
        }
    }
    found
}

/// The batch with an ingest time and a place of its own in the log for each reading.
fn with_places(batch: &RecordBatch) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let times = TimestampMicrosecondArray::from(vec![NOW; rows]).with_timezone("UTC");
    let added: [(&str, ArrayRef); 4] = [
        ("ingest_time", Arc::new(times)),
        ("kafka_partition", Arc::new(Int32Array::from(vec![0; rows]))),
        ("kafka_offset", Arc::new(Int64Array::from_iter_values((0..).take(rows)))),
        ("kafka_index", Arc::new(Int32Array::from(vec![0; rows]))),
    ];
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    let mut columns = batch.columns().to_vec();
    for (name, column) in added {
        fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
        columns.push(column);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn resolve(series: &mut SeriesTable, batch: &RecordBatch) -> Result<Vec<RealtimeRow>> {
    let rows = Rows::of(batch)?;
    (0..batch.num_rows())
        .map(|row| {
            let key = SeriesKey::decode(rows.series.text(row).unwrap_or_default())?;
            Ok(RealtimeRow {
                series: series.id(key),
                window_start: rows.window_start[row],
                summary: rows.summaries.summary(row)?,
            })
        })
        .collect()
}

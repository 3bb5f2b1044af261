//! EQ-1: what the batch layer computes from a prefix, merged with what the speed layer computed from the rest, is what
//! a naive computation finds in all of it. For random readings (disorder, any lateness, duplicates, conflicts, what is no
//! reading), several Kafka partitions, epochs, and batch runs at any time, with and without an answer of the owner; with
//! owners that die between any two writes, owners that are fenced and do not know it and write before or after the new
//! one's marker, records that do not decode, and heads of topics that are deleted.
//!
//! The layers' own code runs; only the log and the tables are vectors. An answer is compared at any time, also that of a
//! reader that lags behind, and with an older batch view: for what it says that it covers, it must be exact. HOR-1 and
//! HOR-3 are checked on the way. `WYE_TEST_HISTORIES` says how many histories (2,000 without it), `WYE_TEST_SEED` where
//! to start. A failure names its seed.

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
use wye_domain::epoch::{Fence, HorizonChoice, Liveness, choose_horizon};
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder, ReadingColumns};
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::registry::{DeviceConfig, Registry, RegistryConfig};
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::sketches::{Needs, Sketches};
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span};
use wye_domain::wire::{self, Acceptance};
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::MetricPlans;
use wye_serving::realtime::{CapturedRows, Flaw, Reach, RealtimeRow, RealtimeStore, Selection, Start};
use wye_speed::SpeedError;
use wye_speed::owner::{Due, Effect, Input, Owner, Rules};
use wye_speed::takeover::{Claimed, ViewsState, decide};
use wye_tests::setting;

const NOW: i64 = 1_800_000_000_000_000;
const MINUTE: i64 = 60_000_000;
/// So many of the devices are in the registry.
const REGISTERED: usize = 3;
const HISTORIES: u64 = 2_000;
/// What a broken record is.
const GARBAGE: &[u8] = b"WYR\x02 from a later version";

type View = BTreeMap<(String, i64), Summary>;

/// Values with their event times and devices, and how many conflicts.
type Collected = (Vec<(f64, i64, String)>, u64);

#[test]
fn both_layers_together_equal_the_naive_computation() -> Result<()> {
    let first = setting::number("WYE_TEST_SEED")?.unwrap_or(1);
    let count = setting::number("WYE_TEST_HISTORIES")?.unwrap_or(HISTORIES);
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
    place: i32,
    readings: Vec<Message>,
    views: Vec<Vec<u8>>,
    control: Vec<ControlRecord>,
    /// What was deleted from the heads of readings, views and control.
    low: BTreeMap<&'static str, usize>,
    owner: Option<Owner>,
    /// An owner that was replaced and does not know it.
    zombie: Option<Owner>,
    /// Horizons that were committed and not yet announced.
    committed: Vec<i64>,
}

/// How a step of an owner ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Everything was written.
    Done,
    /// It died after so many writes.
    After(usize),
    /// It died in the middle of a flush: some rows are there, and not the record that completes it.
    Torn,
}

/// What comparing an answer has shown.
#[derive(Debug)]
#[expect(dead_code, reason = "what is not matched is shown where it fails")]
enum Compared {
    /// It was exact for what it covers.
    Exact { covered: Vec<i64>, is_complete: bool },
    /// A flush was under way, or a record did not decode; it does not say that it is complete.
    NotExact(String),
}

impl Compared {
    /// Whether it is exact and says that it is complete.
    fn is_whole(&self) -> bool {
        matches!(self, Self::Exact { is_complete: true, .. })
    }
}

/// A batch view: its rows and its horizon by Kafka partition.
#[derive(Clone, Default)]
struct Batch {
    rows: View,
    horizon: Vec<i64>,
}

struct World {
    random: StdRng,
    rules: Rules,
    partitions: Vec<Partition>,
    /// The batch view, and the one before it, which some reader still has.
    batch: Batch,
    previous: Batch,
    /// Whether some readings are sent twice; else the duplicate window is short, so that heads of topics are deleted.
    has_duplicates: bool,
    sent: Vec<(usize, i64, i64, Option<i64>, f64)>,
}

impl World {
    fn new(plans: &Arc<MetricPlans>, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..=3);
        let has_duplicates = random.random_bool(0.6);
        let rules = Rules {
            plans: Arc::clone(plans),
            acceptance: Acceptance::default(),
            duplicate_window: Span(if has_duplicates { i64::MAX / 2 } else { 2 }),
            duplicate_entries: usize::MAX,
        };
        let batch = Batch { rows: View::new(), horizon: vec![0; count] };
        let partition = |place| Partition {
            place,
            readings: Vec::new(),
            views: Vec::new(),
            control: Vec::new(),
            low: BTreeMap::new(),
            owner: None,
            zombie: None,
            committed: Vec::new(),
        };
        let partitions = (0..count as i32).map(partition).collect();
        Self { random, rules, partitions, previous: batch.clone(), batch, has_duplicates, sent: Vec::new() }
    }

    /// A random life; how often the answer was compared.
    fn live(&mut self) -> Result<u64> {
        let mut checks = 0;
        for _ in 0..self.random.random_range(10..80) {
            let place = self.random.random_range(0..self.partitions.len());
            let ending = match self.random.random_range(0..100) {
                0..86 => Ending::Done,
                86..92 => Ending::Torn,
                _ => Ending::After(self.random.random_range(0..4)),
            };
            match self.random.random_range(0..100) {
                0..30 => self.send(place),
                30..45 => {
                    let most = self.random.random_range(1..6);
                    self.read(place, most, ending)?;
                }
                45..53 => self.step(place, Input::Tick(Due::Flush), ending)?,
                53..58 => self.step(place, Input::Tick(Due::Epoch), ending)?,
                58..66 => self.listen(place, ending)?,
                66..70 => self.take_over(place)?,
                70..74 => self.zombie_writes(place)?,
                74..78 => self.ask(place),
                78..80 => self.partitions[place].spoil(),
                80..82 => self.partitions[place].announce_horizons(),
                82..90 => self.batch_run()?,
                _ => checks += self.compare_as_it_is()?,
            }
        }
        let settled = self.settle()?;
        // A reader that saw a broken record does not trust the epochs of that time until a batch view has them. The owner
        // that takes over knows nothing of the record where it was deleted meanwhile.
        let is_doubted = self.partitions.iter().any(Partition::has_deleted_garbage)
            && matches!(settled, Compared::NotExact(_));
        ensure!(settled.is_whole() || is_doubted, "HOR-3: an answer {settled:?}");
        self.batch_run()?;
        let settled = self.settle()?;
        ensure!(settled.is_whole(), "HOR-3: after a batch run an answer {settled:?}");
        Ok(checks + 2)
    }

    /// One step of the owner, whose effects are carried out as far as `ending` lets them.
    fn step(&mut self, place: usize, input: Input<'_>, ending: Ending) -> Result<()> {
        let partition = &mut self.partitions[place];
        let Some(mut owner) = partition.owner.take() else { return Ok(()) };
        match owner.step(input) {
            Ok(effects) => {
                if partition.carry_out(&mut owner, effects, ending) {
                    partition.owner = Some(owner);
                }
                Ok(())
            }
            // Whoever takes it next finds out where to resume.
            Err(SpeedError::Fenced { .. } | SpeedError::Overtaken { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The owner reads up to `most` messages.
    fn read(&mut self, place: usize, most: usize, ending: Ending) -> Result<()> {
        for _ in 0..most {
            let partition = &self.partitions[place];
            let Some(offset) = partition.owner.as_ref().map(Owner::next) else { break };
            let Some(payload) = partition.readings.get(offset.0 as usize).cloned() else { break };
            ensure!(offset.0 as usize >= partition.low(READINGS), "offset {offset} was deleted unread");
            self.step(
                place,
                Input::Message { offset, ingest_time: Micros(ingest_time(offset.0)), payload: &payload },
                ending,
            )?;
        }
        Ok(())
    }

    /// The owner hears what is new in the control topic.
    fn listen(&mut self, place: usize, ending: Ending) -> Result<()> {
        loop {
            let partition = &self.partitions[place];
            let Some(offset) = partition.owner.as_ref().map(Owner::next_control) else { return Ok(()) };
            let Some(record) = partition.control.get(offset.0 as usize).cloned() else { return Ok(()) };
            self.step(place, Input::Control { offset, record: &record }, ending)?;
        }
    }

    fn ask(&mut self, place: usize) {
        let partition = &mut self.partitions[place];
        let end = partition.readings.len() as i64;
        let through = if self.random.random_bool(0.7) { end } else { 0 };
        partition.control.push(ControlRecord::CutRequest { asked_by: String::new(), through });
    }

    /// A new owner takes over; the old one is a zombie from now on, and may write before the new one's marker.
    fn take_over(&mut self, place: usize) -> Result<()> {
        let partition = &mut self.partitions[place];
        let generation = partition.control.len() as i64;
        partition.control.push(ControlRecord::Claim { owner: String::new() });
        if let Some(old) = partition.owner.take() {
            partition.zombie = Some(old);
        }
        if self.random.random_bool(0.3) {
            self.zombie_writes(place)?;
        }
        let partition = &mut self.partitions[place];
        partition.views.push(realtime_row::encode(&Header::Claim { generation }, None));
        let mut state = ViewsState::default();
        for (offset, record) in (0..).zip(&partition.views).skip(partition.low(REALTIME_VIEWS)) {
            // What does not decode is skipped.
            let _ = state.apply(Offset(offset), record);
        }
        let mut control = ControlView::default();
        let records = (0..).zip(&partition.control).skip(partition.low(CONTROL));
        records
            .take_while(|(offset, _)| *offset <= generation)
            .for_each(|(at, record)| control.apply(at, record));
        let low = partition.low(READINGS);
        let claimed = Claimed {
            generation: Generation(Offset(generation)),
            control,
            views: state,
            log_start: Offset(low as i64),
        };
        let taken = decide(claimed, self.rules.plans.fingerprint());
        let mut owner = Owner::new(&self.rules, KafkaPartition(partition.place), taken);
        let begun = owner.start()?;
        if !partition.carry_out(&mut owner, begun, Ending::Done) {
            return Ok(());
        }
        let from = owner.remembers_from().map_or(0, |from| from.0) as usize;
        for offset in from.max(low)..owner.next().0 as usize {
            let payload = &partition.readings[offset];
            owner.remember(Offset(offset as i64), Micros(ingest_time(offset as i64)), payload)?;
        }
        owner.remember_taken()?;
        partition.owner = Some(owner);
        Ok(())
    }

    /// An owner that was replaced works as if nothing had happened, until it hears of it.
    fn zombie_writes(&mut self, place: usize) -> Result<()> {
        let partition = &mut self.partitions[place];
        let Some(mut zombie) = partition.zombie.take() else { return Ok(()) };
        for _ in 0..self.random.random_range(1..4) {
            let offset = zombie.next();
            let step = match (self.random.random_range(0..4), partition.readings.get(offset.0 as usize)) {
                (0, _) => zombie.step(Input::Tick(Due::Epoch)),
                (1, _) => zombie.step(Input::Tick(Due::Flush)),
                (_, Some(payload)) if offset.0 as usize >= partition.low(READINGS) => zombie
                    .step(Input::Message { offset, ingest_time: Micros(ingest_time(offset.0)), payload }),
                _ => continue,
            };
            partition.carry_out(&mut zombie, step?, Ending::Done);
        }
        if self.random.random_bool(0.7) {
            partition.zombie = Some(zombie);
        }
        Ok(())
    }

    fn send(&mut self, place: usize) {
        let (random, count) = (&mut self.random, self.partitions.len());
        if random.random_bool(0.05) {
            self.partitions[place].readings.push(b"not a reading".to_vec());
            return;
        }
        let mut readings = Vec::new();
        for _ in 0..random.random_range(1..8) {
            let unique = Some(1_000 + self.sent.len() as i64);
            let again = self.sent.iter().filter(|sent| sent.0 % count == place).count();
            let fresh = (
                random.random_range(0..4usize) * count + place,
                random.random_range(0..3i64),
                NOW - random.random_range(0..6) * MINUTE / 2,
                self.has_duplicates
                    .then(|| random.random_range(0..6))
                    .map_or(unique, |n| (n < 3).then_some(n)),
                f64::from(random.random_range(-800..800)) / 8.0,
            );
            let mut reading = fresh;
            if self.has_duplicates && again > 0 && random.random_bool(0.3) {
                let nth = random.random_range(0..again);
                let known = self.sent.iter().filter(|sent| sent.0 % count == place).nth(nth);
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

    /// A batch run that sees some of what was archived; some owners answer it, some do not. It may die after it has
    /// pinned, or after its commit, before anybody has heard of that.
    fn batch_run(&mut self) -> Result<()> {
        let mut horizons = self.batch.horizon.clone();
        for (place, pinned) in horizons.iter_mut().enumerate() {
            let end = self.partitions[place].readings.len() as i64;
            let request = self.partitions[place].control.len() as i64;
            let asked_by = String::new();
            self.partitions[place].control.push(ControlRecord::CutRequest { asked_by, through: end });
            if self.random.random_bool(0.6) {
                self.listen(place, Ending::Done)?;
            }
            let partition = &mut self.partitions[place];
            let control = partition.control_view();
            let previous = *pinned;
            let archived =
                if self.random.random_bool(0.5) { end } else { self.random.random_range(previous..=end) };
            let answered = control.answered >= Some(request);
            let liveness = if answered { Liveness::Answered } else { Liveness::Silent };
            let choice = choose_horizon(&control, archived, previous, liveness);
            if let HorizonChoice::Pinned(start) = choice {
                let pin = ControlRecord::Epoch { generation: None, start, announced_at: 0, answers: None };
                partition.control.push(pin);
            }
            let horizon = choice.offset();
            let starts = partition.control_view().starts;
            ensure!(horizon == 0 || starts.contains_key(&horizon), "HOR-1: {horizon} is no epoch start");
            ensure!(horizon >= previous && horizon <= archived, "a horizon of {horizon}");
            ensure!(!answered || control.first_start_from(end).is_some(), "an answer without a start");
            *pinned = horizon;
        }
        if self.random.random_bool(0.1) {
            return Ok(());
        }
        let rows = self.recompute(&horizons)?;
        let committed = Batch { rows, horizon: horizons };
        self.previous = std::mem::replace(&mut self.batch, committed);
        for (partition, horizon) in self.partitions.iter_mut().zip(&self.batch.horizon) {
            partition.committed.push(*horizon);
            if self.random.random_bool(0.7) {
                partition.announce_horizons();
            }
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
            let mut fold = Fold::new(Arc::clone(&self.rules.plans));
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

    /// Lets a living owner of every Kafka partition hear, read and flush all there is: then an answer covers everything.
    fn settle(&mut self) -> Result<Compared> {
        for place in 0..self.partitions.len() {
            self.partitions[place].announce_horizons();
            // What was spoilt since the last takeover is found by the next one.
            self.take_over(place)?;
            for _ in 0..4 {
                if self.partitions[place].owner.is_none() {
                    self.take_over(place)?;
                }
                self.listen(place, Ending::Done)?;
                self.read(place, usize::MAX, Ending::Done)?;
                self.step(place, Input::Tick(Due::Flush), Ending::Done)?;
            }
        }
        let whole: Vec<usize> = self.partitions.iter().map(|partition| partition.views.len()).collect();
        self.compare(&self.batch, &whole)
    }

    /// Compares what readers see now: one that has read everything, one that lags, and one with the batch view before.
    fn compare_as_it_is(&mut self) -> Result<u64> {
        let whole: Vec<usize> = self.partitions.iter().map(|partition| partition.views.len()).collect();
        let lagging: Vec<usize> =
            whole.iter().map(|records| self.random.random_range(records / 2..=*records)).collect();
        let mut checks = 0;
        for (batch, read) in [(&self.batch, &whole), (&self.batch, &lagging), (&self.previous, &whole)] {
            checks += u64::from(matches!(self.compare(batch, read)?, Compared::Exact { .. }));
        }
        Ok(checks)
    }

    /// Merges a batch view with the realtime rows of the first `read` records of every Kafka partition, and compares
    /// with the naive computation of what that covers.
    fn compare(&self, batch: &Batch, read: &[usize]) -> Result<Compared> {
        let mut store = RealtimeStore::new(self.rules.plans.fingerprint());
        let mut series = SeriesTable::default();
        let (mut covered, mut is_exact, mut is_complete) = (Vec::new(), true, true);
        let mut flaws = Vec::new();
        for (place, partition) in (0..).zip(&self.partitions) {
            let mut flush = OpenFlush::default();
            // A reader follows the topic, so that it has what was deleted since.
            for payload in &partition.views[..read[place as usize]] {
                let Ok(record) = realtime_row::decode(payload) else {
                    store.damage(place);
                    continue;
                };
                let rows = match &record.rows {
                    None => Vec::new(),
                    Some(batch) => resolve(&mut series, batch)?,
                };
                flush.apply(&record.header);
                store.apply(place, &record.header, &rows, &mut Vec::new());
            }
            is_exact &= !flush.is_open(batch.horizon[place as usize]);
        }
        let horizon: BTreeMap<i32, i64> = (0..).zip(batch.horizon.iter().copied()).collect();
        store.trim(&horizon);
        for (place, partition) in (0..).zip(&self.partitions) {
            let Reach { covered: to, flaw } = store.reach(place, Start::Horizon(horizon[&place]));
            is_exact &= matches!(flaw, None | Some(Flaw::Rebuilding));
            is_complete &= flaw.is_none() && to >= partition.readings.len() as i64;
            covered.push(to);
            flaws.push(flaw);
        }
        if !is_exact && !is_complete {
            return Ok(Compared::NotExact(format!("covers {covered:?} with {flaws:?}")));
        }
        let rows = CapturedRows::collect(&store.capture(), &Selection::all());
        let mut served = batch.rows.clone();
        for group in 0..rows.len() {
            let (id, window_start) = rows.key(group);
            served.entry((series.key(id).encode(), window_start)).or_default().merge(&rows.summary(group));
        }
        served.retain(|_, summary| summary.count > 0 || summary.conflicts > 0);
        let expected = self.naive(&covered)?;
        for key in served.keys().chain(expected.keys()) {
            let (served, expected) = (served.get(key), expected.get(key));
            let same = match (served, expected) {
                (Some(served), Some(expected)) => equal(served, expected),
                _ => false,
            };
            ensure!(
                same,
                "EQ-1: {key:?}: served {served:#?}, expected {expected:#?}; horizon {horizon:?}, covered {covered:?}"
            );
        }
        Ok(Compared::Exact { covered, is_complete })
    }

    /// Straight from the messages below `covered`: the first of each identity counts, whatever the layers do.
    fn naive(&self, covered: &[i64]) -> Result<View> {
        let mut first: HashMap<(String, String, i64, Option<i64>), f64> = HashMap::new();
        let mut values: BTreeMap<(String, i64), Collected> = BTreeMap::new();
        for (partition, covered) in self.partitions.iter().zip(covered) {
            for (_, batch, row) in decoded(&partition.readings[..*covered as usize]) {
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
                let number = self.rules.plans.registry().device(&device_id).map(|device| device.number);
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
    fn low(&self, topic: &str) -> usize {
        self.low.get(topic).copied().unwrap_or(0)
    }

    fn control_view(&self) -> ControlView {
        let mut view = ControlView::default();
        for (offset, record) in (0..).zip(&self.control).skip(self.low(CONTROL)) {
            view.apply(offset, record);
        }
        view
    }

    /// Carries effects out as far as `ending` lets it; whether the owner lives.
    fn carry_out(&mut self, owner: &mut Owner, effects: Vec<Effect>, ending: Ending) -> bool {
        for (count, effect) in effects.into_iter().enumerate() {
            if ending == Ending::After(count) {
                return false;
            }
            match effect {
                Effect::Append(header, rows) => {
                    if let (Ending::Torn, Header::Rows { .. }, Some(rows)) = (ending, &header, &rows)
                        && rows.num_rows() > 1
                    {
                        self.views.push(torn(&header, &rows.slice(0, rows.num_rows() / 2)));
                        return false;
                    }
                    let offset = self.views.len() as i64;
                    self.views.push(realtime_row::encode(&header, rows.as_ref()));
                    if let Header::Begin { epoch, .. } = header {
                        owner
                            .step(Input::Begun { epoch: Offset(epoch), offset: Offset(offset) })
                            .expect("it only takes note");
                    }
                }
                Effect::Announce(record) => self.control.push(record),
                Effect::Trim { topic, before } => {
                    let low = self.low.entry(topic).or_default();
                    *low = (*low).max(before.0 as usize);
                }
            }
        }
        true
    }

    /// A record of the realtime views that was just written cannot be decoded.
    fn spoil(&mut self) {
        if let Some(last) = self.views.last_mut() {
            *last = GARBAGE.to_vec();
        }
    }

    fn has_deleted_garbage(&self) -> bool {
        self.views[..self.low(REALTIME_VIEWS)].iter().any(|record| record == GARBAGE)
    }

    fn announce_horizons(&mut self) {
        for offset in std::mem::take(&mut self.committed) {
            self.control.push(ControlRecord::Horizon { offset, version: 1 });
        }
    }
}

/// The record of an incomplete flush.
fn torn(header: &Header, rows: &RecordBatch) -> Vec<u8> {
    let mut header = header.clone();
    if let Header::Rows { complete, .. } = &mut header {
        *complete = false;
    }
    realtime_row::encode(&header, Some(rows))
}

/// Whether rows of a flush are there and the record that completes it is not, so that rows reach further than what is
/// covered.
#[derive(Default)]
struct OpenFlush {
    fence: Fence,
    /// By epoch: what its rows reach to, and what is covered.
    epochs: BTreeMap<i64, (i64, i64)>,
}

impl OpenFlush {
    fn apply(&mut self, header: &Header) {
        if !self.fence.admit(header.generation()) {
            return;
        }
        match *header {
            Header::Begin { epoch, reset: true, .. } => drop(self.epochs.split_off(&epoch)),
            Header::Claim { .. } | Header::Begin { .. } => {}
            Header::Rows { epoch, through, complete, .. } => {
                let (reach, covered) = self.epochs.entry(epoch).or_default();
                *reach = (*reach).max(through);
                if complete {
                    *covered = (*covered).max(through);
                }
            }
        }
    }

    fn is_open(&self, horizon: i64) -> bool {
        self.epochs.range(horizon..).any(|(_, (reach, covered))| reach > covered)
    }
}

/// When the log took the message at an offset, in µs: one each µs.
fn ingest_time(offset: i64) -> i64 {
    NOW + offset
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

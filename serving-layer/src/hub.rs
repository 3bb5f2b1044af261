//! Both sides of the merge, side by side under one lock, so that an answer uses one batch view and exactly the realtime
//! epochs that belong to it (**HOR-3**).
//!
//! The lock is held for microseconds by whoever reads; a query takes a [`Capture`] and works on that. This file does not
//! know where records and views come from.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use wye_domain::confidence::LatenessHistogram;
use wye_domain::epoch::covers;
use wye_domain::realtime_row::Header;
use wye_log::client::OffsetRange;

use crate::directory::{Directory, SeriesInfo};
use crate::merge::{Answer, Judge, Sides, Source, merge};
use crate::realtime::{Applied, EpochView, RealtimeRow, RealtimeStore};
use crate::snapshot::BatchSnapshot;

/// How many rows are applied before readers get their turn.
const ROWS_PER_TURN: usize = 2_000;

/// See the module.
#[derive(Debug)]
pub struct Hub {
    directory: Arc<Directory>,
    kafka_partitions: i32,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    store: RealtimeStore,
    snapshot: Option<Arc<BatchSnapshot>>,
    /// Which offsets the readings topic had when it was last asked, by Kafka partition.
    readings: BTreeMap<i32, OffsetRange>,
    /// Whether the realtime-views topic was read to the end that it had at the start.
    caught_up: bool,
}

/// What one answer is made of: one batch view, and the epochs from its horizon on.
#[derive(Clone, Debug)]
pub struct Capture {
    /// The batch view; `None` before the first batch run.
    pub snapshot: Option<Arc<BatchSnapshot>>,
    /// The epochs at and after its horizon.
    pub epochs: Vec<Arc<EpochView>>,
    /// Whether that is all that there is.
    pub complete: bool,
    /// Tells this state from every other of this process.
    pub position: Position,
}

/// A state of the data, for caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The version of the batch view; 0 without one.
    pub version: u64,
    /// Changes of the realtime side.
    pub changes: u64,
}

/// The newest window of a series, and what a textbook merge would make of it.
#[derive(Clone, Debug)]
pub struct Current {
    /// The series.
    pub info: Arc<SeriesInfo>,
    /// The newest window of the exact merge.
    pub answer: Answer,
    /// The newest window of the batch view alone.
    pub batch: Option<Answer>,
    /// The newest window of the realtime views alone.
    pub realtime: Option<Answer>,
}

/// What belongs to several answers that were taken in one step.
#[derive(Clone, Debug)]
pub struct Taken<T> {
    /// The answers.
    pub answers: T,
    /// Whether they hold everything that there is.
    pub complete: bool,
    /// The batch view's horizon.
    pub horizon: Option<BTreeMap<i32, i64>>,
    /// The state that they were taken from.
    pub position: Position,
}

impl Hub {
    /// An empty hub for a log with so many Kafka partitions of readings.
    pub fn new(directory: Arc<Directory>, kafka_partitions: i32) -> Self {
        let store = RealtimeStore::new(directory.plans().fingerprint());
        let state = State { store, snapshot: None, readings: BTreeMap::new(), caught_up: false };
        Self { directory, kafka_partitions, state: RwLock::new(state) }
    }

    /// The series.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Takes in the next record of a Kafka partition of the realtime-views topic.
    pub fn apply(&self, kafka_partition: i32, header: &Header, rows: &[RealtimeRow]) -> Applied {
        let mut dropped = Vec::new();
        let mut turns = rows.chunks(ROWS_PER_TURN);
        let mut applied =
            self.write().store.apply(kafka_partition, header, turns.next().unwrap_or_default(), &mut dropped);
        for turn in turns {
            applied = self.write().store.apply(kafka_partition, header, turn, &mut dropped);
        }
        applied
    }

    /// Forgets the realtime views of a Kafka partition, whose topic was replaced.
    pub fn clear(&self, kafka_partition: i32) {
        let dropped = self.write().store.clear(kafka_partition);
        drop(dropped);
    }

    /// Switches to a batch view and drops the epochs that it covers, in one step.
    pub fn switch(&self, snapshot: Arc<BatchSnapshot>) {
        let mut state = self.write();
        let dropped = state.store.trim(snapshot.horizon());
        let replaced = state.snapshot.replace(snapshot);
        drop(state);
        // Giving large maps back takes time, which readers need not wait for.
        drop((dropped, replaced));
    }

    /// The realtime-views topic was read to the end that it had at the start.
    pub fn set_caught_up(&self) {
        self.write().caught_up = true;
    }

    /// Notes which offsets the readings topic has now.
    pub fn set_readings(&self, kafka_partition: i32, range: OffsetRange) {
        self.write().readings.insert(kafka_partition, range);
    }

    /// The Kafka partitions of which an answer with this horizon would lack something.
    pub fn uncovered(&self, horizon: &BTreeMap<i32, i64>) -> Vec<i32> {
        let state = self.read();
        let lacks = |kafka_partition: &i32| !state.covers(*kafka_partition, Some(horizon));
        (0..self.kafka_partitions).filter(lacks).collect()
    }

    /// The Kafka partitions whose epoch at the horizon has not begun, so that it depends on the end of the readings
    /// topic whether something is lacking.
    pub fn without_epoch(&self) -> Vec<i32> {
        let state = self.read();
        let horizon = state.snapshot.as_ref().map(|snapshot| snapshot.horizon());
        (0..self.kafka_partitions)
            .filter(|kafka_partition| !state.has_epoch(*kafka_partition, horizon))
            .collect()
    }

    /// Whether the realtime-views topic was read to the end that it had at the start.
    pub fn caught_up(&self) -> bool {
        self.read().caught_up
    }

    /// The version of the batch view that is served.
    pub fn version(&self) -> Option<u64> {
        self.read().snapshot.as_ref().map(|snapshot| snapshot.version())
    }

    /// Whether an answer would hold everything that there is.
    pub fn complete(&self) -> bool {
        self.read().complete(self.kafka_partitions)
    }

    /// How many epochs and windows are held.
    pub fn size(&self) -> (usize, usize) {
        self.read().store.size()
    }

    /// The state of the data now.
    pub fn position(&self) -> Position {
        self.read().position()
    }

    /// What an answer is made of, as it is now.
    pub fn capture(&self) -> Capture {
        self.read().capture(self.kafka_partitions)
    }

    /// The same together with the newest windows of all series, in one step, at `now` (µs).
    pub fn capture_with_current(&self, now: i64) -> (Capture, Vec<Current>) {
        let infos = self.directory.infos();
        let state = self.read();
        let current = state.current(&infos, now);
        (state.capture(self.kafka_partitions), current)
    }

    /// The newest windows of some series at `now` (µs).
    pub fn current(&self, infos: &[Arc<SeriesInfo>], now: i64) -> Taken<Vec<(Arc<SeriesInfo>, Answer)>> {
        let state = self.read();
        let judge = Facts::of(state.snapshot.as_deref());
        let answers = infos
            .iter()
            .filter_map(|info| Some((Arc::clone(info), state.newest(info, judge.judge(now))?)))
            .collect();
        Taken {
            answers,
            complete: state.complete(self.kafka_partitions),
            horizon: state.snapshot.as_ref().map(|snapshot| snapshot.horizon().clone()),
            position: state.position(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What confidence is judged by, of one snapshot.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    lateness: Arc<LatenessHistogram>,
    as_of: i64,
}

impl Facts {
    /// Those of a snapshot; nothing is known without one.
    pub fn of(snapshot: Option<&BatchSnapshot>) -> Self {
        snapshot.map(BatchSnapshot::facts).map_or_else(Self::default, |facts| Self {
            lateness: Arc::clone(&facts.lateness),
            as_of: facts.as_of,
        })
    }

    /// The judge at `now` (µs).
    pub fn judge(&self, now: i64) -> Judge<'_> {
        Judge { lateness: &self.lateness, now, as_of: self.as_of }
    }
}

/// Where the epochs that complete a batch view begin.
enum FirstStart {
    At(i64),
    UpTo(i64),
}

impl State {
    /// The offset at which the first epoch has to start.
    fn first_start(&self, kafka_partition: i32, horizon: Option<&BTreeMap<i32, i64>>) -> FirstStart {
        match horizon.and_then(|horizon| horizon.get(&kafka_partition)) {
            Some(horizon) => FirstStart::At(*horizon),
            // No batch view has anything of this Kafka partition: all that the log has must be in epochs.
            None => FirstStart::UpTo(self.readings.get(&kafka_partition).map_or(0, |range| range.low)),
        }
    }

    fn has_epoch(&self, kafka_partition: i32, horizon: Option<&BTreeMap<i32, i64>>) -> bool {
        let mut starts = self.store.epoch_starts(kafka_partition);
        match self.first_start(kafka_partition, horizon) {
            FirstStart::At(horizon) => covers(horizon, starts, i64::MAX),
            FirstStart::UpTo(low) => starts.any(|start| start <= low),
        }
    }

    fn covers(&self, kafka_partition: i32, horizon: Option<&BTreeMap<i32, i64>>) -> bool {
        let end = self.readings.get(&kafka_partition).map_or(i64::MAX, |range| range.high);
        let (FirstStart::At(first) | FirstStart::UpTo(first)) = self.first_start(kafka_partition, horizon);
        end <= first || self.has_epoch(kafka_partition, horizon)
    }

    fn complete(&self, kafka_partitions: i32) -> bool {
        let horizon = self.snapshot.as_ref().map(|snapshot| snapshot.horizon());
        self.caught_up
            && self.snapshot.as_ref().is_none_or(|snapshot| snapshot.usable())
            && !self.store.has_other_definitions()
            && (0..kafka_partitions).all(|kafka_partition| self.covers(kafka_partition, horizon))
    }

    fn position(&self) -> Position {
        let version = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.version());
        Position { version, changes: self.store.changes() }
    }

    fn capture(&self, kafka_partitions: i32) -> Capture {
        Capture {
            snapshot: self.snapshot.clone(),
            epochs: self.store.capture(),
            complete: self.complete(kafka_partitions),
            position: self.position(),
        }
    }

    /// The newest window of the exact merge.
    fn newest(&self, info: &SeriesInfo, judge: Judge<'_>) -> Option<Answer> {
        let batch = self.snapshot.as_ref().and_then(|snapshot| snapshot.newest(info.id));
        let realtime = self.store.newest_window(info.id);
        let window = realtime.max(batch.map(|row| row.window_start))?;
        let sides = Sides {
            batch: batch.filter(|row| row.window_start == window),
            realtime: self.store.newest_summary(info.id, window),
        };
        merge(info, window, sides, judge)
    }

    fn current(&self, infos: &[Arc<SeriesInfo>], now: i64) -> Vec<Current> {
        let facts = Facts::of(self.snapshot.as_deref());
        let judge = facts.judge(now);
        let each = |info: &Arc<SeriesInfo>| {
            let answer = self.newest(info, judge)?;
            let batch = self.snapshot.as_ref().and_then(|snapshot| snapshot.newest(info.id));
            let batch = batch.and_then(|row| {
                merge(info, row.window_start, Sides { batch: Some(row), realtime: None }, judge)
            });
            let window = self.store.newest_window(info.id);
            let realtime = window.and_then(|window| {
                let realtime = self.store.newest_summary(info.id, window);
                merge(info, window, Sides { batch: None, realtime }, judge)
            });
            debug_assert!(answer.source != Source::Batch || batch.is_some());
            Some(Current { info: Arc::clone(info), answer, batch, realtime })
        };
        infos.iter().filter_map(each).collect()
    }
}

//! Both sides of the merge, side by side under one lock, so that an answer uses one batch view and exactly the realtime
//! epochs that belong to it (**HOR-3**).
//!
//! The lock is held for microseconds by whoever reads; a query takes a [`Capture`] and works on that. This file does not
//! know where records and views come from.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;
use tokio::time::Instant;
use wye_domain::position::Position;
use wye_domain::realtime_row::Header;
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::failures::Failures;

use crate::coverage::{Coverage, LogEnd, PartitionCoverage, Reason};
use crate::directory::{Directory, SeriesInfo};
use crate::realtime::{Applied, EpochView, Flaw, RealtimeRow, RealtimeStore, Start};
use crate::snapshot::BatchSnapshot;
use wye_metrics::merge::{Answer, Judge, Sides, Source, merge};

/// How many rows are applied before readers get their turn.
const ROWS_PER_TURN: usize = 2_000;

/// See the module.
#[derive(Debug)]
pub struct Hub {
    directory: Arc<Directory>,
    kafka_partitions: i32,
    state: RwLock<State>,
    /// Wakes those who wait until answers cover something.
    moved: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    store: RealtimeStore,
    snapshot: Option<Arc<BatchSnapshot>>,
    /// The ends of the Kafka partitions of `readings`.
    ends: BTreeMap<i32, LogEnd>,
    /// Their oldest offsets, where no batch view says from where on epochs are needed.
    log_starts: BTreeMap<i32, i64>,
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
    /// What that covers of the log.
    pub coverage: Arc<Coverage>,
    /// Tells this state from every other of this process.
    pub edition: Edition,
}

/// A state of the data, for caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edition {
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
    /// What they cover of the log.
    pub coverage: Coverage,
    /// The state that they were taken from.
    pub edition: Edition,
}

impl Hub {
    /// An empty hub for a log with so many Kafka partitions of readings.
    pub fn new(directory: Arc<Directory>, kafka_partitions: i32) -> Self {
        let store = RealtimeStore::new(directory.plans().fingerprint());
        let state = State {
            store,
            snapshot: None,
            ends: BTreeMap::new(),
            log_starts: BTreeMap::new(),
            caught_up: false,
        };
        Self { directory, kafka_partitions, state: RwLock::new(state), moved: watch::Sender::new(()) }
    }

    /// The series.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// How many Kafka partitions the readings have.
    pub fn kafka_partitions(&self) -> i32 {
        self.kafka_partitions
    }

    /// Takes in the next record of a Kafka partition of the realtime-views topic.
    pub fn apply(&self, kafka_partition: i32, header: &Header, rows: &[RealtimeRow]) -> Applied {
        let mut dropped = Vec::new();
        let (last, turns) = in_turns(rows);
        // A flush is complete with its last rows, and not before.
        let incomplete = incomplete(header);
        for turn in turns {
            self.write().store.apply(kafka_partition, &incomplete, turn, &mut dropped);
        }
        let applied = self.write().store.apply(kafka_partition, header, last, &mut dropped);
        self.moved.send_replace(());
        applied
    }

    /// Notes that a record of a Kafka partition of the realtime-views topic could not be read.
    pub fn damage(&self, kafka_partition: i32) {
        self.write().store.damage(kafka_partition);
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
        self.moved.send_replace(());
        // Giving large maps back takes time, which readers need not wait for.
        drop((dropped, replaced));
    }

    /// The realtime-views topic was read to the end that it had at the start.
    pub fn set_caught_up(&self) {
        self.write().caught_up = true;
    }

    /// Notes the ends of `readings` that the broker told when it was asked at `now` (µs), by Kafka partition.
    pub fn note_log_ends(&self, ends: &BTreeMap<i32, i64>, now: i64) {
        let mut state = self.write();
        for (kafka_partition, end) in ends {
            let covered = state.covered(*kafka_partition);
            state.ends.entry(*kafka_partition).or_default().asked(*end, covered, now);
        }
    }

    /// Notes that the log has acknowledged everything below a position, at `now` (µs). Answers that lack it say so from
    /// now on, without waiting until the log is asked again.
    pub fn note_written(&self, position: &Position, now: i64) {
        let mut state = self.write();
        for (kafka_partition, next) in position.iter() {
            state.ends.entry(kafka_partition).or_default().written(next, now);
        }
    }

    /// Notes the oldest offset of a Kafka partition of `readings`.
    pub fn note_log_start(&self, kafka_partition: i32, low: i64) {
        self.write().log_starts.insert(kafka_partition, low);
    }

    /// The Kafka partitions without a batch view of which it depends on the oldest offset of the log whether something
    /// is missing.
    pub fn without_start(&self, now: i64) -> Vec<i32> {
        let state = self.read();
        let unclear = |kafka_partition: &i32| {
            let partition = state.partition(*kafka_partition, now);
            let known = state.log_starts.get(kafka_partition).copied().unwrap_or(0);
            partition.horizon.is_none() && partition.covered <= known && partition.lacking() != Some(0)
        };
        (0..self.kafka_partitions).filter(unclear).collect()
    }

    /// The Kafka partitions of which answers with this horizon would cover less than they do now.
    pub fn would_lose(&self, horizon: &BTreeMap<i32, i64>) -> Vec<i32> {
        let state = self.read();
        let loses = |kafka_partition: &i32| {
            let start = state.start_at(*kafka_partition, Some(horizon));
            state.store.reach(*kafka_partition, start).covered < state.covered(*kafka_partition)
        };
        (0..self.kafka_partitions).filter(loses).collect()
    }

    /// Whether the realtime-views topic was read to the end that it had at the start.
    pub fn caught_up(&self) -> bool {
        self.read().caught_up
    }

    /// The readings that definitions could not compute, as the last batch run has found.
    pub fn failures(&self) -> Arc<Failures> {
        self.read()
            .snapshot
            .as_ref()
            .map(|snapshot| Arc::clone(&snapshot.facts().failures))
            .unwrap_or_default()
    }

    /// The version of the batch view that is served.
    pub fn version(&self) -> Option<u64> {
        self.read().snapshot.as_ref().map(|snapshot| snapshot.version())
    }

    /// What answers cover of the log at `now` (µs).
    pub fn coverage(&self, now: i64) -> Coverage {
        self.read().coverage(self.kafka_partitions, now)
    }

    /// The Kafka partitions of which readings have been missing for long, without any progress, at `now` (µs).
    pub fn stalled(&self, now: i64) -> Vec<i32> {
        let state = self.read();
        let stalls = |(kafka_partition, end): (&i32, &LogEnd)| {
            end.stalled(state.covered(*kafka_partition), now).then_some(*kafka_partition)
        };
        state.ends.iter().filter_map(stalls).collect()
    }

    /// Waits until answers hold everything below a position; until `deadline` at most. Returns whether they do.
    pub async fn until_covered(&self, position: &Position, deadline: Instant) -> bool {
        self.until(deadline, || {
            let state = self.read();
            position.is_covered_by(|kafka_partition| state.covered(kafka_partition))
        })
        .await
    }

    /// Waits until this or a later version of the batch views is served; until `deadline` at most. Returns whether it
    /// is.
    pub async fn until_version(&self, version: u64, deadline: Instant) -> bool {
        self.until(deadline, || self.version().is_some_and(|served| served >= version)).await
    }

    async fn until(&self, deadline: Instant, reached: impl Fn() -> bool) -> bool {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            if reached() {
                return true;
            }
            match tokio::time::timeout_at(deadline, moved.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }

    /// How many epochs and windows are held.
    pub fn size(&self) -> (usize, usize) {
        self.read().store.size()
    }

    /// The state of the data now.
    pub fn edition(&self) -> Edition {
        self.read().edition()
    }

    /// What an answer is made of, as it is at `now` (µs).
    pub fn capture(&self, now: i64) -> Capture {
        self.read().capture(self.kafka_partitions, now)
    }

    /// The same together with the newest windows of all series, in one step, at `now` (µs).
    pub fn capture_with_current(&self, now: i64) -> (Capture, Vec<Current>) {
        let infos = self.directory.infos();
        let state = self.read();
        let current = state.current(&infos, now);
        (state.capture(self.kafka_partitions, now), current)
    }

    /// The newest windows of some series at `now` (µs).
    pub fn current(&self, infos: &[Arc<SeriesInfo>], now: i64) -> Taken<Vec<(Arc<SeriesInfo>, Answer)>> {
        let state = self.read();
        let judge = Facts::of(state.snapshot.as_deref());
        let answers = infos
            .iter()
            .filter_map(|info| Some((Arc::clone(info), state.newest(info, judge.judge(now))?)))
            .collect();
        let coverage = state.coverage(self.kafka_partitions, now);
        Taken { answers, coverage, edition: state.edition() }
    }

    /// From the oldest to the end of the newest window (µs) that there is of some series; `None` where there is none.
    pub fn available(&self, infos: &[Arc<SeriesInfo>]) -> Option<(i64, i64)> {
        let state = self.read();
        infos
            .iter()
            .filter_map(|info| state.available(info))
            .reduce(|(from, to), (oldest, newest)| (from.min(oldest), to.max(newest)))
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

/// Rows in pieces, so that readers get their turn between them; the last piece apart.
fn in_turns(rows: &[RealtimeRow]) -> (&[RealtimeRow], std::slice::Chunks<'_, RealtimeRow>) {
    let last = rows.len().saturating_sub(1) / ROWS_PER_TURN * ROWS_PER_TURN;
    (&rows[last..], rows[..last].chunks(ROWS_PER_TURN))
}

/// The header of a part of a record that is not its end.
fn incomplete(header: &Header) -> Header {
    let mut header = header.clone();
    if let Header::Rows { complete, .. } = &mut header {
        *complete = false;
    }
    header
}

impl State {
    /// Where the epochs of an answer begin.
    fn start_at(&self, kafka_partition: i32, horizon: Option<&BTreeMap<i32, i64>>) -> Start {
        match horizon.and_then(|horizon| horizon.get(&kafka_partition)) {
            Some(horizon) => Start::Horizon(*horizon),
            // No batch view has anything of this Kafka partition: all that the log has must be in epochs.
            None => Start::LogStart(self.log_starts.get(&kafka_partition).copied().unwrap_or(0)),
        }
    }

    fn start(&self, kafka_partition: i32) -> Start {
        self.start_at(kafka_partition, self.snapshot.as_ref().map(|snapshot| snapshot.horizon()))
    }

    /// The offset below which answers hold every reading.
    fn covered(&self, kafka_partition: i32) -> i64 {
        self.store.reach(kafka_partition, self.start(kafka_partition)).covered
    }

    fn partition(&self, kafka_partition: i32, now: i64) -> PartitionCoverage {
        let start = self.start(kafka_partition);
        let reach = self.store.reach(kafka_partition, start);
        let end = self.ends.get(&kafka_partition);
        let log_end = end.and_then(|end| end.end(now));
        let usable = self.snapshot.as_ref().is_none_or(|snapshot| snapshot.usable());
        let reason = if !self.caught_up {
            Some(Reason::Starting)
        } else if !usable || self.store.has_other_definitions() {
            Some(Reason::OtherDefinitions)
        } else if let Some(flaw @ (Flaw::Damaged | Flaw::Gap)) = reach.flaw {
            Some(Reason::Flawed(flaw))
        } else {
            match log_end {
                None => Some(Reason::LogEndUnknown),
                Some(end) if end > reach.covered => Some(reach.flaw.map_or(Reason::Behind, Reason::Flawed)),
                Some(_) => None,
            }
        };
        PartitionCoverage {
            kafka_partition,
            horizon: match start {
                Start::Horizon(horizon) => Some(horizon),
                Start::LogStart(_) => None,
            },
            covered: reach.covered,
            log_end,
            lacking_since: end.and_then(|end| end.lacking_since(reach.covered)),
            generation: self.store.generation(kafka_partition),
            reason,
        }
    }

    fn coverage(&self, kafka_partitions: i32, now: i64) -> Coverage {
        Coverage {
            version: self.snapshot.as_ref().map(|snapshot| snapshot.version()),
            horizon: self.snapshot.as_ref().map(|snapshot| snapshot.horizon().clone()),
            kafka_partitions: (0..kafka_partitions)
                .map(|kafka_partition| self.partition(kafka_partition, now))
                .collect(),
            now,
        }
    }

    fn edition(&self) -> Edition {
        let version = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.version());
        Edition { version, changes: self.store.changes() }
    }

    fn capture(&self, kafka_partitions: i32, now: i64) -> Capture {
        Capture {
            snapshot: self.snapshot.clone(),
            epochs: self.store.capture(),
            coverage: Arc::new(self.coverage(kafka_partitions, now)),
            edition: self.edition(),
        }
    }

    fn available(&self, info: &SeriesInfo) -> Option<(i64, i64)> {
        let batch = self.snapshot.as_ref().and_then(|snapshot| snapshot.newest(info.id));
        let oldest_batch = self.snapshot.as_ref().and_then(|snapshot| snapshot.oldest(info.id));
        let newest = batch.map(|row| row.window_start).max(self.store.newest_window(info.id))?;
        let oldest = [oldest_batch, self.store.oldest_window(info.id)].into_iter().flatten().min();
        Some((oldest.unwrap_or(newest), newest.saturating_add(info.window.micros())))
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
        merge(info.facts(), window, sides, judge)
    }

    fn current(&self, infos: &[Arc<SeriesInfo>], now: i64) -> Vec<Current> {
        let facts = Facts::of(self.snapshot.as_deref());
        let judge = facts.judge(now);
        let each = |info: &Arc<SeriesInfo>| {
            let answer = self.newest(info, judge)?;
            let batch = self.snapshot.as_ref().and_then(|snapshot| snapshot.newest(info.id));
            let batch = batch.and_then(|row| {
                merge(info.facts(), row.window_start, Sides { batch: Some(row), realtime: None }, judge)
            });
            let window = self.store.newest_window(info.id);
            let realtime = window.and_then(|window| {
                let realtime = self.store.newest_summary(info.id, window);
                merge(info.facts(), window, Sides { batch: None, realtime }, judge)
            });
            debug_assert!(answer.source != Source::Batch || batch.is_some());
            Some(Current { info: Arc::clone(info), answer, batch, realtime })
        };
        infos.iter().filter_map(each).collect()
    }
}

#[cfg(test)]
mod tests;

//! What answers are made of: one batch view and exactly the realtime epochs that belong to it (**HOR-3**), as a state
//! machine without I/O.
//!
//! Inputs come in by [`HubState::step`], which says what follows from each; answers are read from the state. Locks,
//! waiting and clocks are in the shell around it ([`super::Hub`]); a simulation drives the same state without them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::position::Position;
use wye_domain::realtime_row::Header;
use wye_domain::time::Micros;
use wye_metrics::confidence::Settling;
use wye_metrics::failures::Failures;
use wye_metrics::merge::{self, Answer, Judge, Sides, Source};
use wye_tables::views::ViewVersion;

use super::{Capture, Current, Edition, Taken};
use crate::coverage::{Asked, Coverage, LogEnd, PartitionCoverage, Reason};
use crate::directory::{Directory, SeriesInfo};
use crate::realtime::{Applied, Dropped, Flaw, RealtimeRow, RealtimeStore, Start};
use crate::snapshot::BatchSnapshot;

/// Everything that changes answers.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// The next record of a Kafka partition of the realtime-views topic. Its rows may be given in several parts, each
    /// with the record's header; all but the last are not complete.
    Record {
        /// Where it was.
        kafka_partition: KafkaPartition,
        /// What it is about.
        header: &'a Header,
        /// Its rows.
        rows: &'a [RealtimeRow],
    },
    /// A record of a Kafka partition of the realtime-views topic does not decode.
    Undecodable {
        /// Where it was.
        kafka_partition: KafkaPartition,
    },
    /// A Kafka partition of the realtime-views topic is read from its start again, and its rows so far are void: the topic
    /// was replaced, or records were deleted before they were read. One of these may have made rows void, and what counts
    /// from the newest horizon on is in the records that are left.
    FromStart {
        /// Which one.
        kafka_partition: KafkaPartition,
    },
    /// The realtime-views topic was read to the end that it had at the start.
    CaughtUp,
    /// A new batch view, to be served from now on.
    BatchView(Arc<BatchSnapshot>),
    /// The newest batch view is served, or there is none.
    ViewsChecked,
    /// The ends of `readings`, as the log answered a question.
    LogEnds {
        /// By Kafka partition the offset that the next record gets.
        ends: &'a BTreeMap<KafkaPartition, Offset>,
        /// When the question was asked.
        asked_at: Micros,
    },
    /// The oldest offset of a Kafka partition of `readings`.
    LogStart {
        /// Which one.
        kafka_partition: KafkaPartition,
        /// Its oldest offset.
        oldest: Offset,
    },
    /// The log has acknowledged everything below a position. Answers that lack it say so from now on, without waiting
    /// until the log is asked again.
    Written {
        /// The position.
        position: &'a Position,
        /// When it was acknowledged.
        at: Micros,
    },
}

/// What follows from an input.
#[derive(Debug, Default)]
#[must_use]
pub struct Outcome {
    /// What became of a record; `None` for other inputs.
    pub applied: Option<Applied>,
    /// Whether answers may cover more than before, so that those who wait should look again.
    pub wake: bool,
    /// What the state no longer holds. Freeing it takes time, for which readers need not wait.
    pub dropped: (Dropped, Option<Arc<BatchSnapshot>>),
}

/// What is still missing after the start before answers can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starting {
    /// The realtime-views topic is being read to the end that it had at the start.
    RealtimeViews,
    /// The batch view is being loaded.
    BatchView,
}

/// The state of the data.
#[derive(Debug)]
pub struct HubState {
    kafka_partitions: i32,
    store: RealtimeStore,
    snapshot: Option<Arc<BatchSnapshot>>,
    /// The ends of the Kafka partitions of `readings`.
    ends: BTreeMap<KafkaPartition, LogEnd>,
    /// Their oldest offsets, where no batch view says from where on epochs are needed.
    log_starts: BTreeMap<KafkaPartition, LogStart>,
    caught_up: bool,
    views_checked: bool,
}

impl HubState {
    /// Nothing yet, for the definitions of a directory and a log with so many Kafka partitions of readings.
    pub fn new(directory: &Directory, kafka_partitions: i32) -> Self {
        Self {
            kafka_partitions,
            store: RealtimeStore::new(directory.plans().fingerprint()),
            snapshot: None,
            ends: BTreeMap::new(),
            log_starts: BTreeMap::new(),
            caught_up: false,
            views_checked: false,
        }
    }

    /// Takes one input in.
    pub fn step(&mut self, input: Input<'_>) -> Outcome {
        let mut outcome = Outcome::default();
        match input {
            Input::Record { kafka_partition, header, rows } => {
                let (applied, dropped) = self.store.apply(kafka_partition, header, rows);
                outcome = Outcome { applied: Some(applied), wake: true, dropped: (dropped, None) };
            }
            Input::Undecodable { kafka_partition } => self.store.damage(kafka_partition),
            Input::FromStart { kafka_partition } => outcome.dropped.0 = self.store.clear(kafka_partition),
            Input::CaughtUp => outcome.wake = !std::mem::replace(&mut self.caught_up, true),
            Input::BatchView(snapshot) => {
                let below = self.store.trim(snapshot.horizon());
                outcome.dropped = (below, self.snapshot.replace(snapshot));
                outcome.wake = true;
            }
            Input::ViewsChecked => {
                let mut counts = false;
                for start in self.log_starts.values_mut() {
                    counts |= start.views_checked();
                }
                outcome.wake = !std::mem::replace(&mut self.views_checked, true) || counts;
            }
            Input::LogEnds { ends, asked_at } => {
                for (kafka_partition, end) in ends {
                    let asked = Asked { end: *end, covered: self.covered(*kafka_partition) };
                    self.ends.entry(*kafka_partition).or_default().asked(asked, asked_at);
                }
            }
            Input::LogStart { kafka_partition, oldest } => {
                self.log_starts.entry(kafka_partition).or_default().asked(oldest);
            }
            Input::Written { position, at } => {
                for (kafka_partition, next) in position.iter() {
                    self.ends.entry(kafka_partition).or_default().written(next, at);
                }
            }
        }
        outcome
    }

    /// What is still missing after the start; `None` once answers can be used.
    pub fn starting(&self) -> Option<Starting> {
        match (self.caught_up, self.views_checked) {
            (false, _) => Some(Starting::RealtimeViews),
            (true, false) => Some(Starting::BatchView),
            (true, true) => None,
        }
    }

    /// How many Kafka partitions the readings have.
    pub fn kafka_partitions(&self) -> i32 {
        self.kafka_partitions
    }

    /// The Kafka partitions without a batch view of which it depends on the oldest offset of the log whether something
    /// is missing at `now`.
    pub fn without_start(&self, now: Micros) -> Vec<KafkaPartition> {
        let mut found = Vec::new();
        for kafka_partition in KafkaPartition::all(self.kafka_partitions) {
            let partition = self.partition(kafka_partition, now);
            let unclear =
                partition.covered <= self.log_start(kafka_partition) && partition.lacking() != Some(0);
            if partition.horizon.is_none() && unclear {
                found.push(kafka_partition);
            }
        }
        found
    }

    /// The Kafka partitions of which answers with this horizon would cover less than they do now.
    pub fn would_lose(&self, horizon: &Horizon) -> Vec<KafkaPartition> {
        let mut losing = Vec::new();
        for kafka_partition in KafkaPartition::all(self.kafka_partitions) {
            let start = self.start_at(kafka_partition, Some(horizon));
            if self.store.reach(kafka_partition, start).covered < self.covered(kafka_partition) {
                losing.push(kafka_partition);
            }
        }
        losing
    }

    /// The readings that definitions could not compute, as the last batch run has found.
    pub fn failures(&self) -> Arc<Failures> {
        self.snapshot.as_ref().map(|snapshot| Arc::clone(&snapshot.facts().failures)).unwrap_or_default()
    }

    /// The batch view that is served; `None` without one.
    pub fn batch_snapshot(&self) -> Option<Arc<BatchSnapshot>> {
        self.snapshot.clone()
    }

    /// The version of the batch view that is served; `None` without one.
    pub fn version(&self) -> Option<ViewVersion> {
        self.snapshot.as_ref().map(|snapshot| snapshot.version())
    }

    /// The Kafka partitions of which readings have been missing for long, without any progress, at `now`.
    pub fn stalled(&self, now: Micros) -> Vec<KafkaPartition> {
        let ends = self.ends.iter();
        let stalled = ends.filter(|(kafka_partition, end)| end.stalled(self.covered(**kafka_partition), now));
        stalled.map(|(kafka_partition, _)| *kafka_partition).collect()
    }

    /// Whether answers hold everything below a position.
    pub fn covers(&self, position: &Position) -> bool {
        position.is_covered_by(|kafka_partition| self.covered(kafka_partition))
    }

    /// How many epochs and how many windows of them are held.
    pub fn size(&self) -> (usize, usize) {
        self.store.size()
    }

    /// What answers cover of the log at `now`.
    pub fn coverage(&self, now: Micros) -> Coverage {
        let partitions = KafkaPartition::all(self.kafka_partitions);
        Coverage {
            version: self.version(),
            horizon: self.snapshot.as_ref().map(|snapshot| snapshot.horizon().clone()),
            kafka_partitions: partitions.map(|partition| self.partition(partition, now)).collect(),
            now,
        }
    }

    /// The state of the data, for caches.
    pub fn edition(&self) -> Edition {
        Edition { version: self.version(), changes: self.store.changes() }
    }

    /// What an answer is made of, as it is at `now`.
    pub fn capture(&self, now: Micros) -> Capture {
        Capture {
            snapshot: self.snapshot.clone(),
            epochs: self.store.capture(),
            coverage: Arc::new(self.coverage(now)),
            edition: self.edition(),
        }
    }

    /// The newest windows of some series at `now`, and what a textbook merge would make of them.
    pub fn current_of_both(&self, infos: &[Arc<SeriesInfo>], now: Micros) -> Vec<Current> {
        let facts = Facts::of(self.snapshot.as_deref(), &self.coverage(now));
        let judge = facts.judge(now);
        infos.iter().filter_map(|info| self.newest_of_both(info, judge)).collect()
    }

    /// The newest windows of some series at `now`.
    pub fn current(&self, infos: &[Arc<SeriesInfo>], now: Micros) -> Taken<Vec<(Arc<SeriesInfo>, Answer)>> {
        let coverage = self.coverage(now);
        let facts = Facts::of(self.snapshot.as_deref(), &coverage);
        let judge = facts.judge(now);
        let newest = infos.iter().filter_map(|info| {
            let newest = self.newest(info, judge)?;
            Some((Arc::clone(info), self.as_current(info, newest, judge)))
        });
        Taken { answers: newest.collect(), coverage, edition: self.edition() }
    }

    /// From the start of the oldest to the end of the newest window that there is of some series; `None` where there is
    /// none.
    pub fn available(&self, infos: &[Arc<SeriesInfo>]) -> Option<Range<Micros>> {
        let windows = infos.iter().filter_map(|info| self.windows_of(info));
        windows.reduce(|all, own| all.start.min(own.start)..all.end.max(own.end))
    }

    /// Where the epochs of an answer with a horizon begin.
    fn start_at(&self, kafka_partition: KafkaPartition, horizon: Option<&Horizon>) -> Start {
        match horizon.and_then(|horizon| horizon.get(kafka_partition)) {
            Some(offset) => Start::Horizon(offset),
            // No batch view has anything of this Kafka partition: all that the log has must be in epochs.
            None => Start::LogStart(self.log_start(kafka_partition)),
        }
    }

    fn log_start(&self, kafka_partition: KafkaPartition) -> Offset {
        self.log_starts.get(&kafka_partition).map_or(Offset::START, |start| start.counting)
    }

    fn start(&self, kafka_partition: KafkaPartition) -> Start {
        self.start_at(kafka_partition, self.snapshot.as_ref().map(|snapshot| snapshot.horizon()))
    }

    /// The offset below which answers hold every reading.
    fn covered(&self, kafka_partition: KafkaPartition) -> Offset {
        self.store.reach(kafka_partition, self.start(kafka_partition)).covered
    }

    fn partition(&self, kafka_partition: KafkaPartition, now: Micros) -> PartitionCoverage {
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
        let horizon = match start {
            Start::Horizon(offset) => Some(offset),
            Start::LogStart(_) => None,
        };
        PartitionCoverage {
            kafka_partition,
            horizon,
            covered: reach.covered,
            log_end,
            lacking_since: end.and_then(|end| end.lacking_since(reach.covered)),
            generation: self.store.generation(kafka_partition),
            reason,
        }
    }

    fn windows_of(&self, info: &SeriesInfo) -> Option<Range<Micros>> {
        let snapshot = self.snapshot.as_ref();
        let batch = snapshot.and_then(|snapshot| snapshot.newest(info.id)).map(|row| row.window_start);
        let newest = batch.max(self.store.newest_window(info.id))?;
        let oldest_batch = snapshot.and_then(|snapshot| snapshot.oldest(info.id));
        let oldest = [oldest_batch, self.store.oldest_window(info.id)].into_iter().flatten().min();
        Some(oldest.unwrap_or(newest)..newest + info.window.span())
    }

    /// The newest window of the exact merge.
    fn newest(&self, info: &SeriesInfo, judge: Judge<'_>) -> Option<Answer> {
        let snapshot = self.snapshot.as_ref();
        let batch = snapshot.and_then(|snapshot| snapshot.newest(info.id));
        let realtime = self.store.newest_window(info.id);
        let window = realtime.max(batch.map(|row| row.window_start))?;
        let sides = Sides {
            batch: snapshot.and_then(|snapshot| snapshot.row_from_newest_on(info.id, window)),
            realtime: self.store.newest_summary(info.id, window),
        };
        merge::merge(info.facts(), window, sides, judge)
    }

    /// The newest window of a series as its current value.
    fn as_current(&self, info: &SeriesInfo, newest: Answer, judge: Judge<'_>) -> Answer {
        let before = newest.window_start - info.window.span();
        let snapshot = self.snapshot.as_ref();
        // Older rows of the batch view are not at hand.
        let newest_batch = snapshot.and_then(|snapshot| snapshot.newest(info.id));
        let is_at_hand = newest_batch.is_none_or(|row| row.window_start <= before);
        let answer = || {
            let sides = Sides {
                batch: snapshot.and_then(|snapshot| snapshot.row_from_newest_on(info.id, before)),
                realtime: self.store.summary(info.id, before),
            };
            merge::merge(info.facts(), before, sides, judge).filter(|_| is_at_hand)
        };
        merge::current(info.facts(), newest, answer, judge)
    }

    fn newest_of_both(&self, info: &Arc<SeriesInfo>, judge: Judge<'_>) -> Option<Current> {
        let answer = self.newest(info, judge)?;
        let batch = self.snapshot.as_ref().and_then(|snapshot| snapshot.newest(info.id));
        let batch = batch.and_then(|row| {
            merge::merge(info.facts(), row.window_start, Sides { batch: Some(row), realtime: None }, judge)
        });
        let window = self.store.newest_window(info.id);
        let realtime = window.and_then(|window| {
            let realtime = self.store.newest_summary(info.id, window);
            merge::merge(info.facts(), window, Sides { batch: None, realtime }, judge)
        });
        debug_assert!(answer.source != Source::Batch || batch.is_some());
        let answer = self.as_current(info, answer, judge);
        Some(Current { info: Arc::clone(info), answer, batch, realtime })
    }
}

/// The oldest offset of a Kafka partition of `readings`.
///
/// Readings are deleted once a batch view has them. So that none is taken for missing from the log while the batch view
/// that has it is not served yet, an offset counts only when the batch views were checked from beginning to end since.
#[derive(Clone, Copy, Debug, Default)]
struct LogStart {
    counting: Offset,
    newest: Offset,
    /// How many checks have ended since the log gave the newest.
    checks: u8,
}

impl LogStart {
    /// The first check to end may have begun before the log was asked.
    const CHECKS: u8 = 2;

    fn asked(&mut self, oldest: Offset) {
        if self.newest != oldest {
            *self = Self { newest: oldest, checks: 0, ..*self };
        }
    }

    /// Whether another offset counts by that.
    fn views_checked(&mut self) -> bool {
        self.checks = self.checks.saturating_add(1);
        let counts = self.checks >= Self::CHECKS && self.counting != self.newest;
        if counts {
            self.counting = self.newest;
        }
        counts
    }
}

/// What confidence is judged by, of one state.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    settling: Arc<Settling>,
    as_of: Micros,
}

impl Facts {
    /// Those of answers from a snapshot and realtime views.
    pub fn of(snapshot: Option<&BatchSnapshot>, coverage: &Coverage) -> Self {
        Self::as_of(snapshot, coverage.held_at())
    }

    /// Those of answers from a snapshot alone.
    pub fn of_batch(snapshot: Option<&BatchSnapshot>, coverage: &Coverage) -> Self {
        Self::as_of(snapshot, coverage.is_all_in_batch_view().then_some(coverage.now))
    }

    fn as_of(snapshot: Option<&BatchSnapshot>, held_at: Option<Micros>) -> Self {
        // The rows of a view that cannot be used are left out, so answers hold nothing of it.
        let facts = snapshot.filter(|snapshot| snapshot.usable()).map(BatchSnapshot::facts);
        Self {
            settling: facts.map(|facts| Arc::clone(&facts.settling)).unwrap_or_default(),
            as_of: facts.and_then(|facts| facts.as_of).max(held_at).unwrap_or(Micros::EPOCH),
        }
    }

    /// The judge at `now`.
    pub fn judge(&self, now: Micros) -> Judge<'_> {
        Judge { settling: &self.settling, now, as_of: self.as_of }
    }
}

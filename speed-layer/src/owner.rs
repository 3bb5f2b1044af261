//! The owner of one Kafka partition as a state machine: inputs in, effects out. Must not know the log, a clock, or how
//! effects are carried out.
//!
//! It feeds the operator, flushes what changed, starts epochs, answers requests for a cut, and says what nobody needs
//! any more. The order of its effects is what recovery rests on: rows of a flush before the record that completes it;
//! the complete flush before the `Begin` of the next epoch; that before its announcement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use wye_domain::assemble::Assembler;
use wye_domain::control::{ControlRecord, ControlView, CutRequested};
use wye_domain::epoch::{Recovery, straddled};
use wye_domain::realtime_row::Header;
use wye_domain::wire::{Acceptance, Reason};
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_metrics::failures::Failures;
use wye_metrics::plan::MetricPlans;

use crate::SpeedError;
use crate::duplicates::DuplicateWindow;
use crate::operator::{Counts, Operator};
use crate::takeover::TakenOver;

#[cfg(test)]
mod tests;

/// Readings are evaluated in batches of about this many rows.
const BATCH_ROWS: usize = 32_768;
/// Rows of one record, without and with sketches: both stay well below the largest message.
const ROWS_PER_RECORD: usize = 16_384;
const ROWS_PER_RECORD_WITH_SKETCHES: usize = 500;
/// An epoch ends early when it has so many windows: it bounds the owner's memory.
const WINDOWS_PER_EPOCH: usize = 400_000;

/// What every owner computes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// Which readings are accepted.
    pub acceptance: Acceptance,
    /// How far back duplicates are detected, in µs of ingest time.
    pub duplicate_window: i64,
    /// Most identities remembered for one Kafka partition.
    pub duplicate_entries: usize,
}

/// What happens to an owner.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The next message of the readings topic.
    Message {
        /// Its offset.
        offset: i64,
        /// When the log took it, in µs.
        ingest_time: i64,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// The readings topic holds nothing that can be read below this offset.
    Skip {
        /// The next offset that may hold a message.
        next: i64,
    },
    /// The readings topic holds no other message below this offset: the end of a transaction takes one too.
    Empty {
        /// The next offset that may hold a message.
        next: i64,
    },
    /// It is time to write what changed.
    Tick(Due),
    /// The next record of the control topic after the owner's claim.
    Control {
        /// Its offset in the control topic.
        offset: i64,
        /// The record.
        record: &'a ControlRecord,
    },
    /// The `Begin` of an epoch was acknowledged.
    Begun {
        /// The epoch.
        epoch: i64,
        /// The offset of its `Begin` in the realtime-views topic.
        offset: i64,
    },
}

/// What is due at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A flush.
    Flush,
    /// A flush, and the next epoch if one may start.
    Epoch,
}

/// What is to be done for an owner, in this order. Whoever cannot do one of them gives the owner up.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append a record to the realtime-views topic. Rows of an incomplete flush may be on their way together; every
    /// other record is appended once everything before it is acknowledged. When a `Begin` is acknowledged, the owner
    /// is told by [`Input::Begun`].
    Append(Header, Option<RecordBatch>),
    /// Append a record to the control topic once everything before it is acknowledged.
    Announce(ControlRecord),
    /// Delete what lies below an offset of a topic; where that fails, it is asked for again later.
    Trim {
        /// Which topic.
        topic: &'static str,
        /// The first offset that stays.
        before: i64,
    },
}

/// What an owner has done since this was last asked, for telemetry.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Readings taken in, with duplicates and conflicts.
    pub counts: Counts,
    /// Rows flushed.
    pub rows: u64,
    /// Epochs started.
    pub epochs: u64,
    /// Entries of the log that are no readings.
    pub rejected: BTreeMap<Reason, u64>,
    /// Identities dropped because the duplicate window is full.
    pub forgotten_early: u64,
    /// What definitions could not compute.
    pub failures: Failures,
}

/// See the module.
pub struct Owner {
    kafka_partition: i32,
    generation: i64,
    epoch: i64,
    /// The next readings offset to evaluate; what was taken in beyond it is in the assembler.
    position: i64,
    /// The position of the last flush.
    flushed: i64,
    /// What the rows of an incomplete flush of the last owner reach to.
    rows_through: i64,
    is_rebuild: bool,
    operator: Operator,
    assembler: Assembler,
    /// What the control topic says, and what this owner is about to say there.
    control: ControlView,
    /// The epochs that have begun in the realtime-views topic and are not void.
    begun: BTreeSet<i64>,
    /// The offset of the first record of each of them there, once it is acknowledged.
    first_record: BTreeMap<i64, i64>,
    duplicate_window: i64,
    newest_ingest_time: i64,
    /// The next offset of the control topic to hear of.
    next_control: i64,
    tally: Tally,
}

impl Owner {
    /// The owner of a Kafka partition that was taken over, ready for [`Owner::start`].
    pub fn new(rules: &Rules, kafka_partition: i32, taken: TakenOver) -> Self {
        let window = DuplicateWindow::new(rules.duplicate_window, rules.duplicate_entries);
        let mut operator = Operator::new(Arc::clone(&rules.plans), window);
        let (position, epoch, is_rebuild) = match taken.recovery {
            Recovery::Resume { position, epoch } => (position, epoch, false),
            Recovery::Rebuild { from } => (from, from, true),
        };
        for row in taken.rows {
            operator.restore(row.series, row.window_start, row.summary, row.through);
        }
        let mut first_record = taken.first_record;
        if is_rebuild {
            first_record.split_off(&epoch);
        }
        let newest_ingest_time =
            taken.control.starts.values().map(|known| known.announced_at).max().unwrap_or(0);
        Self {
            kafka_partition,
            generation: taken.generation,
            epoch,
            position,
            flushed: position,
            rows_through: taken.rows_through,
            is_rebuild,
            operator,
            assembler: Assembler::new(rules.acceptance),
            control: taken.control,
            begun: first_record.keys().copied().collect(),
            first_record,
            duplicate_window: rules.duplicate_window,
            newest_ingest_time,
            next_control: taken.generation + 1,
            tally: Tally::default(),
        }
    }

    /// Begins the epoch that is open, announces it, and answers what was asked before there was an owner.
    ///
    /// # Errors
    /// As [`Owner::step`].
    pub fn start(&mut self) -> Result<Vec<Effect>, SpeedError> {
        let mut effects = Vec::new();
        self.begin(self.is_rebuild, &mut effects);
        self.announce(self.epoch, None, &mut effects);
        if let Some(asked) = self.control.unanswered() {
            self.answer(asked, &mut effects)?;
        }
        Ok(effects)
    }

    /// From which readings offset on [`Owner::remember`] must be told everything below [`Owner::next`], in order,
    /// before the first step; `None`: from the start of the log.
    pub fn remembers_from(&self) -> Option<i64> {
        let before = self.newest_ingest_time - self.duplicate_window;
        let is_old = |announced_at| announced_at > 0 && announced_at <= before;
        let mut old = self.control.starts.iter().filter(|(_, known)| is_old(known.announced_at));
        let (start, _) = old.next_back()?;
        Some((*start).min(self.control.horizon?))
    }

    /// Notes a message below [`Owner::next`] for the detection of duplicates, and nothing else. `ingest_time` in µs.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub fn remember(&mut self, offset: i64, ingest_time: i64, payload: &[u8]) -> Result<(), SpeedError> {
        self.newest_ingest_time = self.newest_ingest_time.max(ingest_time);
        self.assembler.push(payload, offset, ingest_time);
        if self.assembler.rows() >= BATCH_ROWS { self.remember_taken() } else { Ok(()) }
    }

    /// Ends what [`Owner::remember`] began.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub fn remember_taken(&mut self) -> Result<(), SpeedError> {
        self.assembler.take_rejected();
        for placed in self.assembler.take() {
            let remembered = self.operator.remember(&placed);
            let kafka_partition = self.kafka_partition;
            remembered.map_err(|source| SpeedError::Stored { topic: READINGS, kafka_partition, source })?;
        }
        Ok(())
    }

    /// Takes in what happened, and says what is to be done.
    ///
    /// # Errors
    /// `Fenced` when another owner has claimed the Kafka partition, `Overtaken` when a start was announced inside of
    /// what an epoch's rows hold, `Evaluate` when readings cannot be evaluated. The owner is of no use then.
    #[inline]
    pub fn step(&mut self, input: Input<'_>) -> Result<Vec<Effect>, SpeedError> {
        let mut effects = Vec::new();
        match input {
            Input::Message { offset, ingest_time, payload } => {
                self.reach(offset, &mut effects)?;
                self.newest_ingest_time = self.newest_ingest_time.max(ingest_time);
                self.assembler.push(payload, offset, ingest_time);
                if self.assembler.rows() >= BATCH_ROWS {
                    self.process()?;
                }
            }
            Input::Empty { next } => self.pass(next, &mut effects)?,
            Input::Skip { next } => {
                self.pass(next, &mut effects)?;
                *self.tally.rejected.entry(Reason::UnreadableRecordBatch).or_default() += 1;
            }
            Input::Tick(due) => self.tick(due, &mut effects)?,
            Input::Control { offset, record } => self.on_control(offset, record, &mut effects)?,
            Input::Begun { epoch, offset } => {
                self.first_record.entry(epoch).or_insert(offset);
            }
        }
        Ok(effects)
    }

    /// Goes to an offset before which there is nothing to take in.
    fn pass(&mut self, next: i64, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        self.reach(next, effects)?;
        self.process()?;
        self.position = self.position.max(next);
        Ok(())
    }

    /// Starts every epoch that was announced at or before an offset that is about to be taken in.
    #[inline]
    fn reach(&mut self, offset: i64, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        while let Some(cut) = self.next_cut().filter(|cut| offset >= *cut) {
            self.process()?;
            self.position = cut;
            self.start_epoch(None, effects)?;
        }
        Ok(())
    }

    /// Where the open epoch must end, as far as was announced.
    #[inline]
    fn next_cut(&self) -> Option<i64> {
        self.control.next_start_after(self.epoch)
    }

    /// Evaluates what was taken in.
    fn process(&mut self) -> Result<(), SpeedError> {
        for placed in self.assembler.take() {
            self.tally.counts += self.operator.on_batch(&placed)?;
        }
        for rejected in self.assembler.take_rejected() {
            *self.tally.rejected.entry(rejected.rejected.reason).or_default() += 1;
        }
        self.position = self.next();
        Ok(())
    }

    fn tick(&mut self, due: Due, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        self.process()?;
        if self.next_cut() == Some(self.position) {
            return self.start_epoch(None, effects);
        }
        let may_start = self.position > self.epoch && self.position >= self.rows_through;
        let is_full = self.operator.windows() >= WINDOWS_PER_EPOCH;
        if may_start && (due == Due::Epoch || is_full) {
            self.start_epoch(None, effects)
        } else {
            self.flush(effects)
        }
    }

    fn on_control(
        &mut self,
        offset: i64,
        record: &ControlRecord,
        effects: &mut Vec<Effect>,
    ) -> Result<(), SpeedError> {
        let kafka_partition = self.kafka_partition;
        // What was taken in counts: a start that is heard of now may lie inside of it.
        self.process()?;
        if matches!(record, ControlRecord::Claim { .. }) && offset > self.generation {
            return Err(SpeedError::Fenced { kafka_partition });
        }
        self.control.apply(offset, record);
        self.next_control = offset + 1;
        match record {
            ControlRecord::Claim { .. } => {}
            ControlRecord::Epoch { .. } => {
                let first = self.begun.first().copied().max(self.control.horizon).unwrap_or(0);
                let reach = self.position.max(self.rows_through);
                if let Some(found) = straddled(&self.control, &self.begun, first..reach) {
                    return Err(SpeedError::Overtaken { kafka_partition, start: found.start });
                }
            }
            ControlRecord::CutRequest { .. } => {
                if let Some(asked) = self.control.unanswered() {
                    self.answer(asked, effects)?;
                }
            }
            ControlRecord::Horizon { .. } => self.trim(effects),
        }
        Ok(())
    }

    /// Answers a request for a cut, at once: by the open epoch if that is new enough, by a new epoch if the owner has
    /// read so far, else by the start that it will make when it gets there.
    fn answer(&mut self, asked: CutRequested, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        let CutRequested { request, through } = asked;
        let start = self.position.max(self.rows_through).max(through);
        if self.epoch >= through {
            self.announce(self.epoch, Some(request), effects);
        } else if start == self.position {
            self.start_epoch(Some(request), effects)?;
        } else {
            self.announce(start, Some(request), effects);
        }
        self.control.answered = Some(request);
        Ok(())
    }

    /// Writes what changed since the last flush; the last record is a checkpoint at the position.
    fn flush(&mut self, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        self.process()?;
        let changed = self.operator.changed();
        if changed == 0 && self.position == self.flushed {
            return Ok(());
        }
        let rows = if self.operator.has_sketches() { ROWS_PER_RECORD_WITH_SKETCHES } else { ROWS_PER_RECORD };
        let mut batches = Vec::with_capacity(changed / rows + 1);
        self.operator.flush(rows, |batch| batches.push(batch));
        let last = batches.pop();
        for batch in batches {
            effects.push(Effect::Append(self.rows_header(false), Some(batch)));
        }
        effects.push(Effect::Append(self.rows_header(true), last));
        self.flushed = self.position;
        self.tally.rows += changed as u64;
        self.tally.failures.merge(&self.operator.take_failures());
        let duplicates = self.operator.duplicates();
        duplicates.forget(self.newest_ingest_time, self.control.horizon.unwrap_or(0));
        self.tally.forgotten_early += duplicates.take_forgotten_early();
        Ok(())
    }

    fn rows_header(&self, complete: bool) -> Header {
        Header::Rows {
            generation: self.generation,
            epoch: self.epoch,
            through: self.position,
            complete,
            newest_event_time: self.operator.newest_event_time(),
        }
    }

    /// Ends the open epoch at the position, and starts and announces the next.
    fn start_epoch(&mut self, answers: Option<i64>, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        self.flush(effects)?;
        self.epoch = self.position;
        self.operator.start_epoch();
        self.begin(false, effects);
        self.announce(self.epoch, answers, effects);
        self.tally.epochs += 1;
        Ok(())
    }

    fn begin(&mut self, reset: bool, effects: &mut Vec<Effect>) {
        let (generation, epoch) = (self.generation, self.epoch);
        self.begun.insert(epoch);
        let definitions = self.operator.definitions();
        effects.push(Effect::Append(Header::Begin { generation, epoch, definitions, reset }, None));
    }

    fn announce(&mut self, start: i64, answers: Option<i64>, effects: &mut Vec<Effect>) {
        // Of a start that lies ahead nobody knows yet what will be below it.
        let announced_at = if start > self.position { 0 } else { self.newest_ingest_time };
        self.control.expect_start(start, announced_at);
        let generation = Some(self.generation);
        effects.push(Effect::Announce(ControlRecord::Epoch { generation, start, announced_at, answers }));
    }

    /// Deletes what lies below the horizon and outside of the duplicate window.
    fn trim(&mut self, effects: &mut Vec<Effect>) {
        let Some(horizon) = self.control.horizon else { return };
        if let Some((_, first)) = self.first_record.range(horizon..).next() {
            effects.push(Effect::Trim { topic: REALTIME_VIEWS, before: *first });
        }
        self.first_record = self.first_record.split_off(&horizon);
        self.begun = self.begun.split_off(&horizon);
        if let Some(floor) = self.remembers_from() {
            // An owner that is behind the horizon reads on from where it is.
            effects.push(Effect::Trim { topic: READINGS, before: floor.min(self.position) });
            if let Some(before) = self.control.deletable_before(floor) {
                effects.push(Effect::Trim { topic: CONTROL, before });
            }
            self.control.starts = self.control.starts.split_off(&floor);
        }
    }

    /// The next readings offset to take in.
    pub fn next(&self) -> i64 {
        self.assembler.next_offset().map_or(self.position, |next| next.max(self.position))
    }

    /// The next offset of the control topic to hear of.
    pub fn next_control(&self) -> i64 {
        self.next_control
    }

    /// This ownership's number: its own claim's offset in the control topic.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// The first readings offset of the open epoch.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The horizon as far as was heard.
    pub fn horizon(&self) -> Option<i64> {
        self.control.horizon
    }

    /// How many identities are remembered for the detection of duplicates.
    pub fn remembered(&self) -> usize {
        self.operator.remembered()
    }

    /// The newest event time seen, in µs.
    pub fn newest_event_time(&self) -> Option<i64> {
        Some(self.operator.newest_event_time()).filter(|newest| *newest > i64::MIN)
    }

    /// What was done since this was last asked.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

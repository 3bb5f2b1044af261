//! The owner of one Kafka partition as a state machine: inputs in, effects out. It has no clock, no I/O and no randomness:
//! the same inputs always give the same effects. Must not know how effects are carried out.
//!
//! It feeds the operator, flushes what changed, starts epochs, answers requests for a cut, and says which records can be
//! deleted. Recovery depends on the order of its effects: rows of a flush before the record that completes it; the complete
//! flush before the `Begin` of the next epoch; that before its announcement.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wye_domain::assemble::Assembler;
use wye_domain::control::{ControlRecord, ControlView, CutRequested};
use wye_domain::epoch::{Recovery, straddled};
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::realtime_row::Header;
use wye_domain::time::{Micros, Span};
use wye_domain::wire::Reason;
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};

use crate::SpeedError;
use crate::takeover::TakenOver;
use duplicates::DuplicateWindow;
use operator::Operator;

mod duplicates;
mod operator;
mod protocol;
#[cfg(test)]
mod tests;

pub use operator::Counts;
pub use protocol::{Due, Effect, Input, Rules, Tally};

/// Readings are evaluated in batches of about this many rows.
const BATCH_ROWS: usize = 32_768;
/// Rows of one record, without and with sketches: both stay well below the largest message.
const ROWS_PER_RECORD: usize = 16_384;
const ROWS_PER_RECORD_WITH_SKETCHES: usize = 500;
/// An epoch ends early when it has so many windows: it bounds the owner's memory.
const WINDOWS_PER_EPOCH: usize = 400_000;

/// The owner of one Kafka partition.
pub struct Owner {
    kafka_partition: KafkaPartition,
    generation: Generation,
    /// The first readings offset of the open epoch.
    epoch: Offset,
    /// The next readings offset to evaluate. The assembler has messages beyond it.
    position: Offset,
    /// The position of the last flush.
    flushed: Offset,
    /// The readings offset that the rows of the previous owner's incomplete flush reach to, where there are any.
    rows_through: Option<Offset>,
    first_begin: Beginning,
    operator: Operator,
    assembler: Assembler,
    /// What the control topic says, and what this owner is about to say there.
    control: ControlView,
    /// The epochs that have begun in the realtime-views topic and are not void.
    begun: BTreeSet<Offset>,
    /// The offset of the first record of each of them there, once it is acknowledged.
    first_record: BTreeMap<Offset, Offset>,
    /// The epochs that this owner has begun, and of which it is not certain that they have begun before any newer claim.
    unconfirmed: BTreeSet<Offset>,
    duplicate_window: Span,
    /// The newest that is known; [`Owner::past`] says of which readings.
    newest_ingest_time: Option<Micros>,
    past: Past,
    /// The next offset of the control topic to read.
    next_control: Offset,
    tally: Tally,
}

/// Whether the readings below the position were read to detect duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Not yet, so that their newest ingest time is not known.
    Unread,
    /// As far back as the duplicate window goes.
    Remembered,
}

/// What the `Begin` of an epoch says of stored rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    /// They stay.
    Continue,
    /// Those of this epoch and of later ones are void: a rebuild begins.
    Rebuild,
}

/// Which record of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushRecord {
    /// Others follow.
    Partial,
    /// The last one, which makes the flush a checkpoint.
    Last,
}

impl Owner {
    /// The owner of a Kafka partition that was taken over, ready for [`Owner::start`].
    pub fn new(rules: &Rules, kafka_partition: KafkaPartition, taken: TakenOver) -> Self {
        let window = DuplicateWindow::new(rules.duplicate_window, rules.duplicate_entries);
        let mut operator = Operator::new(Arc::clone(&rules.plans), window);
        let mut first_record = taken.first_record;
        let (position, epoch, first_begin) = match taken.recovery {
            Recovery::Resume { position, epoch } => (position, epoch, Beginning::Continue),
            Recovery::Rebuild { from } => {
                first_record.split_off(&from);
                (from, from, Beginning::Rebuild)
            }
        };
        taken.rows.into_iter().for_each(|row| operator.restore(row));
        Self {
            kafka_partition,
            generation: taken.generation,
            epoch,
            position,
            flushed: position,
            rows_through: taken.rows_through,
            first_begin,
            operator,
            assembler: Assembler::new(rules.acceptance),
            newest_ingest_time: taken.control.starts.values().filter_map(|known| known.announced_at).max(),
            past: Past::Unread,
            control: taken.control,
            begun: first_record.keys().copied().collect(),
            first_record,
            unconfirmed: BTreeSet::new(),
            duplicate_window: rules.duplicate_window,
            next_control: taken.generation.claim().next(),
            tally: Tally::default(),
        }
    }

    /// Begins the open epoch, announces it, and answers requests for a cut that have no answer yet.
    ///
    /// # Errors
    /// As [`Owner::step`].
    pub fn start(&mut self) -> Result<Vec<Effect>, SpeedError> {
        let mut effects = Vec::new();
        self.begin(self.first_begin, &mut effects);
        self.announce(self.epoch, None, &mut effects);
        if let Some(asked) = self.control.unanswered() {
            self.answer(asked, &mut effects)?;
        }
        Ok(effects)
    }

    /// The readings offset from which [`Owner::remember`] must get every message below [`Owner::next`], in order, before
    /// the first step; `None`: from the start of the log.
    pub fn remembers_from(&self) -> Option<Offset> {
        let before = self.newest_ingest_time? - self.duplicate_window;
        let mut starts = self.control.starts.iter().rev();
        let (start, _) = starts.find(|(_, known)| known.announced_at.is_some_and(|at| at <= before))?;
        Some((*start).min(self.control.horizon?))
    }

    /// Remembers a message below [`Owner::next`] to detect duplicates of its readings, and nothing else.
    ///
    /// # Errors
    /// When it cannot be evaluated.
    pub fn remember(
        &mut self,
        offset: Offset,
        ingest_time: Micros,
        payload: &[u8],
    ) -> Result<(), SpeedError> {
        self.take_in(offset, ingest_time, payload);
        if self.assembler.rows() >= BATCH_ROWS { self.remember_taken() } else { Ok(()) }
    }

    /// Must be called after the last [`Owner::remember`], and where there is nothing to remember: everything below
    /// [`Owner::next`] is remembered now.
    ///
    /// # Errors
    /// When what was taken in last cannot be evaluated.
    pub fn end_remembering(&mut self) -> Result<(), SpeedError> {
        self.remember_taken()?;
        self.past = Past::Remembered;
        Ok(())
    }

    fn remember_taken(&mut self) -> Result<(), SpeedError> {
        self.assembler.take_rejected();
        for placed in self.assembler.take() {
            self.operator.remember(&placed)?;
        }
        Ok(())
    }

    /// Takes an input, and returns what must be done.
    ///
    /// # Errors
    /// `Fenced` when another process has claimed the Kafka partition, `Overtaken` when a start was announced inside what
    /// an epoch's rows hold, `Evaluate` when readings cannot be evaluated. The owner must be dropped then.
    #[inline]
    pub fn step(&mut self, input: Input<'_>) -> Result<Vec<Effect>, SpeedError> {
        let mut effects = Vec::new();
        match input {
            Input::Message { offset, ingest_time, payload } => {
                self.reach(offset, &mut effects)?;
                self.take_in(offset, ingest_time, payload);
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

    #[inline]
    fn take_in(&mut self, offset: Offset, ingest_time: Micros, payload: &[u8]) {
        self.newest_ingest_time = self.newest_ingest_time.max(Some(ingest_time));
        self.assembler.push(payload, offset, ingest_time);
    }

    /// Moves the position over offsets that hold nothing to evaluate.
    fn pass(&mut self, next: Offset, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        self.reach(next, effects)?;
        self.process()?;
        self.position = self.position.max(next);
        Ok(())
    }

    /// Starts every epoch that was announced at or below an offset, before that offset is taken in.
    #[inline]
    fn reach(&mut self, offset: Offset, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        while let Some(cut) = self.next_cut().filter(|cut| offset >= *cut) {
            self.process()?;
            self.position = cut;
            self.start_epoch(None, effects)?;
        }
        Ok(())
    }

    /// Where the open epoch must end, if that is announced.
    #[inline]
    fn next_cut(&self) -> Option<Offset> {
        self.control.next_start_after(self.epoch)
    }

    /// Evaluates the messages in the assembler.
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
        let may_start = self.position > self.epoch && Some(self.position) >= self.rows_through;
        let is_full = self.operator.windows() >= WINDOWS_PER_EPOCH;
        if may_start && (due == Due::Epoch || is_full) {
            self.start_epoch(None, effects)
        } else {
            self.flush(effects)
        }
    }

    fn on_control(
        &mut self,
        offset: Offset,
        record: &ControlRecord,
        effects: &mut Vec<Effect>,
    ) -> Result<(), SpeedError> {
        let kafka_partition = self.kafka_partition;
        // The start that the record announces may lie among the messages in the assembler.
        self.process()?;
        if matches!(record, ControlRecord::Claim { .. }) && offset > self.generation.claim() {
            return Err(SpeedError::Fenced { kafka_partition });
        }
        self.control.apply(offset, record);
        self.next_control = offset.next();
        match record {
            ControlRecord::Claim { .. } => {}
            ControlRecord::Epoch { generation, start, announced_at, .. } => {
                // An announcement with a time is written after the beginning of the epoch; another process writes its
                // marker to the realtime-views topic after its claim. So the epoch has begun before any newer marker.
                if *generation == Some(self.generation) && announced_at.is_some() {
                    self.unconfirmed.remove(start);
                }
                let first = self.begun.first().copied().max(self.control.horizon).unwrap_or(Offset::START);
                if let Some(found) = straddled(&self.control, &self.begun, first..self.rows_end()) {
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

    /// The readings offset that rows reach to: those of this owner, and those of the previous owner's incomplete flush.
    fn rows_end(&self) -> Offset {
        self.rows_through.map_or(self.position, |through| through.max(self.position))
    }

    /// Answers a request for a cut at once: with the open epoch if that is new enough, with a new epoch if the owner has
    /// read so far, else with the start that it will make when it gets there.
    fn answer(&mut self, asked: CutRequested, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        let CutRequested { request, through } = asked;
        let start = self.rows_end().max(through);
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
            effects.push(Effect::Append(self.rows_header(FlushRecord::Partial), Some(batch)));
        }
        effects.push(Effect::Append(self.rows_header(FlushRecord::Last), last));
        self.flushed = self.position;
        self.tally.rows += changed as u64;
        self.tally.failures.merge(&self.operator.take_failures());
        if let Some(newest) = self.newest_ingest_time {
            let duplicates = self.operator.duplicates();
            duplicates.forget(newest, self.control.horizon);
            self.tally.forgotten_early += duplicates.take_forgotten_early();
        }
        Ok(())
    }

    fn rows_header(&self, record: FlushRecord) -> Header {
        Header::Rows {
            generation: self.generation,
            epoch: self.epoch,
            through: self.position,
            complete: record == FlushRecord::Last,
            newest_event_time: self.operator.newest_event_time(),
        }
    }

    /// Ends the open epoch at the position, and starts and announces the next.
    fn start_epoch(&mut self, answers: Option<Offset>, effects: &mut Vec<Effect>) -> Result<(), SpeedError> {
        self.flush(effects)?;
        self.epoch = self.position;
        self.operator.start_epoch();
        self.begin(Beginning::Continue, effects);
        self.announce(self.epoch, answers, effects);
        self.tally.epochs += 1;
        Ok(())
    }

    fn begin(&mut self, beginning: Beginning, effects: &mut Vec<Effect>) {
        self.begun.insert(self.epoch);
        if !self.first_record.contains_key(&self.epoch) {
            self.unconfirmed.insert(self.epoch);
        }
        let header = Header::Begin {
            generation: self.generation,
            epoch: self.epoch,
            definitions: self.operator.definitions(),
            reset: beginning == Beginning::Rebuild,
        };
        effects.push(Effect::Append(header, None));
    }

    fn announce(&mut self, start: Offset, answers: Option<Offset>, effects: &mut Vec<Effect>) {
        // What is announced must not be older than any reading below the start: the next owner would not remember them.
        // Records without a timestamp are from 1970.
        let is_known = start <= self.position && self.past == Past::Remembered;
        let known = self.newest_ingest_time.filter(|at| is_known && *at > Micros::EPOCH);
        self.control.expect_start(start, known);
        let generation = Some(self.generation);
        effects.push(Effect::Announce(ControlRecord::Epoch {
            generation,
            start,
            announced_at: known,
            answers,
        }));
    }

    /// Deletes what is below the horizon and outside the duplicate window.
    fn trim(&mut self, effects: &mut Vec<Effect>) {
        let Some(horizon) = self.control.horizon else { return };
        // The marker of a newer owner must stay: without it, its readers would admit what this owner has written since.
        if let Some((epoch, first)) = self.first_record.range(horizon..).next()
            && !self.unconfirmed.contains(epoch)
        {
            effects.push(Effect::Trim { topic: REALTIME_VIEWS, before: *first });
        }
        self.first_record = self.first_record.split_off(&horizon);
        self.begun = self.begun.split_off(&horizon);
        self.unconfirmed = self.unconfirmed.split_off(&horizon);
        if let Some(floor) = self.remembers_from() {
            // An owner that is behind the horizon still has to read from its position on.
            effects.push(Effect::Trim { topic: READINGS, before: floor.min(self.position) });
            if let Some(before) = self.control.deletable_before(floor) {
                effects.push(Effect::Trim { topic: CONTROL, before });
            }
            self.control.starts = self.control.starts.split_off(&floor);
        }
    }

    /// The next readings offset to take in.
    pub fn next(&self) -> Offset {
        self.assembler.next_offset().map_or(self.position, |next| self.position.max(next))
    }

    /// The next offset of the control topic to read.
    pub fn next_control(&self) -> Offset {
        self.next_control
    }

    /// The generation: the offset of this owner's claim in the control topic.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The first readings offset of the open epoch.
    pub fn epoch(&self) -> Offset {
        self.epoch
    }

    /// The newest horizon in the control topic.
    pub fn horizon(&self) -> Option<Offset> {
        self.control.horizon
    }

    /// How many identities are remembered to detect duplicates.
    pub fn remembered(&self) -> usize {
        self.operator.remembered()
    }

    /// The newest event time of all readings.
    pub fn newest_event_time(&self) -> Option<Micros> {
        self.operator.newest_event_time()
    }

    /// What was done since the tally was last taken.
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }
}

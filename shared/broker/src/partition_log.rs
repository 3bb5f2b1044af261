//! One Kafka partition on disk: an append-only run of record batches, cut into segments.
//!
//! # Stability contract
//! A partition is a directory. `NNNNNNNNNNNNNNNNNNNN.log` holds record batches (magic 2) as they go over the wire, the
//! first at the offset of its name, without gaps to the next file. `NNNNNNNNNNNNNNNNNNNN.producers` (JSON) holds the
//! producer numbering at the start of that file. `low` holds the low watermark in decimal. Both are small files as in
//! [`crate::storage`]. `NNNNNNNNNNNNNNNNNNNN.cut-at-POSITION` keeps what was cut from a file. A data directory written
//! by one version is read by the next.
//!
//! # What is durable when
//! A write can be read once a sync has brought it to the disk, and is acknowledged then: with no replica anywhere, the
//! disk is what Kafka's high watermark stands for. Writes that wait for the disk at the same time share one sync.
//!
//! After a failure of the disk nobody knows what it holds, so the partition takes no more writes until it is opened
//! again; reads go on. A disk that is full is no failure: what was not acknowledged is cut off, and writes are taken
//! again once there is room.
//!
//! # Locks
//! `writer`, then `syncing`, then `view`. The first two are held during input and output, so no async thread may take
//! them: [`PartitionLog::range`] and [`PartitionLog::trouble`] take only `view`, which is never held meanwhile.
//!
//! This file does not know the Kafka protocol beyond the batch header, and no network.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tracing::error;

use crate::OffsetRange;
use crate::disk::{Open, is_shortage};
use crate::record_batch::{self, RecordBatch};
use crate::recovery::{self, ActiveSegment, ClosedSegment, Recovered};
use crate::segment::{self, Check, Mark, ReadFailure};
use crate::sequences::{Sequences, Verdict};
use crate::storage::{Damage, Storage};

/// A Kafka partition. Shared by all connections.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    storage: Arc<Storage>,
    directory: PathBuf,
    segment_bytes: u64,
    /// Held while something is written, closed or trimmed.
    writer: Mutex<Writer>,
    /// Held by the one that brings data to the disk for all that wait.
    syncing: Mutex<()>,
    /// What the log is now.
    view: Mutex<View>,
}

#[derive(Debug)]
struct Writer {
    sequences: Sequences,
    /// A roll has begun and was held up by a shortage: nothing more goes into the active segment, since the next one
    /// may exist already.
    rolling: bool,
}

#[derive(Debug)]
struct View {
    low: i64,
    /// Where what is on the disk ends, and what can be read.
    high: i64,
    /// Where what was written ends.
    end: i64,
    /// How often what was written was cut back to what is on the disk.
    cuts: u64,
    /// Closed segments, oldest first.
    closed: VecDeque<Arc<ClosedSegment>>,
    active: ActiveSegment,
    condition: Condition,
    /// What a read found that is not as it was written.
    damage: Option<String>,
}

/// Whether writes are taken.
#[derive(Clone, Debug)]
enum Condition {
    /// They are.
    Sound,
    /// A sync found no room: what is not on the disk must be cut off before the next write.
    CutBack,
    /// They are not, until the log is opened again. Says why.
    Stopped(String),
}

/// What was written, to be brought to the disk by [`PartitionLog::sync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "only what is on the disk may be acknowledged"]
pub(crate) struct Written {
    /// The offset of the first record.
    pub(crate) base_offset: i64,
    end: i64,
    cuts: u64,
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// The bytes are no sound record batches.
    #[error("these are no sound record batches")]
    Malformed,
    /// A batch is larger than allowed.
    #[error("a record batch is larger than the max.message.bytes of its topic")]
    TooLarge,
    /// Transactions are not kept here.
    #[error("the embedded broker has no transactions")]
    Transactional,
    /// A numbered batch before it is missing.
    #[error("a record batch of this producer before this one is missing")]
    OutOfOrder,
    /// The producer has a successor.
    #[error("a producer with a newer epoch has taken over")]
    Fenced,
    /// There is no room now; a later try may succeed.
    #[error("the disk of the embedded broker takes nothing now: {0}; free some of it")]
    Full(io::Error),
    /// The Kafka partition takes no more writes until the broker is started again.
    #[error("the Kafka partition takes no more writes until the embedded broker is started again: {0}")]
    Stopped(String),
}

/// Why nothing can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The offset is not in the log.
    #[error("the offset is not in the log")]
    OutOfRange,
    /// What is there is not what was written.
    #[error("{0}")]
    Damaged(Damage),
    /// The disk does not give it.
    #[error("the disk does not give it: {0}")]
    Io(io::Error),
}

/// Batches that were read, and the bounds of the log at that moment.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) records: Bytes,
    pub(crate) range: OffsetRange,
}

impl PartitionLog {
    /// Creates an empty Kafka partition in a new directory. Segments are closed at `segment_bytes`. The name of the
    /// directory itself is for the caller to sync.
    pub(crate) fn create(storage: &Arc<Storage>, directory: PathBuf, segment_bytes: u64) -> io::Result<Self> {
        storage.disk().create_directory(&directory)?;
        let active = ActiveSegment::create(storage, &directory, 0)?;
        let empty =
            Recovered { low: 0, high: 0, closed: VecDeque::new(), active, sequences: Sequences::default() };
        Ok(Self::new(storage, directory, segment_bytes, empty))
    }

    /// Opens the Kafka partition in `directory`. Fails with [`Damage`] where acknowledged records are not as they were
    /// written.
    pub(crate) fn open(storage: &Arc<Storage>, directory: PathBuf, segment_bytes: u64) -> io::Result<Self> {
        let recovered = recovery::open(storage, &directory)?;
        Ok(Self::new(storage, directory, segment_bytes, recovered))
    }

    fn new(storage: &Arc<Storage>, directory: PathBuf, segment_bytes: u64, recovered: Recovered) -> Self {
        let Recovered { low, high, closed, active, sequences } = recovered;
        let (condition, damage) = (Condition::Sound, None);
        let view = View { low, high, end: high, cuts: 0, closed, active, condition, damage };
        Self {
            storage: Arc::clone(storage),
            directory,
            segment_bytes,
            writer: Mutex::new(Writer { sequences, rolling: false }),
            syncing: Mutex::default(),
            view: Mutex::new(view),
        }
    }

    /// The bounds of the log now. Never waits for the disk.
    pub(crate) fn range(&self) -> OffsetRange {
        self.view().range()
    }

    /// What is wrong with this log, if anything is. Never waits for the disk.
    pub(crate) fn trouble(&self) -> Option<String> {
        let view = self.view();
        match &view.condition {
            Condition::Stopped(reason) => Some(format!("no more writes until a restart: {reason}")),
            Condition::Sound | Condition::CutBack => view.damage.clone(),
        }
    }

    /// Writes the batches in `records` and brings them to the disk; returns the offset of the first record.
    pub(crate) fn append(&self, records: &[u8], max_bytes: usize) -> Result<i64, AppendError> {
        let written = self.write(records, max_bytes)?;
        self.sync(&written)?;
        Ok(written.base_offset)
    }

    /// Writes the batches in `records` at the end of the log. A batch that is here already is not written again; its old
    /// offset counts. Nothing may be acknowledged before [`Self::sync`].
    pub(crate) fn write(&self, records: &[u8], max_bytes: usize) -> Result<Written, AppendError> {
        let batches = split(records, max_bytes)?;
        let mut writer = self.writer();
        let _room = self.storage.room().map_err(AppendError::Full)?;
        self.prepare(&mut writer)?;
        let mut first = None;
        for (batch, bytes) in batches {
            let verdict =
                batch.sequence.map_or(Verdict::Append, |sequence| writer.sequences.judge(&sequence));
            let base_offset = match verdict {
                Verdict::Append => self.write_batch(&mut writer, &batch, bytes)?,
                Verdict::Repeated { base_offset } => base_offset,
                Verdict::OutOfOrder => return Err(AppendError::OutOfOrder),
                Verdict::Fenced => return Err(AppendError::Fenced),
            };
            first.get_or_insert(base_offset);
        }
        let base_offset = first.ok_or(AppendError::Malformed)?;
        let view = self.view();
        Ok(Written { base_offset, end: view.end, cuts: view.cuts })
    }

    /// Brings what was written to the disk, together with what others have written since; from then on it can be read.
    pub(crate) fn sync(&self, written: &Written) -> Result<(), AppendError> {
        let synced = {
            // Who waits here finds its records on the disk already, most of the time.
            let _turn = self.syncing();
            let (cuts, high) = {
                let view = self.view();
                (view.cuts, view.high)
            };
            if cuts != written.cuts {
                return Err(cut_off());
            }
            if high >= written.end {
                return Ok(());
            }
            self.sync_active()
        };
        if synced.is_err() {
            self.drop_unsynced(&self.writer());
        }
        synced
    }

    /// Reads whole batches from the one that holds `offset` on, within one segment: as many as fit into `max_bytes`,
    /// but at least one; nothing at the end of the log. What comes back matches its checksums.
    pub(crate) fn read(&self, offset: i64, max_bytes: usize) -> Result<Fetched, ReadError> {
        let view = self.view();
        let range = view.range();
        if offset < range.low || offset > range.high {
            return Err(ReadError::OutOfRange);
        }
        if offset == range.high {
            return Ok(Fetched { records: Bytes::new(), range });
        }
        let after = view.closed.partition_point(|closed| closed.base_offset <= offset);
        let (base_offset, records) = if offset >= view.active.base_offset {
            let active = &view.active;
            let (file, base_offset, length) =
                (Arc::clone(&active.file), active.base_offset, active.synced_length);
            let from = active.index.before(offset).unwrap_or(Mark::start(base_offset));
            drop(view);
            (base_offset, segment::read(&*file, (from, length), offset, max_bytes))
        } else {
            let closed = after.checked_sub(1).and_then(|at| view.closed.get(at)).map(Arc::clone);
            drop(view);
            let closed = closed.ok_or(ReadError::OutOfRange)?;
            (closed.base_offset, self.read_closed(&closed, offset, max_bytes))
        };
        match records {
            Ok(records) => Ok(Fetched { records, range }),
            // It was deleted since.
            Err(_) if offset < self.range().low => Err(ReadError::OutOfRange),
            Err(ReadFailure::Io(cause)) => {
                if !is_shortage(&cause) {
                    self.note_damage(format!("offset {offset} cannot be read: {cause}"));
                }
                Err(ReadError::Io(cause))
            }
            Err(ReadFailure::Damaged(at, fault)) => {
                let file = segment::path_of(&self.directory, base_offset, "log");
                let damage = Damage { file, at: Some(at), what: fault.to_owned() };
                self.note_damage(damage.to_string());
                Err(ReadError::Damaged(damage))
            }
        }
    }

    /// Makes `before` the low watermark and deletes the segments below it, also where the disk is full. Returns the low
    /// watermark, or `None` if `before` lies past the end.
    pub(crate) fn delete_before(&self, before: i64) -> io::Result<Option<i64>> {
        let mut writer = self.writer();
        let OffsetRange { low, high } = self.range();
        if before > high {
            return Ok(None);
        }
        if before <= low {
            return Ok(Some(low));
        }
        match self.storage.freeing(|| self.trim(&mut writer, before)) {
            Ok(()) => Ok(Some(before)),
            Err(error) => {
                if !is_shortage(&error) {
                    self.stop("trim it", &error);
                }
                Err(error)
            }
        }
    }

    /// The first batch that may hold a record of `timestamp` (milliseconds since 1970) or later: its offset and its
    /// own latest time. `None` if there is none. Looks at every batch from the low watermark on.
    pub(crate) fn find_time(&self, timestamp: i64) -> Result<Option<(i64, i64)>, ReadError> {
        let mut offset = self.range().low;
        loop {
            let fetched = match self.read(offset, 1024 * 1024) {
                Ok(fetched) => fetched,
                Err(ReadError::OutOfRange) if offset < self.range().low => {
                    offset = self.range().low;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if fetched.records.is_empty() {
                return Ok(None);
            }
            let mut at = 0;
            while let Ok(batch) = RecordBatch::read_header(&fetched.records[at..]) {
                if batch.max_timestamp >= timestamp {
                    return Ok(Some((batch.base_offset.max(offset), batch.max_timestamp)));
                }
                offset = batch.end_offset();
                at += batch.size;
            }
        }
    }

    /// Takes no more writes, for this reason, and waits for the one under way.
    pub(crate) fn close(&self, reason: &str) {
        self.view().condition = Condition::Stopped(reason.to_owned());
        drop(self.writer());
    }

    /// Makes the log ready for a write, or says why it takes none.
    fn prepare(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let condition = self.view().condition.clone();
        match condition {
            Condition::Sound => Ok(()),
            Condition::Stopped(reason) => Err(AppendError::Stopped(reason)),
            Condition::CutBack => self.cut_back(writer),
        }
    }

    fn write_batch(
        &self,
        writer: &mut Writer,
        batch: &RecordBatch,
        bytes: &[u8],
    ) -> Result<i64, AppendError> {
        let length = self.view().active.length;
        if writer.rolling || (length > 0 && length + batch.size as u64 > self.segment_bytes) {
            self.roll(writer)?;
        }
        let (file, at) = {
            let view = self.view();
            (Arc::clone(&view.active.file), Mark { offset: view.end, position: view.active.length })
        };
        let mut bytes = bytes.to_vec();
        record_batch::place(&mut bytes, at.offset);
        if let Err(cause) = file.write_all_at(&bytes, at.position) {
            // A part of it may have been written.
            return Err(match self.failed("write to it", cause) {
                AppendError::Full(cause) => match file.set_length(at.position) {
                    Ok(()) => AppendError::Full(cause),
                    Err(cause) => self.stop("cut off what did not fit", &cause),
                },
                stopped => stopped,
            });
        }
        let mut view = self.view();
        view.active.index.note(at);
        view.active.length += bytes.len() as u64;
        view.end = at.offset + batch.offsets;
        drop(view);
        if let Some(sequence) = &batch.sequence {
            writer.sequences.remember(sequence, at.offset);
        }
        Ok(at.offset)
    }

    /// Brings the active segment to the disk. The caller holds `syncing`.
    fn sync_active(&self) -> Result<(), AppendError> {
        let (file, base_offset, end, length) = {
            let view = self.view();
            match &view.condition {
                Condition::Sound => {}
                Condition::CutBack => return Err(cut_off()),
                Condition::Stopped(reason) => return Err(AppendError::Stopped(reason.clone())),
            }
            let active = &view.active;
            (Arc::clone(&active.file), active.base_offset, view.end, active.length)
        };
        match file.sync() {
            Ok(()) => {
                let mut view = self.view();
                debug_assert_eq!(view.active.base_offset, base_offset, "it is closed under the same lock");
                view.high = end;
                view.active.synced_length = length;
                Ok(())
            }
            Err(cause) => {
                let refusal = self.failed("bring it to the disk", cause);
                let mut view = self.view();
                if matches!(view.condition, Condition::Sound) {
                    view.condition = Condition::CutBack;
                }
                Err(refusal)
            }
        }
    }

    /// Cuts off what is not on the disk, after a sync that failed: the system shows it, also to the next process, which
    /// would take it for kept.
    fn drop_unsynced(&self, _writer: &Writer) {
        let (file, kept) = {
            let view = self.view();
            if matches!(view.condition, Condition::Sound) {
                return;
            }
            (Arc::clone(&view.active.file), view.active.synced_length)
        };
        // Where this fails as well, the next write or a loss of power cuts it off.
        let _ = file.set_length(kept);
    }

    /// Cuts off what is not on the disk, after a sync that found no room for it.
    fn cut_back(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let _turn = self.syncing();
        let (file, base_offset, kept) = {
            let active = &self.view().active;
            (Arc::clone(&active.file), active.base_offset, active.synced_length)
        };
        let sequences = file.set_length(kept).and_then(|()| {
            let mut sequences = recovery::read_sequences(&self.storage, &self.directory, base_offset)?;
            segment::scan(&*file, base_offset, kept, Check::Header, |batch, at| {
                if let Some(sequence) = &batch.sequence {
                    sequences.remember(sequence, at.offset);
                }
            })?;
            Ok(sequences)
        });
        writer.sequences =
            sequences.map_err(|cause| self.failed("cut off what is not on the disk", cause))?;
        let mut view = self.view();
        view.end = view.high;
        view.cuts += 1;
        view.active.length = kept;
        view.active.index.cut(kept);
        view.condition = Condition::Sound;
        Ok(())
    }

    /// Closes the active segment, which brings it to the disk, and starts the next one where it ends.
    fn roll(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let _turn = self.syncing();
        // Also where all records are on the disk: a length that a failed write was cut back to may not be.
        self.sync_active().inspect_err(|_| self.drop_unsynced(writer))?;
        writer.rolling = true;
        let end = self.view().end;
        recovery::write_sequences(&self.storage, &self.directory, end, &writer.sequences)
            .map_err(|cause| self.failed("note its producers", cause))?;
        let next = ActiveSegment::create(&self.storage, &self.directory, end)
            .map_err(|cause| self.failed("start a new segment", cause))?;
        let mut view = self.view();
        let last = std::mem::replace(&mut view.active, next);
        view.closed.push_back(Arc::new(ClosedSegment {
            base_offset: last.base_offset,
            end_offset: end,
            length: last.length,
            index: last.index,
        }));
        writer.rolling = false;
        Ok(())
    }

    fn trim(&self, writer: &mut Writer, before: i64) -> io::Result<()> {
        // First: a segment that a crash brings back is below it, and is removed on opening.
        self.storage.replace(&recovery::low_path(&self.directory), before.to_string().as_bytes())?;
        let empty = {
            let mut view = self.view();
            view.low = before;
            before == view.end && view.active.length > 0 && matches!(view.condition, Condition::Sound)
        };
        if empty {
            // Nothing is left to be read, so the disk gets everything back, however little it was.
            self.roll(writer).map_err(|refusal| match refusal {
                AppendError::Full(cause) => cause,
                refusal => io::Error::other(refusal),
            })?;
        }
        loop {
            let oldest =
                self.view().closed.front().filter(|oldest| oldest.end_offset <= before).map(Arc::clone);
            let Some(oldest) = oldest else { return Ok(()) };
            recovery::remove_segment(&self.storage, &self.directory, oldest.base_offset)?;
            self.view().closed.pop_front();
        }
    }

    fn read_closed(
        &self,
        closed: &ClosedSegment,
        offset: i64,
        max_bytes: usize,
    ) -> Result<Bytes, ReadFailure> {
        let path = segment::path_of(&self.directory, closed.base_offset, "log");
        let file = self.storage.disk().open(&path, Open::Read)?;
        let from = closed.index.before(offset).unwrap_or(Mark::start(closed.base_offset));
        segment::read(&*file, (from, closed.length), offset, max_bytes)
    }

    /// What a failure of the disk means for the write: nothing more than that, where only room is missing.
    fn failed(&self, what: &str, cause: io::Error) -> AppendError {
        if self.storage.note_shortage(&cause) { AppendError::Full(cause) } else { self.stop(what, &cause) }
    }

    /// Takes no more writes until the log is opened again.
    fn stop(&self, what: &str, cause: &io::Error) -> AppendError {
        let reason = format!("cannot {what}: {cause}");
        let mut view = self.view();
        if let Condition::Stopped(first) = &view.condition {
            return AppendError::Stopped(first.clone());
        }
        view.condition = Condition::Stopped(reason.clone());
        drop(view);
        error!(
            directory = %self.directory.display(), reason,
            "embedded broker: a Kafka partition takes no more writes; check the disk, then start again"
        );
        AppendError::Stopped(reason)
    }

    fn note_damage(&self, damage: String) {
        let mut view = self.view();
        if view.damage.as_ref() != Some(&damage) {
            view.damage = Some(damage.clone());
            drop(view);
            error!(directory = %self.directory.display(), damage, "embedded broker: acknowledged records cannot be read");
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no thread panics while it holds the lock")
    }

    fn syncing(&self) -> MutexGuard<'_, ()> {
        self.syncing.lock().expect("no thread panics while it holds the lock")
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().expect("no thread panics while it holds the lock")
    }
}

impl View {
    fn range(&self) -> OffsetRange {
        OffsetRange { low: self.low, high: self.high }
    }
}

/// The batches in `records`, each checked.
fn split(records: &[u8], max_bytes: usize) -> Result<Vec<(RecordBatch, &[u8])>, AppendError> {
    let mut batches = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let batch = RecordBatch::check(rest).map_err(|_| AppendError::Malformed)?;
        if batch.records == 0 {
            return Err(AppendError::Malformed);
        }
        if batch.is_transactional() {
            return Err(AppendError::Transactional);
        }
        if batch.size > max_bytes {
            return Err(AppendError::TooLarge);
        }
        let (bytes, behind) = rest.split_at(batch.size);
        batches.push((batch, bytes));
        rest = behind;
    }
    Ok(batches)
}

/// The answer to who waited for a sync that found no room.
fn cut_off() -> AppendError {
    AppendError::Full(io::Error::from(io::ErrorKind::StorageFull))
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
pub(crate) mod tests;

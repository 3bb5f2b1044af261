//! Appending to a Kafka partition: batches are written, then synced together; full segments are closed.

use std::io;
use std::sync::Arc;

use wye_domain::place::Offset;

use super::{Condition, PartitionLog};
use crate::record_batch::{self, RecordBatch};
use crate::recovery::{self, ActiveSegment, ClosedSegment};
use crate::segment::{self, Check, Mark};
use crate::sequences::{Sequences, Verdict};

/// The state that only writes use.
#[derive(Debug)]
pub(super) struct Writer {
    sequences: Sequences,
    /// A roll has begun and was interrupted by a shortage: nothing more goes into the active segment, since the next one
    /// may exist already.
    rolling: bool,
}

impl Writer {
    pub(super) fn new(sequences: Sequences) -> Self {
        Self { sequences, rolling: false }
    }
}

/// What was written, for [`PartitionLog::sync`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "only what is synced may be acknowledged"]
pub(crate) struct Written {
    /// The offset of the first record.
    pub(crate) base_offset: Offset,
    end: Offset,
    cuts: u64,
}

/// Why a batch was not appended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    /// The bytes are not valid record batches.
    #[error("these are not valid record batches")]
    Malformed,
    /// A batch is larger than allowed.
    #[error("a record batch is larger than the max.message.bytes of its topic")]
    TooLarge,
    /// A batch belongs to a transaction.
    #[error("the embedded broker has no transactions")]
    Transactional,
    /// A batch before it, by its sequence number, is missing.
    #[error("a record batch of this producer before this one is missing")]
    OutOfOrder,
    /// The producer has an old epoch.
    #[error("a producer with a newer epoch has replaced this one")]
    Fenced,
    /// The disk is full, or another shortage; a later attempt may succeed.
    #[error("the embedded broker cannot write to its disk now: {0}; delete files on it")]
    Full(io::Error),
    /// The Kafka partition accepts no more writes until the broker is restarted.
    #[error("the Kafka partition accepts no more writes until the embedded broker is restarted: {0}")]
    Stopped(String),
}

impl PartitionLog {
    /// Writes the batches in `records` and syncs them; returns the offset of the first record.
    pub(crate) fn append(&self, records: &[u8], max_bytes: usize) -> Result<Offset, AppendError> {
        let written = self.write(records, max_bytes)?;
        self.sync(&written)?;
        Ok(written.base_offset)
    }

    /// Writes the batches in `records` at the end of the log. A repeated batch is not written again; it has its first
    /// offset. Nothing may be acknowledged before [`Self::sync`].
    pub(crate) fn write(&self, records: &[u8], max_bytes: usize) -> Result<Written, AppendError> {
        let batches = split(records, max_bytes)?;
        let mut writer = self.writer();
        let _writing = self.storage.begin_write().map_err(AppendError::Full)?;
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

    /// Syncs what was written, together with all that was written since; after that it can be read.
    pub(crate) fn sync(&self, written: &Written) -> Result<(), AppendError> {
        let synced = {
            // A thread that waited here finds its records synced already, most of the time.
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

    /// Makes the log ready for a write, or says why it accepts none.
    fn prepare(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let condition = self.view().condition.clone();
        match condition {
            Condition::Writable => Ok(()),
            Condition::Stopped(reason) => Err(AppendError::Stopped(reason)),
            Condition::CutBack => self.cut_back(writer),
        }
    }

    fn write_batch(
        &self,
        writer: &mut Writer,
        batch: &RecordBatch,
        bytes: &[u8],
    ) -> Result<Offset, AppendError> {
        let length = self.view().active.length;
        if writer.rolling || (length > 0 && length + batch.size as u64 > self.segment_bytes) {
            self.roll(writer)?;
        }
        let (file, at) = {
            let view = self.view();
            (Arc::clone(&view.active.file), Mark { offset: view.end, position: view.active.length })
        };
        let mut bytes = bytes.to_vec();
        record_batch::set_base_offset(&mut bytes, at.offset);
        if let Err(cause) = file.write_all_at(&bytes, at.position) {
            // A part of it may have been written.
            return Err(match self.failed("write to it", cause) {
                AppendError::Full(cause) => match file.set_length(at.position) {
                    Ok(()) => AppendError::Full(cause),
                    Err(cause) => self.stop("cut off an incomplete write", &cause),
                },
                stopped => stopped,
            });
        }
        let mut view = self.view();
        view.active.index.add(at);
        view.active.length += bytes.len() as u64;
        view.end = at.after(batch).offset;
        drop(view);
        if let Some(sequence) = &batch.sequence {
            writer.sequences.remember(sequence, at.offset);
        }
        Ok(at.offset)
    }

    /// Syncs the active segment. The caller holds `syncing`.
    fn sync_active(&self) -> Result<(), AppendError> {
        let (file, base_offset, end, length) = {
            let view = self.view();
            match &view.condition {
                Condition::Writable => {}
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
                let refusal = self.failed("sync it", cause);
                let mut view = self.view();
                if matches!(view.condition, Condition::Writable) {
                    view.condition = Condition::CutBack;
                }
                Err(refusal)
            }
        }
    }

    /// Cuts off the unsynced part after a sync that failed. The system still shows it to readers, and the next process
    /// would take it for synced.
    fn drop_unsynced(&self, _writer: &Writer) {
        let (file, kept) = {
            let view = self.view();
            if matches!(view.condition, Condition::Writable) {
                return;
            }
            (Arc::clone(&view.active.file), view.active.synced_length)
        };
        // If this fails as well, the next write or a loss of power cuts it off.
        let _ = file.set_length(kept);
    }

    /// Cuts off the unsynced part, after a sync that failed because the disk was full.
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
        writer.sequences = sequences.map_err(|cause| self.failed("cut off what is not synced", cause))?;
        let mut view = self.view();
        view.end = view.high;
        view.cuts += 1;
        view.active.length = kept;
        view.active.index.truncate(kept);
        view.condition = Condition::Writable;
        Ok(())
    }

    /// Syncs and closes the active segment, and starts the next one at its end.
    pub(super) fn roll(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let _turn = self.syncing();
        // Needed even if all records are synced: the length to which a failed write was cut back may not be.
        self.sync_active().inspect_err(|_| self.drop_unsynced(writer))?;
        writer.rolling = true;
        let end = self.view().end;
        recovery::write_sequences(&self.storage, &self.directory, end, &writer.sequences)
            .map_err(|cause| self.failed("store the state of its producers", cause))?;
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

    /// The outcome of a write after an error of the disk: a shortage only refuses the write, any other error stops the
    /// log.
    fn failed(&self, what: &str, cause: io::Error) -> AppendError {
        if self.storage.note_shortage(&cause) { AppendError::Full(cause) } else { self.stop(what, &cause) }
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

/// The error of a write whose records were cut off because the disk was full.
fn cut_off() -> AppendError {
    AppendError::Full(io::Error::from(io::ErrorKind::StorageFull))
}

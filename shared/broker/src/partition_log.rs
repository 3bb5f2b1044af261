//! One Kafka partition on disk: an append-only run of record batches, cut into segments.
//!
//! # Stability contract
//! A partition is a directory. `NNNNNNNNNNNNNNNNNNNN.log` holds record batches (magic 2) as they go over the wire, the
//! first at the offset of its name, without gaps to the next file. `NNNNNNNNNNNNNNNNNNNN.producers` (JSON) holds the
//! producer numbering at the start of that file. `low` holds the low watermark in decimal. A data directory written by
//! one version is read by the next.
//!
//! # What is durable when
//! An append is on the disk when it returns, so it survives a loss of power, and nobody reads it before: with no
//! replica anywhere, the disk is what Kafka's high watermark stands for. Appends that wait for the disk at the same time
//! share one sync. On opening, the last segment is checked batch by batch, and cut before the first damaged one.
//!
//! This file does not know the Kafka protocol beyond the batch header, and no network.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use tracing::warn;

use crate::OffsetRange;
use crate::record_batch::{self, RecordBatch};
use crate::segment::{self, Check, Index};
use crate::sequences::{Sequences, Verdict};

/// A Kafka partition. Shared by all connections.
#[derive(Debug)]
pub(crate) struct PartitionLog {
    directory: PathBuf,
    segment_bytes: u64,
    state: Mutex<State>,
    /// Held by the one append that brings data to the disk for all that wait.
    syncing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    low: i64,
    /// Where what is on the disk ends, and what can be read.
    high: i64,
    /// Where what was written ends.
    end: i64,
    /// The disk has failed to keep what it was given: nobody knows what it holds, until it is looked at anew.
    failed: bool,
    /// Closed segments, oldest first.
    closed: VecDeque<Arc<ClosedSegment>>,
    active: ActiveSegment,
    sequences: Sequences,
}

#[derive(Debug)]
struct ClosedSegment {
    base_offset: i64,
    end_offset: i64,
    length: u64,
    /// Made by the first read.
    index: OnceLock<Index>,
}

#[derive(Debug)]
struct ActiveSegment {
    base_offset: i64,
    file: Arc<File>,
    length: u64,
    /// How much of that is on the disk.
    synced_length: u64,
    index: Index,
}

/// Why a batch was not appended.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// The bytes are no sound record batches.
    Malformed,
    /// A batch is larger than allowed.
    TooLarge,
    /// Transactions are not kept here.
    Transactional,
    /// A numbered batch before it is missing.
    OutOfOrder,
    /// The producer has a successor.
    Fenced,
    /// The disk does not take it.
    Io(io::Error),
}

/// Why nothing can be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The offset is not in the log.
    OutOfRange,
    /// The disk does not give it, or gives nonsense.
    Io(io::Error),
}

/// Batches that were read, and the bounds of the log at that moment.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) records: Bytes,
    pub(crate) range: OffsetRange,
}

impl PartitionLog {
    /// Opens the Kafka partition in `directory`, or starts an empty one there. Segments are closed at `segment_bytes`.
    pub(crate) fn open(directory: PathBuf, segment_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let mut bases = segment_bases(&directory)?;
        let low = read_low(&directory)?.max(bases.first().copied().unwrap_or(0));
        // A deletion that was cut off between its two steps is finished here.
        while bases.len() > 1 && bases[1] <= low {
            remove_segment(&directory, bases.remove(0))?;
        }
        let active_base = bases.pop().unwrap_or(low);
        let mut closed = VecDeque::new();
        for (at, &base_offset) in bases.iter().enumerate() {
            let end_offset = bases.get(at + 1).copied().unwrap_or(active_base);
            let length = fs::metadata(segment::path_of(&directory, base_offset, "log"))?.len();
            closed.push_back(Arc::new(ClosedSegment {
                base_offset,
                end_offset,
                length,
                index: OnceLock::new(),
            }));
        }
        let mut sequences = read_sequences(&directory, active_base)?;
        let (active, high) = recover(&directory, active_base, &mut sequences)?;
        // A low watermark past the end can only be left behind by a loss of power: nothing is there to be hidden.
        let state = State { low: low.min(high), high, end: high, failed: false, closed, active, sequences };
        sync_directory(&directory)?;
        Ok(Self { directory, segment_bytes, state: Mutex::new(state), syncing: Mutex::default() })
    }

    /// The bounds of the log now.
    pub(crate) fn range(&self) -> OffsetRange {
        let state = self.lock();
        OffsetRange { low: state.low, high: state.high }
    }

    /// Appends the batches in `records`, brings them to the disk, and returns the offset of the first record. A batch
    /// that is here already is not written again; its old offset counts.
    pub(crate) fn append(&self, records: &[u8], max_bytes: usize) -> Result<i64, AppendError> {
        let written = self.write_all(records, max_bytes);
        // Also after a refusal: a batch before the refused one may have been written.
        self.sync().map_err(AppendError::Io)?;
        written
    }

    fn write_all(&self, records: &[u8], max_bytes: usize) -> Result<i64, AppendError> {
        let mut batches = Vec::new();
        let mut at = 0;
        while at < records.len() {
            let batch = RecordBatch::check(&records[at..]).map_err(|_| AppendError::Malformed)?;
            if batch.transactional {
                return Err(AppendError::Transactional);
            }
            if batch.size > max_bytes {
                return Err(AppendError::TooLarge);
            }
            batches.push((batch, at));
            at += batch.size;
        }
        let mut state = self.lock();
        if state.failed {
            return Err(AppendError::Io(unkept()));
        }
        let mut base_offset = None;
        for (batch, at) in batches {
            let verdict = batch.sequence.map_or(Verdict::Append, |sequence| state.sequences.judge(&sequence));
            let written = match verdict {
                Verdict::Append => {
                    let bytes = &records[at..at + batch.size];
                    self.write(&mut state, &batch, bytes).map_err(AppendError::Io)?
                }
                Verdict::Repeated { base_offset } => base_offset,
                Verdict::OutOfOrder => return Err(AppendError::OutOfOrder),
                Verdict::Fenced => return Err(AppendError::Fenced),
            };
            base_offset.get_or_insert(written);
        }
        base_offset.ok_or(AppendError::Malformed)
    }

    /// Reads whole batches from the one that holds `offset` on, within one segment: as many as fit into `max_bytes`,
    /// but at least one; nothing at the end of the log.
    pub(crate) fn read(&self, offset: i64, max_bytes: usize) -> Result<Fetched, ReadError> {
        let state = self.lock();
        let range = OffsetRange { low: state.low, high: state.high };
        if offset < range.low || offset > range.high {
            return Err(ReadError::OutOfRange);
        }
        if offset == range.high {
            return Ok(Fetched { records: Bytes::new(), range });
        }
        if offset >= state.active.base_offset {
            let active = &state.active;
            let (file, length) = (Arc::clone(&active.file), active.synced_length);
            let from = active.index.position_before(offset);
            drop(state);
            let records = segment::read(&file, (from, length), offset, max_bytes).map_err(ReadError::Io)?;
            return Ok(Fetched { records, range });
        }
        let after = state.closed.partition_point(|closed| closed.base_offset <= offset);
        let closed = after.checked_sub(1).and_then(|at| state.closed.get(at)).map(Arc::clone);
        drop(state);
        let closed = closed.ok_or(ReadError::OutOfRange)?;
        match self.read_closed(&closed, offset, max_bytes) {
            Ok(records) => Ok(Fetched { records, range }),
            // It was deleted since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::OutOfRange),
            Err(error) => Err(ReadError::Io(error)),
        }
    }

    /// Makes `before` the low watermark and deletes the segments below it. Returns the low watermark, or `None` if
    /// `before` lies past the end.
    pub(crate) fn delete_before(&self, before: i64) -> io::Result<Option<i64>> {
        let mut state = self.lock();
        if before > state.high {
            return Ok(None);
        }
        if before <= state.low {
            return Ok(Some(state.low));
        }
        write_atomically(&self.directory.join("low"), before.to_string().as_bytes())?;
        state.low = before;
        if before == state.end && state.active.length > 0 {
            // Nothing is left to be read, so the disk gets everything back, however little it was.
            self.close_active(&mut state)?;
        }
        while state.closed.front().is_some_and(|oldest| oldest.end_offset <= before) {
            let base_offset = state.closed.pop_front().expect("it was just looked at").base_offset;
            remove_segment(&self.directory, base_offset)?;
        }
        Ok(Some(before))
    }

    /// The first batch that may hold a record of `timestamp` (milliseconds since 1970) or later: its offset and its
    /// own latest time. `None` if there is none. Looks at every batch header from the low watermark on.
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

    /// Brings everything written so far to the disk; from then on it can be read.
    fn sync(&self) -> io::Result<()> {
        let end = self.lock().end;
        // Who waits here finds its records on the disk already, most of the time.
        let _turn = self.syncing.lock().expect("no thread panics while it holds the lock");
        let (file, written, length) = {
            let state = self.lock();
            if state.high >= end {
                return Ok(());
            }
            if state.failed {
                return Err(unkept());
            }
            (Arc::clone(&state.active.file), state.end, state.active.length)
        };
        let synced = file.sync_data();
        let mut state = self.lock();
        if let Err(error) = synced {
            state.failed = true;
            return Err(error);
        }
        state.high = state.high.max(written);
        // The segment may have been closed meanwhile, and is on the disk then.
        if Arc::ptr_eq(&file, &state.active.file) {
            state.active.synced_length = length;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the lock")
    }

    fn write(&self, state: &mut State, batch: &RecordBatch, bytes: &[u8]) -> io::Result<i64> {
        if state.active.length > 0 && state.active.length + batch.size as u64 > self.segment_bytes {
            self.close_active(state)?;
        }
        let base_offset = state.end;
        let mut bytes = bytes.to_vec();
        record_batch::place(&mut bytes, base_offset);
        let active = &mut state.active;
        // At a place of our own counting: what a failed write left there is overwritten by the next.
        active.file.write_all_at(&bytes, active.length)?;
        active.index.note(base_offset, active.length);
        active.length += bytes.len() as u64;
        state.end = base_offset + batch.offsets;
        if let Some(sequence) = &batch.sequence {
            state.sequences.remember(sequence, base_offset);
        }
        Ok(base_offset)
    }

    /// Closes the active segment, which brings it to the disk, and starts the next one where it ends.
    fn close_active(&self, state: &mut State) -> io::Result<()> {
        let sequences = serde_json::to_vec(&state.sequences)?;
        write_atomically(&segment::path_of(&self.directory, state.end, "producers"), &sequences)?;
        // A failed write may have left something behind the end, which a reader of a closed segment would trip over.
        state.active.file.set_len(state.active.length)?;
        if let Err(error) = state.active.file.sync_data() {
            state.failed = true;
            return Err(error);
        }
        let file = create_segment(&self.directory, state.end)?;
        sync_directory(&self.directory)?;
        let next = ActiveSegment {
            base_offset: state.end,
            file: Arc::new(file),
            length: 0,
            synced_length: 0,
            index: Index::default(),
        };
        let last = std::mem::replace(&mut state.active, next);
        state.high = state.end;
        state.closed.push_back(Arc::new(ClosedSegment {
            base_offset: last.base_offset,
            end_offset: state.end,
            length: last.length,
            index: OnceLock::from(last.index),
        }));
        Ok(())
    }

    fn read_closed(&self, closed: &ClosedSegment, offset: i64, max_bytes: usize) -> io::Result<Bytes> {
        let file = File::open(segment::path_of(&self.directory, closed.base_offset, "log"))?;
        let index = match closed.index.get() {
            Some(index) => index,
            None => {
                let mut index = Index::default();
                let note = |batch: &RecordBatch, position| index.note(batch.base_offset, position);
                segment::scan(&file, closed.length, Check::Header, note)?;
                closed.index.get_or_init(|| index)
            }
        };
        segment::read(&file, (index.position_before(offset), closed.length), offset, max_bytes)
    }
}

/// Checks the last segment from its start, cuts off what is damaged, and brings the numbering up to date.
fn recover(
    directory: &Path,
    base_offset: i64,
    sequences: &mut Sequences,
) -> io::Result<(ActiveSegment, i64)> {
    let file = create_segment(directory, base_offset)?;
    let length = file.metadata()?.len();
    let mut index = Index::default();
    let mut high = base_offset;
    let sound = segment::scan(&file, length, Check::Whole, |batch, position| {
        index.note(batch.base_offset, position);
        high = batch.end_offset();
        if let Some(sequence) = &batch.sequence {
            sequences.remember(sequence, batch.base_offset);
        }
    })?;
    if sound < length {
        warn!(directory = %directory.display(), bytes = length - sound, "cut off the damaged end of the log");
        file.set_len(sound)?;
    }
    // After a crash of the process alone, the end is in the operating system only.
    file.sync_data()?;
    let file = Arc::new(file);
    Ok((ActiveSegment { base_offset, file, length: sound, synced_length: sound, index }, high))
}

fn create_segment(directory: &Path, base_offset: i64) -> io::Result<File> {
    let path = segment::path_of(directory, base_offset, "log");
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn remove_segment(directory: &Path, base_offset: i64) -> io::Result<()> {
    for extension in ["producers", "log"] {
        match fs::remove_file(segment::path_of(directory, base_offset, extension)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The first offsets of the segments in `directory`, in order.
fn segment_bases(directory: &Path) -> io::Result<Vec<i64>> {
    let mut bases = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        if path.extension().is_some_and(|extension| extension == "log")
            && let Some(base_offset) = stem.and_then(|stem| stem.parse().ok())
        {
            bases.push(base_offset);
        }
    }
    bases.sort_unstable();
    Ok(bases)
}

fn read_low(directory: &Path) -> io::Result<i64> {
    match fs::read_to_string(directory.join("low")) {
        Ok(text) => text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn read_sequences(directory: &Path, base_offset: i64) -> io::Result<Sequences> {
    match fs::read(segment::path_of(directory, base_offset, "producers")) {
        Ok(json) => Ok(serde_json::from_slice(&json)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Sequences::default()),
        Err(error) => Err(error),
    }
}

/// Replaces a small file so that, whatever happens, either the old or the new content is there.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let file = File::create(&new)?;
    file.write_all_at(content, 0)?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

fn unkept() -> io::Error {
    io::Error::other("the disk did not keep what it was given; a new start looks what is there")
}

/// Brings the names in a directory to the disk.
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;

//! One segment file of a Kafka partition: record batches one after the other, and a sparse index of their positions.
//!
//! A batch is valid if its offset follows the batch before it, its checksum is right, and the fields that the checksum
//! does not cover have the values that the broker writes.
//!
//! It must not know which segments there are or what is deleted; that is in [`crate::partition_log`].

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use wye_domain::place::Offset;

use crate::disk::DiskFile;
use crate::record_batch::{HEADER, InvalidBatch, RecordBatch, int32};

/// The distance of index entries in bytes: a read skips about so much at most.
const INDEX_EVERY: u64 = 32 * 1024;
/// Bytes that are read at a time while a segment is scanned.
const SCAN_CHUNK: usize = 256 * 1024;

/// A position in a segment at which a batch starts, or the next one will start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The offset of its first record.
    pub(crate) offset: Offset,
    /// Bytes from the start of the file.
    pub(crate) position: u64,
}

/// The positions of some batches of a segment, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    entries: Vec<Mark>,
}

/// What [`scan`] checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Headers only.
    Header,
    /// Headers and checksums.
    Whole,
}

/// The result of [`scan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The end of the valid batches.
    pub(crate) end: Mark,
    /// What is wrong there; `None` at the end of the file.
    pub(crate) fault: Option<&'static str>,
}

/// Why [`read`] fails.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    /// There is no valid batch at a position that must have one.
    Damaged(Mark, &'static str),
    /// The file cannot be read.
    Io(io::Error),
}

/// Why there is no valid batch in the bytes at hand.
enum NoBatch {
    /// This many bytes must be read first.
    Needs(usize),
    /// More bytes do not help.
    Damaged(&'static str),
}

impl Mark {
    /// The start of the segment whose first offset is `base_offset`.
    pub(crate) fn start(base_offset: Offset) -> Self {
        Self { offset: base_offset, position: 0 }
    }

    /// The end of `batch`, which starts here.
    pub(crate) fn after(self, batch: &RecordBatch) -> Self {
        let offset = Offset(self.offset.0 + batch.offset_count);
        Self { offset, position: self.position + batch.size as u64 }
    }
}

impl Index {
    /// Adds a batch, if it is far enough from the last entry.
    pub(crate) fn add(&mut self, at: Mark) {
        if self.entries.last().is_none_or(|last| at.position - last.position >= INDEX_EVERY) {
            self.entries.push(at);
        }
    }

    /// A batch at or before the one that holds `offset`; `None` if there is none.
    pub(crate) fn before(&self, offset: Offset) -> Option<Mark> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// Removes the entries from `position` on.
    pub(crate) fn truncate(&mut self, position: u64) {
        self.entries.retain(|entry| entry.position < position);
    }
}

/// The path of a file of the segment that starts at `base_offset`; names sort like offsets.
pub(crate) fn path_of(directory: &Path, base_offset: Offset, extension: &str) -> PathBuf {
    directory.join(format!("{base_offset:020}.{extension}"))
}

/// Reads the batches of the segment whose first offset is `base_offset`, in its first `length` bytes, and calls `on` with
/// each and its position. Stops at the first one that does not pass `check`.
pub(crate) fn scan(
    file: &dyn DiskFile,
    base_offset: Offset,
    length: u64,
    check: Check,
    mut on: impl FnMut(&RecordBatch, Mark),
) -> io::Result<Scanned> {
    let mut window = Window::default();
    let mut at = Mark::start(base_offset);
    while at.position < length {
        match batch_at(window.from(at.position), at.offset, length - at.position, check) {
            Ok(batch) => {
                on(&batch, at);
                at = at.after(&batch);
            }
            Err(NoBatch::Needs(bytes)) => window.fill(file, at.position, bytes.max(SCAN_CHUNK), length)?,
            Err(NoBatch::Damaged(fault)) => return Ok(Scanned { end: at, fault: Some(fault) }),
        }
    }
    Ok(Scanned { end: at, fault: None })
}

/// Reads complete batches, starting with the one that holds `offset`: as many as fit into `max_bytes`, but at least one.
/// `from` is a batch at or before it; the file ends after `length` bytes.
///
/// # Errors
/// `Damaged` where the first batch is not valid. An invalid one after it ends the read without an error.
pub(crate) fn read(
    file: &dyn DiskFile,
    (from, length): (Mark, u64),
    offset: Offset,
    max_bytes: usize,
) -> Result<Bytes, ReadFailure> {
    let ahead = max_bytes.max(HEADER) + INDEX_EVERY as usize;
    let mut window = Window::default();
    let mut at = from;
    loop {
        match batch_at(window.from(at.position), at.offset, length - at.position, Check::Header) {
            Ok(batch) if at.after(&batch).offset > offset => break,
            Ok(batch) => at = at.after(&batch),
            Err(NoBatch::Needs(bytes)) => window.fill(file, at.position, bytes.max(ahead), length)?,
            Err(NoBatch::Damaged(fault)) => return Err(ReadFailure::Damaged(at, fault)),
        }
    }
    let first = at;
    loop {
        let held = window.from(at.position);
        let taken = (at.position - first.position) as usize;
        if taken > 0 && RecordBatch::read_header(held).is_ok_and(|batch| taken + batch.size > max_bytes) {
            break;
        }
        match batch_at(held, at.offset, length - at.position, Check::Whole) {
            Ok(batch) => at = at.after(&batch),
            Err(_) if taken > 0 => break,
            Err(NoBatch::Needs(bytes)) => window.fill(file, at.position, bytes, length)?,
            Err(NoBatch::Damaged(fault)) => return Err(ReadFailure::Damaged(at, fault)),
        }
    }
    Ok(window.take(first.position, at.position))
}

/// The position in `bytes` of a valid batch with `offset` or a later one, if there is any. It tells damage in the middle
/// of a log from a last write that was incomplete.
pub(crate) fn find_valid(bytes: &[u8], offset: Offset) -> Option<usize> {
    (0..bytes.len().saturating_sub(HEADER - 1)).find(|&at| {
        let from = &bytes[at..];
        from[16] == 2
            && leader_epoch(from) == 0
            && RecordBatch::read_header(from).is_ok_and(|batch| batch.base_offset >= offset)
            && RecordBatch::check(from).is_ok()
    })
}

/// The batch at the start of `held`, if its offset is `offset` and it ends within the remaining `left` bytes of its
/// segment.
fn batch_at(held: &[u8], offset: Offset, left: u64, check: Check) -> Result<RecordBatch, NoBatch> {
    if left == 0 {
        return Err(NoBatch::Damaged("the segment ends too early"));
    }
    let batch = match check {
        Check::Header => RecordBatch::read_header(held),
        Check::Whole => RecordBatch::check(held),
    };
    match batch {
        Ok(batch) if batch.size as u64 > left => Err(NoBatch::Damaged("the record batch is cut off")),
        Ok(batch) if batch.base_offset != offset => {
            Err(NoBatch::Damaged("the offset of the record batch does not follow the one before it"))
        }
        Ok(_) if leader_epoch(held) != 0 => {
            Err(NoBatch::Damaged("the leader epoch of the record batch is not 0"))
        }
        Ok(batch) => Ok(batch),
        Err(InvalidBatch::Short { needed }) if needed as u64 > left => {
            Err(NoBatch::Damaged("the record batch is cut off"))
        }
        Err(InvalidBatch::Short { needed }) => Err(NoBatch::Needs(needed)),
        Err(InvalidBatch::Malformed) => Err(NoBatch::Damaged("there is no record batch")),
        Err(InvalidBatch::Damaged) => Err(NoBatch::Damaged("the record batch does not match its checksum")),
    }
}

fn leader_epoch(bytes: &[u8]) -> i32 {
    int32(bytes, 12)
}

/// A part of a file in memory.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    /// The bytes in memory from `position` on; empty where there are none.
    fn from(&self, position: u64) -> &[u8] {
        self.bytes.get((position - self.start) as usize..).unwrap_or_default()
    }

    /// Reads `bytes` bytes from `position` on, or as many as there are before `length`.
    fn fill(&mut self, file: &dyn DiskFile, position: u64, bytes: usize, length: u64) -> io::Result<()> {
        self.bytes.resize((length - position).min(bytes as u64) as usize, 0);
        self.start = position;
        file.read_exact_at(&mut self.bytes, position)
    }

    /// The bytes of `[from, to)`, which must be in memory.
    fn take(mut self, from: u64, to: u64) -> Bytes {
        self.bytes.truncate((to - self.start) as usize);
        Bytes::from(self.bytes).slice((from - self.start) as usize..)
    }
}

impl From<io::Error> for ReadFailure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

//! One file of a Kafka partition: record batches one after the other, and a sparse index of where they are.
//!
//! A batch is sound where it is if it has the offset that follows the batch before it, its checksum is right, and what
//! the checksum does not cover is what the broker writes there.
//!
//! This file knows files and batches; which segments there are, and what is deleted, is for
//! [`crate::partition_log`].

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::disk::DiskFile;
use crate::record_batch::{HEADER, NoBatch, RecordBatch};

/// One index entry about every so many bytes: what a read may have to skip.
const INDEX_EVERY: u64 = 32 * 1024;
/// How much is read at a time while a segment is scanned.
const SCAN_CHUNK: usize = 256 * 1024;

/// A place in a segment where a batch starts, or where the next one will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The offset of its first record.
    pub(crate) offset: i64,
    /// Bytes from the start of the file.
    pub(crate) position: u64,
}

/// Where some of the batches of a segment start, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    entries: Vec<Mark>,
}

/// How closely [`scan`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Headers only.
    Header,
    /// Checksums too.
    Whole,
}

/// How far [`scan`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// Where the sound part ends.
    pub(crate) end: Mark,
    /// What is wrong there; `None` at the end of the file.
    pub(crate) fault: Option<&'static str>,
}

/// Why [`read`] gives nothing.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    /// There is no sound batch where one should be.
    Damaged(Mark, &'static str),
    /// The disk does not give it.
    Io(io::Error),
}

/// Why there is no batch to look at.
enum NotThere {
    /// This many bytes must be read first.
    Needs(usize),
    /// More bytes do not help.
    Damaged(&'static str),
}

impl Mark {
    /// The start of the segment whose first offset is `base_offset`.
    pub(crate) fn start(base_offset: i64) -> Self {
        Self { offset: base_offset, position: 0 }
    }

    /// Behind `batch`, which starts here.
    pub(crate) fn after(self, batch: &RecordBatch) -> Self {
        Self { offset: self.offset + batch.offsets, position: self.position + batch.size as u64 }
    }
}

impl Index {
    /// Notes a batch, if it is far enough from the last noted one.
    pub(crate) fn note(&mut self, at: Mark) {
        if self.entries.last().is_none_or(|last| at.position - last.position >= INDEX_EVERY) {
            self.entries.push(at);
        }
    }

    /// A batch at or before the one that holds `offset`; `None` if there is none.
    pub(crate) fn before(&self, offset: i64) -> Option<Mark> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset);
        after.checked_sub(1).map(|at| self.entries[at])
    }

    /// Forgets the batches from `position` on.
    pub(crate) fn cut(&mut self, position: u64) {
        self.entries.retain(|entry| entry.position < position);
    }
}

/// The file name of the segment that starts at `base_offset`; names sort like offsets.
pub(crate) fn path_of(directory: &Path, base_offset: i64, extension: &str) -> PathBuf {
    directory.join(format!("{base_offset:020}.{extension}"))
}

/// Walks the batches of the segment whose first offset is `base_offset`, over `length` bytes; hands each to `on` with
/// its place. Stops at the first that is not sound, as far as `check` looks.
pub(crate) fn scan(
    file: &dyn DiskFile,
    base_offset: i64,
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
            Err(NotThere::Needs(bytes)) => window.fill(file, at.position, bytes.max(SCAN_CHUNK), length)?,
            Err(NotThere::Damaged(fault)) => return Ok(Scanned { end: at, fault: Some(fault) }),
        }
    }
    Ok(Scanned { end: at, fault: None })
}

/// Reads whole batches, starting with the one that holds `offset`: as many as fit into `max_bytes`, but at least one.
/// `from` is a batch at or before it, `length` is where the written part ends. What it gives is sound; what is not is
/// left out, and reported where it comes first.
pub(crate) fn read(
    file: &dyn DiskFile,
    (from, length): (Mark, u64),
    offset: i64,
    max_bytes: usize,
) -> Result<Bytes, ReadFailure> {
    let ahead = max_bytes.max(HEADER) + INDEX_EVERY as usize;
    let mut window = Window::default();
    let mut at = from;
    loop {
        match batch_at(window.from(at.position), at.offset, length - at.position, Check::Header) {
            Ok(batch) if at.offset + batch.offsets > offset => break,
            Ok(batch) => at = at.after(&batch),
            Err(NotThere::Needs(bytes)) => window.fill(file, at.position, bytes.max(ahead), length)?,
            Err(NotThere::Damaged(fault)) => return Err(ReadFailure::Damaged(at, fault)),
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
            Err(NotThere::Needs(bytes)) => window.fill(file, at.position, bytes, length)?,
            Err(NotThere::Damaged(fault)) => return Err(ReadFailure::Damaged(at, fault)),
        }
    }
    Ok(window.take(first.position, at.position))
}

/// The position in `bytes` of a sound batch of `offset` or later, where there is one: what tells damage in the middle
/// of a log from an end that was never written whole.
pub(crate) fn find_sound(bytes: &[u8], offset: i64) -> Option<usize> {
    (0..bytes.len().saturating_sub(HEADER - 1)).find(|&at| {
        let from = &bytes[at..];
        from[16] == 2
            && leader_epoch(from) == 0
            && RecordBatch::read_header(from).is_ok_and(|batch| batch.base_offset >= offset)
            && RecordBatch::check(from).is_ok()
    })
}

/// The batch that `held` starts with, if it is the one with `offset` and ends within the `left` bytes of its segment.
fn batch_at(held: &[u8], offset: i64, left: u64, check: Check) -> Result<RecordBatch, NotThere> {
    if left == 0 {
        return Err(NotThere::Damaged("the segment ends too early"));
    }
    let batch = match check {
        Check::Header => RecordBatch::read_header(held),
        Check::Whole => RecordBatch::check(held),
    };
    match batch {
        Ok(batch) if batch.size as u64 > left => Err(NotThere::Damaged("the record batch is cut off")),
        Ok(batch) if batch.base_offset != offset => {
            Err(NotThere::Damaged("the record batch has another offset than the one that comes next"))
        }
        Ok(_) if leader_epoch(held) != 0 => Err(NotThere::Damaged("the record batch has a leader epoch")),
        Ok(batch) => Ok(batch),
        Err(NoBatch::Short { needed }) if needed as u64 > left => {
            Err(NotThere::Damaged("the record batch is cut off"))
        }
        Err(NoBatch::Short { needed }) => Err(NotThere::Needs(needed)),
        Err(NoBatch::Malformed) => Err(NotThere::Damaged("there is no record batch")),
        Err(NoBatch::Damaged) => Err(NotThere::Damaged("the record batch does not match its checksum")),
    }
}

fn leader_epoch(bytes: &[u8]) -> i32 {
    i32::from_be_bytes(bytes[12..16].try_into().expect("four bytes"))
}

/// A part of a file in memory.
#[derive(Default)]
struct Window {
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    /// What is held from `position` on.
    fn from(&self, position: u64) -> &[u8] {
        self.bytes.get((position - self.start) as usize..).unwrap_or_default()
    }

    /// Holds `bytes` bytes from `position` on, or as many as there are before `length`.
    fn fill(&mut self, file: &dyn DiskFile, position: u64, bytes: usize, length: u64) -> io::Result<()> {
        self.bytes.resize((length - position).min(bytes as u64) as usize, 0);
        self.start = position;
        file.read_exact_at(&mut self.bytes, position)
    }

    /// The bytes of `[from, to)`, which are held.
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

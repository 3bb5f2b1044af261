//! One file of a Kafka partition: record batches one after the other, and a sparse index of where they stand.
//!
//! This file knows files and batches; which segments there are, and what is deleted, is for
//! [`crate::partition_log`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::record_batch::{HEADER, NoBatch, RecordBatch};

/// One index entry about every so many bytes: what a read may have to skip.
const INDEX_EVERY: u64 = 32 * 1024;
/// How much is read at a time while a segment is scanned.
const SCAN_CHUNK: usize = 256 * 1024;

/// Where some of the batches of a segment start, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    base_offset: i64,
    position: u64,
}

impl Index {
    /// Notes a batch at `position`, if it is far enough from the last noted one.
    pub(crate) fn note(&mut self, base_offset: i64, position: u64) {
        if self.entries.last().is_none_or(|last| position - last.position >= INDEX_EVERY) {
            self.entries.push(Entry { base_offset, position });
        }
    }

    /// A position at or before the batch that holds `offset`.
    pub(crate) fn position_before(&self, offset: i64) -> u64 {
        let after = self.entries.partition_point(|entry| entry.base_offset <= offset);
        after.checked_sub(1).map_or(0, |at| self.entries[at].position)
    }
}

/// The file name of the segment that starts at `base_offset`; names sort like offsets.
pub(crate) fn path_of(directory: &Path, base_offset: i64, extension: &str) -> PathBuf {
    directory.join(format!("{base_offset:020}.{extension}"))
}

/// Walks the batches of a file from its start; hands each to `on` with its position. Stops before the first that is
/// cut off or (with `check`) damaged, and returns where: the length of the sound part.
pub(crate) fn scan(
    file: &File,
    length: u64,
    check: Check,
    mut on: impl FnMut(&RecordBatch, u64),
) -> io::Result<u64> {
    let mut chunk = Vec::new();
    let (mut start, mut position) = (0_u64, 0_u64);
    while position < length {
        let held = chunk.get((position - start) as usize..).unwrap_or_default();
        let read = match check {
            Check::Header => RecordBatch::read_header(held),
            Check::Whole => RecordBatch::check(held),
        };
        match read {
            Ok(batch) if position + batch.size as u64 > length => break,
            Ok(batch) => {
                on(&batch, position);
                position += batch.size as u64;
            }
            Err(NoBatch::Short { needed }) if position + needed as u64 <= length => {
                let wanted = (length - position).min(needed.max(SCAN_CHUNK) as u64);
                chunk.resize(wanted as usize, 0);
                start = position;
                file.read_exact_at(&mut chunk, start)?;
            }
            Err(_) => break,
        }
    }
    Ok(position)
}

/// How closely [`scan`] looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Headers only: for a segment that was closed in good order.
    Header,
    /// Checksums too: for one that may have been cut off.
    Whole,
}

/// Reads whole batches from `file`, starting with the one that holds `offset`: as many as fit into `max_bytes`, but
/// at least one. `from` is at or before it, `length` is where the written part ends.
pub(crate) fn read(
    file: &File,
    (from, length): (u64, u64),
    offset: i64,
    max_bytes: usize,
) -> io::Result<Bytes> {
    if from >= length {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut chunk =
        vec![0; (length - from).min((max_bytes as u64).max(HEADER as u64) + INDEX_EVERY) as usize];
    file.read_exact_at(&mut chunk, from)?;
    let mut at = 0;
    let first = loop {
        let batch = match RecordBatch::read_header(&chunk[at..]) {
            Ok(batch) => batch,
            // The chunk ends within a header: go on from there.
            Err(NoBatch::Short { .. }) if from + (at + HEADER) as u64 <= length => {
                return read(file, (from + at as u64, length), offset, max_bytes);
            }
            Err(_) => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        };
        if batch.end_offset() > offset {
            break batch;
        }
        at += batch.size;
        if at >= chunk.len() {
            return read(file, (from + at as u64, length), offset, max_bytes);
        }
    };
    let start = at;
    if start + first.size > chunk.len() {
        let mut whole = vec![0; first.size];
        file.read_exact_at(&mut whole, from + start as u64)?;
        return Ok(Bytes::from(whole));
    }
    at += first.size;
    while let Ok(batch) = RecordBatch::read_header(&chunk[at..]) {
        if at + batch.size > chunk.len() || at + batch.size - start > max_bytes {
            break;
        }
        at += batch.size;
    }
    chunk.truncate(at);
    Ok(Bytes::from(chunk).slice(start..))
}

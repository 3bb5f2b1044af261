//! Accepts the loss of records that are damaged on the disk, so that a broker that refuses to start can start again.
//!
//! Valid records stay, at their offsets. Lost records are replaced by an empty record batch, as in Kafka after compaction,
//! so that no offset is used twice. A copy of the damaged file is kept beside the repaired one.
//!
//! It does not decide what is damaged: [`crate::segment`] does.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wye_domain::place::Offset;

use crate::catalog;
use crate::disk::OsDisk;
use crate::error::BrokerError;
use crate::record_batch::{self, RecordBatch};
use crate::recovery;
use crate::segment;
use crate::sequences::Sequences;
use crate::storage::{Damage, Storage};

/// What [`repair`] does with damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Report it, and change nothing.
    Report,
    /// Remove what is damaged.
    AcceptLoss,
}

/// Damage in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The file.
    pub file: PathBuf,
    /// What is lost, for a person.
    pub what: String,
    /// The copy of the damaged file, once it was repaired; absent where there was nothing to copy.
    pub kept: Option<PathBuf>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)?;
        match &self.kept {
            Some(kept) => write!(f, "; the damaged file is kept as {}", kept.display()),
            None => Ok(()),
        }
    }
}

/// Checks every byte of the log in `data_dir`, which no broker may have open, and repairs it if `repair` says so. Returns
/// the damage.
///
/// # Errors
/// `Storage`: of kind `Conflict` when a broker has the directory open, `Corrupt` when the catalog is damaged; only a copy
/// of the catalog can repair that.
pub fn repair(data_dir: &Path, repair: Repair) -> Result<Vec<Loss>, BrokerError> {
    let repaired = Storage::open(Arc::new(OsDisk), data_dir).and_then(|storage| repair_all(&storage, repair));
    repaired.map_err(|source| {
        let what = match source.kind() {
            io::ErrorKind::WouldBlock => "repair, because a running broker has it open,",
            _ => "repair",
        };
        BrokerError::Storage { what, path: data_dir.to_owned(), source }
    })
}

/// Checks and repairs every Kafka partition of a data directory.
pub(crate) fn repair_all(storage: &Storage, repair: Repair) -> io::Result<Vec<Loss>> {
    let mut losses = Vec::new();
    for directory in catalog::directories(storage)? {
        repair_partition(storage, &directory, repair, &mut losses)?;
    }
    Ok(losses)
}

fn repair_partition(
    storage: &Storage,
    directory: &Path,
    repair: Repair,
    losses: &mut Vec<Loss>,
) -> io::Result<()> {
    let mut bases = match recovery::segment_bases(storage, directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if repair == Repair::AcceptLoss {
                storage.disk().create_directory(directory)?;
                storage.disk().sync_directory(storage.root())?;
            }
            Vec::new()
        }
        bases => bases?,
    };
    let low = match recovery::read_low(storage, directory) {
        Ok(low) => low,
        Err(error) => {
            losses.push(Loss::of(error)?);
            bases.first().copied().unwrap_or_default()
        }
    };
    // Records below the low watermark are deleted, so they cannot be lost.
    while bases.len() > 1 && bases[1] <= low {
        bases.remove(0);
    }
    if bases.first().is_none_or(|&first| first > low) {
        let what = format!("the segment with offset {low} is missing");
        losses.push(Loss { file: directory.to_owned(), what, kept: None });
        bases.insert(0, low);
    }
    let mut sequences = Sequences::default();
    for (at, &base_offset) in bases.iter().enumerate() {
        let active = at + 1 == bases.len();
        match recovery::read_sequences(storage, directory, base_offset) {
            Ok(read) => sequences = read,
            Err(error) if active => losses.push(Loss::of(error)?),
            // Those of closed segments are not used any more.
            Err(_) => {}
        }
        if active && repair == Repair::AcceptLoss {
            recovery::write_sequences(storage, directory, base_offset, &sequences)?;
        }
        let path = segment::path_of(directory, base_offset, "log");
        let found = storage.read_whole(&path)?;
        let salvaged = salvage(found.as_deref().unwrap_or_default(), base_offset, bases.get(at + 1).copied());
        for (sequence, offset) in &salvaged.sequences {
            sequences.remember(sequence, *offset);
        }
        let damaged = found.as_ref().is_none_or(|found| *found != salvaged.bytes);
        let mut kept = None;
        if damaged && repair == Repair::AcceptLoss {
            if let Some(found) = found.as_ref().filter(|found| !found.is_empty()) {
                kept = Some(storage.keep_aside(&path, 0, found)?);
            }
            storage.replace_whole(&path, &salvaged.bytes)?;
        }
        if damaged && found.unwrap_or_default() != salvaged.bytes {
            losses.push(Loss { file: path, what: salvaged.describe(), kept });
        }
    }
    if repair == Repair::AcceptLoss {
        recovery::write_low(storage, directory, low)?;
    }
    Ok(())
}

impl Loss {
    /// The damage that an error reports; any other error is returned.
    fn of(error: io::Error) -> io::Result<Self> {
        let damage = error.downcast::<Damage>()?;
        Ok(Self { file: damage.file, what: damage.what, kept: None })
    }
}

/// A segment without its damage.
#[derive(Debug, Default)]
struct Salvaged {
    bytes: Vec<u8>,
    /// The offsets of lost records.
    lost: Vec<Range<Offset>>,
    /// Damaged bytes at the end of the log; how many records they had is unknown.
    cut: usize,
    sequences: Vec<(record_batch::Sequence, Offset)>,
}

impl Salvaged {
    fn describe(&self) -> String {
        let lost: Vec<_> =
            self.lost.iter().map(|lost| format!("offsets {} to {}", lost.start, lost.end.0 - 1)).collect();
        match (lost.is_empty(), self.cut) {
            (true, 0) => "only the headers of record batches are damaged; no record is lost".to_owned(),
            (true, cut) => format!("the last {cut} bytes are not records"),
            (false, 0) => format!("the records at {} are lost", lost.join(", ")),
            (false, cut) => {
                format!(
                    "the records at {} are lost, and the last {cut} bytes are not records",
                    lost.join(", ")
                )
            }
        }
    }

    fn lose(&mut self, lost: Range<Offset>) {
        if !lost.is_empty() {
            fill(&mut self.bytes, &lost);
            self.lost.push(lost);
        }
    }
}

/// The valid batches of a segment that starts at `base_offset`, with empty batches for lost records. The segment ends
/// before `end`; `None` for the last segment of a log.
fn salvage(bytes: &[u8], base_offset: Offset, end: Option<Offset>) -> Salvaged {
    let mut salvaged = Salvaged::default();
    let (mut at, mut offset) = (0, base_offset);
    while at < bytes.len() {
        let (skipped, batch) = match RecordBatch::check(&bytes[at..]) {
            // Its position gives its offset, even if that field is damaged.
            Ok(batch) => (0, RecordBatch { base_offset: offset, ..batch }),
            Err(_) => {
                let valid = segment::find_valid(&bytes[at..], offset)
                    .and_then(|skipped| Some((skipped, RecordBatch::check(&bytes[at + skipped..]).ok()?)));
                match valid {
                    Some(valid) => valid,
                    None => break,
                }
            }
        };
        if end.is_some_and(|end| batch.end_offset() > end) {
            break;
        }
        salvaged.lose(offset..batch.base_offset);
        at += skipped;
        let start = salvaged.bytes.len();
        salvaged.bytes.extend_from_slice(&bytes[at..at + batch.size]);
        record_batch::set_base_offset(&mut salvaged.bytes[start..], batch.base_offset);
        if let Some(sequence) = batch.sequence {
            salvaged.sequences.push((sequence, batch.base_offset));
        }
        at += batch.size;
        offset = batch.end_offset();
    }
    match end {
        Some(end) => salvaged.lose(offset..end),
        None => salvaged.cut = bytes.len() - at,
    }
    salvaged
}

/// Appends empty record batches that take these offsets.
fn fill(bytes: &mut Vec<u8>, lost: &Range<Offset>) {
    let mut from = lost.start;
    while from < lost.end {
        let count = lost.end.since(from).min(i32::MAX as u64 - 1) as i32;
        bytes.extend_from_slice(&empty_batch(from, count));
        from = Offset(from.0 + i64::from(count));
    }
}

/// A record batch that takes `offset_count` offsets and has no records.
fn empty_batch(base_offset: Offset, offset_count: i32) -> [u8; record_batch::HEADER] {
    let mut bytes = [0; record_batch::HEADER];
    bytes[0..8].copy_from_slice(&base_offset.0.to_be_bytes());
    bytes[8..12].copy_from_slice(&(record_batch::HEADER as i32 - 12).to_be_bytes());
    bytes[16] = 2;
    bytes[23..27].copy_from_slice(&(offset_count - 1).to_be_bytes());
    // No timestamps, and no producer.
    bytes[27..57].fill(0xff);
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests;

//! Accepts the loss of records that are damaged on the disk, so that a broker that refuses to start can start again.
//!
//! Sound records stay, at their offsets. An empty record batch takes the place of those that are lost, as Kafka's
//! compaction leaves behind, so that no offset is given twice. The damaged file is kept beside the repaired one.
//!
//! This file does not decide what is damaged: that is for [`crate::segment`].

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog;
use crate::disk::OsDisk;
use crate::error::BrokerError;
use crate::record_batch::{self, RecordBatch};
use crate::recovery;
use crate::segment;
use crate::sequences::Sequences;
use crate::storage::{Damage, Storage};

/// What [`repair`] does with the damage that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// It says what there is, and changes nothing.
    Report,
    /// It gives up what is damaged.
    AcceptLoss,
}

/// Damage in one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The file.
    pub file: PathBuf,
    /// What is lost, for a person.
    pub what: String,
    /// Where the damaged file is kept, once it was repaired; absent where there was nothing to keep.
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

/// Checks every byte of the log in `data_dir`, which no broker may have open, and repairs it if told so. Returns the
/// damage that it found.
///
/// # Errors
/// `Storage`: of kind `Conflict` when a broker has the directory open, `Corrupt` when the catalog itself is damaged,
/// which only a copy of it can repair.
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
            let damage = damage(error)?;
            losses.push(Loss { file: damage.file, what: damage.what, kept: None });
            bases.first().copied().unwrap_or(0)
        }
    };
    // Below the low watermark nothing can be lost.
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
            Ok(known) => sequences = known,
            Err(error) if active => {
                let damage = damage(error)?;
                losses.push(Loss { file: damage.file, what: damage.what, kept: None });
            }
            // The ones of closed segments are of no use any more.
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
        storage.replace(&recovery::low_path(directory), low.to_string().as_bytes())?;
    }
    Ok(())
}

/// The damage that an error is about; other errors are passed on.
fn damage(error: io::Error) -> io::Result<Damage> {
    error.downcast::<Damage>()
}

/// A segment without its damage.
#[derive(Debug, Default)]
struct Salvaged {
    bytes: Vec<u8>,
    /// The offsets whose records are lost.
    lost: Vec<Range<i64>>,
    /// Bytes at the end of the log of which nobody knows how many records they were.
    cut: usize,
    sequences: Vec<(record_batch::Sequence, i64)>,
}

impl Salvaged {
    fn describe(&self) -> String {
        let lost: Vec<_> =
            self.lost.iter().map(|lost| format!("offsets {} to {}", lost.start, lost.end - 1)).collect();
        match (lost.is_empty(), self.cut) {
            (true, 0) => "what was written around the records is damaged; no record is lost".to_owned(),
            (true, cut) => format!("the last {cut} bytes are no records"),
            (false, 0) => format!("the records at {} are lost", lost.join(", ")),
            (false, cut) => {
                format!(
                    "the records at {} are lost, and the last {cut} bytes are no records",
                    lost.join(", ")
                )
            }
        }
    }

    fn lose(&mut self, lost: Range<i64>) {
        if !lost.is_empty() {
            fill(&mut self.bytes, &lost);
            self.lost.push(lost);
        }
    }
}

/// The sound batches in a segment that starts at `base_offset` and ends before `end`, which the last one of a log does
/// not.
fn salvage(bytes: &[u8], base_offset: i64, end: Option<i64>) -> Salvaged {
    let mut salvaged = Salvaged::default();
    let (mut at, mut offset) = (0, base_offset);
    while at < bytes.len() {
        let (skipped, batch) = match RecordBatch::check(&bytes[at..]) {
            // Where it is tells its offset, whatever became of the field.
            Ok(batch) => (0, RecordBatch { base_offset: offset, ..batch }),
            Err(_) => {
                let sound = segment::find_sound(&bytes[at..], offset)
                    .and_then(|skipped| Some((skipped, RecordBatch::check(&bytes[at + skipped..]).ok()?)));
                match sound {
                    Some(sound) => sound,
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
        record_batch::place(&mut salvaged.bytes[start..], batch.base_offset);
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
fn fill(bytes: &mut Vec<u8>, lost: &Range<i64>) {
    let mut from = lost.start;
    while from < lost.end {
        let offsets = (lost.end - from).min(i64::from(i32::MAX - 1));
        bytes.extend_from_slice(&empty_batch(from, offsets as i32));
        from += offsets;
    }
}

/// A record batch that takes offsets and holds no records.
fn empty_batch(base_offset: i64, offsets: i32) -> [u8; record_batch::HEADER] {
    let mut bytes = [0; record_batch::HEADER];
    bytes[0..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes[8..12].copy_from_slice(&(record_batch::HEADER as i32 - 12).to_be_bytes());
    bytes[16] = 2;
    bytes[23..27].copy_from_slice(&(offsets - 1).to_be_bytes());
    // No times, and no producer.
    bytes[27..57].fill(0xff);
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests;

//! Opens the directory of a Kafka partition, and checks its files.
//!
//! The last segment may end with an incomplete write, interrupted by a crash before it was acknowledged. It is cut off,
//! and kept in a file beside the segment. Any other content that is not as it was written is damage to acknowledged
//! records. Then the directory is not opened; with [`crate::repair`] an operator accepts the loss.
//!
//! It changes nothing but an incomplete end and the remains of an interrupted deletion.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;
use wye_domain::place::Offset;

use crate::disk::{DiskFile, Open};
use crate::record_batch::RecordBatch;
use crate::segment::{self, Check, Index, Mark, Scanned};
use crate::sequences::Sequences;
use crate::storage::{Damage, Storage};

/// The files of a Kafka partition, ready to be read and appended to.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The low watermark.
    pub(crate) low: Offset,
    /// The end of the log.
    pub(crate) high: Offset,
    /// Closed segments, oldest first.
    pub(crate) closed: VecDeque<Arc<ClosedSegment>>,
    pub(crate) active: ActiveSegment,
    pub(crate) sequences: Sequences,
}

/// A segment that is only read.
#[derive(Debug)]
pub(crate) struct ClosedSegment {
    pub(crate) base_offset: Offset,
    pub(crate) end_offset: Offset,
    /// Bytes of its file.
    pub(crate) length: u64,
    pub(crate) index: Index,
}

/// The segment that records are appended to.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    pub(crate) base_offset: Offset,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Bytes of it that are synced.
    pub(crate) synced_length: u64,
    /// Bytes of it that are written.
    pub(crate) length: u64,
    pub(crate) index: Index,
}

impl ActiveSegment {
    /// Creates an empty segment, durably. An empty file may exist already, from an attempt that failed.
    pub(crate) fn create(storage: &Storage, directory: &Path, base_offset: Offset) -> io::Result<Self> {
        let path = segment::path_of(directory, base_offset, "log");
        let file = storage.disk().open(&path, Open::Any)?;
        storage.disk().sync_directory(directory)?;
        Ok(Self { base_offset, file, synced_length: 0, length: 0, index: Index::default() })
    }
}

/// Opens `directory`. Fails with [`Damage`] where acknowledged records are not as they were written.
pub(crate) fn open(storage: &Storage, directory: &Path) -> io::Result<Recovered> {
    // A process that was killed may have left names in the cache of the system that are not on the disk.
    match storage.disk().sync_directory(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Damage::whole(directory, "it is missing").into());
        }
        synced => synced?,
    }
    let low = read_low(storage, directory)?;
    let bases = remove_below(storage, directory, low)?;
    let (&active_base, closed_bases) =
        bases.split_last().ok_or_else(|| Damage::whole(directory, "its segment files are missing"))?;
    if bases[0] > low {
        let what = format!("the segment with offset {low} is missing; the first one starts at {}", bases[0]);
        return Err(Damage::whole(directory, what).into());
    }
    let mut closed = VecDeque::with_capacity(closed_bases.len());
    for (&base_offset, &end_offset) in closed_bases.iter().zip(&bases[1..]) {
        closed.push_back(Arc::new(open_closed(storage, directory, base_offset, end_offset)?));
    }
    let mut sequences = read_sequences(storage, directory, active_base)?;
    let (active, high) = open_active(storage, directory, active_base, &mut sequences)?;
    let mut recovered = Recovered { low, high, closed, active, sequences };
    if low > high {
        restart_at_low(storage, directory, &mut recovered)?;
    }
    Ok(recovered)
}

/// The first offsets of the segments in `directory`, in order.
pub(crate) fn segment_bases(storage: &Storage, directory: &Path) -> io::Result<Vec<Offset>> {
    let names = storage.disk().names(directory)?;
    let bases = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok());
    let mut bases: Vec<Offset> = bases.map(Offset).collect();
    bases.sort_unstable();
    Ok(bases)
}

/// The low watermark.
pub(crate) fn read_low(storage: &Storage, directory: &Path) -> io::Result<Offset> {
    let path = low_path(directory);
    let Some(content) = storage.read_small(&path)? else { return Ok(Offset::START) };
    let low = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    low.map(Offset).ok_or_else(|| Damage::whole(&path, "it holds no offset").into())
}

/// Writes the low watermark.
pub(crate) fn write_low(storage: &Storage, directory: &Path, low: Offset) -> io::Result<()> {
    storage.replace(&low_path(directory), low.to_string().as_bytes())
}

fn low_path(directory: &Path) -> PathBuf {
    directory.join("low")
}

/// The state of the producers at the start of a segment.
pub(crate) fn read_sequences(
    storage: &Storage,
    directory: &Path,
    base_offset: Offset,
) -> io::Result<Sequences> {
    let path = segment::path_of(directory, base_offset, "producers");
    match storage.read_small(&path)? {
        Some(json) => serde_json::from_slice(&json)
            .map_err(|error| Damage::whole(&path, format!("it does not parse: {error}")).into()),
        None if base_offset == Offset::START => Ok(Sequences::default()),
        None => Err(Damage::whole(&path, "it is missing").into()),
    }
}

/// Writes the state of the producers at the start of a segment.
pub(crate) fn write_sequences(
    storage: &Storage,
    directory: &Path,
    base_offset: Offset,
    sequences: &Sequences,
) -> io::Result<()> {
    let json = serde_json::to_vec(sequences)?;
    storage.replace(&segment::path_of(directory, base_offset, "producers"), &json)
}

/// Removes the files of a segment.
pub(crate) fn remove_segment(storage: &Storage, directory: &Path, base_offset: Offset) -> io::Result<()> {
    storage.remove(&segment::path_of(directory, base_offset, "log"))?;
    storage.remove(&segment::path_of(directory, base_offset, "producers"))
}

/// The first offsets of the segments with records at `low` or above. Those below are removed, which finishes an
/// interrupted deletion.
fn remove_below(storage: &Storage, directory: &Path, low: Offset) -> io::Result<Vec<Offset>> {
    let mut bases = segment_bases(storage, directory)?;
    while bases.len() > 1 && bases[1] <= low {
        remove_segment(storage, directory, bases.remove(0))?;
    }
    Ok(bases)
}

fn open_closed(
    storage: &Storage,
    directory: &Path,
    base_offset: Offset,
    end_offset: Offset,
) -> io::Result<ClosedSegment> {
    let path = segment::path_of(directory, base_offset, "log");
    let file = storage.disk().open(&path, Open::Read)?;
    let length = file.length()?;
    let mut index = Index::default();
    let scanned = segment::scan(&*file, base_offset, length, Check::Header, |_, at| index.add(at))?;
    let what = match scanned.fault {
        Some(fault) => fault.to_owned(),
        None if scanned.end.offset != end_offset => {
            format!("it ends here, but the next segment starts at offset {end_offset}")
        }
        None => return Ok(ClosedSegment { base_offset, end_offset, length, index }),
    };
    Err(Damage { file: path, at: Some(scanned.end), what }.into())
}

/// Checks the last segment, cuts off an incomplete end, and updates the state of the producers. Returns the segment and
/// its end offset.
fn open_active(
    storage: &Storage,
    directory: &Path,
    base_offset: Offset,
    sequences: &mut Sequences,
) -> io::Result<(ActiveSegment, Offset)> {
    let path = segment::path_of(directory, base_offset, "log");
    let file = storage.disk().open(&path, Open::Edit)?;
    let length = file.length()?;
    let mut index = Index::default();
    let scanned = segment::scan(&*file, base_offset, length, Check::Whole, |batch, at| {
        index.add(at);
        if let Some(sequence) = &batch.sequence {
            sequences.remember(sequence, at.offset);
        }
    })?;
    cut_incomplete_end(storage, &path, &*file, (scanned, length))?;
    // After a crash of the process alone, the last writes may be only in the cache of the operating system.
    file.sync()?;
    let Mark { offset: high, position: length } = scanned.end;
    Ok((ActiveSegment { base_offset, file, synced_length: length, length, index }, high))
}

/// Cuts off the bytes after the valid batches, if they can only be an incomplete write.
fn cut_incomplete_end(
    storage: &Storage,
    path: &Path,
    file: &dyn DiskFile,
    (scanned, length): (Scanned, u64),
) -> io::Result<()> {
    let Scanned { end, fault: Some(fault) } = scanned else { return Ok(()) };
    let mut rest = vec![0; (length - end.position) as usize];
    file.read_exact_at(&mut rest, end.position)?;
    // An incomplete write has no batch with a right checksum.
    let misplaced = RecordBatch::check(&rest).is_ok().then_some(0);
    if let Some(valid) = misplaced.or_else(|| segment::find_valid(&rest, end.offset)) {
        let what = match valid {
            0 => fault.to_owned(),
            _ => format!("{fault}, and valid records follow at byte {}", end.position + valid as u64),
        };
        return Err(Damage { file: path.to_owned(), at: Some(end), what }.into());
    }
    // A loss of power can extend a file with zeros.
    if rest.iter().any(|&byte| byte != 0) {
        let kept = storage.free_space(|| storage.keep_aside(path, end.position, &rest))?;
        warn!(
            file = %path.display(), position = end.position, offset = end.offset.0, bytes = rest.len(),
            kept = %kept.display(), "embedded broker: cut off an incomplete write at the end of the log; a copy of it is kept"
        );
    }
    file.set_length(end.position)
}

/// Starts a new segment at the low watermark where the log ends below it: the offsets below belonged to records that were
/// deleted, and must not be used again.
fn restart_at_low(storage: &Storage, directory: &Path, recovered: &mut Recovered) -> io::Result<()> {
    let Recovered { low, high, .. } = *recovered;
    warn!(
        directory = %directory.display(), low = low.0, high = high.0,
        "embedded broker: the log ends below its low watermark, and continues at the low watermark"
    );
    write_sequences(storage, directory, low, &recovered.sequences)?;
    recovered.active = ActiveSegment::create(storage, directory, low)?;
    recovered.closed.clear();
    recovered.high = low;
    remove_below(storage, directory, low)?;
    Ok(())
}

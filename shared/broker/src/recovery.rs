//! What is in the directory of a Kafka partition: checked when it is opened.
//!
//! The end of the last segment may be torn: a crash cuts off what was being written, which nobody was promised. Such an
//! end is cut, and kept in a file beside it. Anything else that is not as it was written is damage to acknowledged
//! records, and the directory is not opened: [`crate::repair`] accepts the loss.
//!
//! This file changes nothing but the torn end and what a trim that was cut off has left.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::warn;

use crate::disk::{DiskFile, Open};
use crate::record_batch::RecordBatch;
use crate::segment::{self, Check, Index, Mark, Scanned};
use crate::sequences::Sequences;
use crate::storage::{Damage, Storage};

/// The files of a Kafka partition, ready to be read and appended to.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) low: i64,
    /// Where the log ends.
    pub(crate) high: i64,
    /// Closed segments, oldest first.
    pub(crate) closed: VecDeque<Arc<ClosedSegment>>,
    pub(crate) active: ActiveSegment,
    pub(crate) sequences: Sequences,
}

/// A segment that is only read.
#[derive(Debug)]
pub(crate) struct ClosedSegment {
    pub(crate) base_offset: i64,
    pub(crate) end_offset: i64,
    pub(crate) length: u64,
    pub(crate) index: Index,
}

/// The segment that is written to.
#[derive(Debug)]
pub(crate) struct ActiveSegment {
    pub(crate) base_offset: i64,
    pub(crate) file: Arc<dyn DiskFile>,
    /// How much of it is on the disk.
    pub(crate) synced_length: u64,
    /// How much of it was written.
    pub(crate) length: u64,
    pub(crate) index: Index,
}

impl ActiveSegment {
    /// Creates an empty segment, durably. It may be there already, and empty, from a try that failed.
    pub(crate) fn create(storage: &Storage, directory: &Path, base_offset: i64) -> io::Result<Self> {
        let path = segment::path_of(directory, base_offset, "log");
        let file = storage.disk().open(&path, Open::Any)?;
        storage.disk().sync_directory(directory)?;
        Ok(Self { base_offset, file, synced_length: 0, length: 0, index: Index::default() })
    }
}

/// Opens what is in `directory`. Fails with [`Damage`] where acknowledged records are not as they were written.
pub(crate) fn open(storage: &Storage, directory: &Path) -> io::Result<Recovered> {
    // A process that was killed may have left names that the system has and the disk has not.
    match storage.disk().sync_directory(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Damage::whole(directory, "it is missing").into());
        }
        synced => synced?,
    }
    let low = read_low(storage, directory)?;
    let bases = untrimmed(storage, directory, low)?;
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
pub(crate) fn segment_bases(storage: &Storage, directory: &Path) -> io::Result<Vec<i64>> {
    let names = storage.disk().names(directory)?;
    let base = |name: &String| name.strip_suffix(".log")?.parse().ok();
    let mut bases: Vec<i64> = names.iter().filter_map(base).collect();
    bases.sort_unstable();
    Ok(bases)
}

/// The low watermark.
pub(crate) fn read_low(storage: &Storage, directory: &Path) -> io::Result<i64> {
    let path = low_path(directory);
    let Some(content) = storage.read_small(&path)? else { return Ok(0) };
    let low = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    low.ok_or_else(|| Damage::whole(&path, "it holds no offset").into())
}

/// Where the low watermark is kept.
pub(crate) fn low_path(directory: &Path) -> PathBuf {
    directory.join("low")
}

/// The numbering of producers at the start of a segment.
pub(crate) fn read_sequences(storage: &Storage, directory: &Path, base_offset: i64) -> io::Result<Sequences> {
    let path = segment::path_of(directory, base_offset, "producers");
    match storage.read_small(&path)? {
        Some(json) => serde_json::from_slice(&json)
            .map_err(|error| Damage::whole(&path, format!("it does not parse: {error}")).into()),
        None if base_offset == 0 => Ok(Sequences::default()),
        None => Err(Damage::whole(&path, "it is missing").into()),
    }
}

/// Writes the numbering of producers at the start of a segment.
pub(crate) fn write_sequences(
    storage: &Storage,
    directory: &Path,
    base_offset: i64,
    sequences: &Sequences,
) -> io::Result<()> {
    let json = serde_json::to_vec(sequences)?;
    storage.replace(&segment::path_of(directory, base_offset, "producers"), &json)
}

/// Removes the files of a segment.
pub(crate) fn remove_segment(storage: &Storage, directory: &Path, base_offset: i64) -> io::Result<()> {
    storage.remove(&segment::path_of(directory, base_offset, "log"))?;
    storage.remove(&segment::path_of(directory, base_offset, "producers"))
}

/// The first offsets of the segments that hold something from `low` on. Those below are removed: a trim that was cut
/// off is finished here.
fn untrimmed(storage: &Storage, directory: &Path, low: i64) -> io::Result<Vec<i64>> {
    let mut bases = segment_bases(storage, directory)?;
    while bases.len() > 1 && bases[1] <= low {
        remove_segment(storage, directory, bases.remove(0))?;
    }
    Ok(bases)
}

fn open_closed(
    storage: &Storage,
    directory: &Path,
    base_offset: i64,
    end_offset: i64,
) -> io::Result<ClosedSegment> {
    let path = segment::path_of(directory, base_offset, "log");
    let file = storage.disk().open(&path, Open::Read)?;
    let length = file.length()?;
    let mut index = Index::default();
    let scanned = segment::scan(&*file, base_offset, length, Check::Header, |_, at| index.note(at))?;
    let what = match scanned.fault {
        Some(fault) => fault.to_owned(),
        None if scanned.end.offset != end_offset => {
            format!("it ends here, but the next segment starts at offset {end_offset}")
        }
        None => return Ok(ClosedSegment { base_offset, end_offset, length, index }),
    };
    Err(Damage { file: path, at: Some(scanned.end), what }.into())
}

/// Checks the last segment from its start, cuts a torn end, and brings the numbering up to date.
fn open_active(
    storage: &Storage,
    directory: &Path,
    base_offset: i64,
    sequences: &mut Sequences,
) -> io::Result<(ActiveSegment, i64)> {
    let path = segment::path_of(directory, base_offset, "log");
    let file = storage.disk().open(&path, Open::Edit)?;
    let length = file.length()?;
    let mut index = Index::default();
    let scanned = segment::scan(&*file, base_offset, length, Check::Whole, |batch, at| {
        index.note(at);
        if let Some(sequence) = &batch.sequence {
            sequences.remember(sequence, at.offset);
        }
    })?;
    cut_torn_end(storage, &path, &*file, (scanned, length))?;
    // After a crash of the process alone, the end is in the operating system only.
    file.sync()?;
    let Mark { offset: high, position: length } = scanned.end;
    Ok((ActiveSegment { base_offset, file, synced_length: length, length, index }, high))
}

fn cut_torn_end(
    storage: &Storage,
    path: &Path,
    file: &dyn DiskFile,
    (scanned, length): (Scanned, u64),
) -> io::Result<()> {
    let Scanned { end, fault: Some(fault) } = scanned else { return Ok(()) };
    let mut torn = vec![0; (length - end.position) as usize];
    file.read_exact_at(&mut torn, end.position)?;
    // A write that was cut off leaves no batch whose checksum is right.
    let misplaced = RecordBatch::check(&torn).is_ok().then_some(0);
    if let Some(sound) = misplaced.or_else(|| segment::find_sound(&torn, end.offset)) {
        let what = match sound {
            0 => fault.to_owned(),
            _ => format!("{fault}, and sound records follow at byte {}", end.position + sound as u64),
        };
        return Err(Damage { file: path.to_owned(), at: Some(end), what }.into());
    }
    // A loss of power can leave a longer file with nothing in it.
    if torn.iter().any(|&byte| byte != 0) {
        let kept = storage.freeing(|| storage.keep_aside(path, end.position, &torn))?;
        warn!(
            file = %path.display(), position = end.position, offset = end.offset, bytes = torn.len(),
            kept = %kept.display(), "embedded broker: cut off the torn end of the log; what was cut is kept"
        );
    }
    file.set_length(end.position)
}

/// Starts a new segment at the low watermark, where the log ends below it: the offsets up to there were given to
/// records that were deleted since, and are not given again.
fn restart_at_low(storage: &Storage, directory: &Path, recovered: &mut Recovered) -> io::Result<()> {
    let Recovered { low, high, .. } = *recovered;
    warn!(directory = %directory.display(), low, high, "embedded broker: the log ends below its low watermark and restarts there");
    write_sequences(storage, directory, low, &recovered.sequences)?;
    recovered.active = ActiveSegment::create(storage, directory, low)?;
    recovered.closed.clear();
    recovered.high = low;
    untrimmed(storage, directory, low)?;
    Ok(())
}

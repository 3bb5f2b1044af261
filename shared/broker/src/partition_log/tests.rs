//! Appends, reads, deletions of one Kafka partition, without a network, on a disk in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{AppendError, PartitionLog, ReadError};
use crate::OffsetRange;
use crate::disk::Disk;
use crate::disk::memory::MemoryDisk;
use crate::record_batch::RecordBatch;
use crate::record_batch::tests::batch;
use crate::storage::Storage;

pub(crate) const SEGMENT: u64 = 10_000;
pub(crate) const ANY: usize = 1 << 20;

/// Where the log of these tests is.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from("/log/t-0")
}

/// A new, empty log.
pub(crate) fn create(disk: &MemoryDisk) -> PartitionLog {
    let storage = Arc::new(Storage::open(Arc::new(disk.clone()), Path::new("/log")).unwrap());
    let log = PartitionLog::create(&storage, directory(), SEGMENT).unwrap();
    disk.sync_directory(Path::new("/log")).unwrap();
    log
}

/// Opens the log that is there.
pub(crate) fn reopen(disk: &MemoryDisk) -> std::io::Result<PartitionLog> {
    let storage = Arc::new(Storage::open(Arc::new(disk.clone()), Path::new("/log"))?);
    PartitionLog::open(&storage, directory(), SEGMENT)
}

fn open(disk: &MemoryDisk) -> PartitionLog {
    reopen(disk).unwrap()
}

/// Appends `count` batches of ten records in about a thousand bytes each.
pub(crate) fn fill(log: &PartitionLog, count: i64) {
    for at in 0..count {
        log.append(&batch(10, 1000, None, 1000 + at), ANY).unwrap();
    }
}

/// The batches that a read gives.
pub(crate) fn batches(log: &PartitionLog, offset: i64, max_bytes: usize) -> Vec<RecordBatch> {
    let records = log.read(offset, max_bytes).unwrap().records;
    let mut batches = Vec::new();
    let mut at = 0;
    while at < records.len() {
        let batch = RecordBatch::check(&records[at..]).unwrap();
        at += batch.size;
        batches.push(batch);
    }
    batches
}

/// The base offsets of the batches that a read gives.
pub(crate) fn bases(log: &PartitionLog, offset: i64, max_bytes: usize) -> Vec<i64> {
    batches(log, offset, max_bytes).iter().map(|batch| batch.base_offset).collect()
}

/// All files of a directory with their content.
pub(crate) fn bytes_of(disk: &MemoryDisk, directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = disk.names(directory).unwrap();
    names.into_iter().map(|name| (name.clone(), disk.content(&directory.join(name)))).collect()
}

/// How many bytes the log takes on the disk.
pub(crate) fn bytes_on_disk(disk: &MemoryDisk) -> usize {
    bytes_of(disk, &directory()).values().map(Vec::len).sum()
}

#[test]
fn a_read_starts_with_the_batch_that_holds_the_offset() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 100);
    assert_eq!(log.range(), OffsetRange { low: 0, high: 1000 });
    for offset in 0..1000 {
        assert_eq!(bases(&log, offset, 1)[0], offset - offset % 10, "at least one batch, the right one");
    }
    assert_eq!(bases(&log, 15, 2500), [10, 20]);
    assert!(bases(&log, 1000, ANY).is_empty());
    assert!(matches!(log.read(1001, ANY), Err(ReadError::OutOfRange)));
}

#[test]
fn what_is_not_on_the_disk_yet_is_not_read() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 3);
    // So many that segments are closed on the way, which brings their part to the disk.
    let mut last = None;
    for at in 3..17 {
        last = Some(log.write(&batch(10, 1000, None, 0), ANY).unwrap());
        assert_eq!(last.unwrap().base_offset, at * 10);
        let high = log.range().high;
        assert!(high < (at + 1) * 10, "{high}");
        assert!(bases(&log, high, ANY).is_empty());
        assert_eq!(bases(&log, high - 10, ANY), [high - 10]);
    }
    assert_eq!(log.delete_before(170).unwrap(), None);
    log.sync(&last.unwrap()).unwrap();
    assert_eq!(log.range(), OffsetRange { low: 0, high: 170 });
    assert_eq!(bases(&log, 160, ANY), [160]);
}

#[test]
fn a_batch_larger_than_the_bound_is_read_whole() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    log.append(&batch(1, 500_000, None, 0), ANY).unwrap();
    log.append(&batch(1, 500_000, None, 0), ANY).unwrap();
    assert_eq!(bases(&log, 0, 10), [0]);
    assert_eq!(bases(&log, 1, 10), [1]);
    assert!(matches!(log.append(&batch(1, 2000, None, 0), 1000), Err(AppendError::TooLarge)));
}

#[test]
fn everything_is_there_again_after_opening() {
    let disk = MemoryDisk::default();
    fill(&create(&disk), 100);
    let log = open(&disk);
    assert_eq!(log.range(), OffsetRange { low: 0, high: 1000 });
    for offset in (0..1000).step_by(10) {
        assert_eq!(bases(&log, offset, 1), [offset]);
    }
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), 1000);
}

#[test]
fn a_deletion_within_a_batch_keeps_the_batch() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 100);
    assert_eq!(log.delete_before(555).unwrap(), Some(555));
    assert_eq!(log.delete_before(100).unwrap(), Some(555), "never back");
    assert_eq!(log.delete_before(1001).unwrap(), None, "never past the end");
    assert_eq!(log.range(), OffsetRange { low: 555, high: 1000 });
    assert!(matches!(log.read(554, ANY), Err(ReadError::OutOfRange)));
    assert_eq!(bases(&log, 555, 1), [550]);
    assert!(bytes_on_disk(&disk) < 60_000);

    let log = open(&disk);
    assert_eq!(log.range(), OffsetRange { low: 555, high: 1000 });
    assert_eq!(bases(&log, 555, 1), [550]);
}

#[test]
fn deleting_all_gives_the_disk_back_and_keeps_the_end() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 3);
    log.delete_before(30).unwrap();
    assert!(bytes_on_disk(&disk) < 100);
    let log = open(&disk);
    assert_eq!(log.range(), OffsetRange { low: 30, high: 30 });
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), 30);
}

#[test]
fn a_numbered_batch_is_written_once_even_across_opening_and_segments() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    for at in 0..30 {
        let numbered = batch(10, 1000, Some((7, at * 10)), 0);
        assert_eq!(log.append(&numbered, ANY).unwrap(), i64::from(at) * 10);
    }
    let log = open(&disk);
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), 290);
    assert_eq!(log.range().high, 300);
    let skipped = log.append(&batch(10, 1000, Some((7, 310)), 0), ANY);
    assert!(matches!(skipped, Err(AppendError::OutOfOrder)));
    // With every record gone, the numbering still stands.
    log.delete_before(300).unwrap();
    let log = open(&disk);
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), 290);
    assert_eq!(log.range().high, 300);
}

#[test]
fn nonsense_is_refused() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    let mut damaged = batch(10, 100, None, 0);
    damaged[90] ^= 1;
    let mut empty = batch(10, 100, None, 0);
    empty[57..61].fill(0);
    let checksum = crc32c::crc32c(&empty[21..]);
    empty[17..21].copy_from_slice(&checksum.to_be_bytes());
    for bytes in [&damaged[..], &damaged[..30], &empty, b"", b"nonsense"] {
        assert!(matches!(log.append(bytes, ANY), Err(AppendError::Malformed)));
    }
    assert_eq!(log.range().high, 0);
}

#[test]
fn times_are_found() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 100);
    assert_eq!(log.find_time(0).unwrap(), Some((0, 1000)));
    assert_eq!(log.find_time(1050).unwrap(), Some((500, 1050)));
    assert_eq!(log.find_time(2000).unwrap(), None);
}

//! Appends, reads and deletions of one Kafka partition, without a network, on a disk in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wye_domain::place::Offset;

use super::{AppendError, Found, PartitionLog, ReadError};
use crate::OffsetRange;
use crate::clock::Timestamp;
use crate::disk::Disk;
use crate::disk::memory::MemoryDisk;
use crate::record_batch::RecordBatch;
use crate::record_batch::tests::batch;
use crate::storage::Storage;

const SEGMENT_BYTES: u64 = 10_000;
/// More than any batch of these tests has, in bytes.
pub(crate) const ANY: usize = 1 << 20;

/// The directory of the log in these tests.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from("/log/t-0")
}

/// A new, empty log.
pub(crate) fn create(disk: &MemoryDisk) -> PartitionLog {
    let storage = Arc::new(Storage::open(Arc::new(disk.clone()), Path::new("/log")).unwrap());
    let log = PartitionLog::create(&storage, directory(), SEGMENT_BYTES).unwrap();
    disk.sync_directory(Path::new("/log")).unwrap();
    log
}

/// Opens the existing log.
pub(crate) fn reopen(disk: &MemoryDisk) -> std::io::Result<PartitionLog> {
    let storage = Arc::new(Storage::open(Arc::new(disk.clone()), Path::new("/log"))?);
    PartitionLog::open(&storage, directory(), SEGMENT_BYTES)
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

/// The batches that a read returns.
pub(crate) fn batches(log: &PartitionLog, offset: i64, max_bytes: usize) -> Vec<RecordBatch> {
    let records = log.read(Offset(offset), max_bytes).unwrap().records;
    let mut batches = Vec::new();
    let mut at = 0;
    while at < records.len() {
        let batch = RecordBatch::check(&records[at..]).unwrap();
        at += batch.size;
        batches.push(batch);
    }
    batches
}

/// The base offsets of the batches that a read returns.
pub(crate) fn bases(log: &PartitionLog, offset: i64, max_bytes: usize) -> Vec<i64> {
    batches(log, offset, max_bytes).iter().map(|batch| batch.base_offset.0).collect()
}

/// All files of a directory with their contents.
pub(crate) fn bytes_of(disk: &MemoryDisk, directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = disk.names(directory).unwrap();
    names.into_iter().map(|name| (name.clone(), disk.content(&directory.join(name)))).collect()
}

/// The bytes of the log on the disk.
pub(crate) fn bytes_on_disk(disk: &MemoryDisk) -> usize {
    bytes_of(disk, &directory()).values().map(Vec::len).sum()
}

#[test]
fn a_read_starts_with_the_batch_that_holds_the_offset() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 100);
    assert_eq!(log.range(), OffsetRange { low: Offset(0), high: Offset(1000) });
    for offset in 0..1000 {
        assert_eq!(bases(&log, offset, 1)[0], offset - offset % 10, "at least one batch, the right one");
    }
    assert_eq!(bases(&log, 15, 2500), [10, 20]);
    assert!(bases(&log, 1000, ANY).is_empty());
    assert!(matches!(log.read(Offset(1001), ANY), Err(ReadError::OutOfRange)));
}

#[test]
fn unsynced_records_are_not_read() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 3);
    // Enough to close segments in between, which are synced then.
    let mut last = None;
    for at in 3..17 {
        last = Some(log.write(&batch(10, 1000, None, 0), ANY).unwrap());
        assert_eq!(last.unwrap().base_offset, Offset(at * 10));
        let high = log.range().high.0;
        assert!(high < (at + 1) * 10, "{high}");
        assert!(bases(&log, high, ANY).is_empty());
        assert_eq!(bases(&log, high - 10, ANY), [high - 10]);
    }
    assert_eq!(log.delete_before(Offset(170)).unwrap(), None);
    log.sync(&last.unwrap()).unwrap();
    assert_eq!(log.range(), OffsetRange { low: Offset(0), high: Offset(170) });
    assert_eq!(bases(&log, 160, ANY), [160]);
}

#[test]
fn a_batch_larger_than_the_limit_is_read_whole() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    log.append(&batch(1, 500_000, None, 0), ANY).unwrap();
    log.append(&batch(1, 500_000, None, 0), ANY).unwrap();
    assert_eq!(bases(&log, 0, 10), [0]);
    assert_eq!(bases(&log, 1, 10), [1]);
    assert!(matches!(log.append(&batch(1, 2000, None, 0), 1000), Err(AppendError::TooLarge)));
}

#[test]
fn all_records_can_be_read_after_opening() {
    let disk = MemoryDisk::default();
    fill(&create(&disk), 100);
    let log = open(&disk);
    assert_eq!(log.range(), OffsetRange { low: Offset(0), high: Offset(1000) });
    for offset in (0..1000).step_by(10) {
        assert_eq!(bases(&log, offset, 1), [offset]);
    }
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), Offset(1000));
}

#[test]
fn a_deletion_within_a_batch_keeps_the_batch() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 100);
    assert_eq!(log.delete_before(Offset(555)).unwrap(), Some(Offset(555)));
    assert_eq!(log.delete_before(Offset(100)).unwrap(), Some(Offset(555)), "never back");
    assert_eq!(log.delete_before(Offset(1001)).unwrap(), None, "never past the end");
    assert_eq!(log.range(), OffsetRange { low: Offset(555), high: Offset(1000) });
    assert!(matches!(log.read(Offset(554), ANY), Err(ReadError::OutOfRange)));
    assert_eq!(bases(&log, 555, 1), [550]);
    assert!(bytes_on_disk(&disk) < 60_000);

    let log = open(&disk);
    assert_eq!(log.range(), OffsetRange { low: Offset(555), high: Offset(1000) });
    assert_eq!(bases(&log, 555, 1), [550]);
}

#[test]
fn deleting_all_records_frees_the_disk_and_keeps_the_end_offset() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 3);
    log.delete_before(Offset(30)).unwrap();
    assert!(bytes_on_disk(&disk) < 100);
    let log = open(&disk);
    assert_eq!(log.range(), OffsetRange { low: Offset(30), high: Offset(30) });
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), Offset(30));
}

#[test]
fn a_batch_with_a_sequence_number_is_written_once_across_opening_and_segments() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    for at in 0..30 {
        let numbered = batch(10, 1000, Some((7, at * 10)), 0);
        assert_eq!(log.append(&numbered, ANY).unwrap(), Offset(i64::from(at) * 10));
    }
    let log = open(&disk);
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), Offset(290));
    assert_eq!(log.range().high, Offset(300));
    let skipped = log.append(&batch(10, 1000, Some((7, 310)), 0), ANY);
    assert!(matches!(skipped, Err(AppendError::OutOfOrder)));
    // The state of the producers remains when all records are deleted.
    log.delete_before(Offset(300)).unwrap();
    let log = open(&disk);
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), Offset(290));
    assert_eq!(log.range().high, Offset(300));
}

#[test]
fn invalid_batches_are_refused() {
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
    assert_eq!(log.range().high, Offset::START);
}

#[test]
fn batches_are_found_by_timestamp() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 100);
    for (asked, offset, found) in [(0, 0, 1000), (1050, 500, 1050)] {
        let expected = Found { offset: Offset(offset), timestamp: Some(Timestamp(found)) };
        assert_eq!(log.find_time(Timestamp(asked)).unwrap(), Some(expected));
    }
    assert_eq!(log.find_time(Timestamp(2000)).unwrap(), None);
}

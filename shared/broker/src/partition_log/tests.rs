//! Appends, reads, deletions and recovery of one Kafka partition, without a network.

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::{AppendError, PartitionLog, ReadError};
use crate::OffsetRange;
use crate::record_batch::RecordBatch;
use crate::record_batch::tests::batch;

const SEGMENT: u64 = 10_000;
const ANY: usize = 1 << 20;

fn open(directory: &Path) -> PartitionLog {
    PartitionLog::open(directory.to_owned(), SEGMENT).unwrap()
}

/// Appends `count` batches of ten records in about a thousand bytes each.
fn fill(log: &PartitionLog, count: i64) {
    for at in 0..count {
        log.append(&batch(10, 1000, None, 1000 + at), ANY).unwrap();
    }
}

/// The base offsets of the batches that a read gives.
fn bases(log: &PartitionLog, offset: i64, max_bytes: usize) -> Vec<i64> {
    let records = log.read(offset, max_bytes).unwrap().records;
    let mut bases = Vec::new();
    let mut at = 0;
    while at < records.len() {
        let batch = RecordBatch::check(&records[at..]).unwrap();
        bases.push(batch.base_offset);
        at += batch.size;
    }
    bases
}

fn bytes_on_disk(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_read_starts_with_the_batch_that_holds_the_offset() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
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
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    fill(&log, 3);
    // So many that segments are closed on the way, which brings their part to the disk.
    for at in 3..17 {
        assert_eq!(log.write_all(&batch(10, 1000, None, 0), ANY).unwrap(), at * 10);
        let high = log.range().high;
        assert!(high < (at + 1) * 10, "{high}");
        assert!(bases(&log, high, ANY).is_empty());
        assert_eq!(bases(&log, high - 10, ANY), [high - 10]);
    }
    assert_eq!(log.delete_before(170).unwrap(), None);
    log.sync().unwrap();
    assert_eq!(log.range(), OffsetRange { low: 0, high: 170 });
    assert_eq!(bases(&log, 160, ANY), [160]);
}

#[test]
fn a_batch_larger_than_the_bound_is_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    log.append(&batch(1, 500_000, None, 0), ANY).unwrap();
    log.append(&batch(1, 500_000, None, 0), ANY).unwrap();
    assert_eq!(bases(&log, 0, 10), [0]);
    assert_eq!(bases(&log, 1, 10), [1]);
    assert!(matches!(log.append(&batch(1, 2000, None, 0), 1000), Err(AppendError::TooLarge)));
}

#[test]
fn everything_is_there_again_after_opening() {
    let directory = tempfile::tempdir().unwrap();
    fill(&open(directory.path()), 100);
    let log = open(directory.path());
    assert_eq!(log.range(), OffsetRange { low: 0, high: 1000 });
    for offset in (0..1000).step_by(10) {
        assert_eq!(bases(&log, offset, 1), [offset]);
    }
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), 1000);
}

#[test]
fn a_deletion_within_a_batch_keeps_the_batch() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    fill(&log, 100);
    assert_eq!(log.delete_before(555).unwrap(), Some(555));
    assert_eq!(log.delete_before(100).unwrap(), Some(555), "never back");
    assert_eq!(log.delete_before(1001).unwrap(), None, "never past the end");
    assert_eq!(log.range(), OffsetRange { low: 555, high: 1000 });
    assert!(matches!(log.read(554, ANY), Err(ReadError::OutOfRange)));
    assert_eq!(bases(&log, 555, 1), [550]);
    assert!(bytes_on_disk(directory.path()) < 60_000);

    let log = open(directory.path());
    assert_eq!(log.range(), OffsetRange { low: 555, high: 1000 });
    assert_eq!(bases(&log, 555, 1), [550]);
}

#[test]
fn deleting_all_gives_the_disk_back_and_keeps_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    fill(&log, 3);
    log.delete_before(30).unwrap();
    assert!(bytes_on_disk(directory.path()) < 100);
    let log = open(directory.path());
    assert_eq!(log.range(), OffsetRange { low: 30, high: 30 });
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), 30);
}

#[test]
fn a_torn_end_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    fill(&open(directory.path()), 5);
    let path = directory.path().join("00000000000000000000.log");
    let whole = fs::metadata(&path).unwrap().len();
    for cut in [whole - 1, whole - 1000, whole - 1055, whole - 1061] {
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let log = open(directory.path());
        assert_eq!(log.range().high, 40, "cut at {cut}");
        assert_eq!(log.append(&batch(10, 1000, None, 0), ANY).unwrap(), 40);
        assert_eq!(bases(&log, 40, ANY), [40]);
    }
    // A loss of power can leave a longer file with nothing in it.
    OpenOptions::new().write(true).open(&path).unwrap().set_len(whole + 5000).unwrap();
    assert_eq!(open(directory.path()).range().high, 50);
}

#[test]
fn a_numbered_batch_is_written_once_even_across_opening_and_segments() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    for at in 0..30 {
        let numbered = batch(10, 1000, Some((7, at * 10)), 0);
        assert_eq!(log.append(&numbered, ANY).unwrap(), i64::from(at) * 10);
    }
    let log = open(directory.path());
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), 290);
    assert_eq!(log.range().high, 300);
    let skipped = log.append(&batch(10, 1000, Some((7, 310)), 0), ANY);
    assert!(matches!(skipped, Err(AppendError::OutOfOrder)));
    // With every record gone, the numbering still stands.
    log.delete_before(300).unwrap();
    let log = open(directory.path());
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), 290);
    assert_eq!(log.range().high, 300);
}

#[test]
fn nonsense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    let mut damaged = batch(10, 100, None, 0);
    damaged[90] ^= 1;
    for bytes in [&damaged[..], &damaged[..30], b"", b"nonsense"] {
        assert!(matches!(log.append(bytes, ANY), Err(AppendError::Malformed)));
    }
    assert_eq!(log.range().high, 0);
}

#[test]
fn times_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let log = open(directory.path());
    fill(&log, 100);
    assert_eq!(log.find_time(0).unwrap(), Some((0, 1000)));
    assert_eq!(log.find_time(1050).unwrap(), Some((500, 1050)));
    assert_eq!(log.find_time(2000).unwrap(), None);
}

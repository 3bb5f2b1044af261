//! One Kafka partition on a disk that fails, is full, or is slow.

use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;

use wye_domain::place::Offset;

use super::tests::{ANY, bases, bytes_on_disk, create, directory, fill, reopen};
use super::{AppendError, PartitionLog};
use crate::OffsetRange;
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Operation, Unsynced};
use crate::record_batch::tests::batch;

/// A batch of ten records of an idempotent producer, with the first sequence number.
fn numbered(first: i32) -> Vec<u8> {
    batch(10, 1000, Some((7, first)), 0)
}

/// All base offsets from the low watermark on.
fn all(log: &PartitionLog) -> Vec<i64> {
    let OffsetRange { low: Offset(mut at), high } = log.range();
    let mut all = Vec::new();
    while at < high.0 {
        all.extend(bases(log, at, ANY));
        at = all.last().unwrap() + 10;
    }
    all
}

fn tens(until: i64) -> Vec<i64> {
    (0..until).step_by(10).collect()
}

/// Appends ten records.
fn append_ten(log: &PartitionLog) -> Result<Offset, AppendError> {
    log.append(&batch(10, 1000, None, 0), ANY)
}

#[test]
fn after_any_failure_writes_stop_and_acknowledged_records_remain() {
    use Operation::{Open, Rename, Sync, SyncDirectory, Write};
    for operation in [Open, Rename, Sync, SyncDirectory, Write] {
        for after in 0.. {
            let disk = MemoryDisk::default();
            let log = create(&disk);
            disk.fail(operation, after, ErrorKind::Other);
            // Over three segments.
            let acknowledged = (0..30).map_while(|_| append_ten(&log).ok()).count() as i64 * 10;
            if acknowledged == 300 {
                assert!(after > 0, "{operation:?} is never called");
                break;
            }
            // The disk works again, but it is unknown what it has.
            for _ in 0..3 {
                assert!(matches!(append_ten(&log), Err(AppendError::Stopped(_))), "{operation:?} {after}");
            }
            assert!(log.trouble().unwrap().contains("no more writes"), "{:?}", log.trouble());
            assert_eq!(all(&log), tens(acknowledged), "reads continue");
            if acknowledged > 0 {
                assert_eq!(log.delete_before(Offset(5)).unwrap(), Some(Offset(5)), "and deletions continue");
            }
            drop(log);
            for unsynced in [Unsynced::Some(after as u64), Unsynced::Dropped] {
                disk.crash(unsynced);
                let log = reopen(&disk).unwrap();
                assert!(all(&log).starts_with(&tens(acknowledged)), "{operation:?} {after} {unsynced:?}");
                assert!(log.trouble().is_none());
            }
            let log = reopen(&disk).unwrap();
            let end = log.range().high;
            assert_eq!(append_ten(&log).unwrap(), end);
        }
    }
}

#[test]
fn a_successful_sync_does_not_repair_a_failed_one() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 3);
    disk.fail(Operation::Sync, 0, ErrorKind::Other);
    assert!(matches!(log.append(&numbered(0), ANY), Err(AppendError::Stopped(_))));
    assert!(matches!(log.append(&numbered(0), ANY), Err(AppendError::Stopped(_))));
    drop(log);
    disk.crash(Unsynced::Dropped);
    let log = reopen(&disk).unwrap();
    let offset = log.append(&numbered(0), ANY).unwrap();
    assert_eq!(offset, Offset(30), "it was not acknowledged, and is written now");
}

#[test]
fn records_can_be_deleted_from_a_full_disk_and_writes_resume() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    for free in [100_000, 77_777, 50_001] {
        disk.set_free(Some(free));
        let refused = loop {
            match append_ten(&log) {
                Ok(_) => {}
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, AppendError::Full(_)), "{refused}");
        assert!(refused.to_string().contains("delete files"), "{refused}");
        disk.set_free(Some(0));
        assert!(matches!(append_ten(&log), Err(AppendError::Full(_))));
        let OffsetRange { low, high } = log.range();
        let expected: Vec<i64> = (low.0..high.0).step_by(10).collect();
        assert_eq!(all(&log), expected, "acknowledged records are there");
        assert!(log.trouble().is_none(), "a full disk is not a problem of the log");

        assert_eq!(log.delete_before(high).unwrap(), Some(high));
        assert!(bytes_on_disk(&disk) < 1000, "{}", bytes_on_disk(&disk));
        // Another process has used the space: still full.
        disk.set_free(Some(100));
        assert!(matches!(append_ten(&log), Err(AppendError::Full(_))));
        assert_eq!(log.delete_before(high).unwrap(), Some(high));
        disk.set_free(Some(10_000_000));
        assert_eq!(append_ten(&log).unwrap(), high, "without a restart");
    }
    drop(log);
    disk.crash(Unsynced::Dropped);
    let log = reopen(&disk).unwrap();
    assert_eq!(all(&log).len(), 1);
}

#[test]
fn a_log_on_a_full_disk_can_be_opened() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 5);
    drop(log);
    disk.remove_file(std::path::Path::new("/log/reserve")).unwrap();
    disk.set_free(Some(0));
    let log = reopen(&disk).unwrap();
    assert_eq!(all(&log), tens(50));
    assert!(matches!(append_ten(&log), Err(AppendError::Full(_))));
}

#[test]
fn writes_resume_after_a_shortage_at_any_step() {
    use Operation::{Open, Sync, SyncDirectory, Write};
    for operation in [Open, Sync, SyncDirectory, Write] {
        for after in 0.. {
            let disk = MemoryDisk::default();
            let log = create(&disk);
            disk.fail(operation, after, ErrorKind::StorageFull);
            let mut refused = 0;
            for at in 0..30 {
                while let Err(refusal) = log.append(&numbered(at * 10), ANY) {
                    assert!(matches!(refusal, AppendError::Full(_)), "{operation:?} {after}: {refusal}");
                    refused += 1;
                }
            }
            disk.fail_no_more();
            assert_eq!(all(&log), tens(300), "{operation:?} {after}: each once, in order");
            drop(log);
            disk.crash(Unsynced::Dropped);
            assert_eq!(all(&reopen(&disk).unwrap()), tens(300), "{operation:?} {after}");
            if refused == 0 {
                assert!(after > 0, "{operation:?} is never called");
                break;
            }
        }
    }
}

#[test]
fn writes_that_wait_for_a_sync_are_refused_when_the_disk_is_full() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 2);
    let first = log.write(&numbered(0), ANY).unwrap();
    let second = log.write(&numbered(10), ANY).unwrap();
    disk.fail(Operation::Sync, 0, ErrorKind::StorageFull);
    assert!(matches!(log.sync(&first), Err(AppendError::Full(_))));
    // Another write comes first, and its records get the same offsets.
    assert_eq!(log.append(&batch(30, 1000, None, 0), ANY).unwrap(), Offset(20));
    assert!(matches!(log.sync(&second), Err(AppendError::Full(_))), "its records are not there");
    assert_eq!(log.append(&numbered(0), ANY).unwrap(), Offset(50), "and do not count as repeated");
}

#[test]
fn a_running_sync_blocks_neither_bounds_nor_reads() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 8);
    disk.hold_syncs();
    thread::scope(|scope| {
        // The ninth fits into the segment, the tenth closes it.
        let appending = scope.spawn(|| fill(&log, 2));
        for high in [80, 90] {
            disk.until_held(1);
            assert_eq!(log.range(), OffsetRange { low: Offset(0), high: Offset(high) });
            assert!(log.trouble().is_none());
            assert_eq!(all(&log), tens(high));
            if high == 80 {
                disk.release_one_sync();
            }
        }
        disk.release_syncs();
        appending.join().unwrap();
    });
    assert_eq!(log.range().high, Offset(100));
}

#[test]
fn writes_that_wait_together_share_a_sync() {
    let disk = MemoryDisk::default();
    let log = Arc::new(create(&disk));
    let before = disk.syncs();
    let written: Vec<_> = (0..8).map(|at| log.write(&numbered(at * 10), ANY).unwrap()).collect();
    thread::scope(|scope| {
        for written in &written {
            scope.spawn(|| log.sync(written).unwrap());
        }
    });
    assert_eq!(disk.syncs() - before, 1);
    assert_eq!(all(&log), tens(80));
}

#[test]
fn a_deleted_log_accepts_no_writes() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 9);
    log.close("the topic is being deleted");
    disk.remove_directory(&directory()).unwrap();
    for _ in 0..3 {
        assert!(matches!(log.append(&numbered(0), ANY), Err(AppendError::Stopped(_))));
    }
    assert!(disk.names(&directory()).is_err(), "nothing is left or created again");
}

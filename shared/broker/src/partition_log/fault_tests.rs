//! A disk that fails, is full, or is slow, under one Kafka partition.

use std::io::ErrorKind;
use std::sync::Arc;
use std::thread;

use super::tests::{ANY, bases, bytes_on_disk, create, directory, fill, reopen};
use super::{AppendError, PartitionLog};
use crate::OffsetRange;
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Operation, Unsynced};
use crate::record_batch::tests::batch;

/// A batch of ten records of a producer that numbers them.
fn numbered(first: i32) -> Vec<u8> {
    batch(10, 1000, Some((7, first)), 0)
}

/// All base offsets from `low` on.
fn all(log: &PartitionLog) -> Vec<i64> {
    let OffsetRange { low: mut at, high } = log.range();
    let mut all = Vec::new();
    while at < high {
        all.extend(bases(log, at, ANY));
        at = all.last().unwrap() + 10;
    }
    all
}

fn tens(until: i64) -> Vec<i64> {
    (0..until).step_by(10).collect()
}

#[test]
fn after_any_failure_nothing_more_is_written_and_nothing_acknowledged_is_lost() {
    use Operation::{Open, Rename, Sync, SyncDirectory, Write};
    for operation in [Open, Rename, Sync, SyncDirectory, Write] {
        for after in 0.. {
            let disk = MemoryDisk::default();
            let log = create(&disk);
            disk.fail(operation, after, ErrorKind::Other);
            let appended = |_: &i32| log.append(&batch(10, 1000, None, 0), ANY);
            // Over three segments.
            let acknowledged = (0..30).map_while(|at| appended(&at).ok()).count() as i64 * 10;
            if acknowledged == 300 {
                assert!(after > 0, "{operation:?} is never called");
                break;
            }
            // The disk is fine again, but nobody knows what it holds.
            for _ in 0..3 {
                assert!(matches!(appended(&0), Err(AppendError::Stopped(_))), "{operation:?} {after}");
            }
            assert!(log.trouble().unwrap().contains("no more writes"), "{:?}", log.trouble());
            assert_eq!(all(&log), tens(acknowledged), "reads go on");
            if acknowledged > 0 {
                assert_eq!(log.delete_before(5).unwrap(), Some(5), "and so do deletions");
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
            assert_eq!(log.append(&batch(10, 1000, None, 0), ANY).unwrap(), end);
        }
    }
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 3);
    disk.fail(Operation::Sync, 0, ErrorKind::Other);
    assert!(matches!(log.append(&numbered(0), ANY), Err(AppendError::Stopped(_))));
    assert!(matches!(log.append(&numbered(0), ANY), Err(AppendError::Stopped(_))));
    drop(log);
    disk.crash(Unsynced::Dropped);
    let log = reopen(&disk).unwrap();
    assert_eq!(log.append(&numbered(0), ANY).unwrap(), 30, "it was not acknowledged, and is written now");
}

#[test]
fn a_full_disk_can_be_trimmed_and_takes_writes_again() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    for room in [100_000, 77_777, 50_001] {
        // Beside what is kept free before writes are taken.
        disk.set_room(Some(room));
        let refused = loop {
            match log.append(&batch(10, 1000, None, 0), ANY) {
                Ok(_) => {}
                Err(refused) => break refused,
            }
        };
        assert!(matches!(refused, AppendError::Full(_)), "{refused}");
        assert!(refused.to_string().contains("free some"), "{refused}");
        disk.set_room(Some(0));
        assert!(matches!(log.append(&batch(10, 1000, None, 0), ANY), Err(AppendError::Full(_))));
        let OffsetRange { low, high } = log.range();
        assert_eq!(all(&log), (low..high).step_by(10).collect::<Vec<_>>(), "acknowledged records are there");
        assert!(log.trouble().is_none(), "it is not the log that is at fault");

        assert_eq!(log.delete_before(high).unwrap(), Some(high));
        assert!(bytes_on_disk(&disk) < 1000, "{}", bytes_on_disk(&disk));
        // Others have taken the room: still full.
        disk.set_room(Some(100));
        assert!(matches!(log.append(&batch(10, 1000, None, 0), ANY), Err(AppendError::Full(_))));
        assert_eq!(log.delete_before(high).unwrap(), Some(high));
        disk.set_room(Some(10_000_000));
        assert_eq!(log.append(&batch(10, 1000, None, 0), ANY).unwrap(), high, "without a restart");
    }
    drop(log);
    disk.crash(Unsynced::Dropped);
    let log = reopen(&disk).unwrap();
    assert_eq!(all(&log).len(), 1);
}

#[test]
fn a_full_disk_is_opened() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 5);
    drop(log);
    disk.remove_file(std::path::Path::new("/log/reserve")).unwrap();
    disk.set_room(Some(0));
    let log = reopen(&disk).unwrap();
    assert_eq!(all(&log), tens(50));
    assert!(matches!(log.append(&batch(10, 1000, None, 0), ANY), Err(AppendError::Full(_))));
}

#[test]
fn a_shortage_at_any_step_passes_without_a_restart() {
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
fn who_waits_for_a_sync_that_finds_no_room_is_refused() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 2);
    let first = log.write(&numbered(0), ANY).unwrap();
    let second = log.write(&numbered(10), ANY).unwrap();
    disk.fail(Operation::Sync, 0, ErrorKind::StorageFull);
    assert!(matches!(log.sync(&first), Err(AppendError::Full(_))));
    // Others come first, and their records take the same offsets.
    assert_eq!(log.append(&batch(30, 1000, None, 0), ANY).unwrap(), 20);
    assert!(matches!(log.sync(&second), Err(AppendError::Full(_))), "its records are not there");
    assert_eq!(log.append(&numbered(0), ANY).unwrap(), 50, "and are not taken for repeated");
}

#[test]
fn a_sync_under_way_holds_up_neither_bounds_nor_reads() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 8);
    disk.hold_syncs();
    thread::scope(|scope| {
        // The ninth fits into the segment, the tenth closes it.
        let appending = scope.spawn(|| fill(&log, 2));
        for high in [80, 90] {
            disk.until_held(1);
            assert_eq!(log.range(), OffsetRange { low: 0, high });
            assert!(log.trouble().is_none());
            assert_eq!(all(&log), tens(high));
            if high == 80 {
                disk.let_one_sync_go();
            }
        }
        disk.let_syncs_go();
        appending.join().unwrap();
    });
    assert_eq!(log.range().high, 100);
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
fn a_deleted_log_takes_nothing() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 9);
    log.close("the topic is being deleted");
    disk.remove_directory(&directory()).unwrap();
    for _ in 0..3 {
        assert!(matches!(log.append(&numbered(0), ANY), Err(AppendError::Stopped(_))));
    }
    assert!(disk.names(&directory()).is_err(), "nothing is left, or made again");
}

//! Incomplete writes after a crash, and damage on the disk, of one Kafka partition.

use wye_domain::place::Offset;

use super::tests::{ANY, bases, create, directory, fill, reopen};
use super::{PartitionLog, ReadError};
use crate::OffsetRange;
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Unsynced};
use crate::record_batch::tests::batch;

/// Bytes of a batch of [`fill`].
const BATCH: usize = 1061;

fn path(name: &str) -> std::path::PathBuf {
    directory().join(name)
}

fn first_segment() -> std::path::PathBuf {
    path("00000000000000000000.log")
}

/// The error of opening the log.
fn refusal(disk: &MemoryDisk) -> String {
    let error = reopen(disk).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData, "{error}");
    error.to_string()
}

/// The names of the copies of what was cut off.
fn copies(disk: &MemoryDisk) -> Vec<String> {
    let names = disk.names(&directory()).unwrap();
    names.into_iter().filter(|name| name.contains("cut-at")).collect()
}

#[test]
fn an_incomplete_end_is_cut_off_and_kept() {
    let disk = MemoryDisk::default();
    fill(&create(&disk), 5);
    for (number, missing) in [1, 1000, 1050, 1061].into_iter().enumerate() {
        disk.damage(&first_segment(), |bytes| bytes.truncate(5 * BATCH - missing));
        let before = disk.content(&first_segment());
        let log = reopen(&disk).unwrap();
        // The copy must survive a loss of power, since the log does not have the bytes any more.
        drop(log);
        disk.crash(Unsynced::Dropped);
        let log = reopen(&disk).unwrap();
        assert_eq!(log.range().high, Offset(40), "{missing} bytes are missing");
        assert_eq!(copies(&disk).len(), if missing == 1061 { 3 } else { number + 1 });
        if missing == 1 {
            let kept = disk.content(&path("00000000000000000000.cut-at-4244"));
            assert_eq!(kept, before[4 * BATCH..]);
        }
        assert_eq!(log.append(&batch(10, 1000, None, 0), ANY).unwrap(), Offset(40));
        assert_eq!(bases(&log, 40, ANY), [40]);
    }
    // A loss of power can extend a file with zeros.
    disk.damage(&first_segment(), |bytes| bytes.resize(5 * BATCH + 5000, 0));
    assert_eq!(reopen(&disk).unwrap().range().high, Offset(50));
    assert_eq!(copies(&disk).len(), 3, "zeros are not kept");
}

#[test]
fn damage_before_valid_records_is_not_cut_off() {
    // Any byte: base offset, length, leader epoch, magic, checksum, records.
    for byte in (0..61).chain([61, 500, BATCH - 1]) {
        let disk = MemoryDisk::default();
        fill(&create(&disk), 5);
        disk.damage(&first_segment(), |bytes| bytes[2 * BATCH + byte] ^= 0x01);
        let before = disk.content(&first_segment());
        let refused = refusal(&disk);
        assert!(refused.contains("00000000000000000000.log is damaged at byte 2122, offset 20"), "{refused}");
        assert_eq!(disk.content(&first_segment()), before, "nothing is changed");
    }
}

#[test]
fn damage_to_a_base_offset_is_detected() {
    // In the last batch; its checksum does not cover the base offset.
    for byte in (0..8).chain(12..16) {
        let disk = MemoryDisk::default();
        fill(&create(&disk), 5);
        disk.damage(&first_segment(), |bytes| bytes[4 * BATCH + byte] ^= 0x01);
        let refused = refusal(&disk);
        assert!(refused.contains("at byte 4244, offset 40"), "{refused}");
    }
}

#[test]
fn every_closed_segment_must_end_where_the_next_begins() {
    let disk = MemoryDisk::default();
    fill(&create(&disk), 30);
    let second = path("00000000000000000090.log");
    let whole = disk.content(&second);
    disk.damage(&second, |bytes| bytes.truncate(8 * BATCH));
    let refused = refusal(&disk);
    assert!(refused.contains("00000000000000000090.log is damaged at byte 8488, offset 170"), "{refused}");
    assert!(refused.contains("the next segment starts at offset 180"), "{refused}");

    disk.damage(&second, |bytes| bytes.truncate(8 * BATCH - 10));
    assert!(refusal(&disk).contains("cut off"));
    // A segment that a failed roll has left, while more was written to the one before.
    disk.damage(&second, |bytes| *bytes = whole);
    let unused = disk.open(&path("00000000000000000170.log"), crate::disk::Open::New).unwrap();
    unused.sync().unwrap();
    assert!(refusal(&disk).contains("00000000000000000090.log"));
    disk.remove_file(&path("00000000000000000170.log")).unwrap();
    assert!(reopen(&disk).is_ok());
    disk.remove_file(&second).unwrap();
    assert!(refusal(&disk).contains("the next segment starts at offset 180"));
    disk.remove_file(&first_segment()).unwrap();
    assert!(refusal(&disk).contains("the segment with offset 0 is missing"));
}

#[test]
fn small_files_are_checked() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    fill(&log, 30);
    log.delete_before(Offset(115)).unwrap();
    drop(log);
    for name in ["low", "00000000000000000270.producers"] {
        let whole = disk.content(&path(name));
        for byte in 0..whole.len() - 1 {
            disk.damage(&path(name), |bytes| bytes[byte] ^= 0x01);
            let refused = refusal(&disk);
            assert!(refused.contains(name), "{refused}");
            disk.damage(&path(name), |bytes| bytes.clone_from(&whole));
        }
    }
    disk.remove_file(&path("00000000000000000270.producers")).unwrap();
    assert!(refusal(&disk).contains("270.producers is damaged: it is missing"));
}

#[test]
fn files_of_an_earlier_version_are_read() {
    let disk = MemoryDisk::default();
    fill(&create(&disk), 30);
    for (name, content) in [("low", "115\n"), ("00000000000000000270.producers", r#"{"producers":{}}"#)] {
        let file = disk.open(&path(name), crate::disk::Open::Empty).unwrap();
        file.write_all_at(content.as_bytes(), 0).unwrap();
    }
    assert_eq!(reopen(&disk).unwrap().range(), OffsetRange { low: Offset(115), high: Offset(300) });
}

#[test]
fn records_are_checked_when_they_are_read() {
    for (file, first) in [("00000000000000000000.log", 0), ("00000000000000000180.log", 180)] {
        for byte in (0..61).chain([61, 500, BATCH - 1]) {
            let disk = MemoryDisk::default();
            let log = create(&disk);
            fill(&log, 25);
            disk.damage(&path(file), |bytes| bytes[2 * BATCH + byte] ^= 0x01);
            assert_eq!(bases(&log, first, ANY), [first, first + 10], "the valid ones before it are read");
            assert!(log.trouble().is_none());
            let error = log.read(Offset(first + 20), ANY).unwrap_err();
            assert!(matches!(error, ReadError::Damaged(_)), "byte {byte}: {error}");
            let trouble = log.trouble().unwrap();
            assert!(trouble.contains(file) && trouble.contains("byte 2122"), "{trouble}");
            assert_eq!(
                log.append(&batch(10, 1000, None, 0), ANY).unwrap(),
                Offset(250),
                "writes are accepted"
            );
        }
    }
}

/// Checks a log that has lost its end.
fn check_restarted_at_low(log: &PartitionLog) {
    assert_eq!(log.range(), OffsetRange { low: Offset(305), high: Offset(305) });
    assert!(log.read(Offset(305), ANY).unwrap().records.is_empty());
    assert!(matches!(log.read(Offset(290), ANY), Err(ReadError::OutOfRange)));
}

#[test]
fn a_log_that_ends_below_its_low_watermark_continues_there() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    log.append(&batch(10, 1000, Some((7, 0)), 0), ANY).unwrap();
    fill(&log, 30);
    log.delete_before(Offset(305)).unwrap();
    drop(log);
    disk.damage(&path("00000000000000000270.log"), |bytes| bytes.truncate(2 * BATCH));
    check_restarted_at_low(&reopen(&disk).unwrap());
    disk.crash(Unsynced::Dropped);
    let log = reopen(&disk).unwrap();
    check_restarted_at_low(&log);
    let repeated = log.append(&batch(10, 1000, Some((7, 0)), 0), ANY).unwrap();
    assert_eq!(repeated, Offset(0), "the state of its producers remains");
    assert_eq!(log.append(&batch(10, 1000, Some((7, 10)), 0), ANY).unwrap(), Offset(305));
}

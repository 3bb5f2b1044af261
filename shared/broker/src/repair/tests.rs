//! Damage is reported, given up, and the broker starts again with everything else at its offset.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Loss, Repair, repair_all};
use crate::OffsetRange;
use crate::catalog::Catalog;
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Unsynced};
use crate::partition_log::tests::{ANY, batches, bytes_of};
use crate::record_batch::tests::batch;
use crate::storage::Storage;

/// Bytes of a batch here.
const BATCH: usize = 1061;

fn open(disk: &MemoryDisk) -> std::io::Result<Catalog> {
    Catalog::open_on(Arc::new(disk.clone()), Path::new("/log"), 10_000)
}

fn path(name: &str) -> PathBuf {
    Path::new("/log/t-0").join(name)
}

/// Thirty batches of ten records in four segments, from 0, 90, 180 and 270, of a producer that numbers them.
fn filled() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let catalog = open(&disk).unwrap();
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    let topic = catalog.topic("t").unwrap();
    for at in 0..30 {
        topic.partitions[0].append(&batch(10, 1000, Some((7, at * 10)), 0), ANY).unwrap();
    }
    disk
}

fn repair(disk: &MemoryDisk, repair: Repair) -> Vec<Loss> {
    let storage = Storage::open(Arc::new(disk.clone()), Path::new("/log")).unwrap();
    repair_all(&storage, repair).unwrap()
}

/// Checks that the damage is reported and nothing is changed, then that it is repaired for good. Returns the losses.
#[track_caller]
fn check(disk: &MemoryDisk, expected: OffsetRange, missing: &[i64]) -> Vec<Loss> {
    let before = bytes_of(disk, Path::new("/log/t-0"));
    let reported = repair(disk, Repair::Report);
    assert!(!reported.is_empty() && reported.iter().all(|loss| loss.kept.is_none()));
    assert_eq!(bytes_of(disk, Path::new("/log/t-0")), before, "a report changes nothing");
    let losses = repair(disk, Repair::AcceptLoss);
    assert_eq!(
        losses.iter().map(|loss| &loss.what).collect::<Vec<_>>(),
        reported.iter().map(|loss| &loss.what).collect::<Vec<_>>()
    );
    for loss in &losses {
        if let Some(kept) = &loss.kept {
            assert_eq!(disk.content(kept), before[loss.file.file_name().unwrap().to_str().unwrap()]);
        }
    }
    disk.crash(Unsynced::Dropped);
    assert_eq!(repair(disk, Repair::Report), []);
    let catalog = open(disk).unwrap();
    let log = &catalog.topic("t").unwrap().partitions[0];
    assert_eq!(log.range(), expected);
    let mut there = Vec::new();
    let mut at = expected.low;
    while at < expected.high {
        for batch in batches(log, at, ANY) {
            assert_eq!(batch.base_offset, at);
            at = batch.end_offset();
            if batch.records > 0 {
                there.push(batch.base_offset);
            }
        }
    }
    let whole = (expected.low..expected.high).step_by(10).filter(|offset| !missing.contains(offset));
    assert_eq!(there, whole.collect::<Vec<_>>());
    assert_eq!(log.append(&batch(10, 1000, None, 0), ANY).unwrap(), expected.high);
    losses
}

const ALL: OffsetRange = OffsetRange { low: 0, high: 300 };

#[test]
fn a_sound_log_has_no_losses() {
    let disk = filled();
    assert_eq!(repair(&disk, Repair::Report), []);
    assert_eq!(repair(&disk, Repair::AcceptLoss), []);
    assert!(open(&disk).is_ok());
}

#[test]
fn records_around_the_damage_keep_their_offsets() {
    for file in ["00000000000000000000.log", "00000000000000000090.log", "00000000000000000270.log"] {
        for byte in [16, 20, 25, 60, 61, 900] {
            let disk = filled();
            let base_offset: i64 = file[..20].parse().unwrap();
            disk.damage(&path(file), |bytes| bytes[BATCH + byte] ^= 0x01);
            let lost = base_offset + 10;
            let losses = check(&disk, ALL, &[lost]);
            let expected = format!("the records at offsets {lost} to {} are lost", lost + 9);
            assert_eq!(losses[0].what, expected);
            assert!(losses[0].to_string().contains("is kept as /log/t-0/"), "{}", losses[0]);
        }
    }
}

#[test]
fn a_wrong_offset_is_put_right() {
    for byte in [0, 7, 12] {
        let disk = filled();
        disk.damage(&path("00000000000000000090.log"), |bytes| bytes[BATCH + byte] ^= 0x01);
        let losses = check(&disk, ALL, &[]);
        assert!(losses[0].what.contains("no record is lost"), "{}", losses[0]);
    }
}

#[test]
fn segments_that_are_gone_leave_their_offsets() {
    let disk = filled();
    disk.remove_file(&path("00000000000000000090.log")).unwrap();
    disk.sync_directory(Path::new("/log/t-0")).unwrap();
    let losses = check(&disk, ALL, &(90..180).step_by(10).collect::<Vec<_>>());
    assert_eq!(losses[0].what, "the records at offsets 90 to 179 are lost");

    let disk = filled();
    disk.remove_file(&path("00000000000000000000.log")).unwrap();
    disk.sync_directory(Path::new("/log/t-0")).unwrap();
    check(&disk, ALL, &(0..90).step_by(10).collect::<Vec<_>>());
}

#[test]
fn small_files_are_made_again() {
    let disk = filled();
    let catalog = open(&disk).unwrap();
    catalog.topic("t").unwrap().partitions[0].delete_before(115).unwrap();
    drop(catalog);
    disk.damage(&path("low"), |bytes| bytes[0] ^= 0x01);
    disk.damage(&path("00000000000000000270.producers"), |bytes| bytes[3] ^= 0x01);
    check(&disk, OffsetRange { low: 90, high: 300 }, &[]);
    let catalog = open(&disk).unwrap();
    let log = &catalog.topic("t").unwrap().partitions[0];
    assert_eq!(log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap(), 290, "its producers are known");
}

#[test]
fn a_directory_that_is_gone_starts_empty() {
    let disk = filled();
    disk.remove_directory(Path::new("/log/t-0")).unwrap();
    disk.sync_directory(Path::new("/log")).unwrap();
    assert!(open(&disk).unwrap_err().to_string().contains("/log/t-0 is damaged: it is missing"));
    assert_eq!(repair(&disk, Repair::AcceptLoss).len(), 1);
    disk.crash(Unsynced::Dropped);
    let catalog = open(&disk).unwrap();
    let log = &catalog.topic("t").unwrap().partitions[0];
    assert_eq!(log.range(), OffsetRange { low: 0, high: 0 });
}

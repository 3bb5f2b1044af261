//! Damage is reported, its loss is accepted, and the broker starts again with all other records at their offsets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wye_domain::place::Offset;

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

/// Thirty batches of ten records of an idempotent producer, in four segments from 0, 90, 180 and 270 on.
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

/// Checks that a report of the damage changes nothing, and that a repair is durable. `missing` are the base offsets of the
/// lost batches. Returns the losses.
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
    let mut found = Vec::new();
    let mut at = expected.low;
    while at < expected.high {
        for batch in batches(log, at.0, ANY) {
            assert_eq!(batch.base_offset, at);
            at = batch.end_offset();
            if batch.records > 0 {
                found.push(batch.base_offset.0);
            }
        }
    }
    let offsets = (expected.low.0..expected.high.0).step_by(10);
    assert_eq!(found, offsets.filter(|offset| !missing.contains(offset)).collect::<Vec<_>>());
    assert_eq!(log.append(&batch(10, 1000, None, 0), ANY).unwrap(), expected.high);
    losses
}

const ALL: OffsetRange = OffsetRange { low: Offset(0), high: Offset(300) };

#[test]
fn an_undamaged_log_has_no_losses() {
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
fn a_wrong_offset_is_corrected() {
    for byte in [0, 7, 12] {
        let disk = filled();
        disk.damage(&path("00000000000000000090.log"), |bytes| bytes[BATCH + byte] ^= 0x01);
        let losses = check(&disk, ALL, &[]);
        assert!(losses[0].what.contains("no record is lost"), "{}", losses[0]);
    }
}

#[test]
fn the_offsets_of_missing_segments_are_not_used_again() {
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
fn damaged_small_files_are_written_again() {
    let disk = filled();
    let catalog = open(&disk).unwrap();
    catalog.topic("t").unwrap().partitions[0].delete_before(Offset(115)).unwrap();
    drop(catalog);
    disk.damage(&path("low"), |bytes| bytes[0] ^= 0x01);
    disk.damage(&path("00000000000000000270.producers"), |bytes| bytes[3] ^= 0x01);
    check(&disk, OffsetRange { low: Offset(90), high: Offset(300) }, &[]);
    let catalog = open(&disk).unwrap();
    let log = &catalog.topic("t").unwrap().partitions[0];
    let repeated = log.append(&batch(10, 1000, Some((7, 290)), 0), ANY).unwrap();
    assert_eq!(repeated, Offset(290), "the state of its producers remains");
}

#[test]
fn a_missing_directory_becomes_an_empty_one() {
    let disk = filled();
    disk.remove_directory(Path::new("/log/t-0")).unwrap();
    disk.sync_directory(Path::new("/log")).unwrap();
    assert!(open(&disk).unwrap_err().to_string().contains("/log/t-0 is damaged: it is missing"));
    assert_eq!(repair(&disk, Repair::AcceptLoss).len(), 1);
    disk.crash(Unsynced::Dropped);
    let catalog = open(&disk).unwrap();
    let log = &catalog.topic("t").unwrap().partitions[0];
    assert_eq!(log.range(), OffsetRange { low: Offset(0), high: Offset(0) });
}

//! Random histories of one Kafka partition on a disk that fails and crashes: whatever was acknowledged or read is there
//! after each restart, at its offset, and nothing that was deleted comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::tests::{ANY, create, reopen};
use super::{PartitionLog, ReadError};
use crate::disk::memory::{MemoryDisk, Operation, Unsynced};
use crate::record_batch::RecordBatch;
use crate::record_batch::tests::batch;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Appends a batch and waits for the disk.
    Append { records: i32, size: usize },
    /// Writes a batch and does not wait.
    Write { records: i32, size: usize },
    /// Deletes this share of what is there, in percent.
    Trim(i64),
    /// Reads all that is there.
    Read,
    /// Lets an operation fail later.
    Fail { operation: Operation, after: usize, kind: ErrorKind },
    /// Leaves this much room on the disk.
    Room(Option<u64>),
    /// The process or the machine stops, and the log is opened again.
    Restart(Unsynced),
    /// As [`Step::Restart`], but the first try to open fails on its way.
    RestartTwice { unsynced: Unsynced, operation: Operation, after: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let unsynced =
        || prop_oneof![Just(Unsynced::Dropped), Just(Unsynced::Kept), any::<u64>().prop_map(Unsynced::Some)];
    let operation = || {
        use Operation::{Open, Remove, Rename, Sync, SyncDirectory, Write};
        proptest::sample::select(vec![Open, Remove, Rename, Sync, SyncDirectory, Write])
    };
    let kind = proptest::sample::select(vec![ErrorKind::Other, ErrorKind::StorageFull]);
    let step = prop_oneof![
        12 => (1..5, 1..4000_usize).prop_map(|(records, size)| Step::Append { records, size }),
        4 => (1..5, 1..4000_usize).prop_map(|(records, size)| Step::Write { records, size }),
        3 => (0..=100_i64).prop_map(Step::Trim),
        2 => Just(Step::Read),
        2 => (operation(), 0..12_usize, kind)
            .prop_map(|(operation, after, kind)| Step::Fail { operation, after, kind }),
        1 => proptest::option::of(0..3_000_000_u64).prop_map(Step::Room),
        3 => unsynced().prop_map(Step::Restart),
        // No failing sync here: nobody can tell afterwards which of what the system shows the disk has.
        1 => (unsynced(), operation(), 0..12_usize)
            .prop_filter("a sync", |(_, operation, _)| *operation != Operation::Sync)
            .prop_map(|(unsynced, operation, after)| Step::RestartTwice { unsynced, operation, after }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// What must be true of the log.
#[derive(Default)]
struct Model {
    /// By base offset: the time stamp that tells a batch, of all that were acknowledged or read.
    promised: BTreeMap<i64, (i64, i64)>,
    /// What may be there besides.
    attempted: BTreeSet<i64>,
    /// The low watermark is one of these: the last one that was acknowledged or opened with, and those asked for since.
    lows: Vec<i64>,
    next: i64,
}

impl Model {
    /// Reads everything, and checks it against what was promised.
    fn check(&mut self, log: &PartitionLog) {
        let range = log.range();
        assert!(self.lows.contains(&range.low), "low is {}, not one of {:?}", range.low, self.lows);
        let there = contents(log);
        let first = range.low;
        for (&base_offset, &(end_offset, stamp)) in &self.promised {
            if end_offset > first {
                assert_eq!(there.get(&base_offset), Some(&(end_offset, stamp)), "a promise at {base_offset}");
            }
        }
        let stamps: BTreeSet<i64> = there.values().map(|&(_, stamp)| stamp).collect();
        assert_eq!(stamps.len(), there.len(), "a batch is there twice");
        assert!(stamps.is_subset(&self.attempted), "nobody wrote that");
        assert!(there.values().zip(there.values().skip(1)).all(|(one, next)| one.1 < next.1), "out of order");
        let promised_end = self.promised.values().map(|&(end_offset, _)| end_offset).max().unwrap_or(0);
        assert!(range.high >= promised_end, "the log ends at {}, before {promised_end}", range.high);
        if first > 0 {
            assert!(matches!(log.read(first - 1, ANY), Err(ReadError::OutOfRange)));
        }
        // What was read once can be read again.
        self.promised.extend(there);
    }
}

fn contents(log: &PartitionLog) -> BTreeMap<i64, (i64, i64)> {
    let range = log.range();
    let mut contents = BTreeMap::new();
    let mut offset = range.low;
    while offset < range.high {
        let records = log.read(offset, 5000).unwrap().records;
        let mut at = 0;
        while at < records.len() {
            let batch = RecordBatch::check(&records[at..]).unwrap();
            assert!(batch.base_offset == offset || contents.is_empty() && batch.base_offset < offset);
            contents.insert(batch.base_offset, (batch.end_offset(), batch.max_timestamp));
            offset = batch.end_offset();
            at += batch.size;
        }
    }
    assert_eq!(offset, range.high);
    contents
}

fn open_again(disk: &MemoryDisk) -> PartitionLog {
    disk.fail_no_more();
    reopen(disk).unwrap_or_else(|error| panic!("after a crash: {error}"))
}

fn run(steps: &[Step]) {
    let disk = MemoryDisk::default();
    let mut log = create(&disk);
    let mut model = Model { lows: vec![0], ..Model::default() };
    for &step in steps {
        match step {
            Step::Append { records, size } => {
                model.next += 1;
                model.attempted.insert(model.next);
                if let Ok(base_offset) = log.append(&batch(records, size, None, model.next), ANY) {
                    model.promised.insert(base_offset, (base_offset + i64::from(records), model.next));
                }
            }
            Step::Write { records, size } => {
                model.next += 1;
                model.attempted.insert(model.next);
                let _ = log.write(&batch(records, size, None, model.next), ANY);
            }
            Step::Trim(percent) => {
                let range = log.range();
                let before = range.low + (range.high - range.low) * percent / 100;
                match log.delete_before(before) {
                    // One that failed before and reached further may be on the disk.
                    Ok(low) => {
                        model.lows.retain(|tried| *tried > low.unwrap());
                        model.lows.push(low.unwrap());
                    }
                    Err(_) => model.lows.push(before),
                }
            }
            Step::Read => {
                disk.fail_no_more();
                model.check(&log);
            }
            Step::Fail { operation, after, kind } => disk.fail(operation, after, kind),
            Step::Room(room) => disk.set_room(room),
            Step::Restart(unsynced) => {
                drop(log);
                disk.crash(unsynced);
                log = open_again(&disk);
                model.check(&log);
                model.lows = vec![log.range().low];
            }
            Step::RestartTwice { unsynced, operation, after } => {
                drop(log);
                disk.crash(unsynced);
                disk.fail(operation, after, ErrorKind::Other);
                if let Err(error) = reopen(&disk) {
                    assert_eq!(error.kind(), ErrorKind::Other, "{error}");
                }
                log = open_again(&disk);
                model.check(&log);
                model.lows = vec![log.range().low];
            }
        }
    }
    disk.set_room(None);
    drop(log);
    disk.crash(Unsynced::Dropped);
    log = open_again(&disk);
    model.check(&log);
    let high = log.range().high;
    assert_eq!(log.append(&batch(1, 10, None, 0), ANY).unwrap(), high, "and it takes writes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn what_was_promised_is_kept(steps in steps()) {
        run(&steps);
    }
}

#[test]
fn a_segment_that_a_kill_left_behind_is_there_after_a_loss_of_power() {
    let mut opened = 0;
    for after in 0..10 {
        let disk = MemoryDisk::default();
        let log = create(&disk);
        // The roll comes to the last step or an earlier one before the process is killed.
        disk.fail(Operation::SyncDirectory, after, ErrorKind::Other);
        while log.range().high < 40 && log.append(&batch(1, 3000, None, 0), ANY).is_ok() {}
        drop(log);
        disk.crash(Unsynced::Kept);
        let log = reopen(&disk).unwrap();
        let offset = log.append(&batch(1, 10, None, 0), ANY).unwrap();
        drop(log);
        disk.crash(Unsynced::Dropped);
        assert_eq!(reopen(&disk).unwrap().range().high, offset + 1, "failure {after}");
        opened += 1;
    }
    assert_eq!(opened, 10);
}

#[test]
fn what_could_be_read_after_a_kill_survives_a_loss_of_power() {
    let disk = MemoryDisk::default();
    let log = create(&disk);
    // Written, and killed before the sync.
    let _ = log.write(&batch(3, 100, None, 0), ANY).unwrap();
    drop(log);
    disk.crash(Unsynced::Kept);
    let log = reopen(&disk).unwrap();
    assert_eq!(log.range().high, 3, "it can be read now");
    drop(log);
    disk.crash(Unsynced::Dropped);
    assert_eq!(reopen(&disk).unwrap().range().high, 3);
}

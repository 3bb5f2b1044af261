//! Topics and producer numbers, on a disk in memory that crashes and fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use super::{Catalog, CreateError};
use crate::OffsetRange;
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Operation, Unsynced};
use crate::record_batch::tests::batch;

const ANY: usize = 1 << 20;

fn try_open(disk: &MemoryDisk) -> std::io::Result<Catalog> {
    Catalog::open_on(Arc::new(disk.clone()), Path::new("/data/log"), 10_000)
}

fn open(disk: &MemoryDisk) -> Catalog {
    try_open(disk).unwrap()
}

fn append(catalog: &Catalog, topic: &str, kafka_partition: i32) -> i64 {
    let topic = catalog.topic(topic).unwrap();
    topic.partition(kafka_partition).unwrap().append(&batch(1, 1000, None, 0), ANY).unwrap()
}

fn range(catalog: &Catalog, topic: &str) -> OffsetRange {
    catalog.topic(topic).unwrap().partitions[0].range()
}

#[test]
fn remembers_topics_and_never_repeats_a_producer_number() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    let config = BTreeMap::from([("max.message.bytes".to_owned(), "17".to_owned())]);
    catalog.create("readings", 3, config).unwrap();
    assert!(matches!(catalog.create("readings", 3, BTreeMap::new()), Err(CreateError::Exists)));
    assert!(matches!(catalog.create("a/b", 3, BTreeMap::new()), Err(CreateError::InvalidName)));
    assert!(matches!(catalog.create("b", 0, BTreeMap::new()), Err(CreateError::InvalidPartitions)));
    let first = catalog.new_producer().unwrap();
    drop(catalog);

    let catalog = open(&disk);
    assert_eq!(catalog.topic("readings").unwrap().partitions.len(), 3);
    assert_eq!(catalog.topic("readings").unwrap().max_message_bytes(), 17);
    assert!(catalog.new_producer().unwrap() > first);
    assert!(catalog.delete("readings").unwrap());
    assert!(!catalog.delete("readings").unwrap());
    assert!(disk.names(Path::new("/data/log/readings-0")).is_err());
}

#[test]
fn changed_settings_are_on_the_disk_and_the_records_stay() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 2, BTreeMap::new()).unwrap();
    append(&catalog, "t", 1);
    let config = BTreeMap::from([("max.message.bytes".to_owned(), "17".to_owned())]);
    assert!(catalog.configure("t", config.clone()).unwrap());
    assert!(!catalog.configure("other", config).unwrap());
    assert_eq!(catalog.topic("t").unwrap().max_message_bytes(), 17);
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    let topic = open(&disk).topic("t").unwrap();
    assert_eq!((topic.max_message_bytes(), topic.partitions[1].range().high), (17, 1));
}

#[test]
fn a_directory_is_opened_once() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Catalog::open(directory.path(), 1024).unwrap();
    let second = Catalog::open(directory.path(), 1024).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::WouldBlock);
}

#[test]
fn what_was_answered_survives_a_loss_of_power() {
    let disk = MemoryDisk::default();
    // Its parent was made by somebody who did not see to it that it stays.
    disk.create_directory(Path::new("/data")).unwrap();
    let catalog = open(&disk);
    catalog.create("readings", 2, BTreeMap::new()).unwrap();
    assert_eq!(append(&catalog, "readings", 1), 0);
    let number = catalog.new_producer().unwrap();
    drop(catalog);
    disk.crash(Unsynced::Dropped);

    let catalog = open(&disk);
    assert_eq!(catalog.topic("readings").unwrap().partitions[1].range(), OffsetRange { low: 0, high: 1 });
    assert!(catalog.new_producer().unwrap() > number);
    assert!(catalog.delete("readings").unwrap());
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    assert!(open(&disk).topic("readings").is_none());
}

#[test]
fn a_topic_created_again_is_empty() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 2, BTreeMap::new()).unwrap();
    append(&catalog, "t", 0);
    // The deletion is cut off before the files are gone.
    disk.fail(Operation::Remove, 0, ErrorKind::Other);
    catalog.delete("t").unwrap_err();
    assert!(catalog.topic("t").is_none());
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    let catalog = open(&disk);
    assert!(catalog.topic("t").is_none());
    catalog.create("t", 2, BTreeMap::new()).unwrap();
    assert_eq!(range(&catalog, "t"), OffsetRange { low: 0, high: 0 });
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    let catalog = open(&disk);
    assert_eq!(range(&catalog, "t"), OffsetRange { low: 0, high: 0 });
    assert_eq!(append(&catalog, "t", 0), 0);
}

#[test]
fn a_writer_of_a_deleted_topic_does_not_write_into_its_successor() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    let old = catalog.topic("t").unwrap();
    catalog.delete("t").unwrap();
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    for _ in 0..20 {
        old.partitions[0].append(&batch(1, 1000, None, 0), ANY).unwrap_err();
    }
    assert_eq!(range(&catalog, "t"), OffsetRange { low: 0, high: 0 });
    assert_eq!(disk.names(Path::new("/data/log/t-0")).unwrap(), ["00000000000000000000.log"]);
}

#[test]
fn a_topic_that_could_not_be_created_is_not_there() {
    for operation in
        [Operation::Sync, Operation::SyncDirectory, Operation::Rename, Operation::CreateDirectory]
    {
        for after in 0.. {
            let disk = MemoryDisk::default();
            let catalog = open(&disk);
            disk.fail(operation, after, ErrorKind::Other);
            let created = catalog.create("t", 2, BTreeMap::new());
            if created.is_ok() {
                assert!(after > 0);
                break;
            }
            assert!(catalog.topic("t").is_none());
            catalog.create("t", 2, BTreeMap::new()).unwrap();
            append(&catalog, "t", 1);
            drop(catalog);
            disk.crash(Unsynced::Dropped);
            assert_eq!(open(&disk).topic("t").unwrap().partitions[1].range().high, 1);
        }
    }
}

#[test]
fn a_topic_that_a_kill_left_behind_is_there_after_a_loss_of_power() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    // The last step: everything is written, and the name of the catalog is not on the disk yet.
    disk.fail(Operation::SyncDirectory, 2, ErrorKind::Other);
    catalog.create("t", 1, BTreeMap::new()).unwrap_err();
    drop(catalog);
    disk.crash(Unsynced::Kept);
    let catalog = open(&disk);
    assert_eq!(append(&catalog, "t", 0), 0);
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    assert_eq!(range(&open(&disk), "t").high, 1);
}

#[test]
fn a_producer_number_that_could_not_be_noted_is_not_given() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    disk.fail(Operation::SyncDirectory, 0, ErrorKind::Other);
    catalog.new_producer().unwrap_err();
    disk.fail(Operation::Sync, 0, ErrorKind::Other);
    catalog.new_producer().unwrap_err();
    let number = catalog.new_producer().unwrap();
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    assert!(open(&disk).new_producer().unwrap() > number);
}

#[test]
fn a_full_disk_lets_a_topic_be_deleted() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    append(&catalog, "t", 0);
    disk.set_room(Some(0));
    assert!(matches!(catalog.create("u", 1, BTreeMap::new()), Err(CreateError::Io(_))));
    assert!(catalog.shortage().is_some());
    assert!(catalog.delete("t").unwrap());
    disk.set_room(None);
    catalog.look_for_room();
    assert_eq!(catalog.shortage(), None);
    catalog.create("u", 1, BTreeMap::new()).unwrap();
}

#[test]
fn a_topic_that_is_being_created_holds_up_no_look_at_the_others() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    disk.hold_syncs();
    thread::scope(|scope| {
        let creating = scope.spawn(|| catalog.create("u", 1, BTreeMap::new()).unwrap());
        disk.until_held(1);
        assert!(catalog.topic("t").is_some());
        assert!(catalog.topic("u").is_none(), "not before it is on the disk");
        assert_eq!(catalog.topics().len(), 1);
        assert!(catalog.troubles().is_empty() && catalog.shortage().is_none());
        disk.let_syncs_go();
        creating.join().unwrap();
    });
    assert!(catalog.topic("u").is_some());
}

#[test]
fn a_catalog_that_is_lost_or_damaged_is_said() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    drop(catalog);
    let path = Path::new("/data/log/catalog.json");
    let whole = disk.content(path);
    for byte in 0..whole.len() - 1 {
        disk.damage(path, |bytes| bytes[byte] ^= 0x01);
        let refused = try_open(&disk).unwrap_err().to_string();
        assert!(refused.contains("catalog.json is damaged"), "{refused}");
        disk.damage(path, |bytes| bytes.clone_from(&whole));
    }
    disk.remove_file(path).unwrap();
    assert!(try_open(&disk).unwrap_err().to_string().contains("it is missing, though there is t-0"));
}

#[test]
fn what_is_wrong_with_a_kafka_partition_is_told() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 3, BTreeMap::new()).unwrap();
    assert!(catalog.troubles().is_empty());
    disk.fail(Operation::Sync, 0, ErrorKind::Other);
    let topic = catalog.topic("t").unwrap();
    topic.partitions[2].append(&batch(1, 1000, None, 0), ANY).unwrap_err();
    let troubles = catalog.troubles();
    assert_eq!((troubles.len(), troubles[0].topic.as_str(), troubles[0].kafka_partition), (1, "t", 2));
    assert!(troubles[0].reason.contains("cannot bring it to the disk"), "{}", troubles[0].reason);
    append(&catalog, "t", 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create(usize),
    Delete(usize),
    Append(usize),
    NewProducer,
    Fail { operation: Operation, after: usize, kind: ErrorKind },
    Restart(Unsynced),
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    use Operation::{CreateDirectory, Open, Remove, Rename, Sync, SyncDirectory, Write};
    let operation =
        proptest::sample::select(vec![CreateDirectory, Open, Remove, Rename, Sync, SyncDirectory, Write]);
    let kind = proptest::sample::select(vec![ErrorKind::Other, ErrorKind::StorageFull]);
    let unsynced =
        prop_oneof![Just(Unsynced::Dropped), Just(Unsynced::Kept), any::<u64>().prop_map(Unsynced::Some)];
    let step = prop_oneof![
        4 => (0..3_usize).prop_map(Step::Create),
        3 => (0..3_usize).prop_map(Step::Delete),
        6 => (0..3_usize).prop_map(Step::Append),
        1 => Just(Step::NewProducer),
        3 => (operation, 0..15_usize, kind)
            .prop_map(|(operation, after, kind)| Step::Fail { operation, after, kind }),
        3 => unsynced.prop_map(Step::Restart),
    ];
    proptest::collection::vec(step, 1..50)
}

/// What is known of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Absent,
    /// With this many acknowledged records.
    There(i64),
    /// Its creation or deletion has failed on its way, with this many acknowledged records if it is there.
    Doubtful(i64),
}

fn run(steps: &[Step]) {
    let disk = MemoryDisk::default();
    let mut catalog = open(&disk);
    let mut known = [Known::Absent; 3];
    let mut producers = BTreeSet::new();
    for &step in steps {
        match step {
            Step::Create(at) => match (catalog.create(NAMES[at], 1, BTreeMap::new()), known[at]) {
                (Ok(()), Known::There(_)) => panic!("created twice"),
                (Ok(()), _) => known[at] = Known::There(0),
                (Err(CreateError::Exists), Known::Absent) => panic!("it is not there"),
                (Err(CreateError::Exists), _) => {}
                (Err(_), Known::Absent | Known::Doubtful(_)) => known[at] = Known::Doubtful(0),
                (Err(refused), Known::There(_)) => panic!("it is there: {refused}"),
            },
            Step::Delete(at) => match (catalog.delete(NAMES[at]), known[at]) {
                (Ok(true), Known::Absent) | (Ok(false), Known::There(_)) => panic!("{step:?} {known:?}"),
                // Where the creation failed, the disk may still have it.
                (Ok(false), _) => {}
                (Ok(true), _) => known[at] = Known::Absent,
                (Err(_), Known::There(records) | Known::Doubtful(records)) => {
                    known[at] = Known::Doubtful(records);
                }
                (Err(_), Known::Absent) => panic!("there is nothing to delete"),
            },
            Step::Append(at) => {
                let Some(topic) = catalog.topic(NAMES[at]) else {
                    assert!(!matches!(known[at], Known::There(_)), "{} is gone", NAMES[at]);
                    continue;
                };
                if let (Ok(offset), Known::There(records)) =
                    (topic.partitions[0].append(&batch(1, 1000, None, 0), ANY), &mut known[at])
                {
                    *records = offset + 1;
                }
            }
            Step::NewProducer => {
                if let Ok(number) = catalog.new_producer() {
                    assert!(producers.insert(number), "{number} was given twice");
                }
            }
            Step::Fail { operation, after, kind } => disk.fail(operation, after, kind),
            Step::Restart(unsynced) => {
                drop(catalog);
                disk.crash(unsynced);
                catalog = open(&disk);
                for (name, known) in NAMES.iter().zip(&mut known) {
                    match (catalog.topic(name).map(|topic| topic.partitions[0].range().high), *known) {
                        (None, Known::There(_)) => panic!("{name} is gone"),
                        (Some(_), Known::Absent) => panic!("{name} is back"),
                        (Some(high), Known::There(records) | Known::Doubtful(records)) => {
                            assert!(high >= records, "{name} has {high} of {records} records");
                            *known = Known::There(high);
                        }
                        (None, _) => *known = Known::Absent,
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_is_so_after_any_history(steps in steps()) {
        run(&steps);
    }
}

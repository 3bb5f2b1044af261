//! Topics and producer ids, on a disk in memory that crashes and fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

use wye_domain::place::{KafkaPartition, Offset};

use super::{Catalog, CreateError};
use crate::OffsetRange;
use crate::disk::Disk;
use crate::disk::memory::{MemoryDisk, Operation, Unsynced};
use crate::health::Trouble;
use crate::record_batch::tests::batch;

/// More than any batch of these tests has, in bytes.
const ANY: usize = 1 << 20;

fn try_open(disk: &MemoryDisk) -> std::io::Result<Catalog> {
    Catalog::open_on(Arc::new(disk.clone()), Path::new("/data/log"), 10_000)
}

fn open(disk: &MemoryDisk) -> Catalog {
    try_open(disk).unwrap()
}

/// Appends one record.
fn append(catalog: &Catalog, topic: &str, kafka_partition: i32) -> Offset {
    let topic = catalog.topic(topic).unwrap();
    let partition = topic.partition(KafkaPartition(kafka_partition)).unwrap();
    partition.append(&batch(1, 1000, None, 0), ANY).unwrap()
}

fn range(catalog: &Catalog, topic: &str) -> OffsetRange {
    catalog.topic(topic).unwrap().partitions[0].range()
}

#[test]
fn topics_survive_a_restart_and_producer_ids_are_never_repeated() {
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
fn changed_settings_are_durable_and_the_records_remain() {
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
    assert_eq!((topic.max_message_bytes(), topic.partitions[1].range().high), (17, Offset(1)));
}

#[test]
fn a_directory_cannot_be_opened_twice() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Catalog::open(directory.path(), 1024).unwrap();
    let second = Catalog::open(directory.path(), 1024).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::WouldBlock);
}

#[test]
fn acknowledged_changes_survive_a_loss_of_power() {
    let disk = MemoryDisk::default();
    // Its parent exists, but is not synced.
    disk.create_directory(Path::new("/data")).unwrap();
    let catalog = open(&disk);
    catalog.create("readings", 2, BTreeMap::new()).unwrap();
    assert_eq!(append(&catalog, "readings", 1), Offset(0));
    let number = catalog.new_producer().unwrap();
    drop(catalog);
    disk.crash(Unsynced::Dropped);

    let catalog = open(&disk);
    assert_eq!(
        catalog.topic("readings").unwrap().partitions[1].range(),
        OffsetRange { low: Offset(0), high: Offset(1) }
    );
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
    // The deletion is interrupted before the files are removed.
    disk.fail(Operation::Remove, 0, ErrorKind::Other);
    catalog.delete("t").unwrap_err();
    assert!(catalog.topic("t").is_none());
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    let catalog = open(&disk);
    assert!(catalog.topic("t").is_none());
    catalog.create("t", 2, BTreeMap::new()).unwrap();
    assert_eq!(range(&catalog, "t"), OffsetRange { low: Offset(0), high: Offset(0) });
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    let catalog = open(&disk);
    assert_eq!(range(&catalog, "t"), OffsetRange { low: Offset(0), high: Offset(0) });
    assert_eq!(append(&catalog, "t", 0), Offset(0));
}

#[test]
fn a_writer_of_a_deleted_topic_does_not_write_into_a_new_one_of_its_name() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    let old = catalog.topic("t").unwrap();
    catalog.delete("t").unwrap();
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    for _ in 0..20 {
        old.partitions[0].append(&batch(1, 1000, None, 0), ANY).unwrap_err();
    }
    assert_eq!(range(&catalog, "t"), OffsetRange { low: Offset(0), high: Offset(0) });
    assert_eq!(disk.names(Path::new("/data/log/t-0")).unwrap(), ["00000000000000000000.log"]);
}

#[test]
fn a_topic_that_could_not_be_created_does_not_exist() {
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
            assert_eq!(open(&disk).topic("t").unwrap().partitions[1].range().high, Offset(1));
        }
    }
}

#[test]
fn a_topic_that_a_killed_process_left_survives_a_loss_of_power() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    // The last step: everything is written, but the name of the catalog is not synced yet.
    disk.fail(Operation::SyncDirectory, 2, ErrorKind::Other);
    catalog.create("t", 1, BTreeMap::new()).unwrap_err();
    drop(catalog);
    disk.crash(Unsynced::Kept);
    let catalog = open(&disk);
    assert_eq!(append(&catalog, "t", 0), Offset(0));
    drop(catalog);
    disk.crash(Unsynced::Dropped);
    assert_eq!(range(&open(&disk), "t").high, Offset(1));
}

#[test]
fn a_producer_id_that_could_not_be_stored_is_not_assigned() {
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
fn a_topic_can_be_deleted_from_a_full_disk() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    append(&catalog, "t", 0);
    disk.set_free(Some(0));
    assert!(matches!(catalog.create("u", 1, BTreeMap::new()), Err(CreateError::Io(_))));
    assert!(catalog.shortage().is_some());
    assert!(catalog.delete("t").unwrap());
    disk.set_free(None);
    catalog.check_for_space();
    assert_eq!(catalog.shortage(), None);
    catalog.create("u", 1, BTreeMap::new()).unwrap();
}

#[test]
fn creating_a_topic_does_not_block_the_others() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 1, BTreeMap::new()).unwrap();
    disk.hold_syncs();
    thread::scope(|scope| {
        let creating = scope.spawn(|| catalog.create("u", 1, BTreeMap::new()).unwrap());
        disk.until_held(1);
        assert!(catalog.topic("t").is_some());
        assert!(catalog.topic("u").is_none(), "not before it is synced");
        assert_eq!(catalog.topics().len(), 1);
        assert!(catalog.troubles().is_empty() && catalog.shortage().is_none());
        disk.release_syncs();
        creating.join().unwrap();
    });
    assert!(catalog.topic("u").is_some());
}

#[test]
fn a_lost_or_damaged_catalog_is_reported() {
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
    assert!(try_open(&disk).unwrap_err().to_string().contains("it is missing, but there is t-0"));
}

#[test]
fn a_problem_of_a_kafka_partition_is_reported() {
    let disk = MemoryDisk::default();
    let catalog = open(&disk);
    catalog.create("t", 3, BTreeMap::new()).unwrap();
    assert!(catalog.troubles().is_empty());
    disk.fail(Operation::Sync, 0, ErrorKind::Other);
    let topic = catalog.topic("t").unwrap();
    topic.partitions[2].append(&batch(1, 1000, None, 0), ANY).unwrap_err();
    let troubles = catalog.troubles();
    let [Trouble::Partition { topic, kafka_partition, reason }] = &troubles[..] else {
        panic!("{troubles:?}")
    };
    assert_eq!((topic.as_str(), *kafka_partition), ("t", KafkaPartition(2)));
    assert!(reason.contains("cannot sync it"), "{reason}");
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

/// The expected state of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Absent,
    /// It exists, with this end offset of its acknowledged records.
    There(Offset),
    /// Its creation or deletion has failed; it has this end offset if it exists.
    Doubtful(Offset),
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
                (Ok(()), _) => known[at] = Known::There(Offset::START),
                (Err(CreateError::Exists), Known::Absent) => panic!("it does not exist"),
                (Err(CreateError::Exists), _) => {}
                (Err(_), Known::Absent | Known::Doubtful(_)) => known[at] = Known::Doubtful(Offset::START),
                (Err(refused), Known::There(_)) => panic!("it exists: {refused}"),
            },
            Step::Delete(at) => match (catalog.delete(NAMES[at]), known[at]) {
                (Ok(true), Known::Absent) | (Ok(false), Known::There(_)) => panic!("{step:?} {known:?}"),
                // If the creation failed, it may still be on the disk.
                (Ok(false), _) => {}
                (Ok(true), _) => known[at] = Known::Absent,
                (Err(_), Known::There(end) | Known::Doubtful(end)) => known[at] = Known::Doubtful(end),
                (Err(_), Known::Absent) => panic!("there is nothing to delete"),
            },
            Step::Append(at) => {
                let Some(topic) = catalog.topic(NAMES[at]) else {
                    assert!(!matches!(known[at], Known::There(_)), "{} is gone", NAMES[at]);
                    continue;
                };
                if let (Ok(offset), Known::There(end)) =
                    (topic.partitions[0].append(&batch(1, 1000, None, 0), ANY), &mut known[at])
                {
                    *end = offset.next();
                }
            }
            Step::NewProducer => {
                if let Ok(id) = catalog.new_producer() {
                    assert!(producers.insert(id), "{id} was assigned twice");
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
                        (Some(high), Known::There(end) | Known::Doubtful(end)) => {
                            assert!(high >= end, "{name} ends at {high}, before {end}");
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
    fn acknowledged_changes_survive_any_history(steps in steps()) {
        run(&steps);
    }
}

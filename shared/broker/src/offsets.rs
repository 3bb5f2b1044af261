//! The offsets that consumer groups have committed, stored in an internal topic.
//!
//! # Stability contract
//! The topic [`TOPIC`] has one Kafka partition. Each record batch in it has one record, whose value is one [`Entry`] as
//! JSON. The last entry about a group and Kafka partition counts. Entries before a summary of all groups are deleted.
//!
//! A commit is synced to the disk before it is acknowledged, as every append. This file must not know who may commit;
//! [`crate::groups`] decides that.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use wye_domain::place::{KafkaPartition, Offset};

use crate::catalog::{Catalog, CreateError, Topic};
use crate::partition_log::ReadError;
use crate::record_batch::RecordBatch;
use crate::records;

/// The internal topic.
pub(crate) const TOPIC: &str = "__consumer_offsets";
/// Its only Kafka partition.
const PARTITION: KafkaPartition = KafkaPartition(0);
/// A summary is written when the topic has at least this many entries, and this many times more than groups.
const SUMMARIZE_AT: u64 = 1000;
const SUMMARIZE_RATIO: u64 = 10;
/// Bytes of the topic that are read at a time.
const READ_BYTES: usize = 1024 * 1024;
/// The most groups whose offsets are stored.
const MOST_GROUPS: usize = 10_000;
/// Bytes of the topic's largest batch: what one request can commit.
const MAX_ENTRY_BYTES: usize = 16 * 1024 * 1024;

/// All committed offsets.
#[derive(Debug)]
pub(crate) struct Offsets {
    catalog: Arc<Catalog>,
    groups: Mutex<BTreeMap<String, Group>>,
    /// Held for writing while a summary is written, so that no commit is between the summary and the entries that it
    /// replaces.
    summary: RwLock<()>,
}

/// A Kafka partition of a topic.
type TopicPartition = (String, KafkaPartition);
/// The offsets of one group.
type Group = BTreeMap<TopicPartition, Stored>;

#[derive(Clone, Debug)]
struct Stored {
    committed: Committed,
    /// The offset of its entry in the topic: of two concurrent commits, the later entry counts.
    entry_offset: Offset,
}

/// The position of a group in a Kafka partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    /// The next offset to read.
    pub(crate) offset: Offset,
    pub(crate) leader_epoch: i32,
    /// Any text of the client.
    pub(crate) metadata: String,
}

/// One entry of the topic.
#[derive(Serialize, Deserialize)]
enum Entry {
    Committed { group: String, offsets: Vec<(String, KafkaPartition, Committed)> },
    Forgotten { group: String, partitions: Vec<TopicPartition> },
}

/// Why offsets cannot be stored.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// There are too many groups.
    TooManyGroups,
    /// They cannot be written to the disk.
    Io(io::Error),
}

impl Offsets {
    /// Reads the committed offsets from the topic.
    pub(crate) fn open(catalog: Arc<Catalog>) -> io::Result<Self> {
        let offsets = Self { catalog, groups: Mutex::default(), summary: RwLock::default() };
        if let Some(topic) = offsets.catalog.topic(TOPIC) {
            offsets.replay(&topic)?;
        }
        Ok(offsets)
    }

    /// Stores offsets of a group; they are on the disk when this returns.
    pub(crate) fn commit(
        &self,
        group: &str,
        offsets: Vec<(String, KafkaPartition, Committed)>,
    ) -> Result<(), CommitError> {
        let groups = self.lock();
        if groups.len() >= MOST_GROUPS && !groups.contains_key(group) {
            return Err(CommitError::TooManyGroups);
        }
        drop(groups);
        self.write(Entry::Committed { group: group.to_owned(), offsets })
    }

    /// Deletes offsets of a group.
    pub(crate) fn forget(&self, group: &str, partitions: Vec<TopicPartition>) -> Result<(), CommitError> {
        if partitions.is_empty() {
            return Ok(());
        }
        self.write(Entry::Forgotten { group: group.to_owned(), partitions })
    }

    /// Deletes the offsets of a deleted topic, so that a new one of its name starts without offsets.
    pub(crate) fn forget_topic(&self, topic: &str) -> Result<(), CommitError> {
        let groups: Vec<String> = self.lock().keys().cloned().collect();
        for group in groups {
            let of_topic = self.all(&group).into_iter().filter(|((name, _), _)| name == topic);
            self.forget(&group, of_topic.map(|(partition, _)| partition).collect())?;
        }
        Ok(())
    }

    /// The offset that a group has committed for a Kafka partition.
    pub(crate) fn get(&self, group: &str, topic: &str, kafka_partition: KafkaPartition) -> Option<Committed> {
        let key = (topic.to_owned(), kafka_partition);
        self.lock().get(group)?.get(&key).map(|stored| stored.committed.clone())
    }

    /// All offsets that a group has committed.
    pub(crate) fn all(&self, group: &str) -> Vec<(TopicPartition, Committed)> {
        let groups = self.lock();
        let offsets = groups.get(group).into_iter().flatten();
        offsets.map(|(partition, stored)| (partition.clone(), stored.committed.clone())).collect()
    }

    /// The groups that have committed offsets.
    pub(crate) fn groups(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn write(&self, entry: Entry) -> Result<(), CommitError> {
        let topic = self.topic()?;
        {
            let _no_summary = self.summary.read().unwrap_or_else(PoisonError::into_inner);
            let offset = append(&topic, &entry)?;
            apply(&mut self.lock(), entry, offset);
        }
        self.summarize_if_due(&topic)
    }

    /// Replaces the entries of the topic by a summary, once most of them are outdated.
    fn summarize_if_due(&self, topic: &Topic) -> Result<(), CommitError> {
        let Some(partition) = topic.partition(PARTITION) else { return Ok(()) };
        let range = partition.range();
        let entries = range.high.since(range.low);
        if entries < SUMMARIZE_AT {
            return Ok(());
        }
        let _alone = self.summary.write().unwrap_or_else(PoisonError::into_inner);
        let summary: Vec<Entry> = {
            let groups = self.lock();
            if entries < groups.len() as u64 * SUMMARIZE_RATIO {
                return Ok(());
            }
            groups.iter().map(|(group, offsets)| summary_of(group, offsets)).collect()
        };
        let start = partition.range().high;
        for entry in summary {
            let offset = append(topic, &entry)?;
            apply(&mut self.lock(), entry, offset);
        }
        partition.delete_before(start).map_err(CommitError::Io)?;
        Ok(())
    }

    fn topic(&self) -> Result<Arc<Topic>, CommitError> {
        if let Some(topic) = self.catalog.topic(TOPIC) {
            return Ok(topic);
        }
        match self.catalog.create(TOPIC, 1, BTreeMap::new()) {
            Ok(()) | Err(CreateError::Exists) => {}
            Err(CreateError::Io(error)) => return Err(CommitError::Io(error)),
            Err(refused) => return Err(CommitError::Io(io::Error::other(refused.to_string()))),
        }
        self.catalog
            .topic(TOPIC)
            .ok_or_else(|| CommitError::Io(io::Error::other("the internal topic was deleted")))
    }

    fn replay(&self, topic: &Topic) -> io::Result<()> {
        let Some(partition) = topic.partition(PARTITION) else { return Ok(()) };
        let mut offset = partition.range().low;
        loop {
            let fetched = match partition.read(offset, READ_BYTES) {
                Ok(fetched) => fetched,
                Err(ReadError::OutOfRange) => return Ok(()),
                Err(ReadError::Io(error)) => return Err(error),
                Err(ReadError::Damaged(damage)) => return Err(damage.into()),
            };
            if fetched.records.is_empty() {
                return Ok(());
            }
            let mut at = 0;
            while let Ok(batch) = RecordBatch::read_header(&fetched.records[at..]) {
                let bytes = &fetched.records[at..at + batch.size];
                offset = batch.end_offset();
                at += batch.size;
                if batch.records == 0 {
                    // The entries here were damaged, and their loss was accepted.
                    continue;
                }
                let entry = records::single_value(bytes);
                let entry = entry.and_then(|value| serde_json::from_slice(value).ok());
                let entry = entry.ok_or_else(|| {
                    let message = format!(
                        "{TOPIC}: the record at offset {} is not a committed offset",
                        batch.base_offset
                    );
                    io::Error::new(io::ErrorKind::InvalidData, message)
                })?;
                apply(&mut self.lock(), entry, batch.base_offset);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All offsets of a group as one entry.
fn summary_of(group: &str, offsets: &Group) -> Entry {
    let offsets = offsets.iter().map(|((topic, kafka_partition), stored)| {
        (topic.clone(), *kafka_partition, stored.committed.clone())
    });
    Entry::Committed { group: group.to_owned(), offsets: offsets.collect() }
}

fn append(topic: &Topic, entry: &Entry) -> Result<Offset, CommitError> {
    let value = serde_json::to_vec(entry).map_err(|error| CommitError::Io(error.into()))?;
    let partition =
        topic.partition(PARTITION).ok_or_else(|| CommitError::Io(io::ErrorKind::NotFound.into()))?;
    let appended = partition.append(&records::single(&value), MAX_ENTRY_BYTES);
    appended.map_err(|refused| CommitError::Io(io::Error::other(refused.to_string())))
}

/// Applies the entry at `entry_offset`; a later entry that was applied before it takes precedence.
fn apply(groups: &mut BTreeMap<String, Group>, entry: Entry, entry_offset: Offset) {
    match entry {
        Entry::Committed { group, offsets } => {
            let group = groups.entry(group).or_default();
            for (topic, kafka_partition, committed) in offsets {
                let key = (topic, kafka_partition);
                if group.get(&key).is_none_or(|stored| stored.entry_offset < entry_offset) {
                    group.insert(key, Stored { committed, entry_offset });
                }
            }
        }
        Entry::Forgotten { group, partitions } => {
            let Some(offsets) = groups.get_mut(&group) else { return };
            for key in partitions {
                if offsets.get(&key).is_some_and(|stored| stored.entry_offset < entry_offset) {
                    offsets.remove(&key);
                }
            }
            if offsets.is_empty() {
                groups.remove(&group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use wye_domain::place::{KafkaPartition, Offset};

    use super::{Committed, Offsets, SUMMARIZE_AT, TOPIC};
    use crate::catalog::Catalog;
    use crate::disk::memory::{MemoryDisk, Operation, Unsynced};

    /// The Kafka partitions that the tests commit offsets of.
    const P0: KafkaPartition = KafkaPartition(0);
    const P1: KafkaPartition = KafkaPartition(1);
    const P7: KafkaPartition = KafkaPartition(7);

    fn at(offset: i64) -> Committed {
        Committed { offset: Offset(offset), leader_epoch: -1, metadata: format!("note {offset}") }
    }

    fn open(disk: &MemoryDisk) -> Offsets {
        let catalog = Catalog::open_on(Arc::new(disk.clone()), Path::new("/data/log"), 1024 * 1024).unwrap();
        Offsets::open(Arc::new(catalog)).unwrap()
    }

    #[test]
    fn committed_offsets_survive_a_loss_of_power() {
        let disk = MemoryDisk::default();
        let offsets = open(&disk);
        offsets
            .commit("a", vec![("t".into(), P0, at(1)), ("t".into(), P1, at(2)), ("u".into(), P0, at(3))])
            .unwrap();
        offsets.commit("a", vec![("t".into(), P0, at(10))]).unwrap();
        offsets.commit("b", vec![("t".into(), P0, at(4))]).unwrap();
        offsets.forget("a", vec![("t".into(), P1)]).unwrap();
        drop(offsets);
        disk.crash(Unsynced::Dropped);

        let offsets = open(&disk);
        assert_eq!(offsets.groups(), ["a", "b"]);
        assert_eq!(offsets.get("a", "t", P0), Some(at(10)));
        assert_eq!((offsets.get("a", "t", P1), offsets.get("c", "t", P0)), (None, None));
        offsets.forget_topic("t").unwrap();
        assert_eq!(offsets.all("a"), [(("u".to_owned(), P0), at(3))]);
        assert_eq!(offsets.groups(), ["a"]);
        drop(offsets);
        disk.crash(Unsynced::Dropped);
        assert_eq!(open(&disk).groups(), ["a"]);
    }

    #[test]
    fn offsets_that_cannot_be_synced_are_not_acknowledged() {
        let disk = MemoryDisk::default();
        let offsets = open(&disk);
        offsets.commit("a", vec![("t".into(), P0, at(1))]).unwrap();
        disk.fail(Operation::Sync, 0, std::io::ErrorKind::Other);
        offsets.commit("a", vec![("t".into(), P0, at(2))]).unwrap_err();
        assert_eq!(offsets.get("a", "t", P0), Some(at(1)));
    }

    #[test]
    fn the_topic_stays_small() {
        let disk = MemoryDisk::default();
        let offsets = open(&disk);
        let last = SUMMARIZE_AT as i64 + 10;
        offsets.commit("other", vec![("t".into(), P7, at(7))]).unwrap();
        for offset in 0..=last {
            offsets.commit("a", vec![("t".into(), P0, at(offset))]).unwrap();
        }
        let range = offsets.catalog.topic(TOPIC).unwrap().partitions[0].range();
        assert!(range.high.since(range.low) < 100, "{range:?}");
        drop(offsets);
        let offsets = open(&disk);
        assert_eq!((offsets.get("a", "t", P0), offsets.get("other", "t", P7)), (Some(at(last)), Some(at(7))));
    }
}

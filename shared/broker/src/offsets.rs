//! The offsets that consumer groups have committed, kept in an internal topic.
//!
//! # Stability contract
//! The topic [`TOPIC`] has one Kafka partition. Each record batch in it holds one record, and its value is one [`Entry`]
//! as JSON. Read in order, the last entry about a group and Kafka partition counts. What came before a summary of
//! everything is deleted.
//!
//! A commit is on the disk when it is acknowledged, as every append is. This file does not know who may commit; that is
//! for [`crate::groups`].

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, CreateError, Topic};
use crate::partition_log::ReadError;
use crate::record_batch::RecordBatch;
use crate::records;

/// The internal topic.
pub(crate) const TOPIC: &str = "__consumer_offsets";
/// A summary is written once the topic holds so many entries, and so many times more than the summary would.
const SUMMARIZE_AT: u64 = 1000;
const SUMMARIZE_RATIO: u64 = 10;
/// How much of the topic is read at a time.
const READ_BYTES: usize = 1024 * 1024;
/// The most groups whose offsets are kept.
const MOST_GROUPS: usize = 10_000;
/// Bytes of the topic's largest batch: what one request can commit.
const MAX_ENTRY_BYTES: usize = 16 * 1024 * 1024;

/// All committed offsets.
#[derive(Debug)]
pub(crate) struct Offsets {
    catalog: Arc<Catalog>,
    groups: Mutex<BTreeMap<String, Group>>,
    /// Held for writing while a summary is made, so that no commit falls between it and what it replaces.
    summary: RwLock<()>,
}

type Group = BTreeMap<(String, i32), Kept>;

#[derive(Clone, Debug)]
struct Kept {
    committed: Committed,
    /// Where in the topic it is: of two commits at the same time, the later entry counts.
    position: i64,
}

/// How far a group has read a Kafka partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    /// The next offset to read.
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    /// What the client noted with it.
    pub(crate) metadata: String,
}

/// One entry of the topic.
#[derive(Serialize, Deserialize)]
enum Entry {
    Committed { group: String, offsets: Vec<(String, i32, Committed)> },
    Forgotten { group: String, partitions: Vec<(String, i32)> },
}

/// Why offsets cannot be stored.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// Too many groups.
    Full,
    /// The disk does not take it.
    Io(io::Error),
}

impl Offsets {
    /// Reads what was committed before.
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
        offsets: Vec<(String, i32, Committed)>,
    ) -> Result<(), CommitError> {
        let known = self.lock();
        if known.len() >= MOST_GROUPS && !known.contains_key(group) {
            return Err(CommitError::Full);
        }
        drop(known);
        self.write(Entry::Committed { group: group.to_owned(), offsets })
    }

    /// Forgets offsets of a group.
    pub(crate) fn forget(&self, group: &str, partitions: Vec<(String, i32)>) -> Result<(), CommitError> {
        if partitions.is_empty() {
            return Ok(());
        }
        self.write(Entry::Forgotten { group: group.to_owned(), partitions })
    }

    /// Forgets a topic that was deleted, so that one created under its name starts without offsets.
    pub(crate) fn forget_topic(&self, topic: &str) -> Result<(), CommitError> {
        let groups: Vec<String> = self.lock().keys().cloned().collect();
        for group in groups {
            let of_topic = self.all(&group).into_iter().filter(|((name, _), _)| name == topic);
            self.forget(&group, of_topic.map(|(partition, _)| partition).collect())?;
        }
        Ok(())
    }

    /// What a group has committed for a Kafka partition.
    pub(crate) fn get(&self, group: &str, topic: &str, kafka_partition: i32) -> Option<Committed> {
        let key = (topic.to_owned(), kafka_partition);
        self.lock().get(group)?.get(&key).map(|kept| kept.committed.clone())
    }

    /// Everything that a group has committed.
    pub(crate) fn all(&self, group: &str) -> Vec<((String, i32), Committed)> {
        let groups = self.lock();
        let kept = groups.get(group).into_iter().flatten();
        kept.map(|(partition, kept)| (partition.clone(), kept.committed.clone())).collect()
    }

    /// The groups that have committed anything.
    pub(crate) fn groups(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn write(&self, entry: Entry) -> Result<(), CommitError> {
        let topic = self.topic()?;
        {
            let _no_summary = self.summary.read().unwrap_or_else(PoisonError::into_inner);
            let position = append(&topic, &entry)?;
            apply(&mut self.lock(), entry, position);
        }
        self.summarize_if_due(&topic)
    }

    /// Replaces the topic's content by what counts of it, once most of it does not count any more.
    fn summarize_if_due(&self, topic: &Topic) -> Result<(), CommitError> {
        let Some(partition) = topic.partition(0) else { return Ok(()) };
        let range = partition.range();
        let entries = (range.high - range.low) as u64;
        if entries < SUMMARIZE_AT {
            return Ok(());
        }
        let _alone = self.summary.write().unwrap_or_else(PoisonError::into_inner);
        let summary: Vec<Entry> = {
            let groups = self.lock();
            if entries < groups.len() as u64 * SUMMARIZE_RATIO {
                return Ok(());
            }
            groups.iter().map(|(group, kept)| committed(group, kept)).collect()
        };
        let start = partition.range().high;
        for entry in summary {
            let position = append(topic, &entry)?;
            apply(&mut self.lock(), entry, position);
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
            .ok_or_else(|| CommitError::Io(io::Error::other("the internal topic is gone")))
    }

    fn replay(&self, topic: &Topic) -> io::Result<()> {
        let Some(partition) = topic.partition(0) else { return Ok(()) };
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
                    // What stood here was damaged and given up.
                    continue;
                }
                let entry = records::single_value(bytes);
                let entry = entry.and_then(|value| serde_json::from_slice(value).ok());
                let entry = entry.ok_or_else(|| {
                    let message =
                        format!("{TOPIC} holds something else than offsets at {}", batch.base_offset);
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

fn committed(group: &str, kept: &Group) -> Entry {
    let offsets = kept
        .iter()
        .map(|((topic, kafka_partition), kept)| (topic.clone(), *kafka_partition, kept.committed.clone()));
    Entry::Committed { group: group.to_owned(), offsets: offsets.collect() }
}

fn append(topic: &Topic, entry: &Entry) -> Result<i64, CommitError> {
    let value = serde_json::to_vec(entry).map_err(|error| CommitError::Io(error.into()))?;
    let partition = topic.partition(0).ok_or_else(|| CommitError::Io(io::ErrorKind::NotFound.into()))?;
    let appended = partition.append(&records::single(&value), MAX_ENTRY_BYTES);
    appended.map_err(|refused| CommitError::Io(io::Error::other(refused.to_string())))
}

/// Lets an entry that is at `position` count, unless a later one is known already.
fn apply(groups: &mut BTreeMap<String, Group>, entry: Entry, position: i64) {
    match entry {
        Entry::Committed { group, offsets } => {
            let group = groups.entry(group).or_default();
            for (topic, kafka_partition, committed) in offsets {
                let key = (topic, kafka_partition);
                if group.get(&key).is_none_or(|kept| kept.position < position) {
                    group.insert(key, Kept { committed, position });
                }
            }
        }
        Entry::Forgotten { group, partitions } => {
            let Some(kept) = groups.get_mut(&group) else { return };
            for key in partitions {
                if kept.get(&key).is_some_and(|kept| kept.position < position) {
                    kept.remove(&key);
                }
            }
            if kept.is_empty() {
                groups.remove(&group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::{Committed, Offsets, SUMMARIZE_AT, TOPIC};
    use crate::catalog::Catalog;
    use crate::disk::memory::{MemoryDisk, Operation, Unsynced};

    fn at(offset: i64) -> Committed {
        Committed { offset, leader_epoch: -1, metadata: format!("note {offset}") }
    }

    fn open(disk: &MemoryDisk) -> Offsets {
        let catalog = Catalog::open_on(Arc::new(disk.clone()), Path::new("/data/log"), 1024 * 1024).unwrap();
        Offsets::open(Arc::new(catalog)).unwrap()
    }

    #[test]
    fn what_was_committed_survives_a_loss_of_power() {
        let disk = MemoryDisk::default();
        let offsets = open(&disk);
        offsets
            .commit("a", vec![("t".into(), 0, at(1)), ("t".into(), 1, at(2)), ("u".into(), 0, at(3))])
            .unwrap();
        offsets.commit("a", vec![("t".into(), 0, at(10))]).unwrap();
        offsets.commit("b", vec![("t".into(), 0, at(4))]).unwrap();
        offsets.forget("a", vec![("t".into(), 1)]).unwrap();
        drop(offsets);
        disk.crash(Unsynced::Dropped);

        let offsets = open(&disk);
        assert_eq!(offsets.groups(), ["a", "b"]);
        assert_eq!(offsets.get("a", "t", 0), Some(at(10)));
        assert_eq!((offsets.get("a", "t", 1), offsets.get("c", "t", 0)), (None, None));
        offsets.forget_topic("t").unwrap();
        assert_eq!(offsets.all("a"), [(("u".to_owned(), 0), at(3))]);
        assert_eq!(offsets.groups(), ["a"]);
        drop(offsets);
        disk.crash(Unsynced::Dropped);
        assert_eq!(open(&disk).groups(), ["a"]);
    }

    #[test]
    fn what_the_disk_does_not_take_is_not_acknowledged() {
        let disk = MemoryDisk::default();
        let offsets = open(&disk);
        offsets.commit("a", vec![("t".into(), 0, at(1))]).unwrap();
        disk.fail(Operation::Sync, 0, std::io::ErrorKind::Other);
        offsets.commit("a", vec![("t".into(), 0, at(2))]).unwrap_err();
        assert_eq!(offsets.get("a", "t", 0), Some(at(1)));
    }

    #[test]
    fn the_topic_stays_small() {
        let disk = MemoryDisk::default();
        let offsets = open(&disk);
        let last = SUMMARIZE_AT as i64 + 10;
        offsets.commit("other", vec![("t".into(), 7, at(7))]).unwrap();
        for offset in 0..=last {
            offsets.commit("a", vec![("t".into(), 0, at(offset))]).unwrap();
        }
        let range = offsets.catalog.topic(TOPIC).unwrap().partitions[0].range();
        assert!(range.high - range.low < 100, "{range:?}");
        drop(offsets);
        let offsets = open(&disk);
        assert_eq!((offsets.get("a", "t", 0), offsets.get("other", "t", 7)), (Some(at(last)), Some(at(7))));
    }
}

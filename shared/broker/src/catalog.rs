//! The catalog of the embedded broker: its topics with their Kafka partitions, and the producer ids that it assigns.
//!
//! # Stability contract
//! `catalog.json` in the data directory has every topic with its number of Kafka partitions and its settings, and the
//! next free producer id; it is a small file as in [`crate::storage`]. The Kafka partitions are in directories beside it,
//! `TOPIC-N/` (see [`crate::partition_log`]). The process that has the directory open holds `lock`.
//!
//! A new topic, its deletion and a producer id are on the disk before any client sees them.
//!
//! # Locks
//! `changes`, then `topics`. The first is held while files are written, so no async thread may take it; looking up a
//! topic takes only the second.
//!
//! It must not know the Kafka protocol.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;
use wye_domain::place::KafkaPartition;

use crate::disk::Disk;
use crate::health::Trouble;
use crate::locks;
use crate::partition_log::PartitionLog;
use crate::storage::{Damage, Storage};

/// How many producer ids are reserved in the file at once.
const PRODUCER_BLOCK: i64 = 1000;
/// Kafka's limit for the length of a topic name.
const LONGEST_NAME: usize = 249;
/// The largest batch of a topic without the setting: Kafka's default.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// The topics and producer ids of one data directory.
#[derive(Debug)]
pub(crate) struct Catalog {
    storage: Arc<Storage>,
    segment_bytes: u64,
    /// Held while the catalog changes.
    changes: Mutex<Changes>,
    topics: Mutex<Topics>,
    /// Counts appends; it wakes up fetches that wait for records.
    appended: watch::Sender<u64>,
}

type Topics = BTreeMap<String, Arc<Topic>>;

#[derive(Debug)]
struct Changes {
    next_producer: i64,
    /// Producer ids below are stored on the disk as assigned.
    reserved_producers: i64,
    /// The last change has failed: it is unknown whether it is on the disk.
    doubtful: bool,
}

/// One topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) partitions: Arc<Vec<PartitionLog>>,
}

/// Why a topic cannot be created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("a topic of this name exists already")]
    Exists,
    #[error("a topic name has 1 to {LONGEST_NAME} letters, digits, dots, dashes and underscores")]
    InvalidName,
    #[error("a topic has 1 to 10000 Kafka partitions")]
    InvalidPartitions,
    #[error("the broker cannot store the topic on its disk: {0}")]
    Io(io::Error),
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    topics: BTreeMap<String, StoredTopic>,
    next_producer: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredTopic {
    kafka_partitions: usize,
    config: BTreeMap<String, String>,
}

impl Topic {
    /// Its largest batch, in bytes.
    pub(crate) fn max_message_bytes(&self) -> usize {
        let configured = self.config.get("max.message.bytes").and_then(|text| text.parse().ok());
        configured.unwrap_or(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// One of its Kafka partitions.
    pub(crate) fn partition(&self, kafka_partition: KafkaPartition) -> Option<&PartitionLog> {
        self.partitions.get(usize::try_from(kafka_partition.0).ok()?)
    }
}

impl Catalog {
    /// Opens a data directory, or creates an empty one. Fails with `WouldBlock` where another process has it open, and
    /// with [`Damage`] where acknowledged data is not as it was written.
    pub(crate) fn open_on(disk: Arc<dyn Disk>, directory: &Path, segment_bytes: u64) -> io::Result<Self> {
        let storage = Arc::new(Storage::open(disk, directory)?);
        // A process that was killed may have left names in the cache of the system that are not on the disk.
        storage.disk().sync_directory(storage.root())?;
        let stored = match read_catalog(&storage)? {
            Some(stored) => stored,
            None => {
                let empty = Stored::default();
                write_catalog(&storage, &empty)?;
                empty
            }
        };
        let mut topics = Topics::new();
        for (name, StoredTopic { kafka_partitions, config }) in stored.topics {
            let segment_bytes = topic_segment_bytes(&config, segment_bytes);
            let partitions = partition_directories(storage.root(), &name, kafka_partitions)
                .map(|directory| PartitionLog::open(&storage, directory, segment_bytes));
            let partitions = Arc::new(partitions.collect::<io::Result<_>>()?);
            topics.insert(name.clone(), Arc::new(Topic { name, config, partitions }));
        }
        warn_of_unused_directories(&storage, &topics)?;
        let next_producer = stored.next_producer;
        let changes = Changes { next_producer, reserved_producers: next_producer, doubtful: false };
        Ok(Self {
            storage,
            segment_bytes,
            changes: Mutex::new(changes),
            topics: Mutex::new(topics),
            appended: watch::Sender::new(0),
        })
    }

    /// Opens a data directory of this machine.
    #[cfg(test)]
    pub(crate) fn open(directory: &Path, segment_bytes: u64) -> io::Result<Self> {
        Self::open_on(Arc::new(crate::disk::OsDisk), directory, segment_bytes)
    }

    /// All topics, by name. Never waits for the disk.
    pub(crate) fn topics(&self) -> Vec<Arc<Topic>> {
        self.lock().values().cloned().collect()
    }

    /// One topic. Never waits for the disk.
    pub(crate) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.lock().get(name).cloned()
    }

    /// Creates a topic with empty Kafka partitions.
    pub(crate) fn create(
        &self,
        name: &str,
        kafka_partitions: usize,
        config: BTreeMap<String, String>,
    ) -> Result<(), CreateError> {
        check_creatable(name, kafka_partitions)?;
        let mut changes = self.changes();
        if self.topic(name).is_some() {
            return Err(CreateError::Exists);
        }
        let topic = self.create_durably(&mut changes, name, kafka_partitions, config).map_err(|error| {
            self.storage.note_shortage(&error);
            CreateError::Io(error)
        })?;
        self.lock().insert(name.to_owned(), topic);
        Ok(())
    }

    /// Replaces the settings of a topic; `false` if there is no such topic.
    pub(crate) fn configure(&self, name: &str, config: BTreeMap<String, String>) -> io::Result<bool> {
        let mut changes = self.changes();
        let Some(topic) = self.topic(name) else { return Ok(false) };
        let _writing = self.storage.begin_write()?;
        let partitions = Arc::clone(&topic.partitions);
        let mut topics = self.lock().clone();
        topics.insert(name.to_owned(), Arc::new(Topic { name: name.to_owned(), config, partitions }));
        let reserved = changes.reserved_producers;
        self.store(&mut changes, &topics, reserved).inspect_err(|error| {
            self.storage.note_shortage(error);
        })?;
        *self.lock() = topics;
        Ok(true)
    }

    /// Deletes a topic and its records, on a full disk too; `false` if there is no such topic.
    pub(crate) fn delete(&self, name: &str) -> io::Result<bool> {
        let mut changes = self.changes();
        let mut rest = self.lock().clone();
        let Some(topic) = rest.remove(name) else { return Ok(false) };
        // Closed first: if the deletion fails halfway, the topic may be gone after the next crash.
        for partition in topic.partitions.iter() {
            partition.close("the topic is being deleted");
        }
        let reserved = changes.reserved_producers;
        self.storage.free_space(|| self.store(&mut changes, &rest, reserved))?;
        *self.lock() = rest;
        // Directories that remain after a crash are removed when a topic of this name is created.
        for directory in partition_directories(self.storage.root(), name, topic.partitions.len()) {
            self.storage.disk().remove_directory(&directory)?;
        }
        Ok(true)
    }

    /// A producer id that was never assigned before, not even before a crash.
    pub(crate) fn new_producer(&self) -> io::Result<i64> {
        let mut changes = self.changes();
        if changes.next_producer == changes.reserved_producers {
            let topics = self.lock().clone();
            let reserved = changes.reserved_producers + PRODUCER_BLOCK;
            self.store(&mut changes, &topics, reserved).inspect_err(|error| {
                self.storage.note_shortage(error);
            })?;
        }
        changes.next_producer += 1;
        Ok(changes.next_producer - 1)
    }

    /// Why nothing can be written now; `None` without a shortage. Never waits for the disk.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.storage.shortage()
    }

    /// Ends a shortage if the disk has free space again.
    pub(crate) fn check_for_space(&self) {
        // If it lasts, [`Self::shortage`] still has its reason.
        let _ = self.storage.check_for_space();
    }

    /// The problems of the Kafka partitions. Never waits for the disk.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        for topic in self.topics() {
            for (kafka_partition, partition) in (0..).map(KafkaPartition).zip(topic.partitions.iter()) {
                if let Some(reason) = partition.trouble() {
                    troubles.push(Trouble::Partition { topic: topic.name.clone(), kafka_partition, reason });
                }
            }
        }
        troubles
    }

    /// Wakes up the fetches that wait for records.
    pub(crate) fn announce_append(&self) {
        self.appended.send_modify(|count| *count += 1);
    }

    /// Changes with each append from now on.
    pub(crate) fn watch_appends(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    fn create_durably(
        &self,
        changes: &mut Changes,
        name: &str,
        kafka_partitions: usize,
        config: BTreeMap<String, String>,
    ) -> io::Result<Arc<Topic>> {
        let _writing = self.storage.begin_write()?;
        let (root, reserved) = (self.storage.root(), changes.reserved_producers);
        let mut topics = self.lock().clone();
        if changes.doubtful {
            // Before the directories are changed: the catalog on the disk may still have a topic of this name.
            self.store(changes, &topics, reserved)?;
        }
        let segment_bytes = topic_segment_bytes(&config, self.segment_bytes);
        let mut partitions = Vec::with_capacity(kafka_partitions);
        for directory in partition_directories(root, name, kafka_partitions) {
            // Of a deleted topic of this name.
            match self.storage.disk().remove_directory(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            partitions.push(PartitionLog::create(&self.storage, directory, segment_bytes)?);
        }
        self.storage.disk().sync_directory(root)?;
        let topic = Arc::new(Topic { name: name.to_owned(), config, partitions: Arc::new(partitions) });
        topics.insert(name.to_owned(), Arc::clone(&topic));
        self.store(changes, &topics, reserved)?;
        Ok(topic)
    }

    fn store(&self, changes: &mut Changes, topics: &Topics, reserved_producers: i64) -> io::Result<()> {
        changes.doubtful = true;
        let topics = topics.iter().map(|(name, topic)| {
            let stored =
                StoredTopic { kafka_partitions: topic.partitions.len(), config: topic.config.clone() };
            (name.clone(), stored)
        });
        let stored = Stored { topics: topics.collect(), next_producer: reserved_producers };
        write_catalog(&self.storage, &stored)?;
        (changes.doubtful, changes.reserved_producers) = (false, reserved_producers);
        Ok(())
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        locks::lock(&self.changes)
    }

    fn lock(&self) -> MutexGuard<'_, Topics> {
        locks::lock(&self.topics)
    }
}

/// The size at which the segments of a topic are closed, in bytes: its setting, but at most `most`. A change has an effect
/// at the next start.
fn topic_segment_bytes(config: &BTreeMap<String, String>, most: u64) -> u64 {
    config
        .get("segment.bytes")
        .and_then(|text| text.trim().parse().ok())
        .map_or(most, |bytes: u64| bytes.min(most))
}

/// Checks the name and the size of a new topic, but not whether it exists.
pub(crate) fn check_creatable(name: &str, kafka_partitions: usize) -> Result<(), CreateError> {
    let letters = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._-".contains(letter));
    if name.is_empty() || name.len() > LONGEST_NAME || [".", ".."].contains(&name) || !letters {
        return Err(CreateError::InvalidName);
    }
    if kafka_partitions == 0 || kafka_partitions > 10_000 {
        return Err(CreateError::InvalidPartitions);
    }
    Ok(())
}

/// The directories of all Kafka partitions in a data directory, by topic.
pub(crate) fn directories(storage: &Storage) -> io::Result<Vec<PathBuf>> {
    let Some(stored) = read_catalog(storage)? else { return Ok(Vec::new()) };
    let mut directories = Vec::new();
    for (name, topic) in &stored.topics {
        directories.extend(partition_directories(storage.root(), name, topic.kafka_partitions));
    }
    Ok(directories)
}

fn partition_directories(root: &Path, topic: &str, count: usize) -> impl Iterator<Item = PathBuf> {
    (0..count).map(move |kafka_partition| root.join(format!("{topic}-{kafka_partition}")))
}

fn catalog_path(storage: &Storage) -> PathBuf {
    storage.root().join("catalog.json")
}

/// The content of the catalog; `None` in a new directory.
fn read_catalog(storage: &Storage) -> io::Result<Option<Stored>> {
    let path = catalog_path(storage);
    if let Some(json) = storage.read_small(&path)? {
        let parsed = serde_json::from_slice(&json);
        return parsed.map_err(|error| Damage::whole(&path, format!("it does not parse: {error}")).into());
    }
    // The catalog is written first: Kafka partitions without a catalog mean that it was lost.
    match partition_names(storage)?.first() {
        Some(found) => Err(Damage::whole(&path, format!("it is missing, but there is {found}")).into()),
        None => Ok(None),
    }
}

/// The names in a data directory that can be Kafka partitions.
fn partition_names(storage: &Storage) -> io::Result<Vec<String>> {
    let names = storage.disk().names(storage.root())?;
    Ok(names.into_iter().filter(|name| topic_and_number(name).is_some()).collect())
}

/// The topic and the number in the directory name of a Kafka partition.
fn topic_and_number(name: &str) -> Option<(&str, usize)> {
    let (topic, number) = name.rsplit_once('-')?;
    Some((topic, number.parse().ok()?))
}

fn warn_of_unused_directories(storage: &Storage, topics: &Topics) -> io::Result<()> {
    for name in partition_names(storage)? {
        let used = topic_and_number(&name).is_some_and(|(topic, number)| {
            topics.get(topic).is_some_and(|topic| number < topic.partitions.len())
        });
        if !used {
            let directory = storage.root().join(name);
            warn!(directory = %directory.display(), "embedded broker: the topic of this directory was deleted; it can be removed");
        }
    }
    Ok(())
}

fn write_catalog(storage: &Storage, stored: &Stored) -> io::Result<()> {
    storage.replace(&catalog_path(storage), &serde_json::to_vec_pretty(stored)?)
}

#[cfg(test)]
mod tests;

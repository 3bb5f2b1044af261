//! What the embedded broker has: its topics with their Kafka partitions, and the numbers it gives to producers.
//!
//! # Stability contract
//! `catalog.json` in the data directory names every topic, its number of Kafka partitions and its settings, and the
//! next free producer number; it is a small file as in [`crate::storage`]. The Kafka partitions lie beside it, in
//! `TOPIC-N/` (see [`crate::partition_log`]). `lock` is held by the process that has the directory open.
//!
//! A topic, its deletion and a producer number are on the disk before anybody sees them.
//!
//! # Locks
//! `changes`, then `topics`. The first is held while files are written, so no async thread may take it; looking up a
//! topic takes only the second.
//!
//! This file does not know the Kafka protocol.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::disk::Disk;
use crate::partition_log::PartitionLog;
use crate::storage::{Damage, Storage};

/// How many producer numbers are taken from the file at once.
const PRODUCER_BLOCK: i64 = 1000;
/// Kafka's own bound of a topic name.
const LONGEST_NAME: usize = 249;
/// The largest batch where a topic does not say: Kafka's default.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// All that is in one data directory.
#[derive(Debug)]
pub(crate) struct Catalog {
    storage: Arc<Storage>,
    segment_bytes: u64,
    /// Held while the catalog changes.
    changes: Mutex<Changes>,
    topics: Mutex<Topics>,
    /// Counts appends, so that who waits for records wakes up.
    appended: watch::Sender<u64>,
}

type Topics = BTreeMap<String, Arc<Topic>>;

#[derive(Debug)]
struct Changes {
    next_producer: i64,
    /// Producer numbers below are noted on the disk as given.
    reserved_producers: i64,
    /// The last change failed on its way: the disk may have it or not.
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
    #[error("a topic of this name exists")]
    Exists,
    #[error("a topic name has 1 to {LONGEST_NAME} letters, digits, dots, dashes and underscores")]
    InvalidName,
    #[error("a topic has 1 to 10000 Kafka partitions")]
    InvalidPartitions,
    #[error("the disk does not take it: {0}")]
    Io(io::Error),
}

/// What is wrong with one Kafka partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) topic: String,
    pub(crate) kafka_partition: usize,
    pub(crate) reason: String,
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
    /// The largest batch that it takes, in bytes.
    pub(crate) fn max_message_bytes(&self) -> usize {
        let configured = self.config.get("max.message.bytes").and_then(|text| text.parse().ok());
        configured.unwrap_or(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// One of its Kafka partitions.
    pub(crate) fn partition(&self, kafka_partition: i32) -> Option<&PartitionLog> {
        self.partitions.get(usize::try_from(kafka_partition).ok()?)
    }
}

impl Catalog {
    /// Opens a data directory, or starts an empty one. Fails with `WouldBlock` where another process has
    /// it open, and with [`Damage`] where something acknowledged is not as it was written.
    pub(crate) fn open_on(disk: Arc<dyn Disk>, directory: &Path, segment_bytes: u64) -> io::Result<Self> {
        let storage = Arc::new(Storage::open(disk, directory)?);
        // A process that was killed may have left names that the system has and the disk has not.
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
            let open = |directory| PartitionLog::open(&storage, directory, segment_bytes);
            let partitions = partition_directories(storage.root(), &name, kafka_partitions).map(open);
            let partitions = Arc::new(partitions.collect::<io::Result<_>>()?);
            topics.insert(name.clone(), Arc::new(Topic { name, config, partitions }));
        }
        warn_of_leftovers(&storage, &topics)?;
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

    /// Gives a topic other settings; whether it is there.
    pub(crate) fn configure(&self, name: &str, config: BTreeMap<String, String>) -> io::Result<bool> {
        let mut changes = self.changes();
        let Some(topic) = self.topic(name) else { return Ok(false) };
        let _room = self.storage.room()?;
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

    /// Deletes a topic with all that is in it, also where the disk is full; whether it was there.
    pub(crate) fn delete(&self, name: &str) -> io::Result<bool> {
        let mut changes = self.changes();
        let mut rest = self.lock().clone();
        let Some(topic) = rest.remove(name) else { return Ok(false) };
        // First: where the deletion fails on its way, a crash may finish it.
        for partition in topic.partitions.iter() {
            partition.close("the topic is being deleted");
        }
        let reserved = changes.reserved_producers;
        self.storage.freeing(|| self.store(&mut changes, &rest, reserved))?;
        *self.lock() = rest;
        // What a crash leaves of them is removed when a topic of that name is created.
        for directory in partition_directories(self.storage.root(), name, topic.partitions.len()) {
            self.storage.disk().remove_directory(&directory)?;
        }
        Ok(true)
    }

    /// A producer number that was never given before, not even before a crash.
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

    /// Why the disk takes nothing, while it does not. Never waits for the disk.
    pub(crate) fn shortage(&self) -> Option<String> {
        self.storage.shortage()
    }

    /// Looks whether the disk has room again, if it had none.
    pub(crate) fn look_for_room(&self) {
        // Where there is none, [`Self::shortage`] says so already.
        let _ = self.storage.look_for_room();
    }

    /// What is wrong with the Kafka partitions. Never waits for the disk.
    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        for topic in self.topics() {
            for (kafka_partition, partition) in topic.partitions.iter().enumerate() {
                if let Some(reason) = partition.trouble() {
                    troubles.push(Trouble { topic: topic.name.clone(), kafka_partition, reason });
                }
            }
        }
        troubles
    }

    /// Says that something was appended somewhere.
    pub(crate) fn announce_append(&self) {
        self.appended.send_modify(|count| *count += 1);
    }

    /// Tells of appends from now on.
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
        let _room = self.storage.room()?;
        let (root, reserved) = (self.storage.root(), changes.reserved_producers);
        let mut topics = self.lock().clone();
        if changes.doubtful {
            // The directories of a topic that the disk may still name are not touched.
            self.store(changes, &topics, reserved)?;
        }
        let segment_bytes = topic_segment_bytes(&config, self.segment_bytes);
        let mut partitions = Vec::with_capacity(kafka_partitions);
        for directory in partition_directories(root, name, kafka_partitions) {
            // Left by a topic of that name that was deleted.
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
        self.changes.lock().expect("no thread panics while it holds the lock")
    }

    fn lock(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().expect("no thread panics while it holds the lock")
    }
}

/// At how many bytes the segments of a topic are closed: what it says, but no more than `most`. A change counts from the
/// next start on.
fn topic_segment_bytes(config: &BTreeMap<String, String>, most: u64) -> u64 {
    config
        .get("segment.bytes")
        .and_then(|text| text.trim().parse().ok())
        .map_or(most, |bytes: u64| bytes.min(most))
}

/// Whether a topic could be created, were it not there yet.
pub(crate) fn check_creatable(name: &str, kafka_partitions: usize) -> Result<(), CreateError> {
    let sound = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if name.is_empty() || name.len() > LONGEST_NAME || [".", ".."].contains(&name) || !name.chars().all(sound)
    {
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
    let of_topic = |(name, topic): (&String, &StoredTopic)| {
        partition_directories(storage.root(), name, topic.kafka_partitions).collect::<Vec<_>>()
    };
    Ok(stored.topics.iter().flat_map(of_topic).collect())
}

fn partition_directories(root: &Path, topic: &str, number: usize) -> impl Iterator<Item = PathBuf> {
    (0..number).map(move |kafka_partition| root.join(format!("{topic}-{kafka_partition}")))
}

fn catalog_path(storage: &Storage) -> PathBuf {
    storage.root().join("catalog.json")
}

/// What the catalog says; `None` in a new directory.
fn read_catalog(storage: &Storage) -> io::Result<Option<Stored>> {
    let path = catalog_path(storage);
    if let Some(json) = storage.read_small(&path)? {
        let parsed = serde_json::from_slice(&json);
        return parsed.map_err(|error| Damage::whole(&path, format!("it does not parse: {error}")).into());
    }
    // The first thing that is written is the catalog: where there is something without it, it was lost.
    match partition_names(storage)?.first() {
        Some(left) => Err(Damage::whole(&path, format!("it is missing, though there is {left}")).into()),
        None => Ok(None),
    }
}

/// The names in a data directory that Kafka partitions have.
fn partition_names(storage: &Storage) -> io::Result<Vec<String>> {
    let numbered =
        |name: &String| name.rsplit_once('-').is_some_and(|(_, number)| number.parse::<usize>().is_ok());
    Ok(storage.disk().names(storage.root())?.into_iter().filter(numbered).collect())
}

fn warn_of_leftovers(storage: &Storage, topics: &Topics) -> io::Result<()> {
    for name in partition_names(storage)? {
        let known = name.rsplit_once('-').and_then(|(topic, number)| {
            Some(number.parse::<usize>().ok()? < topics.get(topic)?.partitions.len())
        });
        if known != Some(true) {
            let directory = storage.root().join(name);
            warn!(directory = %directory.display(), "embedded broker: left by a topic that was deleted; it can be removed");
        }
    }
    Ok(())
}

fn write_catalog(storage: &Storage, stored: &Stored) -> io::Result<()> {
    storage.replace(&catalog_path(storage), &serde_json::to_vec_pretty(stored)?)
}

#[cfg(test)]
mod tests;

//! What the embedded broker has: its topics with their Kafka partitions, and the numbers it gives to producers.
//!
//! # Stability contract
//! `catalog.json` in the data directory names every topic, its number of Kafka partitions and its settings, and the
//! next free producer number. The Kafka partitions lie beside it, in `TOPIC-N/` (see [`crate::partition_log`]). `lock`
//! is held by the process that has the directory open.
//!
//! This file does not know the Kafka protocol.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::partition_log::{PartitionLog, write_atomically};

/// How many producer numbers are taken from the file at once.
const PRODUCER_BLOCK: i64 = 1000;
/// Kafka's own bound of a topic name.
const LONGEST_NAME: usize = 249;
/// The largest batch where a topic does not say: Kafka's default.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;

/// All that is in one data directory.
#[derive(Debug)]
pub(crate) struct Catalog {
    directory: PathBuf,
    segment_bytes: u64,
    state: Mutex<State>,
    /// Counts appends, so that who waits for records wakes up.
    appended: watch::Sender<u64>,
    /// Held as long as this lives; the system lets go of it when the process ends in any way.
    _lock: File,
}

#[derive(Debug)]
struct State {
    topics: BTreeMap<String, Arc<Topic>>,
    next_producer: i64,
    reserved_producers: i64,
}

/// One topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) partitions: Vec<PartitionLog>,
}

/// Why a topic cannot be created.
#[derive(Debug)]
pub(crate) enum CreateError {
    Exists,
    InvalidName,
    InvalidPartitions,
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
    /// Opens a data directory, or starts an empty one. Fails with `WouldBlock` where another process has it open.
    pub(crate) fn open(directory: &Path, segment_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let lock = File::create(directory.join("lock"))?;
        lock.try_lock()?;
        let stored: Stored = match fs::read(directory.join("catalog.json")) {
            Ok(json) => serde_json::from_slice(&json)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(error) => return Err(error),
        };
        let mut topics = BTreeMap::new();
        for (name, stored) in stored.topics {
            let topic = open_topic(directory, segment_bytes, name.clone(), stored)?;
            topics.insert(name, Arc::new(topic));
        }
        let next_producer = stored.next_producer;
        let state = State { topics, next_producer, reserved_producers: next_producer };
        Ok(Self {
            directory: directory.to_owned(),
            segment_bytes,
            state: Mutex::new(state),
            appended: watch::Sender::new(0),
            _lock: lock,
        })
    }

    /// All topics, by name.
    pub(crate) fn topics(&self) -> Vec<Arc<Topic>> {
        self.lock().topics.values().cloned().collect()
    }

    /// One topic.
    pub(crate) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.lock().topics.get(name).cloned()
    }

    /// Creates a topic with empty Kafka partitions.
    pub(crate) fn create(
        &self,
        name: &str,
        kafka_partitions: usize,
        config: BTreeMap<String, String>,
    ) -> Result<(), CreateError> {
        check_creatable(name, kafka_partitions)?;
        let mut state = self.lock();
        if state.topics.contains_key(name) {
            return Err(CreateError::Exists);
        }
        let stored = StoredTopic { kafka_partitions, config };
        let topic = open_topic(&self.directory, self.segment_bytes, name.to_owned(), stored);
        state.topics.insert(name.to_owned(), Arc::new(topic.map_err(CreateError::Io)?));
        self.store(&state).map_err(CreateError::Io)
    }

    /// Deletes a topic with all that is in it; whether it was there.
    pub(crate) fn delete(&self, name: &str) -> io::Result<bool> {
        let mut state = self.lock();
        let Some(topic) = state.topics.remove(name) else { return Ok(false) };
        self.store(&state)?;
        for kafka_partition in 0..topic.partitions.len() {
            fs::remove_dir_all(partition_directory(&self.directory, name, kafka_partition))?;
        }
        Ok(true)
    }

    /// A producer number that was never given before, not even before a crash.
    pub(crate) fn new_producer(&self) -> io::Result<i64> {
        let mut state = self.lock();
        if state.next_producer == state.reserved_producers {
            state.reserved_producers += PRODUCER_BLOCK;
            self.store(&state)?;
        }
        state.next_producer += 1;
        Ok(state.next_producer - 1)
    }

    /// Says that something was appended somewhere.
    pub(crate) fn announce_append(&self) {
        self.appended.send_modify(|count| *count += 1);
    }

    /// Tells of appends from now on.
    pub(crate) fn watch_appends(&self) -> watch::Receiver<u64> {
        self.appended.subscribe()
    }

    fn store(&self, state: &State) -> io::Result<()> {
        let topics = state.topics.iter().map(|(name, topic)| {
            let stored =
                StoredTopic { kafka_partitions: topic.partitions.len(), config: topic.config.clone() };
            (name.clone(), stored)
        });
        let stored = Stored { topics: topics.collect(), next_producer: state.reserved_producers };
        write_atomically(&self.directory.join("catalog.json"), &serde_json::to_vec_pretty(&stored)?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the lock")
    }
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

fn open_topic(directory: &Path, segment_bytes: u64, name: String, stored: StoredTopic) -> io::Result<Topic> {
    let open = |kafka_partition| {
        PartitionLog::open(partition_directory(directory, &name, kafka_partition), segment_bytes)
    };
    let partitions = (0..stored.kafka_partitions).map(open).collect::<io::Result<_>>()?;
    Ok(Topic { name, config: stored.config, partitions })
}

fn partition_directory(directory: &Path, topic: &str, kafka_partition: usize) -> PathBuf {
    directory.join(format!("{topic}-{kafka_partition}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;

    use super::{Catalog, CreateError};

    #[test]
    fn remembers_topics_and_never_repeats_a_producer_number() {
        let directory = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(directory.path(), 1024).unwrap();
        let config = BTreeMap::from([("max.message.bytes".to_owned(), "17".to_owned())]);
        catalog.create("readings", 3, config).unwrap();
        assert!(matches!(catalog.create("readings", 3, BTreeMap::new()), Err(CreateError::Exists)));
        assert!(matches!(catalog.create("a/b", 3, BTreeMap::new()), Err(CreateError::InvalidName)));
        assert!(matches!(catalog.create("b", 0, BTreeMap::new()), Err(CreateError::InvalidPartitions)));
        let first = catalog.new_producer().unwrap();
        drop(catalog);

        let catalog = Catalog::open(directory.path(), 1024).unwrap();
        assert_eq!(catalog.topic("readings").unwrap().partitions.len(), 3);
        assert_eq!(catalog.topic("readings").unwrap().max_message_bytes(), 17);
        assert!(catalog.new_producer().unwrap() > first);
        assert!(catalog.delete("readings").unwrap());
        assert!(!catalog.delete("readings").unwrap());
        assert!(!directory.path().join("readings-0").exists());
    }

    #[test]
    fn a_directory_is_opened_once() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Catalog::open(directory.path(), 1024).unwrap();
        let second = Catalog::open(directory.path(), 1024).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
    }
}

//! The ledger of idempotent requests: which keys the log has taken, so that a repeated load adds nothing, however old
//! its readings are.
//!
//! It stands in the topic `ingest-ledger`: a key is `begun`, with the ends of the readings topic at that time, before
//! its first message is written, and `done` after the last was acknowledged. A key that is begun and not done (the
//! process was killed) is looked for in the readings from there on: its messages carry it in a header.
//!
//! Stability contract: JSON records `{"state", "key", "ends"?}`; fields are only ever added.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{LEDGER, READINGS};

use super::{KEY_HEADER, PART_HEADER};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Record {
    Begun { key: String, ends: BTreeMap<i32, i64> },
    Done { key: String },
}

#[derive(Clone, Debug)]
enum State {
    Begun { ends: BTreeMap<i32, i64> },
    Done,
}

/// How far a key has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Never seen.
    New,
    /// An earlier try brought these parts into the log.
    Begun {
        /// Numbers of parts.
        landed: BTreeSet<u32>,
    },
    /// All of it is in the log.
    Done,
}

/// See the module.
pub struct Ledger {
    log: Log,
    producer: Producer,
    states: Mutex<HashMap<String, State>>,
    /// Offsets below which everything that this process knows of is written, by Kafka partition.
    ends: Mutex<BTreeMap<i32, i64>>,
}

impl Ledger {
    /// Reads the ledger from its topic.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(log: Log, producer: Producer) -> Result<Self, LogError> {
        let reading = log.clone();
        let (states, ends) = blocking(move || {
            let mut states = HashMap::new();
            read_all(&reading, (LEDGER, 0), None, |message| {
                match serde_json::from_slice(message.payload) {
                    Ok(Record::Begun { key, ends }) => states.insert(key, State::Begun { ends }),
                    Ok(Record::Done { key }) => states.insert(key, State::Done),
                    Err(error) => {
                        warn!(offset = message.offset, %error, "a ledger record does not decode and is passed over");
                        None
                    }
                };
            })?;
            let mut ends = BTreeMap::new();
            for kafka_partition in 0..reading.config().kafka_partitions {
                ends.insert(kafka_partition, reading.offsets_blocking(READINGS, kafka_partition)?.high);
            }
            Ok((states, ends))
        })
        .await?;
        Ok(Self { log, producer, states: Mutex::new(states), ends: Mutex::new(ends) })
    }

    /// Takes note of an acknowledged offset.
    pub fn seen(&self, kafka_partition: i32, offset: i64) {
        let mut ends = self.ends.lock().expect("no holder of this lock panics");
        let end = ends.entry(kafka_partition).or_insert(0);
        *end = (*end).max(offset + 1);
    }

    /// How far a key has come; for a key that was begun, by looking into the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn progress(&self, key: &str) -> Result<Progress, LogError> {
        let state = self.states.lock().expect("no holder of this lock panics").get(key).cloned();
        match state {
            None => Ok(Progress::New),
            Some(State::Done) => Ok(Progress::Done),
            Some(State::Begun { ends }) => {
                let landed = self.look_for(key, ends).await?;
                info!(
                    key,
                    parts = landed.len(),
                    "an interrupted load goes on; these parts were in the log already"
                );
                Ok(Progress::Begun { landed })
            }
        }
    }

    async fn look_for(&self, key: &str, ends: BTreeMap<i32, i64>) -> Result<BTreeSet<u32>, LogError> {
        let (log, key) = (self.log.clone(), key.to_owned());
        blocking(move || {
            let mut landed = BTreeSet::new();
            for (kafka_partition, end) in ends {
                read_all(&log, (READINGS, kafka_partition), Some(end), |message| {
                    if message.header(KEY_HEADER) == Some(key.as_bytes()) {
                        let part: Option<u32> = message
                            .header(PART_HEADER)
                            .and_then(|part| std::str::from_utf8(part).ok()?.parse().ok());
                        landed.extend(part);
                    }
                })?;
            }
            Ok(landed)
        })
        .await
    }

    /// Notes that a key begins now.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn begin(&self, key: &str) -> Result<(), LogError> {
        let ends = self.ends.lock().expect("no holder of this lock panics").clone();
        self.write(&Record::Begun { key: key.to_owned(), ends: ends.clone() }).await?;
        self.set(key, State::Begun { ends });
        Ok(())
    }

    /// Notes that all of a key is in the log.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn finish(&self, key: &str) -> Result<(), LogError> {
        self.write(&Record::Done { key: key.to_owned() }).await?;
        self.set(key, State::Done);
        Ok(())
    }

    fn set(&self, key: &str, state: State) {
        self.states.lock().expect("no holder of this lock panics").insert(key.to_owned(), state);
    }

    async fn write(&self, record: &Record) -> Result<(), LogError> {
        let payload = serde_json::to_vec(record).expect("ledger records are always JSON");
        let message =
            Outgoing { topic: LEDGER, kafka_partition: 0, key: None, payload: &payload, headers: &[] };
        self.producer.send(message).await.map(|_| ())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LogError::Cancelled))
}

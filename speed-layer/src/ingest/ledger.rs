//! The ledger of idempotent requests: which keys the log has taken, so that a repeated load adds nothing, however old its
//! readings are.
//!
//! It is stored in the topic `ingest-ledger`. A key is `begun`, with the ends of the readings topic at that time, before its
//! first message is written, and `done` after the last one was acknowledged. If the process crashes in between, the messages
//! of the key are looked for in the readings from there on: they carry it in a header.
//!
//! Several servers on one log share one ledger: before a key counts as new, the records of the others are read. A key that
//! another server has just begun is left to it for a while. If that server stops for longer than that and then resumes, it
//! may write messages a second time: their readings are duplicates, which are never counted.
//!
//! The topic is compacted from time to time: what its records say is written again in few, and they are deleted. Records
//! that others write meanwhile stay. A crash in between leaves both, which say the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, warn};
use wye_domain::ledger::{Ends, KeyState, LedgerState, Record, Tables};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::position::Position;
use wye_domain::time::Span;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::{Message, read_all};
use wye_log::topics::{LEDGER, READINGS};

use super::{KEY_HEADER, PART_HEADER};
use applied::AppliedRecords;
use wye_runtime::clock::Clock;

mod applied;
#[cfg(test)]
mod tests;

/// The only Kafka partition of the topic.
const LEDGER_PARTITION: KafkaPartition = KafkaPartition(0);

/// The topic is compacted when it has so many records more than one and a half times what it needs. That is a few hundred
/// kilobytes, which are read within milliseconds, and each record is written again only a few times.
const SPARE_RECORDS: u64 = 4_096;

/// How far a key has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// No request has brought it.
    New,
    /// An earlier request has brought these messages into the log.
    Begun {
        /// Where each of them is, by its number.
        landed: BTreeMap<u32, Place>,
    },
    /// All of its messages are in the log.
    Done,
}

/// Where a message is in the topic of readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) kafka_partition: KafkaPartition,
    pub(super) offset: Offset,
}

/// The ledger as one server sees it.
pub(super) struct Ledger {
    log: Log,
    producer: Producer,
    clock: Arc<dyn Clock>,
    /// The name of this server in the topic.
    server: String,
    memory: Mutex<Memory>,
    catching_up: tokio::sync::Mutex<()>,
    compacting: tokio::sync::Mutex<()>,
    spare_records: u64,
}

/// What a server has read of the topics, and written to them.
struct Memory {
    state: LedgerState,
    applied: AppliedRecords,
    /// The offsets below which all messages are that this server can have seen, by Kafka partition.
    ends: Ends,
    /// How many records the topic has, about.
    records: u64,
}

impl Memory {
    fn raise_end(&mut self, kafka_partition: KafkaPartition, end: Offset) {
        let known = self.ends.entry(kafka_partition).or_default();
        *known = end.max(*known);
    }
}

impl Ledger {
    /// Reads the ledger from its topic. `server` is the name of this server: the same after a restart, and no other server
    /// on the log has it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) async fn open(
        log: Log,
        producer: Producer,
        server: String,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LogError> {
        let reading = log.clone();
        let mut memory = blocking(move || read_memory(&reading)).await?;
        memory.state.forget(clock.now());
        let ledger = Self {
            log,
            producer,
            clock,
            server,
            memory: Mutex::new(memory),
            catching_up: tokio::sync::Mutex::default(),
            compacting: tokio::sync::Mutex::default(),
            spare_records: SPARE_RECORDS,
        };
        ledger.compact_if_due().await;
        Ok(ledger)
    }

    /// Takes in that a message was acknowledged.
    pub(super) fn acknowledged(&self, place: Place) {
        self.memory().raise_end(place.kafka_partition, place.offset.next());
    }

    /// A position behind all messages of all keys that are done.
    pub(super) fn position(&self) -> Position {
        let mut position = Position::default();
        for (kafka_partition, end) in self.memory().ends.iter().filter(|(_, end)| **end > Offset::START) {
            position.include(*kafka_partition, Offset(end.0 - 1));
        }
        position
    }

    /// How far a key has come, as of the last [`Self::catch_up`]; the messages of a key that is begun are looked for in the
    /// log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) async fn progress(&self, key: &str) -> Result<Progress, LogError> {
        match self.state_of(key) {
            KeyState::New => Ok(Progress::New),
            KeyState::Done => Ok(Progress::Done),
            KeyState::Begun(begun) => Ok(Progress::Begun { landed: self.look_for(key, begun.ends).await? }),
        }
    }

    /// Whether all messages of a key are in the log, as of the last [`Self::catch_up`].
    pub(super) fn is_done(&self, key: &str) -> bool {
        self.state_of(key) == KeyState::Done
    }

    /// Whether another server has begun to work on a key less than `patience` ago, and has not written that it is done.
    pub(super) fn is_elsewhere(&self, key: &str, patience: Duration) -> bool {
        let KeyState::Begun(begun) = self.state_of(key) else { return false };
        begun.last.by.as_ref() != Some(&self.server)
            && self.clock.now() - begun.last.at < Span::from(patience)
    }

    /// The tables that the readings of this log are archived in, as far as was read.
    pub(super) fn tables(&self) -> Option<Tables> {
        self.memory().state.tables().cloned()
    }

    /// Writes that the readings of this log are archived in the given tables. Returns the tables that they are archived in
    /// already, if those are others.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub(super) async fn claim_tables(&self, tables: Tables) -> Result<Option<Tables>, LogError> {
        let recorded = match self.tables() {
            Some(recorded) => recorded,
            None => {
                self.append(Record::Tables(tables.clone())).await?;
                // Another server may have been first: the order in the topic decides.
                let log = self.log.clone();
                let memory = blocking(move || read_memory(&log)).await?;
                memory.state.tables().cloned().unwrap_or_else(|| tables.clone())
            }
        };
        Ok((recorded.id != tables.id).then_some(recorded))
    }

    /// Reads the records that other servers have written since the last time.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(super) async fn catch_up(&self) -> Result<(), LogError> {
        let _turn = self.catching_up.lock().await;
        let high = self.log.offsets(LEDGER, LEDGER_PARTITION).await?.high;
        let applied = self.memory().applied.clone();
        if high <= applied.next() {
            return Ok(());
        }
        let log = self.log.clone();
        let (end, others, ends) = blocking(move || {
            let mut others = Vec::new();
            let end = read_all(&log, (LEDGER, LEDGER_PARTITION), Some(applied.next()), |message| {
                if !applied.contains(message.offset) {
                    others.push(decode(&message));
                }
            })?;
            // The messages of the keys that others have done can be anywhere below these ends.
            Ok((end, others, ends_of_readings(&log)?))
        })
        .await?;
        let mut memory = self.memory();
        memory.records += others.len() as u64;
        others.into_iter().flatten().for_each(|record| memory.state.apply(record));
        ends.into_iter().for_each(|(kafka_partition, end)| memory.raise_end(kafka_partition, end));
        memory.applied.all_below(end);
        Ok(())
    }

    async fn look_for(&self, key: &str, ends: Ends) -> Result<BTreeMap<u32, Place>, LogError> {
        let (log, key) = (self.log.clone(), key.to_owned());
        blocking(move || {
            let mut landed = BTreeMap::new();
            for (kafka_partition, end) in ends {
                read_all(&log, (READINGS, kafka_partition), Some(end), |message| {
                    if message.header(KEY_HEADER) == Some(key.as_bytes()) {
                        let place = Place { kafka_partition, offset: message.offset };
                        landed.extend(part_number(&message).map(|part| (part, place)));
                    }
                })?;
            }
            Ok(landed)
        })
        .await
    }

    /// Writes that this server begins to work on a key.
    ///
    /// # Errors
    /// When the log does not acknowledge the record.
    pub(super) async fn begin(&self, key: &str) -> Result<(), LogError> {
        let ends = self.memory().ends.clone();
        let by = Some(self.server.clone());
        self.append(Record::Begun { key: key.to_owned(), ends, at: self.clock.now(), by }).await
    }

    /// Writes that all messages of a key are in the log.
    ///
    /// # Errors
    /// When the log does not acknowledge the record.
    pub(super) async fn finish(&self, key: &str) -> Result<(), LogError> {
        self.append(Record::Done { key: key.to_owned(), at: self.clock.now() }).await?;
        self.compact_if_due().await;
        Ok(())
    }

    /// Writes a record and applies it.
    async fn append(&self, record: Record) -> Result<(), LogError> {
        let payload = record.encode();
        let message = Outgoing {
            topic: LEDGER,
            kafka_partition: LEDGER_PARTITION,
            key: None,
            payload: &payload,
            headers: &[],
        };
        let offset = self.producer.send(message).await?;
        let mut memory = self.memory();
        memory.state.apply(record);
        memory.applied.add(offset);
        memory.records += 1;
        Ok(())
    }

    /// Compacts the topic if it has many records more than it needs. If that fails, the next call tries again.
    async fn compact_if_due(&self) {
        let (needed, records) = {
            let memory = self.memory();
            (memory.state.record_count() as u64, memory.records)
        };
        if records < needed + needed / 2 + self.spare_records {
            return;
        }
        let Ok(_turn) = self.compacting.try_lock() else { return };
        if let Err(error) = self.compact().await {
            warn!(%error, "cannot compact the ledger of loads; trying again later");
        }
    }

    async fn compact(&self) -> Result<(), LogError> {
        // Other servers may have written records that this one has not read.
        self.catch_up().await?;
        let (end, records) = {
            let mut memory = self.memory();
            memory.state.forget(self.clock.now());
            (memory.applied.next(), memory.state.records())
        };
        let after = records.len() as u64;
        for record in records {
            self.append(record).await?;
        }
        self.log.delete_records(LEDGER, LEDGER_PARTITION, end).await?;
        let before = std::mem::replace(&mut self.memory().records, after);
        debug!(before, after, "ledger of loads compacted");
        Ok(())
    }

    fn state_of(&self, key: &str) -> KeyState {
        self.memory().state.key(key)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which part of its request a message is.
fn part_number(message: &Message<'_>) -> Option<u32> {
    std::str::from_utf8(message.header(PART_HEADER)?).ok()?.parse().ok()
}

/// The offsets that the next readings will get, by Kafka partition. Blocks.
fn ends_of_readings(log: &Log) -> Result<Ends, LogError> {
    KafkaPartition::all(log.config().kafka_partitions)
        .map(|own| Ok((own, log.offsets_blocking(READINGS, own)?.high)))
        .collect()
}

fn decode(message: &Message<'_>) -> Option<Record> {
    let record = Record::decode(message.payload);
    let offset = message.offset;
    record.inspect_err(|error| warn!(%offset, %error, "a ledger record is skipped")).ok()
}

/// Reads the topic. Blocks.
fn read_memory(log: &Log) -> Result<Memory, LogError> {
    let (mut state, mut records) = (LedgerState::default(), 0);
    let end = read_all(log, (LEDGER, LEDGER_PARTITION), None, |message| {
        records += 1;
        if let Some(record) = decode(&message) {
            state.apply(record);
        }
    })?;
    Ok(Memory { state, applied: AppliedRecords::below(end), ends: ends_of_readings(log)?, records })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LogError::Cancelled))
}

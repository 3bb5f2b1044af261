//! The ledger of idempotent requests: which keys the log has taken, so that a repeated load adds nothing, however old
//! its readings are.
//!
//! It is kept in the topic `ingest-ledger`: a key is `begun`, with the ends of the readings topic at that time, before
//! its first message is written, and `done` after the last was acknowledged. A key that is begun and not done (the
//! process was killed) is looked for in the readings from there on: its messages carry it in a header.
//!
//! Now and then the topic is condensed: what its records say is written again in few, and they are deleted. What
//! others write meanwhile stays, and a crash in between leaves both, which say the same.
//!
//! Stability contract: JSON records as in `state`; fields are only ever added.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{debug, warn};
use wye_domain::position::Position;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{LEDGER, READINGS};
use wye_runtime::clock::now_micros;

use super::{KEY_HEADER, PART_HEADER};
use state::{Ends, Known, LedgerState, Record};

mod state;

/// The topic is condensed when it has so many records more than it needs, beside half of what it needs: a few hundred
/// kilobytes, read within milliseconds, and each record is written again a few times in its life.
const SPARE_RECORDS: u64 = 4_096;

/// How far a key has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Never seen.
    New,
    /// An earlier try brought these parts into the log.
    Begun {
        /// Where each of them is, by its number.
        landed: BTreeMap<u32, Place>,
    },
    /// All of it is in the log.
    Done,
}

/// Where a message is in the topic of readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which Kafka partition.
    pub kafka_partition: i32,
    /// Which offset of it.
    pub offset: i64,
}

/// See the module.
pub struct Ledger {
    log: Log,
    producer: Producer,
    state: Mutex<LedgerState>,
    /// Offsets below which everything that this process knows of is written, by Kafka partition.
    ends: Mutex<Ends>,
    /// Records in the topic, about.
    records: AtomicU64,
    spare_records: u64,
    condensing: tokio::sync::Mutex<()>,
}

impl Ledger {
    /// Reads the ledger from its topic.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(log: Log, producer: Producer) -> Result<Self, LogError> {
        let reading = log.clone();
        let (state, records, ends) = blocking(move || {
            let (mut state, _, records) = read_state(&reading)?;
            state.forget(now_micros());
            let mut ends = Ends::new();
            for kafka_partition in 0..reading.config().kafka_partitions {
                ends.insert(kafka_partition, reading.offsets_blocking(READINGS, kafka_partition)?.high);
            }
            Ok((state, records, ends))
        })
        .await?;
        let ledger = Self {
            log,
            producer,
            state: Mutex::new(state),
            ends: Mutex::new(ends),
            records: AtomicU64::new(records),
            spare_records: SPARE_RECORDS,
            condensing: tokio::sync::Mutex::default(),
        };
        ledger.condense_if_due().await;
        Ok(ledger)
    }

    /// Takes note of an acknowledged offset.
    pub fn seen(&self, kafka_partition: i32, offset: i64) {
        let mut ends = self.ends.lock().expect("no holder of this lock panics");
        let end = ends.entry(kafka_partition).or_insert(0);
        *end = (*end).max(offset + 1);
    }

    /// A position behind everything that any key that is done has brought into the log.
    pub fn position(&self) -> Position {
        let ends = self.ends.lock().expect("no holder of this lock panics");
        let mut position = Position::default();
        for (kafka_partition, end) in ends.iter().filter(|(_, end)| **end > 0) {
            position.include(*kafka_partition, end - 1);
        }
        position
    }

    /// How far a key has come; for a key that was begun, by looking into the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn progress(&self, key: &str) -> Result<Progress, LogError> {
        let known = self.state.lock().expect("no holder of this lock panics").known(key);
        match known {
            Known::New => Ok(Progress::New),
            Known::Done => Ok(Progress::Done),
            Known::Begun(ends) => Ok(Progress::Begun { landed: self.look_for(key, ends).await? }),
        }
    }

    async fn look_for(&self, key: &str, ends: Ends) -> Result<BTreeMap<u32, Place>, LogError> {
        let (log, key) = (self.log.clone(), key.to_owned());
        blocking(move || {
            let mut landed = BTreeMap::new();
            for (kafka_partition, end) in ends {
                read_all(&log, (READINGS, kafka_partition), Some(end), |message| {
                    if message.header(KEY_HEADER) == Some(key.as_bytes()) {
                        let part: Option<u32> = message
                            .header(PART_HEADER)
                            .and_then(|part| std::str::from_utf8(part).ok()?.parse().ok());
                        let place = Place { kafka_partition, offset: message.offset };
                        landed.extend(part.map(|part| (part, place)));
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
        self.note(Record::Begun { key: key.to_owned(), ends, at: now_micros() }).await
    }

    /// Notes that all of a key is in the log.
    ///
    /// # Errors
    /// When the log does not take it.
    pub async fn finish(&self, key: &str) -> Result<(), LogError> {
        self.note(Record::Done { key: key.to_owned(), at: now_micros() }).await?;
        self.condense_if_due().await;
        Ok(())
    }

    async fn note(&self, record: Record) -> Result<(), LogError> {
        self.write(&record).await?;
        self.state.lock().expect("no holder of this lock panics").apply(record);
        Ok(())
    }

    async fn write(&self, record: &Record) -> Result<(), LogError> {
        let payload = serde_json::to_vec(record).expect("ledger records are always JSON");
        let message =
            Outgoing { topic: LEDGER, kafka_partition: 0, key: None, payload: &payload, headers: &[] };
        self.producer.send(message).await?;
        self.records.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Condenses the topic if it has many records more than it needs. Failing does no harm: the next try does it.
    async fn condense_if_due(&self) {
        let needed = self.state.lock().expect("no holder of this lock panics").len() as u64;
        if self.records.load(Ordering::Relaxed) < needed + needed / 2 + self.spare_records {
            return;
        }
        let Ok(_turn) = self.condensing.try_lock() else { return };
        if let Err(error) = self.condense().await {
            warn!(%error, "cannot condense the ledger of loads; trying again later");
        }
    }

    async fn condense(&self) -> Result<(), LogError> {
        let now = now_micros();
        self.state.lock().expect("no holder of this lock panics").forget(now);
        // Read anew: others may have written what this process does not know.
        let reading = self.log.clone();
        let (mut state, end, before) = blocking(move || read_state(&reading)).await?;
        state.forget(now);
        let records = state.records();
        for record in &records {
            self.write(record).await?;
        }
        self.log.delete_records(LEDGER, 0, end).await?;
        self.records.store(records.len() as u64, Ordering::Relaxed);
        debug!(before, after = records.len(), "ledger of loads condensed");
        Ok(())
    }
}

/// What the records of the topic say, the offset after the last of them, and how many there are.
fn read_state(log: &Log) -> Result<(LedgerState, i64, u64), LogError> {
    let (mut state, mut records) = (LedgerState::default(), 0);
    let end = read_all(log, (LEDGER, 0), None, |message| {
        records += 1;
        match serde_json::from_slice::<Record>(message.payload) {
            Ok(record) => state.apply(record),
            Err(error) => {
                warn!(offset = message.offset, %error, "a ledger record does not decode and is passed over");
            }
        }
    })?;
    Ok((state, end, records))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(LogError::Cancelled))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;
    use wye_broker::{Broker, BrokerConfig};
    use wye_log::client::LogConfig;

    use super::*;

    async fn log() -> (Log, Broker, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
        let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 2)).unwrap();
        log.ensure_topics().await.unwrap();
        (log, broker, directory)
    }

    async fn open(log: &Log) -> Ledger {
        let producer = Producer::new(log, Duration::ZERO).unwrap();
        Ledger { spare_records: 20, ..Ledger::open(log.clone(), producer).await.unwrap() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_loads_leave_few_records_and_every_key_is_known() {
        let (log, _broker, _directory) = log().await;
        let ledger = open(&log).await;
        // Another process, whose keys this one hears of only in the topic.
        let other = open(&log).await;
        for number in 0..200 {
            let key = format!("file/{number}");
            ledger.begin(&key).await.unwrap();
            ledger.finish(&key).await.unwrap();
            if number < 5 {
                other.begin(&format!("request-{number}")).await.unwrap();
                other.finish(&format!("request-{number}")).await.unwrap();
            }
            let range = log.offsets(LEDGER, 0).await.unwrap();
            assert!(range.high - range.low <= 60, "{range:?}");
        }
        let again = open(&log).await;
        for ledger in [&ledger, &again] {
            assert_eq!(ledger.progress("file/0").await.unwrap(), Progress::Done);
            assert_eq!(ledger.progress("file/199").await.unwrap(), Progress::Done);
            assert_eq!(ledger.progress("file/200").await.unwrap(), Progress::New);
        }
        assert_eq!(again.progress("request-4").await.unwrap(), Progress::Done);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn keys_of_requests_take_little_more_than_a_record_each() {
        let (log, _broker, _directory) = log().await;
        let ledger = open(&log).await;
        for number in 0..150 {
            let key = format!("request-{number}");
            ledger.begin(&key).await.unwrap();
            ledger.finish(&key).await.unwrap();
            let range = log.offsets(LEDGER, 0).await.unwrap();
            assert!(range.high - range.low <= 3 * (number + 1) / 2 + 22, "{range:?}");
        }
        let again = open(&log).await;
        assert_eq!(again.progress("request-0").await.unwrap(), Progress::Done);
        assert_eq!(again.progress("request-149").await.unwrap(), Progress::Done);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_that_was_cut_off_is_looked_for_in_the_readings() {
        let (log, _broker, _directory) = log().await;
        let ledger = open(&log).await;
        ledger.begin("file/0").await.unwrap();
        for part in [b"0", b"2"] {
            let headers: &[(&str, &[u8])] = &[(KEY_HEADER, b"file/0"), (PART_HEADER, part)];
            let message = Outgoing { topic: READINGS, kafka_partition: 1, key: None, payload: b"x", headers };
            ledger.producer.send(message).await.unwrap();
        }
        for number in 1..100 {
            ledger.finish(&format!("file/{number}")).await.unwrap();
        }
        let again = open(&log).await;
        let place = |offset| Place { kafka_partition: 1, offset };
        assert_eq!(again.position().to_string(), "1:2");
        assert_eq!(
            again.progress("file/0").await.unwrap(),
            Progress::Begun { landed: [(0, place(0)), (2, place(1))].into() }
        );
    }
}

//! The ledger of idempotent requests: which keys the log has taken, so that a repeated load adds nothing, however old
//! its readings are.
//!
//! It is kept in the topic `ingest-ledger`: a key is `begun`, with the ends of the readings topic at that time, before
//! its first message is written, and `done` after the last was acknowledged. A key that is begun and not done (the
//! process was killed) is looked for in the readings from there on: its messages carry it in a header.
//!
//! Several servers on one log keep one ledger: before a key counts as new, what the others have written is read. A key
//! that another server has just begun is given time to be done there. A server that stood still for longer than that and
//! then goes on may bring parts into the log a second time: these are duplicates, which are never counted.
//!
//! Now and then the topic is condensed: what its records say is written again in few, and they are deleted. What
//! others write meanwhile stays, and a crash in between leaves both, which say the same.
//!
//! Stability contract: JSON records as in `state`; fields are only ever added.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{debug, warn};
use wye_domain::position::Position;
use wye_log::LogError;
use wye_log::client::Log;
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::{Message, read_all};
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
    /// What this server calls itself in the topic; another server has another name.
    server: String,
    state: Mutex<LedgerState>,
    /// How far the topic is known.
    known: Mutex<KnownRecords>,
    catching_up: tokio::sync::Mutex<()>,
    /// Offsets below which everything that this process knows of is written, by Kafka partition.
    ends: Mutex<Ends>,
    /// Records in the topic, about.
    records: AtomicU64,
    spare_records: u64,
    condensing: tokio::sync::Mutex<()>,
}

impl Ledger {
    /// Reads the ledger from its topic. `server` is the name of this server, the same after a restart.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn open(log: Log, producer: Producer, server: String) -> Result<Self, LogError> {
        let reading = log.clone();
        let (state, next, records, ends) = blocking(move || {
            let (mut state, next, records) = read_state(&reading)?;
            state.forget(now_micros());
            Ok((state, next, records, ends_of_readings(&reading)?))
        })
        .await?;
        let ledger = Self {
            log,
            producer,
            server,
            state: Mutex::new(state),
            known: Mutex::new(KnownRecords { next, own: BTreeSet::new() }),
            catching_up: tokio::sync::Mutex::default(),
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

    /// How far a key has come, as far as the topic is known; for a key that was begun, by looking into the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn progress(&self, key: &str) -> Result<Progress, LogError> {
        match self.known(key) {
            Known::New => Ok(Progress::New),
            Known::Done => Ok(Progress::Done),
            Known::Begun(begun) => Ok(Progress::Begun { landed: self.look_for(key, begun.ends).await? }),
        }
    }

    /// Whether all of a key is known to be in the log.
    pub fn is_done(&self, key: &str) -> bool {
        self.known(key) == Known::Done
    }

    /// Whether another server has begun to work on a key less than `patience` ago, and is not known to have done it.
    pub fn is_elsewhere(&self, key: &str, patience: Duration) -> bool {
        let Known::Begun(begun) = self.known(key) else { return false };
        let (since, by) = begun.last;
        by != self.server && now_micros().saturating_sub(since) < patience.as_micros() as i64
    }

    /// Notes that the readings of this log are archived in the tables with the identity `id` at `root`. Where they are
    /// archived in others already, returns the place of those.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub async fn claim_tables(&self, id: &str, root: &str) -> Result<Option<String>, LogError> {
        let noted = self.state.lock().expect("no holder of this lock panics").tables().cloned();
        let noted = match noted {
            Some(noted) => noted,
            None => {
                self.note(Record::Tables { id: id.to_owned(), root: root.to_owned() }).await?;
                // Another server may have been first: the order in the topic decides.
                let log = self.log.clone();
                let (state, ..) = blocking(move || read_state(&log)).await?;
                state.tables().cloned().unwrap_or_else(|| (id.to_owned(), root.to_owned()))
            }
        };
        Ok((noted.0 != id).then_some(noted.1))
    }

    fn known(&self, key: &str) -> Known {
        self.state.lock().expect("no holder of this lock panics").known(key)
    }

    /// Reads what other servers have written to the topic since it was last read.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn catch_up(&self) -> Result<(), LogError> {
        let _turn = self.catching_up.lock().await;
        let high = self.log.offsets(LEDGER, 0).await?.high;
        let (from, own) = {
            let known = self.known.lock().expect("no holder of this lock panics");
            (known.next, known.own.clone())
        };
        if high <= from {
            return Ok(());
        }
        let log = self.log.clone();
        let (end, others, ends) = blocking(move || {
            let mut others = Vec::new();
            let end = read_all(&log, (LEDGER, 0), Some(from), |message| {
                if !own.contains(&message.offset) {
                    others.push(decode(&message));
                }
            })?;
            // A key that others have done may have brought readings in up to here.
            Ok((end, others, ends_of_readings(&log)?))
        })
        .await?;
        self.records.fetch_add(others.len() as u64, Ordering::Relaxed);
        let mut state = self.state.lock().expect("no holder of this lock panics");
        others.into_iter().flatten().for_each(|record| state.apply(record));
        drop(state);
        ends.into_iter().for_each(|(kafka_partition, end)| self.seen(kafka_partition, end - 1));
        self.known.lock().expect("no holder of this lock panics").read_up_to(end);
        Ok(())
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
        let by = self.server.clone();
        self.note(Record::Begun { key: key.to_owned(), ends, at: now_micros(), by }).await
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

    /// Writes a record, and knows it.
    async fn note(&self, record: Record) -> Result<(), LogError> {
        let payload = serde_json::to_vec(&record).expect("ledger records are always JSON");
        let message =
            Outgoing { topic: LEDGER, kafka_partition: 0, key: None, payload: &payload, headers: &[] };
        let offset = self.producer.send(message).await?;
        // In this order: what is below the known end has been applied.
        self.state.lock().expect("no holder of this lock panics").apply(record);
        self.known.lock().expect("no holder of this lock panics").wrote(offset);
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
        // Others may have written what this server does not know.
        self.catch_up().await?;
        let end = self.known.lock().expect("no holder of this lock panics").next;
        let records = {
            let mut state = self.state.lock().expect("no holder of this lock panics");
            state.forget(now_micros());
            state.records()
        };
        let after = records.len();
        for record in records {
            self.note(record).await?;
        }
        self.log.delete_records(LEDGER, 0, end).await?;
        let before = self.records.swap(after as u64, Ordering::Relaxed);
        debug!(before, after, "ledger of loads condensed");
        Ok(())
    }
}

/// Which records of the topic this server knows.
struct KnownRecords {
    /// All below this offset.
    next: i64,
    /// And these at or above it, which it wrote itself.
    own: BTreeSet<i64>,
}

impl KnownRecords {
    fn wrote(&mut self, offset: i64) {
        if offset >= self.next {
            self.own.insert(offset);
        }
        while self.own.remove(&self.next) {
            self.next += 1;
        }
    }

    fn read_up_to(&mut self, end: i64) {
        self.next = self.next.max(end);
        self.own = self.own.split_off(&self.next);
        while self.own.remove(&self.next) {
            self.next += 1;
        }
    }
}

/// The offsets that the next readings will get, by Kafka partition. Blocks.
fn ends_of_readings(log: &Log) -> Result<Ends, LogError> {
    let kafka_partitions = 0..log.config().kafka_partitions;
    kafka_partitions
        .map(|kafka_partition| Ok((kafka_partition, log.offsets_blocking(READINGS, kafka_partition)?.high)))
        .collect()
}

fn decode(message: &Message<'_>) -> Option<Record> {
    serde_json::from_slice(message.payload)
        .inspect_err(|error| {
            warn!(offset = message.offset, %error, "a ledger record does not decode and is passed over");
        })
        .ok()
}

/// What the records of the topic say, the offset after the last of them, and how many there are.
fn read_state(log: &Log) -> Result<(LedgerState, i64, u64), LogError> {
    let (mut state, mut records) = (LedgerState::default(), 0);
    let end = read_all(log, (LEDGER, 0), None, |message| {
        records += 1;
        if let Some(record) = decode(&message) {
            state.apply(record);
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
        open_as(log, "a").await
    }

    async fn open_as(log: &Log, server: &str) -> Ledger {
        let producer = Producer::new(log, Duration::ZERO).unwrap();
        Ledger { spare_records: 20, ..Ledger::open(log.clone(), producer, server.to_owned()).await.unwrap() }
    }

    async fn progress(ledger: &Ledger, key: &str) -> Progress {
        ledger.catch_up().await.unwrap();
        ledger.progress(key).await.unwrap()
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
            assert_eq!(progress(ledger, "request-4").await, Progress::Done);
            assert_eq!(progress(ledger, "file/0").await, Progress::Done);
            assert_eq!(progress(ledger, "file/199").await, Progress::Done);
            assert_eq!(progress(ledger, "file/200").await, Progress::New);
        }
        assert_eq!(progress(&again, "request-4").await, Progress::Done);
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
        assert_eq!(progress(&again, "request-0").await, Progress::Done);
        assert_eq!(progress(&again, "request-149").await, Progress::Done);
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
            progress(&again, "file/0").await,
            Progress::Begun { landed: [(0, place(0)), (2, place(1))].into() }
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn servers_on_one_log_know_what_the_others_were_given() {
        let (log, _broker, _directory) = log().await;
        let (first, second) = (open_as(&log, "a").await, open_as(&log, "b").await);
        first.begin("file/0").await.unwrap();
        let headers: &[(&str, &[u8])] = &[(KEY_HEADER, b"file/0"), (PART_HEADER, b"0")];
        let message = Outgoing { topic: READINGS, kafka_partition: 1, key: None, payload: b"x", headers };
        first.producer.send(message).await.unwrap();
        // The first server may still be at work; after a while it is given up.
        let Progress::Begun { landed } = progress(&second, "file/0").await else { panic!() };
        assert_eq!(landed, [(0, Place { kafka_partition: 1, offset: 0 })].into());
        assert!(second.is_elsewhere("file/0", Duration::from_secs(3600)));
        assert!(!second.is_elsewhere("file/0", Duration::ZERO));
        assert!(!first.is_elsewhere("file/0", Duration::from_secs(3600)), "its own key");
        // Until the second one works on it, which the first one hears of.
        second.begin("file/0").await.unwrap();
        first.catch_up().await.unwrap();
        assert!(first.is_elsewhere("file/0", Duration::from_secs(3600)));
        second.finish("file/0").await.unwrap();
        assert_eq!(progress(&first, "file/0").await, Progress::Done);
        assert!(!first.is_elsewhere("file/0", Duration::from_secs(3600)));
        assert_eq!(
            second.position().to_string(),
            "1:1",
            "the readings of the first are covered by what it answers"
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_belongs_to_the_tables_that_were_first() {
        let (log, _broker, _directory) = log().await;
        let (first, second) = (open_as(&log, "a").await, open_as(&log, "b").await);
        assert_eq!(first.claim_tables("1", "s3://one").await.unwrap(), None);
        assert_eq!(second.claim_tables("2", "s3://two").await.unwrap().as_deref(), Some("s3://one"));
        let again = open(&log).await;
        assert_eq!(again.claim_tables("1", "s3://moved").await.unwrap(), None);
        assert_eq!(again.claim_tables("2", "s3://two").await.unwrap().as_deref(), Some("s3://one"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_server_wrote_itself_is_not_read_again() {
        let (log, _broker, _directory) = log().await;
        let ledger = open(&log).await;
        for number in 0..10 {
            ledger.begin(&format!("file/{number}")).await.unwrap();
            ledger.finish(&format!("file/{number}")).await.unwrap();
        }
        let known = ledger.known.lock().unwrap();
        assert_eq!((known.next, known.own.len()), (log.offsets_blocking(LEDGER, 0).unwrap().high, 0));
    }
}

//! Records of the ingest-ledger topic, and what they add up to: records in, progress of idempotency keys out, and the
//! fewest records that say the same.
//!
//! A key `name/number`, such as a load gives to the chunks of a file, is kept forever, as part of a range of numbers. Any
//! other key, and a key that was begun and is not done, is forgotten after [`RETENTION`].
//!
//! A record stays true (a key that is done stays done), so their order does not matter: compacted records may come after
//! younger ones.
//!
//! Stability contract: JSON records; fields are only ever added.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::place::{KafkaPartition, Offset};
use crate::time::{Micros, Span};
use crate::{DomainError, json};
use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

/// How long a key that is no part of a range is remembered: a week. Clients send a request again within minutes, or after
/// a weekend.
pub const RETENTION: Span = Span::from_days(7);

/// By Kafka partition, an offset of the readings topic.
pub type Ends = BTreeMap<KafkaPartition, Offset>;

/// A record of the topic. (An internal tag is not possible: serde then cannot read the numbers that are keys of `ends`, which
/// JSON quotes.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A server works on a key from now on. The messages of the key are at or above `ends`.
    Begun {
        /// The idempotency key.
        key: String,
        /// Where its messages can begin.
        ends: Ends,
        /// When the server began.
        at: Micros,
        /// The name of the server, which is the same after a restart; `None` in records of earlier versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// All messages of a key are in the log.
    Done {
        /// The idempotency key.
        key: String,
        /// When that was known.
        at: Micros,
    },
    /// The keys `name/number` are done, for the numbers `[first, past)`.
    DoneNumbers {
        /// What is before the slash.
        name: String,
        /// The first number.
        first: u64,
        /// The number after the last.
        past: u64,
    },
    /// The readings of this log are archived in these tables.
    Tables(Tables),
}

/// The tables that the readings of a log are archived in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tables {
    /// Their identity.
    pub id: String,
    /// Where they are, or were when this was noted.
    pub root: String,
}

impl Record {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        json::to_vec(self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DomainError> {
        serde_json::from_slice(bytes)
            .map_err(|error| DomainError::Decode { what: "ledger record", reason: error.to_string() })
    }
}

/// How far a key has come, as far as the records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// No record names it.
    New,
    /// It is begun and not done.
    Begun(Begun),
    /// All of its messages are in the log.
    Done,
}

/// A key that is begun and not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begun {
    /// The messages of the key are at or above these offsets: the lowest that a record says.
    pub ends: Ends,
    /// When it was begun first.
    pub at: Micros,
    /// The last attempt.
    pub last: Attempt,
}

/// An attempt of a server to write the messages of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// When it began.
    pub at: Micros,
    /// The name of the server; `None` in records of earlier versions.
    pub by: Option<String>,
}

/// What the records of the topic add up to.
#[derive(Clone, Debug, Default)]
pub struct LedgerState {
    begun: BTreeMap<String, Begun>,
    /// When each key was done.
    done: BTreeMap<String, Micros>,
    /// By name, the numbers that are done.
    numbers: BTreeMap<String, RangeSet<u64>>,
    tables: Option<Tables>,
}

impl LedgerState {
    /// Takes in a record.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Begun { key, ends, at, by } => {
                if !self.is_done(&key) {
                    self.begin(key, ends, Attempt { at, by });
                }
            }
            Record::Done { key, at } => {
                self.begun.remove(&key);
                match numbered(&key) {
                    Some((name, number)) => self.add_numbers(name, number, number + 1),
                    None => {
                        self.done.insert(key, at);
                    }
                }
            }
            Record::DoneNumbers { name, first, past } => {
                self.begun.retain(|key, _| {
                    !numbered(key).is_some_and(|(of, number)| of == name && (first..past).contains(&number))
                });
                self.add_numbers(&name, first, past);
            }
            Record::Tables(tables) => {
                self.tables.get_or_insert(tables);
            }
        }
    }

    fn begin(&mut self, key: String, ends: Ends, last: Attempt) {
        match self.begun.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(Begun { ends, at: last.at, last });
            }
            Entry::Occupied(mut entry) => {
                let begun = entry.get_mut();
                begun.at = begun.at.min(last.at);
                for (kafka_partition, end) in ends {
                    let lowest = begun.ends.entry(kafka_partition).or_insert(end);
                    *lowest = end.min(*lowest);
                }
                if last > begun.last {
                    begun.last = last;
                }
            }
        }
    }

    /// The tables that the log belongs to: the first that a record names.
    pub fn tables(&self) -> Option<&Tables> {
        self.tables.as_ref()
    }

    /// How far a key has come.
    pub fn key(&self, key: &str) -> KeyState {
        if self.is_done(key) {
            return KeyState::Done;
        }
        self.begun.get(key).map_or(KeyState::New, |begun| KeyState::Begun(begun.clone()))
    }

    fn is_done(&self, key: &str) -> bool {
        match numbered(key) {
            Some((name, number)) => self.numbers.get(name).is_some_and(|numbers| numbers.contains(&number)),
            None => self.done.contains_key(key),
        }
    }

    /// Forgets what is older than [`RETENTION`].
    pub fn forget(&mut self, now: Micros) {
        self.begun.retain(|_, begun| now - begun.at < RETENTION);
        self.done.retain(|_, at| now - *at < RETENTION);
    }

    /// The fewest records that say all of this.
    pub fn records(&self) -> Vec<Record> {
        let begun = self.begun.iter().map(|(key, begun)| Record::Begun {
            key: key.clone(),
            ends: begun.ends.clone(),
            at: begun.at,
            by: begun.last.by.clone(),
        });
        let done = self.done.iter().map(|(key, at)| Record::Done { key: key.clone(), at: *at });
        let numbers = self.numbers.iter().flat_map(|(name, numbers)| {
            numbers.iter().map(move |range| Record::DoneNumbers {
                name: name.clone(),
                first: range.start,
                past: range.end,
            })
        });
        let tables = self.tables.iter().cloned().map(Record::Tables);
        begun.chain(done).chain(numbers).chain(tables).collect()
    }

    /// How many [`Self::records`] there are.
    pub fn record_count(&self) -> usize {
        let numbers: usize = self.numbers.values().map(RangeSet::len).sum();
        self.begun.len() + self.done.len() + numbers + usize::from(self.tables.is_some())
    }

    fn add_numbers(&mut self, name: &str, first: u64, past: u64) {
        // A record of another program may have an empty range, which the set does not take.
        if first < past {
            self.numbers.entry(name.to_owned()).or_default().insert(first..past);
        }
    }
}

/// Name and number of a key `name/number`; only if they make the same key again.
fn numbered(key: &str) -> Option<(&str, u64)> {
    let (name, number) = key.rsplit_once('/')?;
    let is_plain = number == "0" || !number.starts_with(['0', '+']);
    let number = number.parse().ok().filter(|number| is_plain && *number < u64::MAX)?;
    Some((name, number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends(end: i64) -> Ends {
        [(KafkaPartition(0), Offset(end))].into()
    }

    fn begun(key: &str, end: i64, at: i64) -> Record {
        Record::Begun { key: key.to_owned(), ends: ends(end), at: Micros(at), by: Some("a".to_owned()) }
    }

    fn state_begun(end: i64, at: i64) -> KeyState {
        let at = Micros(at);
        KeyState::Begun(Begun { ends: ends(end), at, last: Attempt { at, by: Some("a".to_owned()) } })
    }

    /// Where the messages of a key can begin.
    fn ends_of(state: KeyState) -> Option<Ends> {
        match state {
            KeyState::Begun(begun) => Some(begun.ends),
            KeyState::New | KeyState::Done => None,
        }
    }

    fn done(key: &str, at: i64) -> Record {
        Record::Done { key: key.to_owned(), at: Micros(at) }
    }

    #[test]
    fn stored_bytes_stay_as_they_are() {
        let numbers = Record::DoneNumbers { name: "f".to_owned(), first: 1, past: 9 };
        let tables = Record::Tables(Tables { id: "7".to_owned(), root: "s3://b".to_owned() });
        for (record, stored) in [
            (begun("f/1", 77, 5), r#"{"begun":{"key":"f/1","ends":{"0":77},"at":5,"by":"a"}}"#),
            (done("f/1", 6), r#"{"done":{"key":"f/1","at":6}}"#),
            (numbers, r#"{"done_numbers":{"name":"f","first":1,"past":9}}"#),
            (tables, r#"{"tables":{"id":"7","root":"s3://b"}}"#),
        ] {
            assert_eq!(String::from_utf8(record.encode()).unwrap(), stored);
            assert_eq!(Record::decode(stored.as_bytes()).unwrap(), record);
        }
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let record = Record::decode(br#"{"begun":{"key":"k","ends":{"0":7},"at":5}}"#).unwrap();
        assert!(matches!(record, Record::Begun { by: None, .. }));
    }

    #[test]
    fn the_lowest_ends_say_where_a_key_begins_and_the_last_record_which_server_works_on_it() {
        // The clock of the second server is behind.
        let records = [(7, 20, "a"), (9, 10, "b"), (8, 30, "b")].map(|(end, at, by)| Record::Begun {
            key: "k".to_owned(),
            ends: ends(end),
            at: Micros(at),
            by: Some(by.to_owned()),
        });
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut state = LedgerState::default();
            order.into_iter().for_each(|index: usize| state.apply(records[index].clone()));
            let last = Attempt { at: Micros(30), by: Some("b".to_owned()) };
            let begun = Begun { ends: ends(7), at: Micros(10), last };
            assert_eq!(state.key("k"), KeyState::Begun(begun), "{order:?}");
        }
    }

    #[test]
    fn the_first_tables_stay() {
        let [first, second] = ["a", "b"]
            .map(|id| Record::Tables(Tables { id: id.to_owned(), root: format!("s3://bucket/{id}") }));
        let mut state = LedgerState::default();
        state.apply(first.clone());
        state.apply(second);
        state.forget(Micros::MAX);
        assert_eq!((state.records(), state.record_count()), (vec![first], 1));
    }

    #[test]
    fn only_plain_numbers_make_a_range() {
        assert_eq!(numbered("a/b/17"), Some(("a/b", 17)));
        assert_eq!(numbered("a/0"), Some(("a", 0)));
        for key in ["a", "a/", "a/01", "a/+1", "a/-1", "a/x", "a/18446744073709551615"] {
            assert_eq!(numbered(key), None, "{key}");
        }
    }

    #[test]
    fn a_loaded_file_is_one_record_forever_and_other_keys_expire() {
        let mut state = LedgerState::default();
        for number in (0..1_000).rev() {
            let key = format!("file/{number}");
            state.apply(begun(&key, 5, 0));
            state.apply(done(&key, 0));
        }
        state.apply(done("request", 10));
        state.apply(begun("cut-off", 7, 10));
        assert_eq!(state.record_count(), 3);
        state.forget(Micros(9) + RETENTION);
        assert_eq!((state.key("request"), state.key("cut-off")), (KeyState::Done, state_begun(7, 10)));
        state.forget(Micros(10) + RETENTION);
        assert_eq!(state.records(), [Record::DoneNumbers { name: "file".to_owned(), first: 0, past: 1_000 }]);
        assert_eq!((state.key("request"), state.key("cut-off")), (KeyState::New, KeyState::New));
        assert_eq!((state.key("file/999"), state.key("file/1000")), (KeyState::Done, KeyState::New));
    }

    /// Keys of every kind, few enough that they repeat.
    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            (0..3u8).prop_map(|n| format!("request-{n}")),
            (0..2u8, 0..6u64).prop_map(|(f, n)| format!("file-{f}/{n}"))
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Whenever records are compacted, and however late the result is in the topic, every key is as far as the plain
        /// records say: done if one says so, else begun where the first one says.
        #[test]
        fn compaction_changes_no_answer(
            steps in prop::collection::vec((key(), any::<bool>(), any::<bool>()), 0..60),
            delay in 0..5usize,
        ) {
            let (mut topic, mut naive) = (Vec::<Record>::new(), BTreeMap::<String, KeyState>::new());
            let mut waiting: Option<(usize, usize, Vec<Record>)> = None;
            for (number, (key, is_done, compacts)) in steps.into_iter().enumerate() {
                let end = number as i64;
                let record = if is_done { done(&key, end) } else { begun(&key, end, end) };
                topic.push(record);
                match (naive.get(&key), is_done) {
                    (_, true) => { naive.insert(key, KeyState::Done); }
                    (None, false) => { naive.insert(key, state_begun(end, end)); }
                    _ => {}
                }
                if compacts && waiting.is_none() {
                    let mut state = LedgerState::default();
                    topic.iter().cloned().for_each(|record| state.apply(record));
                    prop_assert_eq!(state.record_count(), state.records().len());
                    waiting = Some((number + delay, topic.len(), state.records()));
                }
                // The compacted records are written after what others wrote in the meantime; then the records that they
                // replace are deleted.
                if let Some((_, read, records)) = waiting.take_if(|(due, ..)| *due <= number) {
                    topic.extend(records);
                    topic.drain(..read);
                }
            }
            let mut state = LedgerState::default();
            topic.into_iter().for_each(|record| state.apply(record));
            for (key, expected) in naive {
                prop_assert_eq!(state.key(&key) == KeyState::Done, expected == KeyState::Done);
                prop_assert_eq!(ends_of(state.key(&key)), ends_of(expected));
            }
        }
    }
}

//! What the ledger knows, as a pure value: records in, progress of keys out, and the fewest records that say the same.
//!
//! A key `name/number`, such as a load gives to the chunks of a file, is kept for good, as part of a range of numbers.
//! Any other key, and a key that was begun and never done, is forgotten after [`RETENTION`].
//!
//! Records say something for good (a key that is done stays done), so their order does not matter, and condensed
//! records may stand behind younger ones.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

/// How long a key that is no part of a range is remembered, in µs: a week. Whoever sends a request again does so
/// within minutes, or finds it after a weekend.
pub(super) const RETENTION: i64 = 7 * 24 * 3_600 * 1_000_000;

/// By Kafka partition, an offset of the readings topic.
pub(super) type Ends = BTreeMap<i32, i64>;

/// A record of the topic. (A tag inside of the object would not do: serde then cannot read the numbers that JSON wants
/// quoted as keys of `ends`.)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// What belongs to the key is at or above `ends`; a server works on it since `at` (µs).
    Begun {
        key: String,
        ends: Ends,
        at: i64,
        /// Which server; the same after a restart.
        #[serde(default)]
        by: String,
    },
    /// All that belongs to the key is in the log since `at` (µs).
    Done { key: String, at: i64 },
    /// The keys `name/number` are done, for the numbers `[first, past)`.
    DoneNumbers { name: String, first: u64, past: u64 },
    /// The readings of this log are archived in the tables with this identity, which are (or were) at `root`.
    Tables { id: String, root: String },
}

/// How far a key has come, as far as the records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    New,
    Begun(Begun),
    Done,
}

/// A key that is begun and not done, as far as the records say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    /// What belongs to the key is at or above these: the least that a record says.
    pub(super) ends: Ends,
    /// When it was begun first, in µs.
    pub(super) at: i64,
    /// Which server has begun to work on it last, and when, in µs.
    pub(super) last: (i64, String),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct LedgerState {
    begun: HashMap<String, Begun>,
    done: HashMap<String, i64>,
    numbers: HashMap<String, RangeSet<u64>>,
    /// Identity and place of the tables: the first that a record names.
    tables: Option<(String, String)>,
}

impl LedgerState {
    pub(super) fn apply(&mut self, record: Record) {
        match record {
            Record::Begun { key, ends, at, by } => {
                if self.is_done(&key) {
                    return;
                }
                let last = (at, by);
                match self.begun.entry(key) {
                    Entry::Vacant(entry) => {
                        entry.insert(Begun { ends, at, last });
                    }
                    Entry::Occupied(mut entry) => {
                        let begun = entry.get_mut();
                        begun.at = begun.at.min(at);
                        for (kafka_partition, end) in ends {
                            let first = begun.ends.entry(kafka_partition).or_insert(end);
                            *first = end.min(*first);
                        }
                        if last > begun.last {
                            begun.last = last;
                        }
                    }
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
            Record::Tables { id, root } => {
                self.tables.get_or_insert((id, root));
            }
        }
    }

    /// Identity and place of the tables that the log belongs to, if a record names them.
    pub(super) fn tables(&self) -> Option<&(String, String)> {
        self.tables.as_ref()
    }

    pub(super) fn known(&self, key: &str) -> Known {
        if self.is_done(key) {
            return Known::Done;
        }
        self.begun.get(key).map_or(Known::New, |begun| Known::Begun(begun.clone()))
    }

    fn is_done(&self, key: &str) -> bool {
        match numbered(key) {
            Some((name, number)) => self.numbers.get(name).is_some_and(|numbers| numbers.contains(&number)),
            None => self.done.contains_key(key),
        }
    }

    /// Forgets what is older than [`RETENTION`] at `now` (µs).
    pub(super) fn forget(&mut self, now: i64) {
        self.begun.retain(|_, begun| now.saturating_sub(begun.at) < RETENTION);
        self.done.retain(|_, at| now.saturating_sub(*at) < RETENTION);
    }

    /// The fewest records that say all of this.
    pub(super) fn records(&self) -> Vec<Record> {
        let begun = self.begun.iter().map(|(key, begun)| {
            let by = begun.last.1.clone();
            Record::Begun { key: key.clone(), ends: begun.ends.clone(), at: begun.at, by }
        });
        let done = self.done.iter().map(|(key, at)| Record::Done { key: key.clone(), at: *at });
        let numbers = self.numbers.iter().flat_map(|(name, numbers)| {
            numbers.iter().map(move |range| Record::DoneNumbers {
                name: name.clone(),
                first: range.start,
                past: range.end,
            })
        });
        let tables = self.tables.iter();
        let tables = tables.map(|(id, root)| Record::Tables { id: id.clone(), root: root.clone() });
        begun.chain(done).chain(numbers).chain(tables).collect()
    }

    /// How many [`Self::records`] there are.
    pub(super) fn len(&self) -> usize {
        let numbers: usize = self.numbers.values().map(RangeSet::len).sum();
        self.begun.len() + self.done.len() + numbers + usize::from(self.tables.is_some())
    }

    fn add_numbers(&mut self, name: &str, first: u64, past: u64) {
        // A record that somebody else wrote may hold an empty range, which the set refuses.
        if first < past {
            self.numbers.entry_ref(name).or_default().insert(first..past);
        }
    }
}

/// Name and number of a key `name/number`; only where that gives the same key back.
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

    fn begun(key: &str, end: i64, at: i64) -> Record {
        Record::Begun { key: key.to_owned(), ends: [(0, end)].into(), at, by: "a".to_owned() }
    }

    fn known_begun(end: i64, at: i64) -> Known {
        Known::Begun(Begun { ends: [(0, end)].into(), at, last: (at, "a".to_owned()) })
    }

    /// Where what belongs to a key begins.
    fn ends_of(known: Known) -> Option<Ends> {
        match known {
            Known::Begun(begun) => Some(begun.ends),
            Known::New | Known::Done => None,
        }
    }

    fn done(key: &str, at: i64) -> Record {
        Record::Done { key: key.to_owned(), at }
    }

    #[test]
    fn records_come_back() {
        let numbers = Record::DoneNumbers { name: "f".to_owned(), first: 1, past: 9 };
        for record in [begun("f/1", 77, 5), done("f/1", 6), numbers] {
            let stored = serde_json::to_vec(&record).unwrap();
            assert_eq!(serde_json::from_slice::<Record>(&stored).unwrap(), record);
        }
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let record: Record = serde_json::from_str(r#"{"begun":{"key":"k","ends":{"0":7},"at":5}}"#).unwrap();
        assert!(matches!(record, Record::Begun { by, .. } if by.is_empty()));
    }

    #[test]
    fn the_least_ends_say_where_a_key_begins_and_the_last_record_who_works_on_it() {
        let by = |end, at, by: &str| Record::Begun {
            key: "k".to_owned(),
            ends: [(0, end)].into(),
            at,
            by: by.to_owned(),
        };
        // The clock of the second server is behind.
        let records = [by(7, 20, "a"), by(9, 10, "b"), by(8, 30, "b")];
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut state = LedgerState::default();
            order.into_iter().for_each(|place| state.apply(records[place].clone()));
            let begun = Begun { ends: [(0, 7)].into(), at: 10, last: (30, "b".to_owned()) };
            assert_eq!(state.known("k"), Known::Begun(begun), "{order:?}");
        }
    }

    #[test]
    fn the_first_tables_stay() {
        let tables = |id: &str| Record::Tables { id: id.to_owned(), root: format!("s3://bucket/{id}") };
        let mut state = LedgerState::default();
        state.apply(tables("a"));
        state.apply(tables("b"));
        state.forget(i64::MAX);
        assert_eq!((state.records(), state.len()), (vec![tables("a")], 1));
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
    fn a_loaded_file_is_one_record_for_good_and_other_keys_are_forgotten() {
        let mut state = LedgerState::default();
        for number in (0..1_000).rev() {
            let key = format!("file/{number}");
            state.apply(begun(&key, 5, 0));
            state.apply(done(&key, 0));
        }
        state.apply(done("request", 10));
        state.apply(begun("cut-off", 7, 10));
        assert_eq!(state.len(), 3);
        state.forget(RETENTION + 9);
        assert_eq!((state.known("request"), state.known("cut-off")), (Known::Done, known_begun(7, 10)));
        state.forget(RETENTION + 10);
        assert_eq!(state.records(), [Record::DoneNumbers { name: "file".to_owned(), first: 0, past: 1_000 }]);
        assert_eq!((state.known("request"), state.known("cut-off")), (Known::New, Known::New));
        assert_eq!((state.known("file/999"), state.known("file/1000")), (Known::Done, Known::New));
    }

    /// Keys of every kind, few enough to meet again.
    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            (0..3u8).prop_map(|n| format!("request-{n}")),
            (0..2u8, 0..6u64).prop_map(|(f, n)| format!("file-{f}/{n}"))
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Whatever has been condensed at whatever time, and however late that stands in the topic, every key is as
        /// far as the plain records say: done if one says so, else begun where the first one says.
        #[test]
        fn condensing_changes_no_answer(
            steps in prop::collection::vec((key(), any::<bool>(), any::<bool>()), 0..60),
            delay in 0..5usize,
        ) {
            let (mut topic, mut naive) = (Vec::<Record>::new(), BTreeMap::<String, Known>::new());
            let mut waiting: Option<(usize, usize, Vec<Record>)> = None;
            for (number, (key, is_done, condenses)) in steps.into_iter().enumerate() {
                let end = number as i64;
                let record = if is_done { done(&key, end) } else { begun(&key, end, end) };
                topic.push(record);
                match (naive.get(&key), is_done) {
                    (_, true) => { naive.insert(key, Known::Done); }
                    (None, false) => { naive.insert(key, known_begun(end, end)); }
                    _ => {}
                }
                if condenses && waiting.is_none() {
                    let mut state = LedgerState::default();
                    topic.iter().cloned().for_each(|record| state.apply(record));
                    prop_assert_eq!(state.len(), state.records().len());
                    waiting = Some((number + delay, topic.len(), state.records()));
                }
                // The condensed records arrive behind what others wrote meanwhile; then what they stand for goes.
                if let Some((_, read, records)) = waiting.take_if(|(due, ..)| *due <= number) {
                    topic.extend(records);
                    topic.drain(..read);
                }
            }
            let mut state = LedgerState::default();
            topic.into_iter().for_each(|record| state.apply(record));
            for (key, known) in naive {
                prop_assert_eq!(state.known(&key) == Known::Done, known == Known::Done);
                prop_assert_eq!(ends_of(state.known(&key)), ends_of(known));
            }
        }
    }
}

//! Records of the control topic, and their combined state for one Kafka partition.
//!
//! The control topic has as many Kafka partitions as `readings`; records about a Kafka partition of readings are in the
//! one of the same number. Their order there decides who owns the partition and which offsets are epoch starts, so that
//! every reader comes to the same conclusion.
//!
//! | record | written by | means |
//! |---|---|---|
//! | `Claim` | a speed layer | the writer owns the Kafka partition from here on; older owners are fenced |
//! | `Epoch` | the owner; a batch run that got no answer | an epoch starts at this offset, now or later: no epoch may hold offsets on both sides of it |
//! | `CutRequest` | a batch run; a speed layer that asks whether there is an owner | the owner answers at once with an `Epoch` that names the request |
//! | `Horizon` | a batch run, after its commit | the batch view covers the readings below this offset |
//!
//! Whether an owner is alive is decided by its answer to a request, never by comparing the clocks of two machines.
//!
//! Stability contract: JSON objects with a `kind`; unknown kinds are skipped, fields are only ever added.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};

use crate::place::{Generation, Offset};
use crate::time::Micros;
use crate::{DomainError, json};

/// One record of the control topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ControlRecord {
    /// A speed layer takes the Kafka partition over; the record's own offset is its generation.
    Claim {
        /// The owner's name, for people.
        owner: String,
    },
    /// An epoch starts at a readings offset. An owner may announce a start that it has not reached yet; the owner at that
    /// time starts an epoch there.
    Epoch {
        /// The owner that writes it; `None` for a batch run that got no answer.
        generation: Option<Generation>,
        /// The first readings offset of the epoch.
        start: Offset,
        /// The newest ingest time (the log's clock) of the readings below `start`, where the writer knows it. Stored as
        /// 0 where it does not.
        #[serde(with = "zero_where_unknown")]
        announced_at: Option<Micros>,
        /// The newest request for a cut that this answers: the control offset of the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        answers: Option<Offset>,
    },
    /// Asks the owner for an epoch start at `through` or after it. The record's own offset is its identity.
    CutRequest {
        /// The name of the program that asks, for people.
        asked_by: String,
        /// The start may not lie before this readings offset: usually the end of the log when the request was written.
        /// From [`Offset::START`] any start will do, so that the request only asks whether there is an owner.
        through: Offset,
    },
    /// A batch view covers the readings below an offset.
    Horizon {
        /// The horizon of this Kafka partition.
        offset: Offset,
        /// The version of the batch views table.
        version: u64,
    },
}

impl ControlRecord {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        json::to_vec(self)
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when it is something else, a kind of a later version too.
    pub fn decode(bytes: &[u8]) -> Result<Self, DomainError> {
        serde_json::from_slice(bytes)
            .map_err(|error| DomainError::Decode { what: "control record", reason: error.to_string() })
    }
}

/// What the control topic says of an epoch start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Announcement {
    /// The newest ingest time of the readings below the start, where an announcement says it.
    pub announced_at: Option<Micros>,
    /// A reader that starts at this control offset learns the start, and which owner was current then: the offset of the
    /// announcement itself if it names a generation, else of an earlier record that does. `None` while the start is not
    /// in the topic yet.
    pub readable_from: Option<Offset>,
}

/// A request for a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutRequested {
    /// The control offset of the request.
    pub request: Offset,
    /// The start may not lie before this readings offset.
    pub through: Offset,
}

/// What the control records of one Kafka partition add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlView {
    /// The current owner's generation; `None` before the first claim.
    pub generation: Option<Generation>,
    /// Epoch starts, ascending.
    pub starts: BTreeMap<Offset, Announcement>,
    /// The newest horizon.
    pub horizon: Option<Offset>,
    /// The newest request for a cut, with the largest `through` of all that were not answered when it came.
    pub asked: Option<CutRequested>,
    /// The newest request that an owner has answered.
    pub answered: Option<Offset>,
    /// The newest record that names the current generation.
    named_at: Option<Offset>,
}

impl ControlView {
    /// Takes in the record at an offset of the control topic, in order.
    ///
    /// An announcement of a generation that a later claim has replaced does not count (**HOR-1**).
    pub fn apply(&mut self, control_offset: Offset, record: &ControlRecord) {
        match record {
            ControlRecord::Claim { .. } => {
                self.generation = Some(Generation(control_offset));
                self.named_at = Some(control_offset);
            }
            ControlRecord::Epoch { generation, start, announced_at, answers } => {
                let fenced = generation.is_some_and(|theirs| self.generation > Some(theirs));
                if !fenced {
                    if generation.is_some() {
                        self.generation = *generation;
                        self.named_at = Some(control_offset);
                    }
                    let readable_from = self.named_at.unwrap_or(control_offset);
                    let known = self.expect_start(*start, *announced_at);
                    known.readable_from.get_or_insert(readable_from);
                    self.answered = self.answered.max(*answers);
                }
            }
            ControlRecord::CutRequest { through, .. } => {
                let through = self.unanswered().map_or(*through, |asked| asked.through.max(*through));
                self.asked = Some(CutRequested { request: control_offset, through });
            }
            ControlRecord::Horizon { offset, .. } => self.horizon = self.horizon.max(Some(*offset)),
        }
    }

    /// Adds an epoch start that is not in the topic yet: the owner is about to announce it, or has begun it.
    pub fn expect_start(&mut self, start: Offset, announced_at: Option<Micros>) -> &mut Announcement {
        let known = self.starts.entry(start).or_insert(Announcement { announced_at, readable_from: None });
        known.announced_at = known.announced_at.max(announced_at);
        known
    }

    /// The control offset below which no reader needs a record that asks for epoch starts from `floor` on, which must
    /// not lie above the horizon. A reader that starts there comes to the same conclusions as one that has read the whole
    /// topic. `None` where no such start is known.
    pub fn deletable_before(&self, floor: Offset) -> Option<Offset> {
        self.starts.range(floor..).filter_map(|(_, known)| known.readable_from).min()
    }

    /// The newest request for a cut, where no owner has answered it.
    pub fn unanswered(&self) -> Option<CutRequested> {
        self.asked.filter(|asked| self.answered.is_none_or(|answered| answered < asked.request))
    }

    /// The first epoch start at or after a readings offset.
    pub fn first_start_from(&self, offset: Offset) -> Option<Offset> {
        self.starts.range(offset..).next().map(|(start, _)| *start)
    }

    /// The start of the epoch that holds a readings offset.
    pub fn epoch_of(&self, offset: Offset) -> Option<Offset> {
        self.starts.range(..=offset).next_back().map(|(start, _)| *start)
    }

    /// The first epoch start after a readings offset.
    pub fn next_start_after(&self, offset: Offset) -> Option<Offset> {
        let after = (Bound::Excluded(offset), Bound::Unbounded);
        self.starts.range(after).next().map(|(start, _)| *start)
    }
}

/// The stored form of a time that may be unknown: plain microseconds, 0 where unknown.
mod zero_where_unknown {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::time::Micros;

    pub(super) fn serialize<S: Serializer>(time: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
        time.unwrap_or_default().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Micros>, D::Error> {
        Ok(Some(Micros::deserialize(deserializer)?).filter(|time| *time > Micros::EPOCH))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claimed_at(offset: i64) -> Generation {
        Generation(Offset(offset))
    }

    fn claim() -> ControlRecord {
        ControlRecord::Claim { owner: "a".into() }
    }

    fn epoch(generation: i64, start: i64) -> ControlRecord {
        ControlRecord::Epoch {
            generation: Some(claimed_at(generation)),
            start: Offset(start),
            announced_at: Some(Micros(start)),
            answers: None,
        }
    }

    #[test]
    fn announcements_of_a_fenced_owner_are_ignored() {
        let mut view = ControlView::default();
        view.apply(Offset(0), &claim());
        view.apply(Offset(1), &epoch(0, 100));
        view.apply(Offset(2), &claim());
        view.apply(Offset(3), &epoch(0, 150));
        view.apply(Offset(4), &epoch(2, 180));
        assert_eq!(view.starts.keys().copied().collect::<Vec<_>>(), [Offset(100), Offset(180)]);
        assert_eq!(view.epoch_of(Offset(179)), Some(Offset(100)));
        assert_eq!(view.next_start_after(Offset(100)), Some(Offset(180)));
        assert_eq!(view.epoch_of(Offset(5)), None);
    }

    /// One thing that can happen to a Kafka partition; the numbers choose among what is possible then.
    #[derive(Clone, Debug)]
    enum Step {
        Claim,
        Announce(i64),
        AnnounceByFenced(usize, i64),
        Pin(i64),
        Horizon(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => Just(Step::Claim),
            6 => (1..50i64).prop_map(Step::Announce),
            3 => (any::<usize>(), -60..50i64).prop_map(|(who, ahead)| Step::AnnounceByFenced(who, ahead)),
            1 => (1..50i64).prop_map(Step::Pin),
            3 => any::<usize>().prop_map(Step::Horizon),
        ]
    }

    fn read(records: &[(Offset, ControlRecord)]) -> ControlView {
        let mut view = ControlView::default();
        records.iter().for_each(|(offset, record)| view.apply(*offset, record));
        view
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_trimmed_topic_says_the_same(steps in prop::collection::vec(step(), 1..60), which in any::<usize>()) {
            let (mut records, mut end) = (Vec::<(Offset, ControlRecord)>::new(), 0);
            for step in steps {
                let view = read(&records);
                let offset = Offset(records.len() as i64);
                let claims: Vec<Offset> = records
                    .iter()
                    .filter_map(|(at, record)| matches!(record, ControlRecord::Claim { .. }).then_some(*at))
                    .collect();
                let announce = |claim: Option<Offset>, start| ControlRecord::Epoch {
                    generation: claim.map(Generation),
                    start: Offset(start),
                    announced_at: Some(Micros(offset.0)),
                    answers: None,
                };
                let record = match step {
                    Step::Announce(ahead) if !claims.is_empty() => {
                        end += ahead;
                        announce(claims.last().copied(), end)
                    }
                    Step::AnnounceByFenced(who, ahead) if claims.len() > 1 => {
                        announce(Some(claims[who % (claims.len() - 1)]), end + ahead)
                    }
                    Step::Pin(ahead) => {
                        end += ahead;
                        announce(None, end)
                    }
                    Step::Horizon(which) if !view.starts.is_empty() => {
                        let start = *view.starts.keys().nth(which % view.starts.len()).unwrap();
                        ControlRecord::Horizon { offset: start, version: 1 }
                    }
                    _ => claim(),
                };
                records.push((offset, record));
            }
            let all = read(&records);
            let Some(horizon) = all.horizon else { return Ok(()) };
            let floors: Vec<Offset> = all.starts.range(..=horizon).map(|(start, _)| *start).collect();
            let floor = floors[which % floors.len()];
            let before = all.deletable_before(floor).unwrap();
            let rest = read(&records[before.0 as usize..]);
            let starts = |view: &ControlView| view.starts.range(floor..).map(|(start, _)| *start).collect::<Vec<_>>();
            prop_assert_eq!(starts(&rest), starts(&all));
            prop_assert_eq!(
                (rest.generation, rest.horizon),
                (all.generation, all.horizon)
            );
        }
    }

    #[test]
    fn the_topic_stays_short_under_an_owner_that_runs_long() {
        let mut view = ControlView::default();
        view.apply(Offset(0), &claim());
        for offset in 1..1_000 {
            view.apply(Offset(offset), &epoch(0, offset * 10));
        }
        view.apply(Offset(1_000), &ControlRecord::Horizon { offset: Offset(9_980), version: 1 });
        assert_eq!(view.deletable_before(Offset(9_980)), Some(Offset(998)));
    }

    #[test]
    fn records_come_back() {
        for record in [
            claim(),
            epoch(1, 2),
            ControlRecord::Epoch {
                generation: Some(claimed_at(1)),
                start: Offset(2),
                announced_at: Some(Micros(3)),
                answers: Some(Offset(4)),
            },
            ControlRecord::CutRequest { asked_by: "batch".into(), through: Offset(9) },
            ControlRecord::Horizon { offset: Offset(3), version: 4 },
        ] {
            assert_eq!(ControlRecord::decode(&record.encode()).unwrap(), record);
        }
        assert!(ControlRecord::decode(br#"{"kind":"later"}"#).is_err());
        // As stored before announcements could answer.
        let old = br#"{"kind":"epoch","generation":1,"start":2,"announced_at":2}"#;
        assert_eq!(ControlRecord::decode(old).unwrap(), epoch(1, 2));
    }

    #[test]
    fn an_unknown_time_is_stored_as_zero() {
        let pinned =
            ControlRecord::Epoch { generation: None, start: Offset(2), announced_at: None, answers: None };
        let stored = br#"{"kind":"epoch","generation":null,"start":2,"announced_at":0}"#;
        assert_eq!(pinned.encode(), stored);
        assert_eq!(ControlRecord::decode(stored).unwrap(), pinned);
    }

    #[test]
    fn a_request_is_answered_by_an_owner_that_is_not_fenced() {
        let mut view = ControlView::default();
        let [fenced, current] = [0, 1].map(|generation| ControlRecord::Epoch {
            generation: Some(claimed_at(generation)),
            start: Offset(50),
            announced_at: None,
            answers: Some(Offset(2)),
        });
        view.apply(Offset(0), &claim());
        view.apply(Offset(1), &claim());
        view.apply(Offset(2), &ControlRecord::CutRequest { asked_by: "batch".into(), through: Offset(40) });
        assert_eq!(view.unanswered(), Some(CutRequested { request: Offset(2), through: Offset(40) }));
        view.apply(Offset(3), &fenced);
        assert_eq!(
            (view.unanswered().map(|asked| asked.request), view.first_start_from(Offset(40))),
            (Some(Offset(2)), None)
        );
        view.apply(Offset(4), &current);
        assert_eq!((view.unanswered(), view.first_start_from(Offset(40))), (None, Some(Offset(50))));
    }
}

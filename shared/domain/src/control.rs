//! Records of the control topic, and what they add up to for one Kafka partition.
//!
//! The control topic has as many Kafka partitions as `readings`; records for a Kafka partition of readings stand in the
//! same one. Their order there decides who owns the partition and which offsets are epoch starts, so that every
//! reader comes to the same conclusion.
//!
//! Stability contract: JSON objects with a `kind`; unknown kinds are skipped, fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::DomainError;

/// One record of the control topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ControlRecord {
    /// A speed layer takes the Kafka partition over; the record's own offset is its generation.
    Claim {
        /// Who, for people.
        owner: String,
    },
    /// An epoch starts at a readings offset.
    Epoch {
        /// The generation that says so; `None` for a batch run that found no speed layer.
        generation: Option<i64>,
        /// The first readings offset of the epoch.
        start: i64,
        /// When this was announced, in µs.
        announced_at: i64,
    },
    /// A batch view covers the readings below an offset.
    Horizon {
        /// The horizon of this Kafka partition.
        offset: i64,
        /// The version of the batch views table.
        version: i64,
    },
}

impl ControlRecord {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("control records are always JSON")
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

/// What an epoch start is known by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Announcement {
    /// When it was announced, in µs.
    pub announced_at: i64,
    /// Its offset in the control topic.
    pub control_offset: i64,
}

/// What the control records of one Kafka partition add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlView {
    /// The current owner's generation; `None` before the first claim.
    pub generation: Option<i64>,
    /// Epoch starts, ascending.
    pub starts: BTreeMap<i64, Announcement>,
    /// The newest horizon.
    pub horizon: Option<i64>,
    /// The time (µs) of the newest announcement.
    pub last_announced_at: Option<i64>,
}

impl ControlView {
    /// Takes in the record at an offset of the control topic, in order.
    ///
    /// An announcement of a generation that a later claim has replaced does not count (**HOR-1**).
    pub fn apply(&mut self, control_offset: i64, record: &ControlRecord) {
        match record {
            ControlRecord::Claim { .. } => self.generation = Some(control_offset),
            ControlRecord::Epoch { generation, start, announced_at } => {
                let fenced = match (generation, self.generation) {
                    (Some(theirs), Some(current)) => *theirs < current,
                    _ => false,
                };
                if !fenced {
                    self.generation = self.generation.max(*generation);
                    let announcement = Announcement { announced_at: *announced_at, control_offset };
                    self.starts.entry(*start).or_insert(announcement);
                    self.last_announced_at = self.last_announced_at.max(Some(*announced_at));
                }
            }
            ControlRecord::Horizon { offset, .. } => self.horizon = self.horizon.max(Some(*offset)),
        }
    }

    /// The start of the epoch that holds a readings offset.
    pub fn epoch_of(&self, offset: i64) -> Option<i64> {
        self.starts.range(..=offset).next_back().map(|(start, _)| *start)
    }

    /// The first epoch start after a readings offset.
    pub fn next_start_after(&self, offset: i64) -> Option<i64> {
        self.starts.range(offset + 1..).next().map(|(start, _)| *start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(generation: i64, start: i64) -> ControlRecord {
        ControlRecord::Epoch { generation: Some(generation), start, announced_at: start }
    }

    #[test]
    fn a_replaced_owner_announces_in_vain() {
        let mut view = ControlView::default();
        view.apply(0, &ControlRecord::Claim { owner: "a".into() });
        view.apply(1, &epoch(0, 100));
        view.apply(2, &ControlRecord::Claim { owner: "b".into() });
        view.apply(3, &epoch(0, 150));
        view.apply(4, &epoch(2, 180));
        assert_eq!(view.starts.keys().copied().collect::<Vec<_>>(), [100, 180]);
        assert_eq!(view.epoch_of(179), Some(100));
        assert_eq!(view.next_start_after(100), Some(180));
        assert_eq!(view.epoch_of(5), None);
    }

    #[test]
    fn records_come_back() {
        for record in [
            ControlRecord::Claim { owner: "x".into() },
            epoch(1, 2),
            ControlRecord::Horizon { offset: 3, version: 4 },
        ] {
            assert_eq!(ControlRecord::decode(&record.encode()).unwrap(), record);
        }
        assert!(ControlRecord::decode(br#"{"kind":"later"}"#).is_err());
    }
}

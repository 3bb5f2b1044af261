//! The log in memory: for each Kafka partition its three topics. Beside the bytes of a record it keeps what was written,
//! so that the checks need not decode it.

use std::collections::BTreeSet;

use super::events::Event;
use super::notes::Notes;
use super::readings::Sent;

/// One Kafka partition of one topic.
pub(crate) struct Topic<T> {
    low: i64,
    records: Vec<T>,
}

/// The topics that are split by Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicName {
    Readings,
    RealtimeViews,
    Control,
}

/// An offset of `readings`.
pub(crate) struct Entry {
    /// When the log took it, in µs.
    pub(crate) time: i64,
    pub(crate) content: Content,
}

/// What an offset of `readings` holds.
pub(crate) enum Content {
    /// A message, with the readings that are in it.
    Message { payload: Vec<u8>, readings: Vec<Sent> },
    /// Nothing that a reader sees: the end of a transaction.
    Empty,
    /// A record batch that no client can decode.
    Unreadable,
}

/// A record of `realtime-views`.
pub(crate) struct ViewRecord {
    pub(crate) payload: Vec<u8>,
    /// `None` where it does not decode.
    pub(crate) about: Option<ViewAbout>,
}

/// What a record of `realtime-views` says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ViewAbout {
    pub(crate) generation: i64,
    pub(crate) kind: ViewKind,
}

/// The kinds of records of `realtime-views`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ViewKind {
    Claim,
    Begin { epoch: i64, reset: bool },
    Rows { epoch: i64, through: i64, complete: bool },
}

/// What a record of `control` says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ControlAbout {
    Claim,
    Epoch {
        generation: Option<i64>,
        start: i64,
        /// Whether it answers a request for a cut.
        answers: bool,
    },
    CutRequest,
    Horizon {
        offset: i64,
    },
    /// A kind of a later version.
    Unknown,
}

/// One Kafka partition.
pub(crate) struct KafkaPartition {
    pub(crate) number: i32,
    pub(crate) readings: Topic<Entry>,
    pub(crate) views: Topic<ViewRecord>,
    pub(crate) control: Topic<Vec<u8>>,
    /// Whether the next record of `realtime-views` is written so that no reader can decode it.
    pub(crate) is_damaging: bool,
    /// Whether some record of `realtime-views` does not decode.
    pub(crate) is_damaged: bool,
    /// The next offset to archive.
    pub(crate) archived: i64,
    /// The epoch starts that were announced by an owner that was not fenced, or pinned.
    pub(crate) starts: BTreeSet<i64>,
    /// The version of the last owner.
    pub(crate) owned_by: Option<usize>,
    /// The offset of the newest claim in `control`.
    newest_claim: Option<i64>,
    /// The newest claim in `realtime-views`.
    newest_marker: Option<i64>,
    /// The offset of the newest record in `control` by which a batch run has pinned an epoch start.
    newest_pin: Option<i64>,
    /// The horizons in `control`, each with its offset there.
    horizons: Vec<(i64, i64)>,
    notes: Notes,
}

impl<T> Topic<T> {
    fn new() -> Self {
        Self { low: 0, records: Vec::new() }
    }

    /// The oldest offset that is there.
    pub(crate) fn low(&self) -> i64 {
        self.low
    }

    /// The offset that the next record gets.
    pub(crate) fn end(&self) -> i64 {
        self.records.len() as i64
    }

    /// The record at an offset; `None` where it is deleted, or not there yet.
    pub(crate) fn get(&self, offset: i64) -> Option<&T> {
        if offset < self.low { None } else { self.records.get(offset as usize) }
    }

    /// The records that are there, with their offsets.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (i64, &T)> {
        (self.low..).zip(&self.records[self.low as usize..])
    }

    /// All records that were ever there. Only for checks: no process can read them.
    pub(crate) fn all(&self) -> &[T] {
        &self.records
    }

    pub(crate) fn append(&mut self, record: T) -> i64 {
        self.records.push(record);
        self.end() - 1
    }

    /// Deletes what is below an offset; whether there was something.
    fn trim(&mut self, before: i64) -> bool {
        let low = self.low;
        self.low = low.max(before).min(self.end());
        self.low > low
    }
}

impl KafkaPartition {
    pub(crate) fn new(number: i32, notes: &Notes) -> Self {
        Self {
            number,
            readings: Topic::new(),
            views: Topic::new(),
            control: Topic::new(),
            is_damaging: false,
            is_damaged: false,
            archived: 0,
            starts: BTreeSet::new(),
            owned_by: None,
            newest_claim: None,
            newest_marker: None,
            newest_pin: None,
            horizons: Vec::new(),
            notes: notes.clone(),
        }
    }

    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        self.notes.add(|| format!("      Kafka partition {}: {}", self.number, what()));
    }

    pub(crate) fn count(&self, event: Event) {
        self.notes.count(event);
    }

    pub(crate) fn append_view(&mut self, payload: Vec<u8>, about: ViewAbout) -> i64 {
        if let ViewKind::Claim = about.kind {
            self.newest_marker = self.newest_marker.max(Some(about.generation));
        } else if Some(about.generation) < self.newest_marker {
            self.count(Event::ZombieRecordAfterMarker);
        } else if Some(about.generation) < self.newest_claim {
            self.count(Event::ZombieRecordBeforeMarker);
        }
        let record = if std::mem::take(&mut self.is_damaging) {
            self.count(Event::DamagedRecord);
            self.is_damaged = true;
            ViewRecord { payload: b"WYR\x02 from a later version".to_vec(), about: None }
        } else {
            ViewRecord { payload, about: Some(about) }
        };
        let offset = self.views.append(record);
        let is_damaged = self.views.all().last().is_none_or(|record| record.about.is_none());
        self.note(|| {
            format!("realtime-views {offset}: {about:?}{}", if is_damaged { ", damaged" } else { "" })
        });
        offset
    }

    pub(crate) fn append_control(&mut self, payload: Vec<u8>, about: ControlAbout) -> i64 {
        let offset = self.control.append(payload);
        self.note(|| format!("control {offset}: {about:?}"));
        match about {
            ControlAbout::Claim => self.newest_claim = Some(offset),
            ControlAbout::Epoch { generation, start, answers } => {
                if generation.is_none() {
                    self.count(Event::Pinned);
                    self.newest_pin = Some(offset);
                }
                if generation.is_none() || generation >= self.newest_claim {
                    self.starts.insert(start);
                    if answers {
                        self.count(Event::CutAnswered);
                    }
                } else {
                    self.count(Event::ZombieAnnouncement);
                }
            }
            ControlAbout::Horizon { offset: horizon } => self.horizons.push((offset, horizon)),
            ControlAbout::CutRequest => self.count(Event::CutRequested),
            ControlAbout::Unknown => self.count(Event::LaterControlRecord),
        }
        offset
    }

    pub(crate) fn trim(&mut self, topic: TopicName, before: i64) {
        self.note(|| format!("{topic:?} is deleted below {before}"));
        match topic {
            TopicName::Readings if self.readings.trim(before) => self.count(Event::ReadingsTrimmed),
            TopicName::RealtimeViews if self.views.trim(before) => self.count(Event::RealtimeViewsTrimmed),
            TopicName::Control if self.control.trim(before) => self.count(Event::ControlTrimmed),
            TopicName::Readings | TopicName::RealtimeViews | TopicName::Control => {}
        }
    }

    /// Whether the owner of a generation may find a start inside of what its rows hold: a batch run has pinned one, or a
    /// newer owner has announced one.
    pub(crate) fn may_overtake(&self, generation: i64) -> bool {
        self.newest_pin.max(self.newest_claim) > Some(generation)
    }

    /// The newest horizon that `control` says below an offset of it.
    pub(crate) fn horizon_before(&self, control_offset: i64) -> i64 {
        let known = self.horizons.iter().filter(|(at, _)| *at < control_offset);
        known.map(|(_, horizon)| *horizon).max().unwrap_or(0)
    }

    /// The newest horizon that `control` says.
    pub(crate) fn horizon(&self) -> i64 {
        self.horizon_before(i64::MAX)
    }

    /// The readings below an offset that were accepted, in log order, each with its place and ingest time.
    pub(crate) fn accepted_below(&self, end: i64) -> impl Iterator<Item = (Place, &Sent)> {
        let entries = (0..).zip(&self.readings.all()[..end as usize]);
        entries.flat_map(move |(offset, entry)| {
            let readings: &[Sent] = match &entry.content {
                Content::Message { readings, .. } => readings,
                Content::Empty | Content::Unreadable => &[],
            };
            let placed = (0..).zip(readings).filter(|(_, reading)| !reading.is_refused);
            placed.map(move |(index, reading)| {
                (Place { time: entry.time, kafka_partition: self.number, offset, index }, reading)
            })
        })
    }
}

/// Where an accepted reading is in the log. The order decides which of several readings of one identity counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Ingest time in µs.
    pub(crate) time: i64,
    pub(crate) kafka_partition: i32,
    pub(crate) offset: i64,
    /// In its message.
    pub(crate) index: usize,
}

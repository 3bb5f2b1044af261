//! The owner of a Kafka partition, and how it takes over.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::RecordBatch;
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::Recovery;
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::realtime_row::{self, Header};
use wye_domain::time::{Micros, Span};
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_speed::SpeedError;
use wye_speed::owner::{self, Due, Rules};
use wye_speed::takeover::{Claimed, ViewsState, decide};

use super::super::log::{ControlAbout, TopicName, ViewAbout, ViewKind};
use super::{Plans, acceptance, apply_control, control_about};

/// What every owner of one configuration computes by.
pub(crate) struct OwnerRules(Rules);

impl OwnerRules {
    /// `duplicate_window` in µs.
    pub(crate) fn new(plans: &Plans, accepts_early: bool, duplicate_window: i64) -> Self {
        Self(Rules {
            plans: Arc::clone(&plans.plans),
            acceptance: acceptance(accepts_early),
            duplicate_window: Span(duplicate_window),
            duplicate_entries: usize::MAX,
        })
    }
}

/// What a process of the speed layer does for an owner.
pub(crate) enum Effect {
    /// Appends a record to `realtime-views`.
    View(Vec<u8>, ViewAbout),
    /// Appends a record to `control`.
    Control(Vec<u8>, ControlAbout),
    /// Deletes what is below an offset of a topic.
    Trim(TopicName, i64),
}

/// Why an owner has ended.
pub(crate) enum Ended {
    /// Another one has claimed the Kafka partition.
    Fenced,
    /// A start was announced inside of what its rows hold.
    Overtaken,
    /// An error that must not happen.
    Failed(anyhow::Error),
}

impl From<SpeedError> for Ended {
    fn from(error: SpeedError) -> Self {
        match error {
            SpeedError::Fenced { .. } => Self::Fenced,
            SpeedError::Overtaken { .. } => Self::Overtaken,
            error => Self::Failed(error.into()),
        }
    }
}

/// The claim that a new owner writes to `control`.
pub(crate) fn claim() -> (Vec<u8>, ControlAbout) {
    (ControlRecord::Claim { owner: String::new() }.encode(), ControlAbout::Claim)
}

/// The claim that a new owner writes to `realtime-views`.
pub(crate) fn claim_marker(generation: i64) -> (Vec<u8>, ViewAbout) {
    let claim = Header::Claim { generation: Generation(Offset(generation)) };
    (realtime_row::encode(&claim, None), ViewAbout { generation, kind: ViewKind::Claim })
}

/// How a new owner begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    Resumed,
    /// Rows of an incomplete flush reach to a readings offset past the position.
    ResumedInsideIncompleteFlush {
        through: i64,
    },
    Rebuilt,
}

/// A new owner that reads both topics up to its claim.
#[derive(Default)]
pub(crate) struct Takeover {
    control: ControlView,
    views: ViewsState,
}

impl Takeover {
    pub(crate) fn control(&mut self, offset: i64, payload: &[u8]) {
        apply_control(&mut self.control, offset, payload);
    }

    pub(crate) fn view(&mut self, offset: i64, payload: &[u8]) {
        // A record that does not decode is skipped; it is noted what may be missing.
        let _ = self.views.apply(Offset(offset), payload);
    }

    /// Decides where the owner resumes.
    pub(crate) fn owner(self, rules: &OwnerRules, place: (i32, i64), log_start: i64) -> (Owner, Recovered) {
        let (kafka_partition, generation) = place;
        let claimed = Claimed {
            generation: Generation(Offset(generation)),
            control: self.control,
            views: self.views,
            log_start: Offset(log_start),
        };
        let taken = decide(claimed, rules.0.plans.fingerprint());
        let recovered = match taken.recovery {
            Recovery::Rebuild { .. } => Recovered::Rebuilt,
            Recovery::Resume { position, .. } => match taken.rows_through {
                Some(Offset(through)) if through > position.0 => {
                    Recovered::ResumedInsideIncompleteFlush { through }
                }
                _ => Recovered::Resumed,
            },
        };
        (Owner(owner::Owner::new(&rules.0, KafkaPartition(kafka_partition), taken)), recovered)
    }
}

/// What happens to an owner.
#[derive(Clone, Copy)]
pub(crate) enum OwnerInput<'a> {
    Message { offset: i64, time: i64, payload: &'a [u8] },
    Empty { next: i64 },
    Unreadable { next: i64 },
    Flush,
    Epoch,
    Control { offset: i64, payload: &'a [u8] },
    Begun { epoch: i64, offset: i64 },
}

/// The owner of a Kafka partition.
pub(crate) struct Owner(owner::Owner);

impl Owner {
    pub(crate) fn start(&mut self) -> Result<Vec<Effect>, Ended> {
        Ok(effects(self.0.start()?, 1))
    }

    /// Takes in what happened. The rows of a flush are written in so many records, as larger ones are.
    pub(crate) fn step(&mut self, input: OwnerInput<'_>, records: usize) -> Result<Vec<Effect>, Ended> {
        let record;
        let input = match input {
            OwnerInput::Message { offset, time, payload } => {
                owner::Input::Message { offset: Offset(offset), ingest_time: Micros(time), payload }
            }
            OwnerInput::Empty { next } => owner::Input::Empty { next: Offset(next) },
            OwnerInput::Unreadable { next } => owner::Input::Skip { next: Offset(next) },
            OwnerInput::Flush => owner::Input::Tick(Due::Flush),
            OwnerInput::Epoch => owner::Input::Tick(Due::Epoch),
            OwnerInput::Begun { epoch, offset } => {
                owner::Input::Begun { epoch: Offset(epoch), offset: Offset(offset) }
            }
            OwnerInput::Control { offset, payload } => {
                let Ok(decoded) = ControlRecord::decode(payload) else { return Ok(Vec::new()) };
                record = decoded;
                owner::Input::Control { offset: Offset(offset), record: &record }
            }
        };
        Ok(effects(self.0.step(input)?, records))
    }

    /// The next readings offset.
    pub(crate) fn next(&self) -> i64 {
        self.0.next().0
    }

    /// The next offset of the control topic.
    pub(crate) fn next_control(&self) -> i64 {
        self.0.next_control().0
    }

    /// From which readings offset on it must be shown everything below [`Owner::next`] first.
    pub(crate) fn remembers_from(&self) -> i64 {
        self.0.remembers_from().map_or(0, |offset| offset.0)
    }

    pub(crate) fn remember(&mut self, offset: i64, time: i64, payload: &[u8]) -> Result<()> {
        Ok(self.0.remember(Offset(offset), Micros(time), payload)?)
    }

    pub(crate) fn remembered(&mut self) -> Result<()> {
        Ok(self.0.end_remembering()?)
    }
}

fn effects(effects: Vec<owner::Effect>, records: usize) -> Vec<Effect> {
    let mut all = Vec::with_capacity(effects.len());
    for effect in effects {
        match effect {
            owner::Effect::Append(header, rows) => append(&header, rows.as_ref(), records, &mut all),
            owner::Effect::Announce(record) => {
                all.push(Effect::Control(record.encode(), control_about(&record)));
            }
            owner::Effect::Trim { topic, before } => all.push(Effect::Trim(topic_name(topic), before.0)),
        }
    }
    all
}

/// A record, or several where it has rows.
fn append(header: &Header, rows: Option<&RecordBatch>, records: usize, all: &mut Vec<Effect>) {
    let Some(rows) = rows else {
        all.push(Effect::View(realtime_row::encode(header, None), view_about(header)));
        return;
    };
    let length = rows.num_rows().div_ceil(records.max(1)).max(1);
    let mut start = 0;
    while start < rows.num_rows() {
        let length = length.min(rows.num_rows() - start);
        let mut header = header.clone();
        if let Header::Rows { complete, .. } = &mut header {
            *complete &= start + length == rows.num_rows();
        }
        let record = realtime_row::encode(&header, Some(&rows.slice(start, length)));
        all.push(Effect::View(record, view_about(&header)));
        start += length;
    }
}

fn view_about(header: &Header) -> ViewAbout {
    let kind = match *header {
        Header::Claim { .. } => ViewKind::Claim,
        Header::Begin { epoch, reset, .. } => ViewKind::Begin { epoch: epoch.0, reset },
        Header::Rows { epoch, through, complete, .. } => {
            ViewKind::Rows { epoch: epoch.0, through: through.0, complete }
        }
    };
    ViewAbout { generation: header.generation().claim().0, kind }
}

fn topic_name(topic: &str) -> TopicName {
    match topic {
        READINGS => TopicName::Readings,
        REALTIME_VIEWS => TopicName::RealtimeViews,
        CONTROL => TopicName::Control,
        other => panic!("nothing is deleted from {other}"),
    }
}

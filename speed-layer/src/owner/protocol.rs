//! What goes into an owner and what comes out of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use wye_domain::control::ControlRecord;
use wye_domain::place::Offset;
use wye_domain::realtime_row::Header;
use wye_domain::time::{Micros, Span};
use wye_domain::wire::{Acceptance, Reason};
use wye_metrics::failures::Failures;
use wye_metrics::plan::MetricPlans;

use super::operator::Counts;

/// What every owner computes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What is computed.
    pub plans: Arc<MetricPlans>,
    /// Which readings are accepted.
    pub acceptance: Acceptance,
    /// How far back duplicates are detected, in ingest time.
    pub duplicate_window: Span,
    /// The most identities that are remembered for one Kafka partition.
    pub duplicate_entries: usize,
}

/// What happens to an owner.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The next message of the readings topic.
    Message {
        /// Its offset.
        offset: Offset,
        /// When the log took it.
        ingest_time: Micros,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// No reader can decode the next messages of the readings topic; they are skipped.
    Skip {
        /// The next offset that may hold a message.
        next: Offset,
    },
    /// The next offsets of the readings topic hold no message: the end of a transaction takes one, for example.
    Empty {
        /// The next offset that may hold a message.
        next: Offset,
    },
    /// It is time to write what changed.
    Tick(Due),
    /// The next record of the control topic after the owner's claim.
    Control {
        /// Its offset in the control topic.
        offset: Offset,
        /// The record.
        record: &'a ControlRecord,
    },
    /// The `Begin` of an epoch was acknowledged.
    Begun {
        /// The epoch.
        epoch: Offset,
        /// The offset of its `Begin` in the realtime-views topic.
        offset: Offset,
    },
}

/// What is due at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A flush.
    Flush,
    /// A flush, and the next epoch if one may start.
    Epoch,
}

/// What must be done for an owner, in this order. If one of them fails, the owner must be dropped.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Append a record to the realtime-views topic. The rows of an incomplete flush may be in flight together; every other
    /// record is appended once everything before it is acknowledged. The acknowledgement of a `Begin` is an
    /// [`Input::Begun`].
    Append(Header, Option<RecordBatch>),
    /// Append a record to the control topic once everything before it is acknowledged.
    Announce(ControlRecord),
    /// Delete the records of a topic below an offset. If that fails, nothing is lost: a later effect asks for it again.
    Trim {
        /// Which topic.
        topic: &'static str,
        /// The first offset that stays.
        before: Offset,
    },
}

/// What an owner has done since its tally was last taken, for telemetry.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Readings, with duplicates and conflicts.
    pub counts: Counts,
    /// Rows flushed.
    pub rows: u64,
    /// Epochs started.
    pub epochs: u64,
    /// Messages and parts of messages that were rejected.
    pub rejected: BTreeMap<Reason, u64>,
    /// Identities dropped because the duplicate window is full.
    pub forgotten_early: u64,
    /// Readings that definitions could not compute.
    pub failures: Failures,
}

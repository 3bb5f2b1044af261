//! The wire format of the `readings` topic, and the rules by which a reading is accepted.
//!
//! A message is either **JSON** (one object or an array of them) or, for bulk, **Arrow**: `WYE\x01` and an Arrow IPC
//! stream with the columns of [`crate::reading`] (texts may be plain, times in any unit, optional columns absent).
//! Invalid readings become [`Rejected`], with their bytes and a reason; the rest of the message is still accepted.
//!
//! Acceptance depends only on the message and the ingest time that the log gave it, so every reader of the log comes to the
//! same decision.
//!
//! Stability contract: version 1 is the prefix above and the JSON fields below; new fields are optional.

mod arrow_form;
mod depth;
mod json_form;

pub use arrow_form::{encode, encode_stream as encode_arrow};
pub use json_form::encode as encode_json;

use std::ops::RangeInclusive;

use arrow::array::RecordBatch;

use crate::reading::ReadingBatchBuilder;
use crate::time::{Micros, Span, format_rfc3339};

/// The prefix of an Arrow message: three letters and the version of the wire format.
pub const ARROW_PREFIX: &[u8; 4] = b"WYE\x01";

/// The longest device, metric or unit name in bytes.
pub const LONGEST_NAME: usize = 512;

/// The longest canonical text of a reading's tags in bytes.
pub const LONGEST_TAGS: usize = 16 * 1024;

/// How many rejected readings of a message are kept one by one. The others are kept together, since one entry for each comma
/// of a message would use hundreds of times its size.
const ONE_BY_ONE: usize = 1_000;

/// How large the payload of several rejected readings may grow, in bytes.
const TOGETHER_BYTES: usize = 1 << 20;

/// Why something was not accepted. The name goes into dead letters and telemetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The payload has no bytes.
    Empty,
    /// The text is not UTF-8.
    NotUtf8,
    /// The text is not JSON.
    NotJson,
    /// A required field is absent or null.
    MissingField,
    /// A field is of the wrong type.
    WrongType,
    /// A name is empty or too long.
    BadName,
    /// The value is NaN or infinite.
    NotFinite,
    /// The event time is before the earliest plausible time or too far after the ingest time.
    EventTimeOutOfRange,
    /// The prefix announces an unknown version of the wire format.
    UnknownVersion,
    /// The Arrow stream does not decode or lacks columns.
    BadArrow,
    /// The payload is larger than a message may be, or a part of the reading is larger than it may be.
    TooLarge,
    /// The record batch that holds it does not decode, so no reader of the log gets to the payload.
    UnreadableRecordBatch,
    /// The text is nested deeper than a reading needs.
    TooDeep,
}

impl Reason {
    /// The name in dead letters, answers and telemetry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::MissingField => "missing_field",
            Self::WrongType => "wrong_type",
            Self::BadName => "bad_name",
            Self::NotFinite => "not_finite",
            Self::EventTimeOutOfRange => "event_time_out_of_range",
            Self::UnknownVersion => "unknown_version",
            Self::BadArrow => "bad_arrow",
            Self::TooLarge => "too_large",
            Self::UnreadableRecordBatch => "unreadable_record_batch",
            Self::TooDeep => "too_deep",
        }
    }
}

/// A reading that was not accepted, or several of a message that has many of them, or a whole message.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    /// The index of the reading in its message, of the first if there are several; 0 for a message as a whole.
    pub item_index: u32,
    /// How many readings were rejected.
    pub readings: u32,
    /// Why; of several readings, why the first one.
    pub reason: Reason,
    /// The reason in words, for people.
    pub detail: String,
    /// The bytes as received, several readings one per line; a row of an Arrow message as JSON.
    pub payload: Vec<u8>,
}

/// Which event times are plausible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The earliest plausible event time: a device with an unset clock reports 1970.
    pub earliest: Micros,
    /// How far an event time may lie after the ingest time.
    pub max_future: Span,
}

impl Default for Acceptance {
    /// From 1990 on, and up to one day ahead.
    fn default() -> Self {
        Self { earliest: Micros::from_secs(631_152_000), max_future: Span::from_days(1) }
    }
}

impl Acceptance {
    /// A fingerprint of the rules. Stability contract: the text must stay, since fingerprints are stored.
    pub fn fingerprint(&self) -> u64 {
        let Self { earliest, max_future } = self;
        let text = format!("Acceptance {{ earliest: {}, max_future: {} }}", earliest.0, max_future.0);
        crate::fingerprint::of_text(&text)
    }

    /// The plausible event times of a reading with this ingest time.
    #[inline]
    #[must_use]
    pub fn plausible(&self, ingest_time: Micros) -> RangeInclusive<Micros> {
        self.earliest..=ingest_time + self.max_future
    }

    /// Checks an event time against the ingest time.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn event_time(&self, event_time: Micros, ingest_time: Micros) -> Result<(), String> {
        if event_time < self.earliest {
            return Err(format!(
                "event time {} is before {}",
                format_rfc3339(event_time),
                format_rfc3339(self.earliest)
            ));
        }
        if event_time > ingest_time + self.max_future {
            return Err(format!(
                "event time {} is too far after its ingest at {}",
                format_rfc3339(event_time),
                format_rfc3339(ingest_time)
            ));
        }
        Ok(())
    }
}

/// Decoded readings of JSON messages, and what was rejected of any message.
#[derive(Debug, Default)]
pub struct Collected {
    /// The readings.
    pub readings: ReadingBatchBuilder,
    /// The index in its message of each reading.
    pub item_index: Vec<i32>,
    /// What was rejected.
    pub rejected: Vec<Rejected>,
    /// How many readings were rejected.
    pub refused: u64,
    /// Added to the index of rejected readings, for a message that is a part of something larger.
    pub first_index: u32,
}

/// A decoded message.
#[derive(Debug)]
pub enum Decoded {
    /// The readings of a JSON message were appended to the [`Collected`]; this is their number.
    Collected(usize),
    /// The batches of an Arrow message, in its order.
    Batches(Vec<AcceptedRows>),
}

/// The accepted rows of a batch of an Arrow message.
#[derive(Clone, Debug)]
pub struct AcceptedRows {
    /// The readings, in the order of the message.
    pub batch: RecordBatch,
    /// The index in its message of each reading.
    pub item_index: Vec<i32>,
}

/// Decodes a message of the topic, appending to `into` what comes row by row. The message's first bytes say which form
/// it has; a caller that knows the form (from a content type, say) calls [`decode_json`] or [`decode_arrow`].
#[inline]
pub fn decode(payload: &[u8], ingest_time: Micros, acceptance: &Acceptance, into: &mut Collected) -> Decoded {
    if let Some(stream) = payload.strip_prefix(ARROW_PREFIX) {
        return Decoded::Batches(decode_arrow(stream, ingest_time, acceptance, into));
    }
    if payload.starts_with(&ARROW_PREFIX[..3]) {
        let detail = format!("wire version {:?}; this program reads version 1", payload.get(3));
        into.reject(0, Reason::UnknownVersion, detail, payload);
        return Decoded::Collected(0);
    }
    Decoded::Collected(decode_json(payload, ingest_time, acceptance, into))
}

/// Decodes JSON: an object or an array of them. Returns how many readings were appended.
#[inline]
pub fn decode_json(text: &[u8], ingest_time: Micros, acceptance: &Acceptance, into: &mut Collected) -> usize {
    json_form::decode(text, ingest_time, acceptance, into)
}

/// Decodes an Arrow IPC stream, which a message of the topic has after [`ARROW_PREFIX`]. Returns the accepted rows, in
/// the order of the stream. The payload of a rejected stream has the prefix, so that it can be put into the topic.
pub fn decode_arrow(
    stream: &[u8],
    ingest_time: Micros,
    acceptance: &Acceptance,
    into: &mut Collected,
) -> Vec<AcceptedRows> {
    arrow_form::decode(stream, ingest_time, acceptance, into)
}

impl Collected {
    fn reject(&mut self, item_index: u32, reason: Reason, detail: String, payload: &[u8]) {
        self.refused += 1;
        if self.rejected.len() > ONE_BY_ONE
            && let Some(last) = self.rejected.last_mut()
            && last.payload.len() + payload.len() < TOGETHER_BYTES
        {
            last.readings += 1;
            last.payload.push(b'\n');
            last.payload.extend_from_slice(payload);
            return;
        }
        let item_index = self.first_index.saturating_add(item_index);
        self.rejected.push(Rejected { item_index, readings: 1, reason, detail, payload: payload.to_vec() });
    }
}

/// Checks the length of the optional texts of a reading.
fn check_texts(unit: Option<&str>, tags: Option<&str>) -> Result<(), (Reason, String)> {
    for (field, text, most) in [("unit", unit, LONGEST_NAME), ("tags", tags, LONGEST_TAGS)] {
        let bytes = text.map_or(0, str::len);
        if bytes > most {
            return Err((Reason::TooLarge, format!("{field} may have {most} bytes, not {bytes}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;

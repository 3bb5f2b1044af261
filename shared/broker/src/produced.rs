//! What a producer sends is checked here before any of it is stored: everything that a reader has to rely on.
//!
//! Source: Apache Kafka's `ProduceRequest.validateRecords`, `UnifiedLog.analyzeAndValidateRecords` and `LogValidator`.
//! Beyond Kafka, a batch may not unpack to more than a set size, since every reader has to hold that.
//!
//! Pure: no clock, no files.

use std::borrow::Cow;

use kafka_protocol::error::ResponseError;

use crate::decompress::Codec;
use crate::record_batch::{self, NoBatch, RecordBatch};
use crate::records::{self, Body, Unreadable};

/// What a topic takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Bytes of a batch as it is sent.
    pub(crate) max_batch_bytes: usize,
    /// Bytes that the records of a batch may unpack to.
    pub(crate) max_unpacked_bytes: u64,
    /// Whether the protocol version of the request knows Zstandard.
    pub(crate) zstd: Zstd,
    /// Whose clock stamps the records.
    pub(crate) stamp: Stamp,
}

/// Whether Zstandard may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zstd {
    Known,
    /// Produce before version 7 does not have it, and neither do its readers.
    Unknown,
}

/// `message.timestamp.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// The producer's clock counts.
    CreateTime,
    /// The broker's clock counts; this is what it shows, in milliseconds since 1970.
    LogAppendTime(i64),
}

/// Why a batch is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: ResponseError,
    pub(crate) reason: &'static str,
}

/// Checks the records of one Kafka partition in a produce request, and returns them as they are to be stored, with
/// their times. They are one batch.
///
/// # Errors
/// The error that Apache Kafka answers; all but `CorruptMessage` (damaged on the way) make a producer give up.
pub(crate) fn check<'a>(produced: &'a [u8], rules: &Rules) -> Result<Cow<'a, [u8]>, Refusal> {
    let batch = check_header(produced, rules)?;
    let codec = Codec::of(batch.attributes)
        .filter(|codec| *codec != Codec::Zstd || rules.zstd == Zstd::Known)
        .ok_or_else(|| unsupported("the codec is unknown; use none, gzip, snappy, lz4 or zstd"))?;
    let body = Body {
        codec,
        bytes: &produced[record_batch::HEADER..],
        records: batch.records,
        base_timestamp: batch.base_timestamp,
    };
    let mut newest = i64::MIN;
    records::walk(&body, rules.max_unpacked_bytes, |record| newest = newest.max(record.timestamp)).map_err(
        |unreadable| match unreadable {
            Unreadable::Invalid(reason) => invalid(reason),
            Unreadable::TooLarge => too_large("the records unpack to more bytes than is allowed"),
        },
    )?;
    if rules.stamp == Stamp::CreateTime && batch.max_timestamp == newest {
        return Ok(Cow::Borrowed(produced));
    }
    let mut stamped = produced.to_vec();
    match rules.stamp {
        // As Kafka does: the header says what the records say.
        Stamp::CreateTime => record_batch::set_max_timestamp(&mut stamped, newest),
        Stamp::LogAppendTime(now) => record_batch::set_log_append_time(&mut stamped, now),
    }
    Ok(Cow::Owned(stamped))
}

fn check_header(produced: &[u8], rules: &Rules) -> Result<RecordBatch, Refusal> {
    match produced.get(16) {
        None => return Err(invalid("there is no record batch")),
        Some(2) => {}
        Some(0 | 1) => {
            return Err(Refusal {
                error: ResponseError::UnsupportedForMessageFormat,
                reason: "message formats 0 and 1 are not stored; use a client for Kafka 0.11 or newer",
            });
        }
        Some(_) => return Err(invalid("the record batch has an unknown format")),
    }
    let batch = match RecordBatch::check(produced) {
        Ok(batch) => batch,
        Err(NoBatch::Short { .. }) => return Err(invalid("the record batch is cut off")),
        Err(NoBatch::Malformed) => return Err(invalid("the header of the record batch is damaged")),
        Err(NoBatch::Damaged) => {
            return Err(Refusal {
                error: ResponseError::CorruptMessage,
                reason: "the checksum of the record batch is wrong",
            });
        }
    };
    if batch.size != produced.len() {
        return Err(invalid("a request may hold one record batch for each partition"));
    }
    if batch.size > rules.max_batch_bytes {
        return Err(too_large("the record batch is larger than max.message.bytes of the topic"));
    }
    if batch.is_control() {
        return Err(invalid("a client may not write control records"));
    }
    if batch.is_transactional() {
        return Err(Refusal {
            error: ResponseError::InvalidTxnState,
            reason: "the embedded broker has no transactions",
        });
    }
    if batch.base_offset != 0 {
        return Err(invalid("the base offset of a produced record batch is not 0"));
    }
    if batch.offsets != i64::from(batch.records) {
        return Err(invalid("the last offset does not match the number of records"));
    }
    if batch.producer_id >= 0 && batch.sequence.is_none() {
        return Err(invalid("a batch of an idempotent producer has no sequence number"));
    }
    if batch.is_stamped_by_log() && rules.stamp == Stamp::CreateTime {
        return Err(Refusal {
            error: ResponseError::InvalidTimestamp,
            reason: "a producer may not set the timestamp type LogAppendTime",
        });
    }
    Ok(batch)
}

fn invalid(reason: &'static str) -> Refusal {
    Refusal { error: ResponseError::InvalidRecord, reason }
}

fn too_large(reason: &'static str) -> Refusal {
    Refusal { error: ResponseError::MessageTooLarge, reason }
}

fn unsupported(reason: &'static str) -> Refusal {
    Refusal { error: ResponseError::UnsupportedCompressionType, reason }
}

#[cfg(test)]
mod tests;

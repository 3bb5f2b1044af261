//! Checks what a producer sends, before any of it is stored: everything that readers rely on.
//!
//! Source: Apache Kafka's `ProduceRequest.validateRecords`, `UnifiedLog.analyzeAndValidateRecords` and `LogValidator`.
//! Unlike in Kafka, the size of a batch after decompression is limited, since every reader must have memory for it.
//!
//! Pure: no clock, no files.

use std::borrow::Cow;

use kafka_protocol::error::ResponseError;
use wye_domain::place::Offset;

use crate::clock::Timestamp;
use crate::decompress::Codec;
use crate::record_batch::{self, InvalidBatch, RecordBatch};
use crate::records::{self, Body, Unreadable};

/// The rules for the batches of a topic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The largest batch as it is sent, in bytes.
    pub(crate) max_batch_bytes: usize,
    /// The largest size of the records of a batch after decompression, in bytes.
    pub(crate) max_unpacked_bytes: u64,
    /// Whether the version of the request supports Zstandard.
    pub(crate) zstd: Zstd,
    /// The clock that sets the timestamps.
    pub(crate) timestamps: TimestampType,
}

/// Whether a batch may use Zstandard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zstd {
    Supported,
    /// Before version 7 of Produce.
    Unsupported,
}

/// `message.timestamp.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimestampType {
    /// The producer sets the timestamps.
    CreateTime,
    /// The broker sets the timestamps, to this time.
    LogAppendTime(Timestamp),
}

/// Why a batch is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) error: ResponseError,
    pub(crate) reason: &'static str,
}

/// Checks the records of one Kafka partition in a produce request, which must be one batch. Returns the batch as it must
/// be stored, with its timestamps.
///
/// # Errors
/// The same error as in Apache Kafka. Producers retry only `CorruptMessage` (damaged during transmission).
pub(crate) fn check<'a>(produced: &'a [u8], rules: &Rules) -> Result<Cow<'a, [u8]>, Refusal> {
    let batch = check_header(produced, rules)?;
    let codec = Codec::of(batch.attributes)
        .filter(|codec| *codec != Codec::Zstd || rules.zstd == Zstd::Supported)
        .ok_or_else(|| unsupported("the codec is unknown; use none, gzip, snappy, lz4 or zstd"))?;
    let body = Body {
        codec,
        bytes: &produced[record_batch::HEADER..],
        records: batch.records,
        base_timestamp: batch.base_timestamp,
    };
    let mut latest: Option<Timestamp> = None;
    records::read(&body, rules.max_unpacked_bytes, |record| latest = latest.max(Some(record.timestamp)))
        .map_err(|unreadable| match unreadable {
            Unreadable::Invalid(reason) => invalid(reason),
            Unreadable::TooLarge => too_large("the decompressed records have more bytes than is allowed"),
        })?;
    let mut stored = Cow::Borrowed(produced);
    match (rules.timestamps, latest) {
        (TimestampType::LogAppendTime(now), _) => record_batch::set_log_append_time(stored.to_mut(), now),
        // As in Kafka, the header gets the latest timestamp of the records.
        (TimestampType::CreateTime, Some(latest)) if latest != batch.max_timestamp => {
            record_batch::set_max_timestamp(stored.to_mut(), latest);
        }
        (TimestampType::CreateTime, _) => {}
    }
    Ok(stored)
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
        Err(InvalidBatch::Short { .. }) => return Err(invalid("the record batch is cut off")),
        Err(InvalidBatch::Malformed) => return Err(invalid("the header of the record batch is damaged")),
        Err(InvalidBatch::Damaged) => {
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
    if batch.base_offset != Offset::START {
        return Err(invalid("the base offset of a produced record batch is not 0"));
    }
    if batch.offset_count != i64::from(batch.records) {
        return Err(invalid("the last offset does not match the number of records"));
    }
    if batch.producer_id.is_some() && batch.sequence.is_none() {
        return Err(invalid("a batch of an idempotent producer has no sequence number"));
    }
    if batch.has_log_append_time() && rules.timestamps == TimestampType::CreateTime {
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

//! Produce requests in versions 0 to 2. They carry the message formats 0 and 1, which are not stored, but clients want
//! to see version 0 advertised (KIP-896), and whoever sends one gets an answer.
//!
//! Source: "Produce API", Kafka protocol documentation. A request is one of version 3 without the transaction's id.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, RequestKind, ResponseKind};
use kafka_protocol::protocol::Decodable;

use crate::frames::{self, Place};

/// The first version that the decoder knows.
const FIRST_KNOWN: i16 = 3;

/// Whether a request is one of these.
pub(crate) fn is_old(key: ApiKey, version: i16) -> bool {
    key == ApiKey::Produce && version < FIRST_KNOWN
}

/// Decodes header and body.
pub(crate) fn decode(bytes: &mut Bytes) -> io::Result<(RequestHeader, RequestKind)> {
    let header = RequestHeader::decode(bytes, 1).map_err(frames::malformed)?;
    let mut whole = BytesMut::with_capacity(bytes.len() + 2);
    // No transaction.
    whole.put_i16(-1);
    whole.put_slice(bytes);
    let request = RequestKind::decode(ApiKey::Produce, &mut whole.freeze(), FIRST_KNOWN);
    Ok((header, request.map_err(frames::malformed)?))
}

/// The answer, with its length and header.
pub(crate) fn encode(place: Place, answer: &ResponseKind) -> io::Result<Bytes> {
    let ResponseKind::Produce(response) = answer else {
        return Err(frames::malformed("the answer to a produce request is of another kind"));
    };
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    frame.put_i32(place.correlation_id);
    frame.put_i32(response.responses.len() as i32);
    for topic in &response.responses {
        frame.put_i16(topic.name.len() as i16);
        frame.put_slice(topic.name.as_bytes());
        frame.put_i32(topic.partition_responses.len() as i32);
        for partition in &topic.partition_responses {
            frame.put_i32(partition.index);
            frame.put_i16(partition.error_code);
            frame.put_i64(partition.base_offset);
            if place.version >= 2 {
                frame.put_i64(partition.log_append_time_ms);
            }
        }
    }
    if place.version >= 1 {
        frame.put_i32(0);
    }
    frames::close(frame)
}

//! Produce requests in versions 0 to 2. They carry the message formats 0 and 1, which are not stored. Clients expect
//! version 0 among the advertised ones (KIP-896), so such requests are answered, with an error.
//!
//! Source: "Produce API", Kafka protocol documentation. A request is that of version 3 without the transactional id.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, RequestKind, ResponseKind};
use kafka_protocol::protocol::Decodable;

use crate::frames::{self, RequestHead};

/// The first version that the decoder of the library supports.
const FIRST_DECODED: i16 = 3;

/// Whether a request is in one of these versions.
pub(crate) fn is_old(key: ApiKey, version: i16) -> bool {
    key == ApiKey::Produce && version < FIRST_DECODED
}

/// Decodes header and body.
pub(crate) fn decode(bytes: &mut Bytes) -> io::Result<(RequestHeader, RequestKind)> {
    let header = RequestHeader::decode(bytes, 1).map_err(frames::malformed)?;
    let mut whole = BytesMut::with_capacity(bytes.len() + 2);
    // The transactional id: null.
    whole.put_i16(-1);
    whole.put_slice(bytes);
    let request = RequestKind::decode(ApiKey::Produce, &mut whole.freeze(), FIRST_DECODED);
    Ok((header, request.map_err(frames::malformed)?))
}

/// Encodes the response, with its length and header.
pub(crate) fn encode(head: RequestHead, response: &ResponseKind) -> io::Result<Bytes> {
    let ResponseKind::Produce(response) = response else {
        return Err(frames::malformed("the response to a produce request is of another kind"));
    };
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    frame.put_i32(head.correlation_id);
    frame.put_i32(response.responses.len() as i32);
    for topic in &response.responses {
        frame.put_i16(topic.name.len() as i16);
        frame.put_slice(topic.name.as_bytes());
        frame.put_i32(topic.partition_responses.len() as i32);
        for partition in &topic.partition_responses {
            frame.put_i32(partition.index);
            frame.put_i16(partition.error_code);
            frame.put_i64(partition.base_offset);
            if head.version >= 2 {
                frame.put_i64(partition.log_append_time_ms);
            }
        }
    }
    if head.version >= 1 {
        frame.put_i32(0);
    }
    frames::close(frame)
}

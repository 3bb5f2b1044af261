//! Frames of the Kafka protocol: a length, then a message. They are read as their bytes come, within bounds.
//!
//! A stated length makes no room by itself, and what is read counts against the memory that all connections share.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ResponseHeader, ResponseKind};
use kafka_protocol::protocol::Encodable;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::limits::{Limits, Memory, Room};

/// How long a request may take to arrive once it has begun.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest request that does not bring records.
const LARGEST_PLAIN: usize = 4 * 1024 * 1024;
/// Bytes of a request that do not count as memory: small requests never wait for large ones.
const FREE: usize = 64 * 1024;
/// Kind, version and correlation id: without them nobody can be answered.
const PLACE: usize = 8;

/// Which request of which kind is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The kind, which may be unknown.
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
}

impl Place {
    /// Whether the answer may have to wait for others: for records, or for the members of a group.
    pub(crate) fn may_wait(self) -> bool {
        [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup].iter().any(|key| *key as i16 == self.key)
    }
}

/// One request.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) place: Place,
    /// All of it after the length.
    pub(crate) bytes: Bytes,
    _room: Room,
}

/// What came.
#[derive(Debug)]
pub(crate) enum Received {
    /// The client has closed the connection, or has been silent for too long.
    End,
    Frame(Frame),
    /// A request that is larger than allowed; only its beginning was read.
    TooLarge(Place),
}

/// Reads one frame.
///
/// # Errors
/// Where the connection breaks, no request can have the stated length, or one does not arrive in time.
pub(crate) async fn read(
    read: &mut (impl AsyncRead + Unpin),
    limits: &Limits,
    memory: &Memory,
) -> io::Result<Received> {
    let mut first = [0_u8; 1];
    let began = timeout(limits.idle, read.read(&mut first)).await;
    if began.unwrap_or(Ok(0))? == 0 {
        return Ok(Received::End);
    }
    let frame = timeout(PATIENCE, read_begun(first[0], read, limits, memory)).await;
    frame.map_err(|_| io::Error::other("a request did not arrive in time, or there was no memory for it"))?
}

async fn read_begun(
    first: u8,
    read: &mut (impl AsyncRead + Unpin),
    limits: &Limits,
    memory: &Memory,
) -> io::Result<Received> {
    let mut rest = [0_u8; 3];
    read.read_exact(&mut rest).await?;
    let length = usize::try_from(i32::from_be_bytes([first, rest[0], rest[1], rest[2]]));
    let length = length
        .ok()
        .filter(|length| *length >= PLACE)
        .ok_or_else(|| malformed("a request without a header"))?;
    let mut start = [0_u8; PLACE];
    read.read_exact(&mut start).await?;
    let place = Place {
        key: i16::from_be_bytes([start[0], start[1]]),
        version: i16::from_be_bytes([start[2], start[3]]),
        correlation_id: i32::from_be_bytes([start[4], start[5], start[6], start[7]]),
    };
    let produces = place.key == ApiKey::Produce as i16;
    let most = if produces { limits.request_bytes } else { limits.request_bytes.min(LARGEST_PLAIN) };
    if length > most {
        return Ok(Received::TooLarge(place));
    }
    let mut room = None;
    let mut bytes = BytesMut::with_capacity(length.min(FREE));
    bytes.put_slice(&start);
    while bytes.len() < length {
        if bytes.len() == bytes.capacity() {
            // Eight times as much as has come: what grows is copied, and that should happen seldom.
            let more = (length - bytes.len()).min(7 * bytes.len());
            memory.grow(&mut room, more).await?;
            bytes.reserve(more);
        }
        let missing = (length - bytes.len()).min(bytes.capacity() - bytes.len());
        if read.read_buf(&mut (&mut bytes).limit(missing)).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    Ok(Received::Frame(Frame { place, bytes: bytes.freeze(), _room: room }))
}

/// A response with its length and header.
pub(crate) fn encode(
    key: ApiKey,
    version: i16,
    correlation_id: i32,
    response: &ResponseKind,
) -> io::Result<Bytes> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    let header = ResponseHeader::default().with_correlation_id(correlation_id);
    header.encode(&mut frame, key.response_header_version(version)).map_err(malformed)?;
    response.encode(&mut frame, version).map_err(malformed)?;
    close(frame)
}

/// Writes the length of a frame into its first four bytes.
pub(crate) fn close(mut frame: BytesMut) -> io::Result<Bytes> {
    let length = i32::try_from(frame.len() - 4).map_err(malformed)?;
    frame[0..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame.freeze())
}

pub(crate) fn malformed(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

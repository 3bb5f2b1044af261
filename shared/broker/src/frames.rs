//! Frames of the Kafka protocol: a length, then a message. They are read as their bytes arrive, within bounds.
//!
//! A stated length alone allocates no memory, and what is read counts against the memory that all connections share.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, ResponseHeader, ResponseKind};
use kafka_protocol::protocol::Encodable;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use crate::limits::{Limits, MemoryPool, Reservation};

/// How long a request may take to arrive after its first byte.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest request that is not a produce request, in bytes.
const LARGEST_PLAIN: usize = 4 * 1024 * 1024;
/// The first bytes of a request, which need no reservation: small requests never wait for large ones.
const UNRESERVED: usize = 64 * 1024;
/// Bytes of [`RequestHead`] on the wire.
const HEAD: usize = 8;

/// The start of a request: what a response needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// The kind, which may be unknown.
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) correlation_id: i32,
}

impl RequestHead {
    /// Whether the response may have to wait: for records, or for the other members of a group.
    pub(crate) fn may_wait(self) -> bool {
        [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup].iter().any(|key| *key as i16 == self.key)
    }
}

/// One request.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) head: RequestHead,
    /// All of it after the length.
    pub(crate) bytes: Bytes,
    _reservation: Reservation,
}

/// What was read from a connection.
#[derive(Debug)]
pub(crate) enum Received {
    /// The client has closed the connection, or has been idle for too long.
    End,
    Frame(Frame),
    /// A request that is larger than allowed; only its head was read.
    TooLarge(RequestHead),
}

/// Reads one frame.
///
/// # Errors
/// Where the connection breaks, the stated length is impossible, or the request does not arrive in time.
pub(crate) async fn read(
    read: &mut (impl AsyncRead + Unpin),
    limits: &Limits,
    memory: &MemoryPool,
) -> io::Result<Received> {
    let mut first = [0_u8; 1];
    let began = timeout(limits.idle, read.read(&mut first)).await;
    if began.unwrap_or(Ok(0))? == 0 {
        return Ok(Received::End);
    }
    let frame = timeout(ARRIVAL_TIMEOUT, read_rest(first[0], read, limits, memory)).await;
    frame.map_err(|_| io::Error::other("a request did not arrive in time, or there was no memory for it"))?
}

/// Reads a frame after its first byte.
async fn read_rest(
    first: u8,
    read: &mut (impl AsyncRead + Unpin),
    limits: &Limits,
    memory: &MemoryPool,
) -> io::Result<Received> {
    let mut rest = [0_u8; 3];
    read.read_exact(&mut rest).await?;
    let length = usize::try_from(i32::from_be_bytes([first, rest[0], rest[1], rest[2]]));
    let length = length
        .ok()
        .filter(|length| *length >= HEAD)
        .ok_or_else(|| malformed("a request without a header"))?;
    let mut start = [0_u8; HEAD];
    read.read_exact(&mut start).await?;
    let head = RequestHead {
        key: i16::from_be_bytes([start[0], start[1]]),
        version: i16::from_be_bytes([start[2], start[3]]),
        correlation_id: i32::from_be_bytes([start[4], start[5], start[6], start[7]]),
    };
    let produces = head.key == ApiKey::Produce as i16;
    let most = if produces { limits.request_bytes } else { limits.request_bytes.min(LARGEST_PLAIN) };
    if length > most {
        return Ok(Received::TooLarge(head));
    }
    let mut reservation = None;
    let mut bytes = BytesMut::with_capacity(length.min(UNRESERVED));
    bytes.put_slice(&start);
    while bytes.len() < length {
        if bytes.len() == bytes.capacity() {
            // Grow to eight times what has arrived: each growth copies the bytes, so it should be rare.
            let more = (length - bytes.len()).min(7 * bytes.len());
            memory.grow(&mut reservation, more).await?;
            bytes.reserve(more);
        }
        let missing = (length - bytes.len()).min(bytes.capacity() - bytes.len());
        if read.read_buf(&mut (&mut bytes).limit(missing)).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    Ok(Received::Frame(Frame { head, bytes: bytes.freeze(), _reservation: reservation }))
}

/// Encodes a response, with its length and header.
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

/// An error that closes the connection: the bytes do not follow the protocol.
pub(crate) fn malformed(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

//! Connections: frames in, frames out, one request of a connection at a time, as Kafka does.
//!
//! What a request means is in [`crate::requests`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, RequestKind, ResponseHeader, ResponseKind};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::catalog::Catalog;
use crate::requests;

/// The largest request, in bytes.
const LARGEST_REQUEST: usize = 64 * 1024 * 1024;
/// How long accepting rests after the system refused a connection (out of file handles, say).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What every connection shares.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) catalog: Arc<Catalog>,
    /// Where clients find this broker.
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn new(catalog: Arc<Catalog>, address: SocketAddr) -> Self {
        Self { catalog, address }
    }

    /// Serves every connection until `cancel`; returns once all are closed.
    pub(crate) async fn accept(self, listener: TcpListener, cancel: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let (server, cancel) = (self.clone(), cancel.clone());
                        connections.spawn(async move {
                            tokio::select! {
                                () = cancel.cancelled() => {}
                                ended = server.serve(stream) => {
                                    if let Err(error) = ended {
                                        debug!(%peer, %error, "closed a connection");
                                    }
                                }
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "embedded broker: cannot accept a connection");
                        tokio::time::sleep(ACCEPT_REST).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }

    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.split();
        let mut read = BufReader::with_capacity(64 * 1024, read);
        while let Some(frame) = read_frame(&mut read).await? {
            if let Some(response) = self.handle(frame).await? {
                write.write_all(&response).await?;
            }
        }
        Ok(())
    }

    /// Answers one request; `None` where the client wants no answer.
    async fn handle(&self, mut frame: Bytes) -> io::Result<Option<BytesMut>> {
        if frame.len() < 8 {
            return Err(malformed("a request without a header"));
        }
        let number = i16::from_be_bytes([frame[0], frame[1]]);
        let version = i16::from_be_bytes([frame[2], frame[3]]);
        let supported = requests::SUPPORTED.iter().find(|api| api.key as i16 == number);
        let Some(api) = supported else {
            return Err(malformed(format!("request type {number}, which is not served here")));
        };
        if !(api.min..=api.max).contains(&version) {
            if api.key != ApiKey::ApiVersions {
                return Err(malformed(format!("{:?} in version {version}", api.key)));
            }
            // A newer client asks in its newest version, and learns from the oldest answer what to use.
            let correlation_id = i32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]);
            let response = ResponseKind::ApiVersions(requests::unsupported_version());
            return encode(ApiKey::ApiVersions, 0, correlation_id, &response).map(Some);
        }
        let header =
            RequestHeader::decode(&mut frame, api.key.request_header_version(version)).map_err(malformed)?;
        let request = RequestKind::decode(api.key, &mut frame, version).map_err(malformed)?;
        let response = requests::answer(self, request).await?;
        response.map(|response| encode(api.key, version, header.correlation_id, &response)).transpose()
    }
}

/// Reads one length-prefixed frame; `None` when the client has closed the connection between two.
async fn read_frame(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut length = [0_u8; 4];
    match read.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LARGEST_REQUEST {
        return Err(malformed("a request that is too large"));
    }
    let mut frame = BytesMut::with_capacity(length);
    while frame.len() < length {
        let missing = length - frame.len();
        if read.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
    }
    Ok(Some(frame.freeze()))
}

fn encode(key: ApiKey, version: i16, correlation_id: i32, response: &ResponseKind) -> io::Result<BytesMut> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    let header = ResponseHeader::default().with_correlation_id(correlation_id);
    header.encode(&mut frame, key.response_header_version(version)).map_err(malformed)?;
    response.encode(&mut frame, version).map_err(malformed)?;
    let length = i32::try_from(frame.len() - 4).map_err(malformed)?;
    frame[0..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

fn malformed(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

//! Connections: each is served one request after the other, as in Kafka. The records of requests that arrive together are
//! synced to the disk together.
//!
//! What a request means is in [`crate::requests`]; how frames are read within bounds, in [`crate::frames`].

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{ApiKey, RequestHeader, RequestKind, ResponseKind};
use kafka_protocol::protocol::Decodable;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::catalog::Catalog;
use crate::coordinator::Coordinator;
use crate::frames::{self, Frame, Received, RequestHead};
use crate::limits::{Limits, MemoryPool, Reservation};
use crate::requests::produce::{self, Unsynced};
use crate::requests::{self, Client};
use crate::{old_produce, refusals, shape};

/// The pause after the operating system fails to accept a connection, such as for lack of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most requests whose records are synced together; clients usually have five in flight.
const MOST_TOGETHER: usize = 16;

/// How long a client may take to read a response.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);

/// The state that all connections share.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) coordinator: Arc<Coordinator>,
    /// The address that clients connect to.
    pub(crate) address: SocketAddr,
    pub(crate) limits: Limits,
    /// Memory of the requests that are being processed.
    pub(crate) requests: MemoryPool,
    /// Memory of the responses that are being sent.
    pub(crate) responses: MemoryPool,
    /// Limits how many batches are decompressed at a time.
    pub(crate) decompressing: Arc<Semaphore>,
}

/// An encoded response and its memory.
#[derive(Debug)]
struct Reply {
    frame: Bytes,
    _reservation: Reservation,
}

/// The outcome of a request.
#[derive(Debug)]
enum Handled {
    Answered(Reply),
    /// Its records are written, and not synced yet.
    Written(RequestHead, Unsynced),
}

impl Server {
    pub(crate) fn new(
        catalog: Arc<Catalog>,
        coordinator: Arc<Coordinator>,
        address: SocketAddr,
        limits: Limits,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            catalog,
            coordinator,
            address,
            requests: MemoryPool::new(limits.memory),
            responses: MemoryPool::new(limits.memory),
            decompressing: Arc::new(Semaphore::new(processors * 2)),
            limits,
        }
    }

    /// Serves all connections until `shutdown`; returns once all are closed.
    pub(crate) async fn accept(self, listener: TcpListener, shutdown: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((_, peer)) if connections.len() >= self.limits.connections => {
                        let most = self.limits.connections;
                        warn!(%peer, most, "embedded broker: refused a connection because there are too many");
                    }
                    Ok((stream, peer)) => {
                        let (server, shutdown) = (self.clone(), shutdown.clone());
                        connections.spawn(async move {
                            tokio::select! {
                                () = shutdown.cancelled() => {}
                                ended = server.serve(stream, peer) => {
                                    if let Err(error) = ended {
                                        debug!(%peer, %error, "closed a connection");
                                    }
                                }
                            }
                        });
                    }
                    Err(error) => {
                        warn!(%error, "embedded broker: cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }

    async fn serve(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.split();
        let mut read = BufReader::with_capacity(16 * 1024, read);
        let mut unsynced = Vec::new();
        loop {
            if unsynced.len() == MOST_TOGETHER || !has_arrived(&mut read) {
                self.acknowledge(&mut unsynced, &mut write).await?;
            }
            let received = frames::read(&mut read, &self.limits, &self.requests).await;
            if !matches!(&received, Ok(Received::Frame(frame)) if frame.head.key == ApiKey::Produce as i16) {
                self.acknowledge(&mut unsynced, &mut write).await?;
            }
            let handled = match received? {
                Received::End => return Ok(()),
                Received::Frame(frame) if frame.head.may_wait() => tokio::select! {
                    handled = self.handle(frame, peer) => handled?,
                    () = closed(&mut read) => return Ok(()),
                },
                Received::Frame(frame) => self.handle(frame, peer).await?,
                // The rest of the request is not read, so the connection cannot be used any more.
                Received::TooLarge(head) => {
                    let reply = refuse(head, ResponseError::InvalidRequest)?;
                    return send(&mut write, &reply.frame).await;
                }
            };
            match handled {
                Handled::Written(head, written) => unsynced.push((head, written)),
                Handled::Answered(reply) => {
                    self.acknowledge(&mut unsynced, &mut write).await?;
                    send(&mut write, &reply.frame).await?;
                }
            }
        }
    }

    /// Syncs what was written, and responds in the order of the requests.
    async fn acknowledge(
        &self,
        unsynced: &mut Vec<(RequestHead, Unsynced)>,
        write: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        if unsynced.is_empty() {
            return Ok(());
        }
        let (heads, unsynced): (Vec<RequestHead>, Vec<Unsynced>) = unsynced.drain(..).unzip();
        for (head, response) in heads.into_iter().zip(produce::sync_all(self, unsynced).await?) {
            if let Some(response) = response {
                send(write, &encode(ApiKey::Produce, head, &ResponseKind::Produce(response))?).await?;
            }
        }
        Ok(())
    }

    /// Answers one request, or writes its records. An error closes the connection.
    async fn handle(&self, mut frame: Frame, peer: SocketAddr) -> io::Result<Handled> {
        let head = frame.head;
        let Some(api) = requests::SUPPORTED.iter().find(|api| api.key as i16 == head.key) else {
            return refuse(head, ResponseError::UnsupportedVersion).map(Handled::Answered);
        };
        if !(api.min..=api.max).contains(&head.version) {
            // A newer client asks in its newest version, and learns the supported ones from a response in the oldest.
            let version = if api.key == ApiKey::ApiVersions { 0 } else { head.version };
            let head = RequestHead { version, ..head };
            return refuse(head, ResponseError::UnsupportedVersion).map(Handled::Answered);
        }
        if !shape::fits(api.key, head.version, &frame.bytes) {
            return refuse(head, ResponseError::InvalidRequest).map(Handled::Answered);
        }
        let Ok((header, request)) = decode(api.key, head.version, &mut frame.bytes) else {
            return refuse(head, ResponseError::InvalidRequest).map(Handled::Answered);
        };
        if let RequestKind::Produce(request) = request {
            return Ok(Handled::Written(head, produce::write(self, request, head.version).await?));
        }
        let client = Client { id: header.client_id.map(|id| id.to_string()).unwrap_or_default(), peer };
        let mut reservation = None;
        let response = requests::answer(self, request, head.version, &client, &mut reservation).await?;
        let frame = encode(api.key, head, &response)?;
        Ok(Handled::Answered(Reply { frame, _reservation: reservation }))
    }
}

fn decode(key: ApiKey, version: i16, bytes: &mut Bytes) -> io::Result<(RequestHeader, RequestKind)> {
    if old_produce::is_old(key, version) {
        return old_produce::decode(bytes);
    }
    let header =
        RequestHeader::decode(bytes, key.request_header_version(version)).map_err(frames::malformed)?;
    Ok((header, RequestKind::decode(key, bytes, version).map_err(frames::malformed)?))
}

/// Encodes a response in the version of its request.
fn encode(key: ApiKey, head: RequestHead, response: &ResponseKind) -> io::Result<Bytes> {
    if old_produce::is_old(key, head.version) {
        return old_produce::encode(head, response);
    }
    frames::encode(key, head.version, head.correlation_id, response)
}

async fn send(write: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    let sent = timeout(SEND_TIMEOUT, write.write_all(frame)).await;
    sent.map_err(|_| io::Error::other("the client does not read its response"))?
}

/// Whether a part of the next request has arrived already. Does not wait.
fn has_arrived(read: &mut (impl AsyncBufRead + Unpin)) -> bool {
    read.fill_buf().now_or_never().is_some_and(|held| held.is_ok_and(|held| !held.is_empty()))
}

/// Waits until the client has closed the connection; never returns once the client has sent another request, which stays
/// in the buffer.
async fn closed(read: &mut (impl AsyncBufRead + Unpin)) {
    if read.fill_buf().await.is_ok_and(|held| !held.is_empty()) {
        pending::<()>().await;
    }
}

/// The response that refuses a request. An error where its kind has none.
fn refuse(head: RequestHead, error: ResponseError) -> io::Result<Reply> {
    let key = ApiKey::try_from(head.key)
        .map_err(|()| frames::malformed(format!("request type {} is unknown", head.key)))?;
    let response = refusals::refusal(key, error)
        .ok_or_else(|| frames::malformed(format!("request type {key:?} is not supported")))?;
    Ok(Reply { frame: encode(key, head, &response)?, _reservation: None })
}

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod tests;

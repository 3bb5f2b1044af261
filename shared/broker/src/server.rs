//! Connections: frames in, frames out, one request of a connection after the other, as Kafka does. Records of requests
//! that have arrived together are brought to the disk together.
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
use crate::frames::{self, Frame, Place, Received};
use crate::limits::{Limits, Memory, Room};
use crate::requests::produce::{self, Unsynced};
use crate::requests::{self, Client};
use crate::{old_produce, refusals, shape};

/// How long accepting rests after the system refused a connection (out of file handles, say).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The most requests whose records are brought to the disk together; clients have five under way, as a rule.
const MOST_TOGETHER: usize = 16;

/// How long a client may take to read an answer.
const SEND_PATIENCE: Duration = Duration::from_secs(60);

/// What every connection shares.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) coordinator: Arc<Coordinator>,
    /// Where clients find this broker.
    pub(crate) address: SocketAddr,
    pub(crate) limits: Limits,
    /// Memory of requests in work.
    pub(crate) requests: Memory,
    /// Memory of answers under way.
    pub(crate) answers: Memory,
    /// How many batches are unpacked at a time.
    pub(crate) unpacking: Arc<Semaphore>,
}

/// A frame to be sent, and the memory that it takes.
#[derive(Debug)]
struct Reply {
    frame: Bytes,
    _room: Room,
}

/// What became of a request.
#[derive(Debug)]
enum Handled {
    Answered(Reply),
    /// Its records are written, and are to be brought to the disk.
    Written(Place, Unsynced),
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
            requests: Memory::new(limits.memory),
            answers: Memory::new(limits.memory),
            unpacking: Arc::new(Semaphore::new(processors * 2)),
            limits,
        }
    }

    /// Serves every connection until `cancel`; returns once all are closed.
    pub(crate) async fn accept(self, listener: TcpListener, cancel: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((_, peer)) if connections.len() >= self.limits.connections => {
                        let most = self.limits.connections;
                        warn!(%peer, most, "embedded broker: refused a connection, since there are too many");
                    }
                    Ok((stream, peer)) => {
                        let (server, cancel) = (self.clone(), cancel.clone());
                        connections.spawn(async move {
                            tokio::select! {
                                () = cancel.cancelled() => {}
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
                        tokio::time::sleep(ACCEPT_REST).await;
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
            if !matches!(&received, Ok(Received::Frame(frame)) if frame.place.key == ApiKey::Produce as i16) {
                self.acknowledge(&mut unsynced, &mut write).await?;
            }
            let (handled, last) = match received? {
                Received::End => return Ok(()),
                Received::Frame(frame) if frame.place.may_wait() => tokio::select! {
                    handled = self.handle(frame, peer) => (handled?, false),
                    () = gone(&mut read) => return Ok(()),
                },
                Received::Frame(frame) => (self.handle(frame, peer).await?, false),
                // The rest of it is not read, so nothing after it can be.
                Received::TooLarge(place) => {
                    (Handled::Answered(refuse(place, ResponseError::InvalidRequest)?), true)
                }
            };
            match handled {
                Handled::Written(place, written) => unsynced.push((place, written)),
                Handled::Answered(reply) => {
                    self.acknowledge(&mut unsynced, &mut write).await?;
                    send(&mut write, &reply.frame).await?;
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Brings to the disk what was written, and answers in the order of the requests.
    async fn acknowledge(
        &self,
        unsynced: &mut Vec<(Place, Unsynced)>,
        write: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        if unsynced.is_empty() {
            return Ok(());
        }
        let (places, unsynced): (Vec<Place>, Vec<Unsynced>) = unsynced.drain(..).unzip();
        for (place, response) in places.into_iter().zip(produce::sync_all(self, unsynced).await?) {
            // Who asked for no acknowledgement gets none.
            if let Some(response) = response {
                send(write, &encode(ApiKey::Produce, place, &ResponseKind::Produce(response))?).await?;
            }
        }
        Ok(())
    }

    /// Answers one request, or writes its records. An error closes the connection.
    async fn handle(&self, mut frame: Frame, peer: SocketAddr) -> io::Result<Handled> {
        let place = frame.place;
        let Some(api) = requests::SUPPORTED.iter().find(|api| api.key as i16 == place.key) else {
            return refuse(place, ResponseError::UnsupportedVersion).map(Handled::Answered);
        };
        if !(api.min..=api.max).contains(&place.version) {
            // A newer client asks for versions in its newest one, and learns from the oldest answer what to use.
            let version = if api.key == ApiKey::ApiVersions { 0 } else { place.version };
            let place = Place { version, ..place };
            return refuse(place, ResponseError::UnsupportedVersion).map(Handled::Answered);
        }
        if !shape::fits(api.key, place.version, &frame.bytes) {
            return refuse(place, ResponseError::InvalidRequest).map(Handled::Answered);
        }
        let Ok((header, request)) = decode(api.key, place.version, &mut frame.bytes) else {
            return refuse(place, ResponseError::InvalidRequest).map(Handled::Answered);
        };
        if let RequestKind::Produce(request) = request {
            return Ok(Handled::Written(place, produce::write(self, request, place.version).await?));
        }
        let client = Client { id: header.client_id.map(|id| id.to_string()).unwrap_or_default(), peer };
        let mut room = None;
        let answer = requests::answer(self, request, place.version, &client, &mut room).await?;
        let frame = encode(api.key, place, &answer)?;
        Ok(Handled::Answered(Reply { frame, _room: room }))
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

/// An answer, as the version of its request wants it.
fn encode(key: ApiKey, place: Place, answer: &ResponseKind) -> io::Result<Bytes> {
    if old_produce::is_old(key, place.version) {
        return old_produce::encode(place, answer);
    }
    frames::encode(key, place.version, place.correlation_id, answer)
}

async fn send(write: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    let sent = timeout(SEND_PATIENCE, write.write_all(frame)).await;
    sent.map_err(|_| io::Error::other("the client does not take its answer"))?
}

/// Whether something of the next request is here already. Does not wait.
fn has_arrived(read: &mut (impl AsyncBufRead + Unpin)) -> bool {
    read.fill_buf().now_or_never().is_some_and(|held| held.is_ok_and(|held| !held.is_empty()))
}

/// Waits until the client has closed the connection. What it sends before that stays to be read; then this waits on.
async fn gone(read: &mut (impl AsyncBufRead + Unpin)) {
    if read.fill_buf().await.is_ok_and(|held| !held.is_empty()) {
        pending::<()>().await;
    }
}

/// Says no in the terms of the request, if that can be done.
fn refuse(place: Place, error: ResponseError) -> io::Result<Reply> {
    let key = ApiKey::try_from(place.key)
        .map_err(|()| frames::malformed(format!("request type {}, which nobody knows", place.key)))?;
    let answer = refusals::refusal(key, error)
        .ok_or_else(|| frames::malformed(format!("{key:?}, which is not served here")))?;
    Ok(Reply { frame: encode(key, place, &answer)?, _room: None })
}

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod tests;

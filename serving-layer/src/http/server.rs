//! The HTTP server: accepts connections and keeps them within limits, so that no client, however slow or many, keeps
//! others from their answers.
//!
//! - So many connections at a time. When all are taken, the one that has been idle longest is closed to make room; when
//!   none is idle, the newcomer is answered 503.
//! - A connection on which no whole request comes for `idle_timeout` is closed: idle ones, and those that send a head
//!   byte by byte.
//! - A client that takes nothing of its answer for `stall_timeout` is cut off.
//! - Bodies are taken in within limits too (`bodies.rs`), and every error has the one body of [`super::error`].
//!
//! This file must not know what the paths mean.

mod bodies;
mod connections;
mod patience;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Response;
use hyper::service::Service as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::{Layer as _, ServiceExt as _};
use tower_http::decompression::{DecompressionBody, RequestDecompressionLayer};
use tracing::{debug, warn};

use super::error;
use bodies::Bodies;
use connections::{Connection, Connections};
use patience::Patient;

/// The largest head of a request in bytes, and how much of a body is buffered before it is taken in.
const MOST_BUFFERED: usize = 64 * 1024;
/// So many newcomers are told at a time that there is no room; further ones are closed without a word.
const TOLD_AT_ONCE: usize = 32;
/// How long one of those may take to hear it.
const TELLING: Duration = Duration::from_secs(1);
/// How long a connection that has to leave gets for a request that is just coming in.
const LEAVING: Duration = Duration::from_millis(100);
/// The rest after a connection could not be accepted, mostly for want of file handles.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// The limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at a time.
    pub max_connections: usize,
    /// How long a connection may go without a whole request.
    pub idle_timeout: Duration,
    /// How long a client may neither send nor take a byte in the middle of a request or an answer.
    pub stall_timeout: Duration,
    /// The largest body of a request in bytes, decompressed.
    pub max_body: usize,
    /// The bytes of all bodies that are being taken in or worked on.
    pub max_bodies: usize,
}

/// Serves `router` until `stop`; then lets the requests under way end.
pub async fn serve(listener: TcpListener, router: Router, limits: ServerLimits, stop: CancellationToken) {
    let router = with_layers(router, limits);
    let connections = Arc::new(Connections::new(limits.max_connections));
    let telling = Arc::new(Semaphore::new(TOLD_AT_ONCE));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
        };
        match connections.admit() {
            Some(connection) => {
                tasks.spawn(serve_one(stream, router.clone(), connection, limits, stop.clone()));
            }
            None => {
                warn!(
                    connections = limits.max_connections,
                    "all connections have requests under way; refusing another one"
                );
                if let Ok(permit) = Arc::clone(&telling).try_acquire_owned() {
                    tasks.spawn(async move {
                        // Whoever does not listen is not told.
                        let _ = tokio::time::timeout(TELLING, refuse(stream)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// The router with what every request goes through: from the inside out, its body is taken in, decompressed, and its
/// error gets the one body.
fn with_layers(router: Router, limits: ServerLimits) -> Router {
    let bodies = Bodies::new(limits);
    let plain = router.layer(from_fn_with_state(bodies, bodies::take_in)).map_request(decompressed);
    Router::new()
        .fallback_service(RequestDecompressionLayer::new().layer(plain))
        .layer(from_fn(error::one_body))
}

fn decompressed(request: axum::http::Request<DecompressionBody<Body>>) -> Request {
    request.map(Body::new)
}

async fn serve_one(
    stream: TcpStream,
    router: Router,
    connection: Connection,
    limits: ServerLimits,
    stop: CancellationToken,
) {
    // Answers are written whole, so waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let connection = Arc::new(connection);
    let under_way = Arc::clone(&connection);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let busy = under_way.begin_request();
        let answer = router.call(request);
        async move {
            let response: Response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(busy.during(body))))
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits.idle_timeout).max_buf_size(MOST_BUFFERED);
    let io = TokioIo::new(Patient::new(stream, limits.stall_timeout));
    let mut serving = pin!(server.serve_connection(io, service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = connection.must_leave(&stop) => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(LEAVING, serving.as_mut()).await {
                Ok(ended) => ended,
                // Half a head may wait for its other half for as long as the client likes.
                Err(_) if connection.is_idle() => Ok(()),
                Err(_) => serving.await,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection has ended");
    }
}

/// Tells a newcomer that there is no room.
async fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    let (status, message) = ("503 Service Unavailable", "too many connections; try again");
    let body = error::body(&error::request_id(), "unavailable", message);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing while bytes of the request are unread would take the answer back.
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

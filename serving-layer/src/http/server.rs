//! The HTTP server: accepts connections and keeps them within limits, so that slow or many clients do not keep others
//! from their answers.
//!
//! - The number of connections is limited. When all are in use, the one that has been idle longest is closed to make room;
//!   when none is idle, the new one gets 503.
//! - A connection without a complete request for `idle_timeout` is closed: idle ones, and those that send a head byte by
//!   byte.
//! - A client that reads nothing of its answer for `stall_timeout` is disconnected.
//! - Bodies are read within limits too (`bodies.rs`), and every error has the one body of [`super::error`].
//!
//! This file must not know what the paths mean.

mod bodies;
mod connections;
#[cfg(test)]
mod tests;
mod write_timeout;

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
use write_timeout::WriteTimeout;
use wye_runtime::clock::Clock;

/// The largest head of a request in bytes, and how much of a body is buffered before it is read.
const MOST_BUFFERED: usize = 64 * 1024;
/// So many new connections at a time get the answer that there is no room; further ones are closed without an answer.
const REFUSALS: usize = 32;
/// How long that answer may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection that has to leave may take for a request that is just arriving.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(100);
/// The pause after a connection could not be accepted, mostly for lack of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerLimits {
    /// Connections at a time.
    pub(crate) max_connections: usize,
    /// How long a connection may be without a complete request.
    pub(crate) idle_timeout: Duration,
    /// How long a client may neither send nor receive a byte within a request or an answer.
    pub(crate) stall_timeout: Duration,
    /// The largest body of a request in bytes, decompressed.
    pub(crate) max_body: usize,
    /// The bytes of the bodies of all requests in progress.
    pub(crate) max_bodies: usize,
}

/// What a server works with.
pub(crate) struct Server {
    /// Where clients connect.
    pub(crate) listener: TcpListener,
    /// What answers them.
    pub(crate) router: Router,
    pub(crate) limits: ServerLimits,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Serves until `shutdown`; then waits until the requests in progress are answered.
pub(crate) async fn serve(server: Server, shutdown: CancellationToken) {
    let Server { listener, router, limits, clock } = server;
    let router = with_layers(router, Bodies::new(limits, clock));
    let connections = Arc::new(Connections::new(limits.max_connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match connections.admit() {
            Some(connection) => {
                tasks.spawn(serve_one(stream, router.clone(), connection, limits, shutdown.clone()));
            }
            None => {
                warn!(
                    connections = limits.max_connections,
                    "all connections have requests in progress; refusing another one"
                );
                if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                    tasks.spawn(async move {
                        // A client that does not read the answer in time is disconnected without it.
                        let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(stream)).await;
                        drop(permit);
                    });
                }
            }
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// The router with what every request passes: from the inside out, its body is read, decompressed, and its error gets the
/// one body.
fn with_layers(router: Router, bodies: Bodies) -> Router {
    let plain = router.layer(from_fn_with_state(bodies, bodies::read_body)).map_request(decompressed);
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
    shutdown: CancellationToken,
) {
    // Answers are written whole, so waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let connection = Arc::new(connection);
    let served = Arc::clone(&connection);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let busy = served.begin_request();
        let answer = router.call(request);
        async move {
            let response: Response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Body::new(busy.during(body))))
        }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits.idle_timeout).max_buf_size(MOST_BUFFERED);
    let io = TokioIo::new(WriteTimeout::new(stream, limits.stall_timeout));
    let mut serving = pin!(server.serve_connection(io, service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = connection.must_leave(&shutdown) => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(LEAVE_TIMEOUT, serving.as_mut()).await {
                Ok(ended) => ended,
                // An incomplete head is not a request in progress, and may never be completed.
                Err(_) if connection.is_idle() => Ok(()),
                Err(_) => serving.await,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection has ended");
    }
}

/// Answers a new connection that there is no room.
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
    // Closing while bytes of the request are unread would reset the connection, and the answer would be lost.
    let mut unread = [0; 1024];
    while stream.read(&mut unread).await? > 0 {}
    Ok(())
}

//! Reading the bodies of requests: each up to a size, all of them together within a budget of bytes, and none slower than
//! a modem. The size that a client announces only counts where it is too large.
//!
//! A body holds its share of the budget until the last of its bytes is dropped, also by work that outlives the request.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, RETRY_AFTER};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ServerLimits;
use wye_runtime::clock::Clock;

/// The budget is reserved in pieces of so many bytes.
const PIECE: usize = 1024;
/// The slowest body in bytes a second, past the first `stall_timeout`: below what any link for readings carries.
const SLOWEST: usize = 1024;

/// The limits of bodies, with the budget of all of them.
#[derive(Clone)]
pub(super) struct Bodies {
    most: usize,
    stall_timeout: Duration,
    budget: Arc<Semaphore>,
    clock: Arc<dyn Clock>,
}

/// Why a body was not read.
enum Refusal {
    TooLarge { most: usize },
    TooSlow,
    NoRoom,
    Broken(String),
}

/// The bytes of a body with their share of the budget.
struct Held {
    bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
}

/// Passes a request on once its whole body was read.
pub(super) async fn read_body(State(bodies): State<Bodies>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match bodies.read(body).await {
        Ok(bytes) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Err(refusal) => refusal.into_response(),
    }
}

impl Bodies {
    pub(super) fn new(limits: ServerLimits, clock: Arc<dyn Clock>) -> Self {
        let budget = Arc::new(Semaphore::new(limits.max_bodies / PIECE));
        Self { most: limits.max_body, stall_timeout: limits.stall_timeout, budget, clock }
    }

    async fn read(&self, body: Body) -> Result<Bytes, Refusal> {
        if body.is_end_stream() {
            return Ok(Bytes::new());
        }
        if body.size_hint().lower() > self.most as u64 {
            return Err(Refusal::TooLarge { most: self.most });
        }
        let begin = self.clock.monotonic();
        let mut pieces = body.into_data_stream();
        let mut held = Held { bytes: Vec::new(), share: None };
        loop {
            let allowed = self.stall_timeout + Duration::from_secs((held.bytes.len() / SLOWEST) as u64);
            let left = (begin + allowed).saturating_sub(self.clock.monotonic()).min(self.stall_timeout);
            let piece = match tokio::time::timeout(left, pieces.next()).await {
                Err(_) => return Err(Refusal::TooSlow),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(Refusal::Broken(root_of(&error))),
                Ok(Some(Ok(piece))) => piece,
            };
            let size = held.bytes.len() + piece.len();
            if size > self.most {
                return Err(Refusal::TooLarge { most: self.most });
            }
            self.grow(&mut held, size)?;
            held.bytes.extend_from_slice(&piece);
        }
        Ok(Bytes::from_owner(held))
    }

    /// Takes as much of the budget as a body of `size` bytes needs.
    fn grow(&self, held: &mut Held, size: usize) -> Result<(), Refusal> {
        let has = held.share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let lacks = u32::try_from(size.div_ceil(PIECE).saturating_sub(has)).map_err(|_| Refusal::NoRoom)?;
        let more = Arc::clone(&self.budget).try_acquire_many_owned(lacks).map_err(|_| Refusal::NoRoom)?;
        match &mut held.share {
            Some(share) => share.merge(more),
            share => *share = Some(more),
        }
        Ok(())
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // The rest of the body is not read, so the connection cannot be used again.
        let close = [(CONNECTION, "close")];
        match self {
            Self::TooLarge { most } => {
                let message = format!("the body is larger than {most} bytes; send it in parts");
                (StatusCode::PAYLOAD_TOO_LARGE, close, message).into_response()
            }
            Self::TooSlow => {
                (StatusCode::REQUEST_TIMEOUT, close, "the body arrives too slowly; send it again")
                    .into_response()
            }
            Self::NoRoom => {
                let message = "too many bodies of requests are in progress; send the request again";
                let headers = [(CONNECTION, "close"), (RETRY_AFTER, "1")];
                (StatusCode::SERVICE_UNAVAILABLE, headers, message).into_response()
            }
            Self::Broken(reason) => {
                let message = format!("the body cannot be read: {reason}; check Content-Encoding and length");
                (StatusCode::BAD_REQUEST, close, message).into_response()
            }
        }
    }
}

fn root_of(error: &dyn std::error::Error) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

//! `POST /v1/readings`.
//!
//! | `Content-Type` | body |
//! |---|---|
//! | `application/json` (or none) | one reading, an array, or one a line |
//! | `application/x-ndjson` | one reading a line |
//! | `application/vnd.apache.arrow.stream` | an Arrow IPC stream with the columns of a reading |
//!
//! A request with an `Idempotency-Key` counts once, however often it is sent: for a week, or for good where the key is of
//! the form `name/number`.
//!
//! The answer says how many readings the log has acknowledged, the position behind them and, for each other reading, its
//! place in the body and the reason. 200 when anything was accepted or nothing refused, 400 when all was refused, 413 for
//! too large a body, 503 with `Retry-After` when the log does not acknowledge in time.
//!
//! A refusal is a status and a text; whoever serves the routes makes the one error body of it.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tracing::warn;
use wye_domain::ErrorKind;
use wye_runtime::clock::now_micros;

use super::{Format, Ingest, IngestError, Receipt, Request};

/// The header with the position behind what was acknowledged, as in the body.
const POSITION: &str = "wye-position";
/// The header that makes a request count once, however often it is sent.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest idempotency key in bytes.
const LONGEST_KEY: usize = 256;
/// So many refusals are told one by one.
const TOLD: usize = 100;
/// When a client may try again, in seconds.
const RETRY_SECONDS: &str = "1";

/// The routes of ingest; bodies up to `max_body` bytes.
pub fn router(ingest: Ingest, max_body: usize) -> Router {
    Router::new().route("/v1/readings", post(take)).layer(DefaultBodyLimit::max(max_body)).with_state(ingest)
}

async fn take(State(ingest): State<Ingest>, headers: HeaderMap, body: Bytes) -> Response {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let media_type = text(CONTENT_TYPE.as_str())
        .unwrap_or("application/json")
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    let format = match media_type {
        "application/vnd.apache.arrow.stream" => Format::Arrow,
        "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => Format::JsonLines,
        // curl's default for -d; the body is looked at, not the label.
        "" | "application/json" | "text/json" | "application/x-www-form-urlencoded" | "text/plain" => {
            Format::Json
        }
        other => {
            let message = format!(
                "content type {other:?} is not known; send application/json, application/x-ndjson or \
                 application/vnd.apache.arrow.stream"
            );
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response();
        }
    };
    let key = text(IDEMPOTENCY_KEY);
    if key.is_some_and(|key| key.is_empty() || key.len() > LONGEST_KEY) {
        let message = format!("the idempotency key must have 1 to {LONGEST_KEY} bytes of ASCII");
        return (StatusCode::BAD_REQUEST, message).into_response();
    }
    let request = Request { body, format, key: key.map(str::to_owned), now: now_micros() };
    match ingest.take(request).await {
        Ok(receipt) => answer(&receipt),
        Err(error) => refuse(&error),
    }
}

fn answer(receipt: &Receipt) -> Response {
    let told: Vec<_> = receipt
        .rejected
        .iter()
        .take(TOLD)
        .map(|rejected| json!({"index": rejected.item_index, "reason": rejected.reason.name(), "detail": rejected.detail}))
        .collect();
    let position = receipt.position.to_string();
    let body = json!({
        "accepted": receipt.accepted,
        "rejected": receipt.refused(),
        "duplicate_request": receipt.duplicate_request,
        "position": &position,
        "errors": told,
    });
    let status = if receipt.accepted == 0 && !receipt.rejected.is_empty() {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    };
    (status, [(POSITION, position)], axum::Json(body)).into_response()
}

fn refuse(error: &IngestError) -> Response {
    warn!(%error, "readings were not acknowledged");
    if error.kind() == ErrorKind::Internal {
        return (StatusCode::INTERNAL_SERVER_ERROR, "a fault inside; the server's log says more")
            .into_response();
    }
    let message = "the log does not acknowledge readings at the moment; send the request again";
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, RETRY_SECONDS)], message).into_response()
}

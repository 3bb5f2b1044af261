//! `POST /v1/readings`.
//!
//! | `Content-Type` | body |
//! |---|---|
//! | `application/json` (or none) | one reading, an array, or one a line |
//! | `application/x-ndjson` | one reading a line |
//! | `application/vnd.apache.arrow.stream` | an Arrow IPC stream with the columns of a reading |
//!
//! A request with an `Idempotency-Key` counts once, however often it is sent: for a week, or for ever if the key has the form
//! `name/number`.
//!
//! The answer says how many readings the log has acknowledged, the position behind them and, for each other reading, its
//! index in the body and the reason. 200 when a reading was accepted or none rejected, 400 when all were rejected, 413 for
//! too large a body, 503 with `Retry-After` when the log does not acknowledge in time.
//!
//! An error is a status and a text. The server of the process makes the body of it ([`wye_runtime::http_error`]).

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tracing::warn;
use wye_domain::{ErrorKind, error_chain};

use super::{Format, Ingest, IngestError, Receipt, Request};

/// The header with the position behind the acknowledged readings, as in the body.
const POSITION: &str = "wye-position";
/// The header that makes a request count once, however often it is sent.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest idempotency key in bytes.
const LONGEST_KEY: usize = 256;
/// The most rejected readings that an answer lists.
const LISTED: usize = 100;
/// When a client may try again, in seconds.
const RETRY_SECONDS: &str = "1";

/// The routes of ingest. Larger bodies than the settings allow are refused.
pub fn router(ingest: Ingest) -> Router {
    let max_body = ingest.worker.settings().max_body;
    Router::new().route("/v1/readings", post(take)).layer(DefaultBodyLimit::max(max_body)).with_state(ingest)
}

async fn take(State(ingest): State<Ingest>, headers: HeaderMap, body: Bytes) -> Response {
    let request = match request(&headers, body) {
        Ok(request) => request,
        Err(refusal) => return refusal.into_response(),
    };
    match ingest.take(request).await {
        Ok(receipt) => answer(&receipt),
        Err(error) => refuse(&error),
    }
}

/// The request of a body with these headers.
///
/// # Errors
/// A status with a text where a header is not supported.
fn request(headers: &HeaderMap, body: Bytes) -> Result<Request, (StatusCode, String)> {
    let media_type = header(headers, CONTENT_TYPE.as_str()).unwrap_or("application/json");
    let format = match media_type.split(';').next().unwrap_or_default().trim() {
        "application/vnd.apache.arrow.stream" => Format::Arrow,
        "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => Format::JsonLines,
        // curl sends a form's type by default, so the body decides.
        "" | "application/json" | "text/json" | "application/x-www-form-urlencoded" | "text/plain" => {
            Format::Json
        }
        other => {
            let message = format!(
                "content type {other:?} is not supported; send application/json, application/x-ndjson or \
                 application/vnd.apache.arrow.stream"
            );
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
    };
    let key = header(headers, IDEMPOTENCY_KEY);
    if key.is_some_and(|key| key.is_empty() || key.len() > LONGEST_KEY) {
        let message = format!("the idempotency key must have 1 to {LONGEST_KEY} bytes of ASCII");
        return Err((StatusCode::BAD_REQUEST, message));
    }
    Ok(Request { body, format, key: key.map(str::to_owned) })
}

/// A header's text; empty where it is not ASCII.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or_default())
}

fn answer(receipt: &Receipt) -> Response {
    let errors: Vec<_> = receipt
        .rejected
        .iter()
        .take(LISTED)
        .map(|rejected| json!({"index": rejected.item_index, "reason": rejected.reason.name(), "detail": rejected.detail}))
        .collect();
    let position = receipt.position.to_string();
    let body = json!({
        "accepted": receipt.accepted,
        "rejected": receipt.rejected_readings(),
        "duplicate_request": receipt.duplicate_request,
        "position": &position,
        "errors": errors,
    });
    let status = if receipt.accepted == 0 && !receipt.rejected.is_empty() {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    };
    (status, [(POSITION, position)], axum::Json(body)).into_response()
}

fn refuse(error: &IngestError) -> Response {
    if error.kind() == ErrorKind::Internal {
        return (StatusCode::INTERNAL_SERVER_ERROR, error_chain(error)).into_response();
    }
    warn!(%error, "readings were not acknowledged");
    let message = "the log does not acknowledge readings at the moment; send the request again";
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, RETRY_SECONDS)], message).into_response()
}

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
//! The answer says how many readings the log has acknowledged and, for each other one, its place in the body and the
//! reason. 200 when anything was accepted or nothing refused, 400 when all was refused, 409 while a request with the
//! same `Idempotency-Key` is under way, 413 for too large a body, 503 when the log is away.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::json;
use tracing::warn;
use wye_runtime::clock::now_micros;

use super::{Format, Ingest, IngestError, Receipt};

/// The header that makes a request count once, however often it is sent.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest idempotency key in bytes.
const LONGEST_KEY: usize = 256;
/// So many refusals are told one by one.
const TOLD: usize = 100;

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
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", &message);
        }
    };
    let key = text(IDEMPOTENCY_KEY);
    if key.is_some_and(|key| key.is_empty() || key.len() > LONGEST_KEY) {
        let message = format!("the idempotency key must have 1 to {LONGEST_KEY} bytes of ASCII");
        return refuse(StatusCode::BAD_REQUEST, "bad_idempotency_key", &message);
    }
    match ingest.take(&body, format, key, now_micros()).await {
        Ok(receipt) => answer(&receipt),
        Err(error @ IngestError::UnderWay { .. }) => {
            refuse(StatusCode::CONFLICT, "request_under_way", &error.to_string())
        }
        Err(IngestError::Log(error)) => {
            warn!(%error, "readings were not acknowledged");
            let message = "the log does not acknowledge readings at the moment; send the request again later";
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", message);
            response.headers_mut().insert(RETRY_AFTER, axum::http::HeaderValue::from_static("1"));
            response
        }
    }
}

fn answer(receipt: &Receipt) -> Response {
    let told: Vec<_> = receipt
        .rejected
        .iter()
        .take(TOLD)
        .map(|rejected| json!({"index": rejected.item_index, "reason": rejected.reason.name(), "detail": rejected.detail}))
        .collect();
    let body = json!({
        "accepted": receipt.accepted,
        "rejected": receipt.rejected.len(),
        "already_there": receipt.already_there,
        "errors": told,
    });
    let status = if receipt.accepted == 0 && !receipt.rejected.is_empty() {
        StatusCode::BAD_REQUEST
    } else {
        StatusCode::OK
    };
    (status, axum::Json(body)).into_response()
}

fn refuse(status: StatusCode, error_code: &str, message: &str) -> Response {
    let request_id = format!("{:x}", now_micros());
    (status, axum::Json(json!({"request_id": request_id, "error_code": error_code, "message": message})))
        .into_response()
}

//! The one error body, and the only place that knows HTTP statuses of errors.
//!
//! `{"request_id", "error_code", "message"}`. What is wrong with a request is said; what is wrong inside goes to the log
//! under the request's id. A handler of any layer answers an error with its status and a text; [`one_body`] makes the
//! body of it.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use serde::Serialize;
use tracing::{error, info};
use wye_domain::ErrorKind;

use crate::ServingError;

/// When to ask again, where nothing says when it will be better.
const RETRY_SECONDS: &str = "2";
/// The longest message of an error in bytes.
const LONGEST_MESSAGE: usize = 64 * 1024;
/// What is said of a fault inside.
const FAULT: &str = "a fault inside; the log says more under this request_id";

/// Why a request is not answered.
#[derive(Debug)]
pub struct ApiError {
    cause: Cause,
    message: String,
}

/// What decides the status.
#[derive(Clone, Copy, Debug)]
enum Cause {
    Kind(ErrorKind),
    /// The answer did not cover the position that was asked for in time.
    NotCovered,
}

/// What is wrong inside, for the log alone.
#[derive(Clone)]
struct Fault(String);

impl ApiError {
    /// An error of a kind with a message for the asker.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { cause: Cause::Kind(kind), message: message.into() }
    }

    /// The request is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The answer does not cover the position that was asked for.
    pub(super) fn not_covered(message: impl Into<String>) -> Self {
        Self { cause: Cause::NotCovered, message: message.into() }
    }
}

impl From<ServingError> for ApiError {
    fn from(error: ServingError) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self { cause: Cause::Kind(error.kind()), message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.cause {
            Cause::NotCovered => StatusCode::GATEWAY_TIMEOUT,
            Cause::Kind(ErrorKind::Invalid) => StatusCode::BAD_REQUEST,
            Cause::Kind(ErrorKind::NotFound) => StatusCode::NOT_FOUND,
            Cause::Kind(ErrorKind::Conflict) => StatusCode::CONFLICT,
            Cause::Kind(ErrorKind::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Cause::Kind(ErrorKind::Corrupt | ErrorKind::Internal) => {
                let mut response = (StatusCode::INTERNAL_SERVER_ERROR, FAULT).into_response();
                response.extensions_mut().insert(Fault(self.message));
                return response;
            }
        };
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                (status, [(RETRY_AFTER, RETRY_SECONDS)], self.message).into_response()
            }
            _ => (status, self.message).into_response(),
        }
    }
}

/// The answer to a path that there is not; for whoever puts the program's router together.
pub async fn not_found() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no such path; GET /v1/metrics lists the metrics")
}

/// Gives every error the one body, and writes it to the log under the request's id. A panic is an error too.
pub async fn one_body(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::new(ErrorKind::Internal, "a handler has panicked").into_response(),
    };
    let status = response.status();
    let is_json = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !(status.is_client_error() || status.is_server_error()) || is_json {
        return response;
    }
    let (mut head, text) = response.into_parts();
    let text = to_bytes(text, LONGEST_MESSAGE).await.unwrap_or_default();
    let message = match String::from_utf8_lossy(&text) {
        text if text.is_empty() => message_of(status, &method, &head.headers),
        text => text.into_owned(),
    };
    let request_id = request_id();
    match head.extensions.remove::<Fault>() {
        Some(Fault(fault)) => {
            error!(request_id, %method, path, status = status.as_u16(), fault, "cannot answer a request");
        }
        None => {
            info!(request_id, %method, path, status = status.as_u16(), detail = message, "refused a request");
        }
    }
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, body(&request_id, &code_of(status), &message).into())
}

/// The message of an error that says nothing but what is in its head.
fn message_of(status: StatusCode, method: &Method, headers: &HeaderMap) -> String {
    let [allowed, known] =
        [ALLOW, ACCEPT_ENCODING].map(|name| headers.get(name).and_then(|value| value.to_str().ok()));
    match (status, allowed, known) {
        (StatusCode::METHOD_NOT_ALLOWED, Some(allowed), _) => {
            format!("{method} is not allowed here; use {allowed}")
        }
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, _, Some(known)) => {
            format!("this Content-Encoding is not known; use one of {known}, or none")
        }
        _ => status.canonical_reason().unwrap_or("the request failed").to_lowercase(),
    }
}

/// An id that no other request has, of this process or another.
pub(super) fn request_id() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}-{:x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The error body as JSON.
pub(super) fn body(request_id: &str, error_code: &str, message: &str) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        request_id: &'a str,
        error_code: &'a str,
        message: &'a str,
    }
    serde_json::to_string(&Body { request_id, error_code, message }).expect("texts are always JSON")
}

/// The name of an error, from a closed set: one for each status.
fn code_of(status: StatusCode) -> String {
    match status {
        StatusCode::BAD_REQUEST => "invalid".to_owned(),
        StatusCode::SERVICE_UNAVAILABLE => "unavailable".to_owned(),
        StatusCode::INTERNAL_SERVER_ERROR => "internal".to_owned(),
        StatusCode::GATEWAY_TIMEOUT => "not_covered".to_owned(),
        // Such as not_found, method_not_allowed, payload_too_large.
        other => other.canonical_reason().unwrap_or("other").to_lowercase().replace([' ', '-'], "_"),
    }
}

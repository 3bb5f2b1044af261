//! The statuses of errors, and the place where every error gets its body.
//!
//! A handler of any layer answers an error with its status and a text, and [`one_body`] makes an [`ErrorBody`] of them.
//! The text of an internal error (500) goes to the server log alone, under the request's id.

use std::panic::AssertUnwindSafe;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tracing::{error, info};
use wye_domain::{ErrorKind, error_chain};
use wye_runtime::http_error::ErrorBody;

use crate::ServingError;

/// When to ask again, where it is not known when that will help.
const RETRY_SECONDS: &str = "2";
/// The longest message of an error in bytes.
const LONGEST_MESSAGE: usize = 64 * 1024;

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) struct ApiError {
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

impl ApiError {
    /// An error of a kind with a message for the client.
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
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
        Self::new(error.kind(), error_chain(&error))
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
            Cause::Kind(ErrorKind::Corrupt | ErrorKind::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                (status, [(RETRY_AFTER, RETRY_SECONDS)], self.message).into_response()
            }
            _ => (status, self.message).into_response(),
        }
    }
}

/// The answer to an unknown path.
pub(crate) async fn not_found() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no such path; GET /v1/metrics lists the metrics")
}

/// Gives every error the one body, and writes it to the server log under the request's id. A panic is an error too.
pub(super) async fn one_body(request: Request, next: Next) -> Response {
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
    for of_text in [CONTENT_TYPE, CONTENT_LENGTH] {
        head.headers.remove(of_text);
    }
    let text = to_bytes(text, LONGEST_MESSAGE).await.unwrap_or_default();
    let mut message = String::from_utf8_lossy(&text).into_owned();
    if message.is_empty() {
        message = message_of(status, &method, &head.headers);
    }
    let body = if status == StatusCode::INTERNAL_SERVER_ERROR {
        let body = ErrorBody::internal();
        error!(request_id = body.request_id, %method, path, error = message, "cannot answer a request");
        body
    } else {
        let body = ErrorBody::new(code_of(status), message);
        let ErrorBody { request_id, message, .. } = &body;
        info!(request_id, %method, path, status = status.as_u16(), detail = message, "refused a request");
        body
    };
    (head, Json(body)).into_response()
}

/// The message of an error that has no text, from its status and headers.
fn message_of(status: StatusCode, method: &Method, headers: &HeaderMap) -> String {
    let [allowed, known] =
        [ALLOW, ACCEPT_ENCODING].map(|name| headers.get(name).and_then(|value| value.to_str().ok()));
    match (status, allowed, known) {
        (StatusCode::METHOD_NOT_ALLOWED, Some(allowed), _) => {
            format!("{method} is not allowed here; use {allowed}")
        }
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, _, Some(known)) => {
            format!("this Content-Encoding is not supported; use one of {known}, or none")
        }
        _ => status.canonical_reason().unwrap_or("the request failed").to_lowercase(),
    }
}

/// The code of an error, one for each status; that of an internal error is in [`ErrorBody::internal`].
fn code_of(status: StatusCode) -> String {
    match status {
        StatusCode::BAD_REQUEST => ErrorKind::Invalid.name().to_owned(),
        StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Unavailable.name().to_owned(),
        StatusCode::GATEWAY_TIMEOUT => "not_covered".to_owned(),
        // Such as not_found, method_not_allowed, payload_too_large.
        other => other.canonical_reason().unwrap_or("other").to_lowercase().replace([' ', '-'], "_"),
    }
}

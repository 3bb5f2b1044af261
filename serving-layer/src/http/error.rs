//! The one error body, and the only place that knows HTTP statuses of errors.
//!
//! `{"request_id", "error_code", "message"}`. What is wrong with a request is said; what is wrong inside goes to the log
//! under the request's id.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::error;
use wye_domain::ErrorKind;
use wye_runtime::clock::now_micros;

use crate::ServingError;

/// When to ask again, where nothing says when it will be better.
const RETRY_SECONDS: &str = "2";

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

#[derive(Serialize)]
struct Body<'a> {
    request_id: String,
    error_code: &'static str,
    message: &'a str,
}

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
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let request_id = format!("{:x}-{:x}", now_micros(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (status, error_code) = match self.cause {
            Cause::NotCovered => (StatusCode::GATEWAY_TIMEOUT, "not_covered"),
            Cause::Kind(ErrorKind::Invalid) => (StatusCode::BAD_REQUEST, "invalid"),
            Cause::Kind(ErrorKind::NotFound) => (StatusCode::NOT_FOUND, "not_found"),
            Cause::Kind(ErrorKind::Conflict) => (StatusCode::CONFLICT, "conflict"),
            Cause::Kind(ErrorKind::Unavailable) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            Cause::Kind(ErrorKind::Corrupt | ErrorKind::Internal) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal")
            }
        };
        let message = if status == StatusCode::INTERNAL_SERVER_ERROR {
            error!(request_id, error = self.message, "cannot answer a request");
            "a fault inside; the log says more under this request_id"
        } else {
            &self.message
        };
        let body = Json(Body { request_id, error_code, message });
        match status {
            StatusCode::SERVICE_UNAVAILABLE => (status, [(RETRY_AFTER, RETRY_SECONDS)], body).into_response(),
            _ => (status, body).into_response(),
        }
    }
}

/// The answer to a path that there is not; for whoever puts the program's router together.
pub async fn not_found() -> ApiError {
    ApiError::new(ErrorKind::NotFound, "there is no such path; GET /v1/metrics lists the metrics")
}

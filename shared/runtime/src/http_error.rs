//! The body of every HTTP error, whichever layer's path it is: `{"request_id", "error_code", "message"}`.
//!
//! A handler answers an error with a status and a text. The HTTP server makes an [`ErrorBody`] of these, in one place for
//! all paths. This file must not know an HTTP library or a status.
//!
//! Stability contract: the names of the fields are part of the HTTP API.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use wye_domain::ErrorKind;

use crate::unique;

/// What a client receives of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Identifies the request in the server log; unique over all processes.
    pub request_id: String,
    /// What is wrong, for programs: one of a fixed set.
    pub error_code: String,
    /// What is wrong and what to do, for people.
    pub message: String,
}

impl ErrorBody {
    /// The body of an error with a message for the client.
    pub fn new(error_code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { request_id: request_id(), error_code: error_code.into(), message: message.into() }
    }

    /// The body of an internal error, which refers the client to the server log.
    pub fn internal() -> Self {
        let request_id = request_id();
        let message = format!("internal error; see the server log for request_id {request_id}");
        Self { request_id, error_code: ErrorKind::Internal.name().to_owned(), message }
    }
}

fn request_id() -> String {
    static PROCESS: LazyLock<String> = LazyLock::new(unique::name);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{:x}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

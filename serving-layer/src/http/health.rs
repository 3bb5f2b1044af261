//! Whether the process lives, whether its answers can be used, and what it says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use wye_domain::ErrorKind;

use super::Api;
use super::error::ApiError;

impl Api {
    /// What is still missing before answers can be used.
    pub(crate) fn waits_for(&self) -> Option<&'static str> {
        if !self.hub.caught_up() {
            return Some("the realtime views are being read");
        }
        (!self.looked.load(Ordering::Acquire)).then_some("the batch view is being loaded")
    }
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Result<&'static str, ApiError> {
    match api.waits_for() {
        None => Ok("ready\n"),
        Some(reason) => Err(ApiError::new(ErrorKind::Unavailable, reason)),
    }
}

pub(super) async fn telemetry(State(api): State<Arc<Api>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.telemetry.render()).into_response()
}

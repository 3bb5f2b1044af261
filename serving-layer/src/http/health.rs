//! Whether the process lives, whether its answers can be used, and what it says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use wye_domain::ErrorKind;
use wye_runtime::clock::now_micros;

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

    /// What is wrong with a process that has started, or nothing.
    fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.probes.iter().filter_map(|probe| probe()).collect();
        let stalled = self.hub.stalled(now_micros());
        if !stalled.is_empty() {
            let list = stalled.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            troubles.push(format!(
                "readings of Kafka partition {list} do not reach answers: no speed layer owns it, or it is stuck; \
                 GET /v1/coverage says more"
            ));
        }
        troubles
    }
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Result<&'static str, ApiError> {
    if let Some(reason) = api.waits_for() {
        return Err(ApiError::new(ErrorKind::Unavailable, reason));
    }
    let troubles = api.troubles();
    if troubles.is_empty() {
        return Ok("ready\n");
    }
    Err(ApiError::new(ErrorKind::Unavailable, troubles.join("; ")))
}

pub(super) async fn telemetry(State(api): State<Arc<Api>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.telemetry.render()).into_response()
}

//! Whether the process runs, whether its answers can be used, and its telemetry.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use wye_domain::ErrorKind;

use super::Api;
use super::error::ApiError;
use crate::hub::Starting;

impl Api {
    /// What is wrong with a process that has started; empty where nothing is.
    fn troubles(&self) -> Vec<String> {
        let mut troubles: Vec<String> = self.probes.iter().filter_map(|probe| probe()).collect();
        let stalled = self.hub.read().stalled(self.clock.now());
        if !stalled.is_empty() {
            let list = stalled.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            troubles.push(format!(
                "readings of Kafka partition {list} do not reach answers: no speed layer owns it, or it makes no progress; \
                 see GET /v1/coverage"
            ));
        }
        troubles
    }
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Result<&'static str, ApiError> {
    let starting = api.hub.read().starting();
    let problem = match starting {
        Some(Starting::RealtimeViews) => "the realtime views are being read".to_owned(),
        Some(Starting::BatchView) => "the batch view is being loaded".to_owned(),
        None => api.troubles().join("; "),
    };
    if problem.is_empty() { Ok("ready\n") } else { Err(ApiError::new(ErrorKind::Unavailable, problem)) }
}

pub(super) async fn telemetry(State(api): State<Arc<Api>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], api.telemetry.render()).into_response()
}

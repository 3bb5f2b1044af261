//! HTTP over the merge: definitions, current values, series, coverage, SQL, health.
//!
//! `current` never runs SQL and copies no large map; whatever computes runs on the query threads. This file only says
//! which path is answered by what.

mod answer;
mod coverage;
mod current;
mod encode;
pub mod error;
mod health;
mod metrics;
mod params;
mod range;
mod runs;
mod series;
pub mod server;
mod sql;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use futures::future::BoxFuture;
use wye_domain::ErrorKind;
use wye_runtime::clock::now_micros;
use wye_runtime::telemetry::Telemetry;

pub use encode::readable;

use crate::hub::Hub;
use crate::sql::SqlEngine;
use crate::telemetry::Instruments;
use crate::units::Units;

/// Does a batch run, for `POST /v1/batch-runs`; answers with what it did, as JSON.
pub type BatchTrigger =
    Arc<dyn Fn(BatchRequest) -> BoxFuture<'static, Result<serde_json::Value, BatchRefusal>> + Send + Sync>;

/// Says what is wrong with a part of the process beside this layer; `None` while it is well. It is called for each
/// `GET /readyz` and must not block.
pub type Probe = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// What a batch run is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchRequest {
    /// Whether to recompute even where nothing is new.
    pub force: bool,
}

/// Why there was no batch run.
#[derive(Clone, Debug)]
pub struct BatchRefusal {
    /// What the asker can do about it.
    pub kind: ErrorKind,
    /// What happened, for the asker.
    pub message: String,
}

/// What requests are answered from.
pub(crate) struct Api {
    pub(crate) hub: Arc<Hub>,
    pub(crate) engine: SqlEngine,
    pub(crate) units: Arc<Units>,
    pub(crate) telemetry: Telemetry,
    pub(crate) instruments: Instruments,
    /// Whether the batch views were looked at, and loaded if there were any.
    pub(crate) looked: Arc<AtomicBool>,
    pub(crate) batch_trigger: Option<BatchTrigger>,
    /// What else has to be well before `/readyz` says so.
    pub(crate) probes: Vec<Probe>,
    /// How long a question may wait for a position.
    pub(crate) max_wait: Duration,
    /// When the process started (µs), so that entity tags of another process never match.
    pub(crate) started: i64,
}

/// All paths of the serving layer. It has no fallback, so that it can be merged with another router; see
/// [`error::not_found`].
pub(crate) fn router(api: Arc<Api>) -> Router {
    let instruments = api.instruments.clone();
    Router::new()
        .route("/v1/metrics", get(metrics::list))
        .route("/v1/metrics/{name}/current", get(current::current))
        .route("/v1/metrics/{name}/series", get(series::series))
        .route("/v1/coverage", get(coverage::coverage))
        .route("/v1/sql", post(sql::sql))
        .route("/v1/batch-runs", post(runs::run))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::telemetry))
        .layer(axum::middleware::map_response_with_state(instruments, count_errors))
        .with_state(api)
}

/// The header in which an answer to a write says the position behind it.
const POSITION: &str = "wye-position";

/// Notes the positions that a router's answers carry in the header `Wye-Position`, so that answers that lack what was
/// written say so from then on.
pub(crate) fn watch_writes(router: Router, hub: Arc<Hub>) -> Router {
    router.layer(axum::middleware::map_response_with_state(hub, note_written))
}

async fn note_written(State(hub): State<Arc<Hub>>, response: Response) -> Response {
    let position = response.headers().get(POSITION).and_then(|position| position.to_str().ok()?.parse().ok());
    if let Some(position) = position {
        hub.note_written(&position, now_micros());
    }
    response
}

async fn count_errors(State(instruments): State<Instruments>, response: Response) -> Response {
    if response.status().is_client_error() || response.status().is_server_error() {
        instruments.refused.inc();
    }
    response
}

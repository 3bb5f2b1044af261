//! HTTP over the merge: definitions, current values, series, coverage, SQL, health.
//!
//! `current` never runs SQL and copies no large map; computation runs on the query threads. This file only has the paths
//! with their handlers, and what these work with.

mod answer;
mod coverage;
mod current;
mod encode;
mod error;
mod health;
mod metrics;
mod params;
mod range;
mod runs;
mod series;
pub(crate) mod server;
mod sql;
#[cfg(test)]
mod tests;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{get, post};
use futures::future::BoxFuture;
use wye_domain::ErrorKind;
use wye_domain::time::{Micros, Window};
use wye_runtime::telemetry::Telemetry;

pub use encode::readable;
pub(crate) use error::not_found;

use crate::hub::{Hub, Input};
use crate::sql::SqlEngine;
use crate::telemetry::Instruments;
use crate::units::Units;
use wye_runtime::clock::Clock;

/// Does a batch run, for `POST /v1/batch-runs`; answers with its report, as JSON.
pub type BatchTrigger =
    Arc<dyn Fn(BatchRequest) -> BoxFuture<'static, Result<serde_json::Value, BatchRefusal>> + Send + Sync>;

/// Says what is wrong with another part of the process; `None` where nothing is. It is called for each `GET /readyz` and
/// must not block.
pub type Probe = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// What a batch run should do.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchRequest {
    /// Whether to compute everything, even if nothing is new.
    pub force: bool,
    /// A stretch of time that is computed even if nothing is new.
    pub again: Option<Window>,
}

/// Why there was no batch run.
#[derive(Clone, Debug)]
pub struct BatchRefusal {
    /// What the client can do about it.
    pub kind: ErrorKind,
    /// What happened, for the client.
    pub message: String,
}

/// What requests are answered from.
pub(crate) struct Api {
    pub(crate) hub: Arc<Hub>,
    pub(crate) engine: SqlEngine,
    pub(crate) units: Arc<Units>,
    pub(crate) telemetry: Telemetry,
    pub(crate) instruments: Instruments,
    pub(crate) batch_trigger: Option<BatchTrigger>,
    /// The other parts of the process that `/readyz` asks.
    pub(crate) probes: Vec<Probe>,
    /// The longest time that a question may wait for a position.
    pub(crate) max_wait: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    /// When the layer started, so that entity tags of another process never match.
    pub(crate) started: Micros,
}

/// All paths of the serving layer. It has no fallback, so that it can be merged with another router; see [`not_found`].
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

/// The header of an answer to a write, with the position after it.
const POSITION: &str = "wye-position";

/// Notes the positions in the header `Wye-Position` of a router's answers, so that answers that lack what was written say
/// so from then on.
pub(crate) fn watch_writes(router: Router, hub: Arc<Hub>, clock: Arc<dyn Clock>) -> Router {
    router.layer(axum::middleware::map_response_with_state((hub, clock), note_written))
}

async fn note_written(
    State((hub, clock)): State<(Arc<Hub>, Arc<dyn Clock>)>,
    response: Response,
) -> Response {
    let position = response.headers().get(POSITION).and_then(|position| position.to_str().ok()?.parse().ok());
    if let Some(position) = position {
        hub.step(Input::Written { position: &position, at: clock.now() });
    }
    response
}

async fn count_errors(State(instruments): State<Instruments>, response: Response) -> Response {
    if response.status().is_client_error() || response.status().is_server_error() {
        instruments.refused.inc();
    }
    response
}

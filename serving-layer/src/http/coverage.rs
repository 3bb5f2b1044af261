//! `GET /v1/coverage`: what answers cover of the log now, for each Kafka partition.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use wye_domain::place::{Generation, KafkaPartition, Offset};
use wye_domain::time::Micros;
use wye_tables::views::ViewVersion;

use super::Api;
use super::answer::{Covered, seconds};
use super::error::ApiError;
use super::wait::Wait;
use crate::coverage::{Coverage, PartitionCoverage, Reason};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    after: Option<String>,
    wait: Option<String>,
}

#[derive(Serialize)]
struct Body {
    complete: bool,
    /// The version of the batch view.
    version: Option<ViewVersion>,
    horizon: String,
    #[serde(flatten)]
    covered: Covered,
    kafka_partitions: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    kafka_partition: KafkaPartition,
    horizon: Option<Offset>,
    covered: Offset,
    log_end: Option<Offset>,
    lacking: Option<u64>,
    lacking_seconds: f64,
    generation: Option<Generation>,
    complete: bool,
    reason: Option<&'static str>,
}

impl Row {
    fn of(partition: &PartitionCoverage, now: Micros) -> Self {
        Self {
            kafka_partition: partition.kafka_partition,
            horizon: partition.horizon,
            covered: partition.covered,
            log_end: partition.log_end,
            lacking: partition.lacking(),
            lacking_seconds: seconds(partition.lacking_for(now)),
            generation: partition.generation,
            complete: partition.reason.is_none(),
            reason: partition.reason.map(Reason::name),
        }
    }
}

pub(super) async fn coverage(
    State(api): State<Arc<Api>>,
    query: Result<Query<Parameters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(asked) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let wait = Wait::read((asked.after.as_deref(), asked.wait.as_deref()), &headers, &api)?;
    let coverage = loop {
        wait.until_covered(&api).await?;
        let coverage = api.hub.read().coverage(api.clock.now());
        if wait.is_covered_by(&coverage) {
            break coverage;
        }
    };
    let Coverage { kafka_partitions, now, .. } = &coverage;
    let body = Body {
        complete: coverage.complete(),
        version: coverage.version,
        horizon: coverage.horizon_position().to_string(),
        covered: Covered::of(&coverage),
        kafka_partitions: kafka_partitions.iter().map(|partition| Row::of(partition, *now)).collect(),
    };
    Ok(([(CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(body)).into_response())
}

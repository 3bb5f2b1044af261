//! `GET /v1/metrics`: what is defined.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use wye_domain::definition::{Aggregate, Dimension};

use super::Api;

#[derive(Serialize)]
pub(super) struct Body {
    metrics: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    help: String,
    unit: String,
    #[serde(rename = "where")]
    filter: Option<String>,
    value: String,
    dimensions: Vec<Dimension>,
    window: String,
    rollups: Vec<String>,
    aggregates: Vec<&'static str>,
    /// Of a family: the reading names that there are, each a metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics: Option<Vec<Arc<str>>>,
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Body> {
    let directory = api.hub.directory();
    let plans = directory.plans().plans().iter().enumerate();
    let metrics = plans
        .map(|(place, plan)| {
            let definition = plan.definition();
            Entry {
                name: definition.name.clone(),
                help: definition.help.clone(),
                unit: definition.unit.clone(),
                filter: definition.filter.clone(),
                value: definition.value.clone(),
                dimensions: definition.dimensions.clone(),
                window: definition.window.to_string(),
                rollups: definition.rollups.iter().map(ToString::to_string).collect(),
                aggregates: definition.aggregates.iter().copied().map(Aggregate::name).collect(),
                metrics: definition.is_family().then(|| directory.metrics(place)),
            }
        })
        .collect();
    Json(Body { metrics })
}

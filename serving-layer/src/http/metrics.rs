//! `GET /v1/metrics`: what is defined.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::value::RawValue;
use wye_domain::time::format_rfc3339;
use wye_metrics::definition::{Aggregate, Dimension};
use wye_metrics::failures::{FailedReading, Failure};

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
    /// By metric of a family: the unit that its readings carry.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    units: BTreeMap<Arc<str>, String>,
    /// The readings that the last batch run could not compute for this definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    errors: Option<Errors>,
}

#[derive(Serialize)]
struct Errors {
    /// How many readings match the definition and make its expressions fail.
    readings: u64,
    /// One of them.
    example: Example,
}

#[derive(Serialize)]
struct Example {
    message: String,
    device_id: String,
    metric: String,
    value: f64,
    event_time: String,
    tags: Option<Box<RawValue>>,
}

impl Errors {
    fn new(failure: &Failure) -> Self {
        let FailedReading { message, device_id, metric, value, event_time, tags } = failure.example.clone();
        let tags = tags.and_then(|tags| RawValue::from_string(tags).ok());
        let event_time = format_rfc3339(event_time);
        let example = Example { message, device_id, metric, value, event_time, tags };
        Self { readings: failure.readings, example }
    }
}

pub(super) async fn list(State(api): State<Arc<Api>>) -> Json<Body> {
    let directory = api.hub.directory();
    let failures = api.hub.read().failures();
    let plans = directory.plans().plans().iter().enumerate();
    let metrics = plans
        .map(|(index, plan)| {
            let definition = plan.definition();
            let names = definition.is_family().then(|| directory.metrics(index));
            let without_unit = names.iter().flatten().filter(|_| definition.unit.is_empty());
            let units =
                without_unit.filter_map(|name| Some((Arc::clone(name), api.units.of(name)?))).collect();
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
                metrics: names,
                units,
                errors: failures.of(&definition.name).map(Errors::new),
            }
        })
        .collect();
    Json(Body { metrics })
}

//! `GET /v1/metrics/{name}/current`: the newest window of each series, straight from the hub.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use wye_runtime::clock::now_micros;

use super::Api;
use super::answer::{Group, Head, Point, Tag};
use super::error::ApiError;
use super::params::{Choice, Metric, Pairs};

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    rows: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    metric_key: &'a str,
    group: Group<'a>,
    #[serde(flatten)]
    point: Point<'a>,
}

pub(super) async fn current(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    query: Result<Query<Pairs>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(pairs) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let directory = api.hub.directory();
    let metric = Metric::find(directory, &name)?;
    let choice = Choice::read(&metric, &[], pairs)?;
    let now = now_micros();
    let tag = Tag::of(&api, api.hub.position(), now);
    if let Some(unchanged) = tag.unchanged(&headers) {
        return Ok(unchanged);
    }
    let taken = api.hub.current(&choice.series(directory, &metric), now);
    let tag = Tag { position: taken.position, complete: taken.complete, ..tag };
    let rows = taken
        .answers
        .iter()
        .map(|(info, answer)| Row {
            metric_key: &info.metric_key,
            group: Group::new(&metric, info),
            point: Point::new(&choice, answer),
        })
        .collect();
    Ok(tag.answer(Body { head: Head::new(&metric, taken.complete, taken.horizon), rows }))
}

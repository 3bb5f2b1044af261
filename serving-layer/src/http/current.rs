//! `GET /v1/metrics/{name}/current`: the newest window of each series, straight from the hub.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;

use super::Api;
use super::answer::{Group, Head, Point, Tag};
use super::error::ApiError;
use super::params::{Choice, Metric, Pairs};
use super::wait::Wait;

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
    let Query(mut pairs) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let wait = Wait::take(&mut pairs, &headers, &api)?;
    wait.until_covered(&api).await?;
    let directory = api.hub.directory();
    let metric = Metric::find(&api, &name)?;
    let choice = Choice::read(&metric, &[], pairs)?;
    let taken = loop {
        let now = api.clock.now();
        if let Some(unchanged) = api.tag(now).unchanged(&headers) {
            return Ok(unchanged);
        }
        let series = choice.series(directory, &metric);
        let taken = api.hub.read().current(&series, now);
        if wait.is_covered_by(&taken.coverage) {
            break taken;
        }
        wait.until_covered(&api).await?;
    };
    let rows = taken
        .answers
        .iter()
        .map(|(info, answer)| Row {
            metric_key: &info.metric_key,
            group: Group::new(&metric, info),
            point: Point::new(&choice, answer),
        })
        .collect();
    let tag = Tag::of(&api, taken.edition, &taken.coverage);
    Ok(tag.answer(Body { head: Head::new(&metric, &taken.coverage), rows }))
}

//! `GET /v1/metrics/{name}/series`: windows over a range of time, longer ones by merging summaries.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use wye_domain::time::{WindowSize, format_rfc3339};
use wye_runtime::clock::now_micros;

use super::Api;
use super::answer::{Group, Head, Point, Tag};
use super::error::ApiError;
use super::params::{Choice, Metric, Pairs, time};
use super::range::Question;

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    step: String,
    from: String,
    to: String,
    series: Vec<Series<'a>>,
}

#[derive(Serialize)]
struct Series<'a> {
    metric_key: &'a str,
    group: Group<'a>,
    points: Vec<Point<'a>>,
}

pub(super) async fn series(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    query: Result<Query<Pairs>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(pairs) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let directory = Arc::clone(api.hub.directory());
    let metric = Metric::find(&directory, &name)?;
    let choice = Choice::read(&metric, &["from", "to", "step"], pairs)?;
    let now = now_micros();
    let [from, to, step] = choice.others.as_slice() else { unreachable!("three parameters were asked for") };
    let from = time("from", from.as_deref().unwrap_or("-1h"), now)?;
    let to = time("to", to.as_deref().unwrap_or("now"), now)?;
    let step = read_step(&metric, step.as_deref())?;
    if from >= to {
        return Err(ApiError::invalid("from must lie before to"));
    }
    let tag = Tag::of(&api, api.hub.position(), now);
    if let Some(unchanged) = tag.unchanged(&headers) {
        return Ok(unchanged);
    }
    // The window that holds `from` is the first, the one that holds the last moment before `to` the last; all whole.
    let windows = step.start_of(from)..step.start_of(to.saturating_sub(1)).saturating_add(step.micros());
    let infos = choice.series(&directory, &metric);
    let capture = api.hub.capture();
    let context = api.engine.runtime().task_context();
    let question = Question { infos, windows: windows.clone(), step, now };
    let (complete, position) = (capture.complete, capture.position);
    let horizon = capture.snapshot.as_ref().map(|snapshot| snapshot.horizon().clone());
    let shared = Arc::clone(&directory);
    let asked = async move { question.answer(&capture, &shared, &context).await };
    let answers = api.engine.runtime().run(asked).await??;
    let series = answers
        .iter()
        .map(|(info, answers)| Series {
            metric_key: &info.metric_key,
            group: Group::new(&metric, info),
            points: answers.iter().map(|answer| Point::new(&choice, answer)).collect(),
        })
        .collect();
    Ok(Tag { position, complete, ..tag }.answer(Body {
        head: Head::new(&metric, complete, horizon),
        step: step.to_string(),
        from: format_rfc3339(windows.start),
        to: format_rfc3339(windows.end),
        series,
    }))
}

fn read_step(metric: &Metric<'_>, text: Option<&str>) -> Result<WindowSize, ApiError> {
    let window = metric.definition.window;
    let Some(text) = text else { return Ok(window) };
    let refuse = || {
        ApiError::invalid(format!(
            "step: {text:?} is not a multiple of the window of {window}, such as {window}"
        ))
    };
    WindowSize::parse(text).ok().filter(|step| step.is_multiple_of(window)).ok_or_else(refuse)
}

//! `GET /v1/metrics/{name}/series`: windows over a range of time, longer ones by merging summaries.

use std::ops::Range;
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
use super::wait::Patience;

/// How many steps of the newest data are answered where nothing says from when on.
const NEWEST: i64 = 60;

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    step: String,
    from: String,
    to: String,
    /// Where the series that were asked for have data; null where they have none.
    available: Option<Available>,
    series: Vec<Series<'a>>,
}

/// From the oldest to the end of the newest window.
#[derive(Serialize)]
struct Available {
    from: String,
    to: String,
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
    let Query(mut pairs) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
    let patience = Patience::take(&mut pairs, &headers, api.max_wait)?;
    patience.hold(&api).await?;
    let directory = Arc::clone(api.hub.directory());
    let metric = Metric::find(&api, &name)?;
    let choice = Choice::read(&metric, &["from", "to", "step"], pairs)?;
    let step = read_step(&metric, choice.other(2))?;
    let infos = choice.series(&directory, &metric);
    let (capture, available, windows) = loop {
        let now = now_micros();
        let available = api.hub.available(&infos);
        let windows = windows((choice.other(0), choice.other(1)), available, step, now)?;
        let tag = Tag::of(&api, api.hub.edition(), &api.hub.coverage(now));
        if let Some(unchanged) = tag.unchanged(&headers) {
            return Ok(unchanged);
        }
        let capture = api.hub.capture(now);
        if patience.is_met(&capture.coverage) {
            break (capture, available, windows);
        }
        patience.hold(&api).await?;
    };
    let context = api.engine.runtime().task_context();
    let (coverage, edition) = (Arc::clone(&capture.coverage), capture.edition);
    let question = Question { infos, windows: windows.clone(), step, now: coverage.now };
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
    Ok(Tag::of(&api, edition, &coverage).answer(Body {
        head: Head::new(&metric, &coverage),
        step: step.to_string(),
        from: format_rfc3339(windows.start),
        to: format_rfc3339(windows.end),
        available: available
            .map(|(from, to)| Available { from: format_rfc3339(from), to: format_rfc3339(to) }),
        series,
    }))
}

/// The starts of the windows (µs) that are asked for, all whole: the one that holds `from` is the first, the one that
/// holds the last moment before `to` the last. Without `from` they are the newest that have data, [`NEWEST`] steps.
fn windows(
    (from, to): (Option<&str>, Option<&str>),
    available: Option<(i64, i64)>,
    step: WindowSize,
    now: i64,
) -> Result<Range<i64>, ApiError> {
    let newest = available.map(|(_, newest)| newest);
    let to = match (to, from) {
        (Some(to), _) => time("to", to, now)?,
        // Clocks of devices may be ahead.
        (None, Some(_)) => now.max(newest.unwrap_or(now)),
        (None, None) => newest.unwrap_or(now),
    };
    let end = step.start_of(to.saturating_sub(1)).saturating_add(step.micros());
    let Some(from) = from else {
        return Ok(end.saturating_sub(step.micros().saturating_mul(NEWEST))..end);
    };
    let from = time("from", from, now)?;
    if from >= to {
        return Err(ApiError::invalid("from must lie before to"));
    }
    Ok(step.start_of(from)..end)
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

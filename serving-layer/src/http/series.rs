//! `GET /v1/metrics/{name}/series`: windows over a range of time, longer ones by merging summaries.

use std::ops::Range;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;
use wye_domain::time::{Micros, Span, WindowSize, format_rfc3339};

use super::Api;
use super::answer::{Group, Head, Point, Tag};
use super::error::ApiError;
use super::params::{Choice, Metric, Pairs, time};
use super::range;
use super::wait::Wait;
use crate::windows::Question;

/// How many steps of the newest data are answered where `from` is not given.
const NEWEST: i64 = 60;

/// The parameters of this path, in the order of [`Choice::other`].
const OWN: [&str; 3] = ["from", "to", "step"];

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

/// From the start of the oldest to the end of the newest window.
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
    let wait = Wait::take(&mut pairs, &headers, &api)?;
    wait.until_covered(&api).await?;
    let directory = Arc::clone(api.hub.directory());
    let metric = Metric::find(&api, &name)?;
    let choice = Choice::read(&metric, &OWN, pairs)?;
    let [from, to, step] = [0, 1, 2].map(|index| choice.other(index));
    let step = read_step(&metric, step)?;
    let infos = choice.series(&directory, &metric);
    let (capture, available, windows) = loop {
        let now = api.clock.now();
        let available = api.hub.read().available(&infos);
        let windows = windows((from, to), available.as_ref(), step, now)?;
        if let Some(unchanged) = api.tag(now).unchanged(&headers) {
            return Ok(unchanged);
        }
        let capture = api.hub.capture(now);
        if wait.is_covered_by(&capture.coverage) {
            break (capture, available, windows);
        }
        wait.until_covered(&api).await?;
    };
    let (coverage, edition) = (Arc::clone(&capture.coverage), capture.edition);
    let question = Question { infos, windows: windows.clone(), step };
    let runtime = api.engine.runtime();
    let answers = runtime.run(range::answer(question, capture, directory, runtime.task_context())).await??;
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
        available: available.map(|available| Available {
            from: format_rfc3339(available.start),
            to: format_rfc3339(available.end),
        }),
        series,
    }))
}

/// The starts of the windows that are asked for, all whole: the one that holds `from` is the first, the one that
/// holds the last moment before `to` the last. Without `from` they are the newest that have data, [`NEWEST`] steps.
fn windows(
    (from, to): (Option<&str>, Option<&str>),
    available: Option<&Range<Micros>>,
    step: WindowSize,
    now: Micros,
) -> Result<Range<Micros>, ApiError> {
    let newest = available.map(|available| available.end);
    let to = match (to, from) {
        (Some(to), _) => time("to", to, now)?,
        // Clocks of devices may be ahead.
        (None, Some(_)) => now.max(newest.unwrap_or(now)),
        (None, None) => newest.unwrap_or(now),
    };
    let end = step.start_of(to - Span(1)) + step.span();
    let Some(from) = from else {
        return Ok(end - step.span() * NEWEST..end);
    };
    let from = time("from", from, now)?;
    if from >= to {
        return Err(ApiError::invalid("from must be before to"));
    }
    Ok(step.start_of(from)..end)
}

fn read_step(metric: &Metric<'_>, text: Option<&str>) -> Result<WindowSize, ApiError> {
    let window = metric.definition.window;
    let Some(text) = text else { return Ok(window) };
    WindowSize::parse(text).ok().filter(|step| step.is_multiple_of(window)).ok_or_else(|| {
        ApiError::invalid(format!(
            "step: {text:?} is not a multiple of the window of {window}, such as {window}"
        ))
    })
}

//! How an answer is written as JSON, and how a client's copy of it is recognised.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::ser::SerializeMap;
use wye_domain::time::{SECOND, format_rfc3339};
use wye_metrics::definition::Aggregate;

use super::Api;
use super::params::{Choice, Metric};
use crate::coverage::{Coverage, Reason};
use crate::directory::SeriesInfo;
use crate::hub::Edition;
use wye_metrics::merge::Answer;

/// How long a confidence that changes with time alone may be taken for the same, in µs.
const SCORES_LAST: i64 = 10 * SECOND;

/// What every answer about a metric begins with.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    pub(super) metric: &'a str,
    pub(super) definition: &'a str,
    pub(super) unit: &'a str,
    pub(super) window: String,
    /// Whether this holds every reading that is known to be in the log.
    pub(super) complete: bool,
    /// Per Kafka partition the offset below which readings are from the batch view.
    pub(super) horizon: Option<&'a BTreeMap<i32, i64>>,
    pub(super) coverage: Covered,
}

/// What an answer covers of the log, in short; `GET /v1/coverage` says it for each Kafka partition.
#[derive(Serialize)]
pub(super) struct Covered {
    /// Readings below are in the answer: `KAFKA_PARTITION:OFFSET,..`.
    covered: String,
    /// How many records of the log are not; null where the log cannot be asked.
    lacking: Option<i64>,
    /// How long the oldest of them has been in the log.
    lacking_seconds: f64,
    /// Why the answer is incomplete.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl Covered {
    pub(super) fn of(coverage: &Coverage) -> Self {
        Self {
            covered: coverage.covered().to_string(),
            lacking: coverage.lacking(),
            lacking_seconds: seconds(coverage.lacking_for()),
            reason: coverage.reason().map(Reason::name),
        }
    }
}

/// Microseconds as seconds with three decimals.
pub(super) fn seconds(micros: i64) -> f64 {
    (micros as f64 / 1e3).round() / 1e3
}

impl<'a> Head<'a> {
    pub(super) fn new(metric: &'a Metric<'_>, coverage: &'a Coverage) -> Self {
        Self {
            metric: &metric.name,
            definition: &metric.definition.name,
            unit: &metric.unit,
            window: metric.definition.window.to_string(),
            complete: coverage.complete(),
            horizon: coverage.horizon.as_ref(),
            coverage: Covered::of(coverage),
        }
    }
}

/// The group of a series, dimension by dimension.
pub(super) struct Group<'a> {
    names: Vec<&'a str>,
    info: &'a SeriesInfo,
}

impl<'a> Group<'a> {
    pub(super) fn new(metric: &'a Metric<'_>, info: &'a SeriesInfo) -> Self {
        Self { names: metric.definition.dimension_names(), info }
    }
}

impl Serialize for Group<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.names.len()))?;
        for (name, value) in self.names.iter().zip(&*self.info.key.group) {
            map.serialize_entry(name, &value.as_deref())?;
        }
        map.end()
    }
}

/// One series in one window.
#[derive(Serialize)]
pub(super) struct Point<'a> {
    window_start: String,
    window_end: String,
    value: Option<Number>,
    values: Values<'a>,
    data_points: u64,
    last_updated: String,
    source: &'static str,
    confidence: Trust,
    state: &'static str,
}

#[derive(Serialize)]
struct Trust {
    score: f64,
    completeness: f64,
    validity: f64,
    expected: Option<f64>,
    expected_source: &'static str,
}

/// A number as people expect it: counts are whole.
#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Real(f64),
}

struct Values<'a> {
    aggregates: &'a [Aggregate],
    answer: &'a Answer,
}

impl<'a> Point<'a> {
    pub(super) fn new(choice: &'a Choice, answer: &'a Answer) -> Self {
        let confidence = &answer.scored.confidence;
        Self {
            window_start: format_rfc3339(answer.window_start),
            window_end: format_rfc3339(answer.window_end),
            value: number(choice.value, answer),
            values: Values { aggregates: &choice.aggregates, answer },
            data_points: answer.summary.count,
            last_updated: format_rfc3339(answer.summary.last.event_time),
            source: answer.source.name(),
            confidence: Trust {
                score: (confidence.score * 100.0).round() / 100.0,
                completeness: confidence.completeness,
                validity: confidence.validity,
                expected: confidence.expected,
                expected_source: answer.scored.expected_source.name(),
            },
            state: answer.state.name(),
        }
    }
}

impl Serialize for Values<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.aggregates.len()))?;
        for aggregate in self.aggregates {
            map.serialize_entry(aggregate.name(), &number(*aggregate, self.answer))?;
        }
        map.end()
    }
}

fn number(aggregate: Aggregate, answer: &Answer) -> Option<Number> {
    match aggregate {
        Aggregate::Count => Some(Number::Whole(answer.summary.count)),
        Aggregate::DistinctDevices => answer.summary.distinct_devices().map(Number::Whole),
        other => other.finish(&answer.summary).map(Number::Real),
    }
}

/// Tells one state of the data from another, for the caches of clients.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    started: i64,
    edition: Edition,
    complete: bool,
    lacking: Option<i64>,
    now: i64,
}

impl Tag {
    /// Of an answer with this coverage.
    pub(super) fn of(api: &Arc<Api>, edition: Edition, coverage: &Coverage) -> Self {
        Self {
            started: api.started,
            edition,
            complete: coverage.complete(),
            lacking: coverage.lacking(),
            now: coverage.now,
        }
    }

    fn header(&self) -> HeaderValue {
        let Edition { version, changes } = self.edition;
        let text = format!(
            "W/\"{:x}-{version}-{changes}-{}-{}-{}\"",
            self.started,
            u8::from(self.complete),
            self.lacking.unwrap_or(-1),
            self.now.div_euclid(SCORES_LAST)
        );
        HeaderValue::from_str(&text).expect("hexadecimal and decimal digits are a header value")
    }

    /// Whether the client has this state already; then the answer is empty.
    pub(super) fn unchanged(&self, headers: &HeaderMap) -> Option<Response> {
        let given = headers.get(IF_NONE_MATCH)?.to_str().ok()?;
        let mine = self.header();
        let same = given.split(',').any(|tag| tag.trim().as_bytes() == mine.as_bytes());
        same.then(|| (StatusCode::NOT_MODIFIED, [(ETAG, mine), (CACHE_CONTROL, NO_CACHE)]).into_response())
    }

    /// An answer with its tag.
    pub(super) fn answer(&self, body: impl Serialize) -> Response {
        ([(ETAG, self.header()), (CACHE_CONTROL, NO_CACHE)], Json(body)).into_response()
    }
}

/// A copy may be kept, but has to be checked.
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

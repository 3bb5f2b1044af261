//! How an answer is written as JSON, and how a client's cached answer is recognised.

use axum::Json;
use axum::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::ser::SerializeMap;
use wye_domain::horizon::Horizon;
use wye_domain::time::{Micros, Span, format_rfc3339};
use wye_metrics::definition::Aggregate;
use wye_metrics::merge::Answer;

use super::Api;
use super::params::{Choice, Metric};
use crate::coverage::{Coverage, Reason};
use crate::directory::SeriesInfo;
use crate::hub::Edition;

/// How long a confidence that changes with time alone counts as unchanged.
const SCORES_LAST: Span = Span::from_secs(10);

/// What every answer about a metric begins with.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    pub(super) metric: &'a str,
    pub(super) definition: &'a str,
    pub(super) unit: &'a str,
    pub(super) window: String,
    /// Whether this holds every reading that is known to be in the log.
    pub(super) complete: bool,
    /// The offsets below which readings are from the batch view.
    pub(super) horizon: Option<&'a Horizon>,
    pub(super) coverage: Covered,
}

/// What an answer covers of the log, in short; `GET /v1/coverage` shows each Kafka partition.
#[derive(Serialize)]
pub(super) struct Covered {
    /// Readings below are in the answer: `KAFKA_PARTITION:OFFSET,..`.
    covered: String,
    /// How many records of the log are not; null where the log does not answer.
    lacking: Option<u64>,
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

/// Seconds with three decimals.
pub(super) fn seconds(span: Span) -> f64 {
    (span.0 as f64 / 1e3).round() / 1e3
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
    last_updated: Option<String>,
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

/// A number as it is shown: counts are whole.
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
        let confidence = &answer.confidence;
        Self {
            window_start: format_rfc3339(answer.window_start),
            window_end: format_rfc3339(answer.window_end),
            value: number(choice.value, answer),
            values: Values { aggregates: &choice.aggregates, answer },
            data_points: answer.summary.count,
            last_updated: answer.last_updated().map(format_rfc3339),
            source: answer.source.name(),
            confidence: Trust {
                score: (confidence.score * 100.0).round() / 100.0,
                completeness: confidence.completeness,
                validity: confidence.validity,
                expected: confidence.expected,
                expected_source: confidence.expected_source.name(),
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
#[derive(Clone, Debug)]
pub(super) struct Tag(String);

impl Api {
    /// The tag of an answer at `now`.
    pub(super) fn tag(&self, now: Micros) -> Tag {
        let state = self.hub.read();
        Tag::of(self, state.edition(), &state.coverage(now))
    }
}

impl Tag {
    /// Of an answer with this coverage.
    pub(super) fn of(api: &Api, edition: Edition, coverage: &Coverage) -> Self {
        let text = format!(
            "W/\"{:x}-{}-{}-{}-{}-{}\"",
            api.started.0,
            shown(edition.version),
            edition.changes,
            if coverage.complete() { "complete" } else { "incomplete" },
            shown(coverage.lacking()),
            coverage.now.0.div_euclid(SCORES_LAST.0)
        );
        Self(text)
    }

    /// The answer without a body, where the client has this state already.
    pub(super) fn unchanged(&self, headers: &HeaderMap) -> Option<Response> {
        let given = headers.get(IF_NONE_MATCH)?.to_str().ok()?;
        let same = given.split(',').any(|tag| tag.trim() == self.0);
        same.then(|| (StatusCode::NOT_MODIFIED, self.headers()).into_response())
    }

    /// An answer with its tag.
    pub(super) fn answer(&self, body: impl Serialize) -> Response {
        (self.headers(), Json(body)).into_response()
    }

    fn headers(&self) -> [(HeaderName, &str); 2] {
        // A client may keep the answer, but has to check it.
        [(ETAG, &self.0), (CACHE_CONTROL, "no-cache")]
    }
}

fn shown(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "none".to_owned(), |number| number.to_string())
}

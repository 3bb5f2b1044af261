//! `after` and `wait`: a question that names a position is answered once its answer covers it (read your writes).
//!
//! They are parameters of the query, or the headers `Wye-After` and `Wye-Wait`.

use std::time::Duration;

use axum::http::HeaderMap;
use wye_domain::place::Offset;
use wye_domain::position::Position;
use wye_domain::time::WindowSize;

use super::Api;
use super::error::ApiError;
use super::params::Pairs;
use crate::coverage::Coverage;

/// The header that names a position, in place of the parameter `after`.
const AFTER: &str = "wye-after";
/// The header that says how long to wait for it, in place of the parameter `wait`.
const WAIT: &str = "wye-wait";
/// How long a question waits for its position where it does not say.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// The parameters.
pub(super) const PARAMETERS: [&str; 2] = ["after", "wait"];

/// The position that a question waits for.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    after: Position,
    longest: Duration,
    /// When it ends, on the monotonic clock.
    deadline: Duration,
}

impl Wait {
    /// Removes `after` and `wait` from the parameters and reads them.
    pub(super) fn take(pairs: &mut Pairs, headers: &HeaderMap, api: &Api) -> Result<Self, ApiError> {
        let [after, wait] = PARAMETERS.map(|own| take_last(pairs, own));
        Self::read((after.as_deref(), wait.as_deref()), headers, api)
    }

    /// Reads the parameters, or the headers where they are not given.
    pub(super) fn read(
        (after, wait): (Option<&str>, Option<&str>),
        headers: &HeaderMap,
        api: &Api,
    ) -> Result<Self, ApiError> {
        let after = match after.or_else(|| header(headers, AFTER)) {
            None => Position::default(),
            Some(text) => text.parse().map_err(|error| ApiError::invalid(format!("after: {error}")))?,
        };
        let count = api.hub.read().kafka_partitions();
        if let Some((unknown, _)) = after.iter().find(|(kafka_partition, _)| kafka_partition.0 >= count) {
            return Err(ApiError::invalid(format!(
                "after: there is no Kafka partition {unknown}; the readings have 0 to {}",
                count - 1
            )));
        }
        let default = DEFAULT_WAIT.min(api.max_wait);
        let longest = bounded(wait.or_else(|| header(headers, WAIT)), default, api.max_wait)?;
        Ok(Self { after, longest, deadline: api.clock.monotonic() + longest })
    }

    /// Waits until answers cover the position.
    pub(super) async fn until_covered(&self, api: &Api) -> Result<(), ApiError> {
        let left = self.deadline.saturating_sub(api.clock.monotonic());
        if self.after.is_empty() || api.hub.until_covered(&self.after, left).await {
            return Ok(());
        }
        let coverage = api.hub.read().coverage(api.clock.now());
        Err(ApiError::not_covered(self.lacks(&coverage)))
    }

    /// Whether an answer covers the position. A rebuild between the wait and the answer can take it away again.
    pub(super) fn is_covered_by(&self, coverage: &Coverage) -> bool {
        coverage.covers(&self.after)
    }

    /// The message about an answer that does not cover the position.
    fn lacks(&self, coverage: &Coverage) -> String {
        let mut lacking = Vec::new();
        for (kafka_partition, next) in self.after.iter() {
            let covered = coverage.of(kafka_partition).map_or(Offset::START, |partition| partition.covered);
            if next > covered {
                let records = next.since(covered);
                lacking.push(format!("{records} records of Kafka partition {kafka_partition}"));
            }
        }
        let reason = coverage.reason().map_or(String::new(), |reason| format!(" ({})", reason.name()));
        format!(
            "after {} s answers cover {} and not {}: they lack {}{reason}; ask again, or wait longer with wait=30s; \
             GET /v1/coverage shows each Kafka partition",
            self.longest.as_secs_f64(),
            coverage.covered(),
            self.after,
            lacking.join(", ")
        )
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // A text that is not ASCII is neither a position nor a duration; the message says so.
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Removes all parameters of a name; the last one counts.
fn take_last(pairs: &mut Pairs, own: &str) -> Option<String> {
    let (taken, others): (Pairs, Pairs) =
        std::mem::take(pairs).into_iter().partition(|(name, _)| name == own);
    *pairs = others;
    taken.into_iter().next_back().map(|(_, value)| value)
}

/// Reads how long to wait; at most `longest`.
pub(super) fn bounded(
    text: Option<&str>,
    default: Duration,
    longest: Duration,
) -> Result<Duration, ApiError> {
    let wait = text.map_or(Ok(default), duration)?;
    if wait > longest {
        return Err(ApiError::invalid(format!(
            "wait: {} s is too long; at most {} s ([http] max_wait)",
            wait.as_secs_f64(),
            longest.as_secs_f64()
        )));
    }
    Ok(wait)
}

/// Reads `250ms`, `10s` or `0`.
fn duration(text: &str) -> Result<Duration, ApiError> {
    if matches!(text, "0" | "0s") {
        return Ok(Duration::ZERO);
    }
    let size = WindowSize::parse(text)
        .map_err(|_| ApiError::invalid(format!("wait: {text:?} is not a duration; write for example 10s")))?;
    // The length of a window is positive.
    Ok(Duration::from_micros(size.span().0.unsigned_abs()))
}

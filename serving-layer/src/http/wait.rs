//! `after` and `wait`: a question that names a position is answered once its answer covers it (read your writes).
//!
//! They come as parameters of the query or as the headers `Wye-After` and `Wye-Wait`.

use std::time::Duration;

use axum::http::HeaderMap;
use tokio::time::Instant;
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

/// What a question waits for.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    after: Position,
    wait: Duration,
    deadline: Instant,
}

impl Patience {
    /// Takes `after` and `wait` out of the parameters.
    pub(super) fn take(pairs: &mut Pairs, headers: &HeaderMap, longest: Duration) -> Result<Self, ApiError> {
        let [after, wait] = PARAMETERS.map(|own| take_last(pairs, own));
        Self::read((after.as_deref(), wait.as_deref()), headers, longest)
    }

    /// Reads the parameters, or the headers where they are not given.
    pub(super) fn read(
        (after, wait): (Option<&str>, Option<&str>),
        headers: &HeaderMap,
        longest: Duration,
    ) -> Result<Self, ApiError> {
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        let after = match after.or_else(|| header(AFTER)) {
            None => Position::default(),
            Some(text) => text.parse().map_err(|error| ApiError::invalid(format!("after: {error}")))?,
        };
        let wait = bounded(wait.or_else(|| header(WAIT)), DEFAULT_WAIT.min(longest), longest)?;
        Ok(Self { after, wait, deadline: Instant::now() + wait })
    }

    /// Waits until answers cover the position.
    pub(super) async fn hold(&self, api: &Api) -> Result<(), ApiError> {
        let count = api.hub.kafka_partitions();
        if let Some((unknown, _)) = self.after.iter().find(|(kafka_partition, _)| *kafka_partition >= count) {
            return Err(ApiError::invalid(format!(
                "after: there is no Kafka partition {unknown}; the readings have 0 to {}",
                count - 1
            )));
        }
        if self.after.is_empty() || api.hub.until_covered(&self.after, self.deadline).await {
            return Ok(());
        }
        let coverage = api.hub.coverage(wye_runtime::clock::now_micros());
        Err(ApiError::not_covered(self.lacks(&coverage)))
    }

    /// Whether an answer covers the position. A rebuild between the wait and the answer can take it away again.
    pub(super) fn is_met(&self, coverage: &Coverage) -> bool {
        self.after.is_covered_by(|kafka_partition| coverage.covered_of(kafka_partition))
    }

    /// What is said of an answer that does not cover the position.
    fn lacks(&self, coverage: &Coverage) -> String {
        let each =
            self.after.iter().map(|(partition, next)| (partition, next - coverage.covered_of(partition)));
        let lacking: Vec<String> = each
            .filter(|(_, records)| *records > 0)
            .map(|(partition, records)| format!("{records} records of Kafka partition {partition}"))
            .collect();
        let reason = coverage.reason().map_or(String::new(), |reason| format!(" ({})", reason.name()));
        format!(
            "after {} s answers cover {} and not {}: they lack {}{reason}; ask again, or wait longer by wait=30s; \
             GET /v1/coverage says more",
            self.wait.as_secs_f64(),
            coverage.covered(),
            self.after,
            lacking.join(", ")
        )
    }
}

/// Takes all parameters of a name out; the last one counts.
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
    let micros = WindowSize::parse(text)
        .map_err(|_| {
            ApiError::invalid(format!("wait: {text:?} is no length of time; write for example 10s"))
        })?
        .micros();
    Ok(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

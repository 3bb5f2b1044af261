//! What stands in a request's path and query: a metric, a choice of its series, aggregates, times. Pure.

use std::sync::Arc;

use wye_domain::ErrorKind;
use wye_domain::series::SeriesKey;
use wye_domain::time::{WindowSize, parse_rfc3339};
use wye_metrics::definition::{Aggregate, Definition};
use wye_runtime::clock::now_micros;

use super::Api;
use super::error::ApiError;
use super::wait::PARAMETERS;
use crate::directory::{Directory, SeriesInfo};
use crate::suggest::close_names;

/// How many metrics are listed where one is not found.
const LISTED: usize = 10;

/// Query parameters as they were written.
pub(super) type Pairs = Vec<(String, String)>;

/// A metric by its name in a path.
#[derive(Clone, Debug)]
pub(super) struct Metric<'a> {
    pub(super) place: usize,
    pub(super) definition: &'a Definition,
    /// The name as it is served.
    pub(super) name: String,
    /// As defined; of a family what its readings say, empty where nobody does.
    pub(super) unit: String,
}

impl<'a> Metric<'a> {
    /// A definition of this name, else a reading name of a family.
    pub(super) fn find(api: &'a Api, name: &str) -> Result<Self, ApiError> {
        let directory = api.hub.directory();
        let definitions =
            || directory.plans().plans().iter().enumerate().map(|(place, plan)| (place, plan.definition()));
        let named = definitions().find(|(_, definition)| !definition.is_family() && definition.name == name);
        let of_family = || {
            definitions()
                .find(|(place, definition)| definition.is_family() && directory.has_metric(*place, name))
        };
        if let Some((place, definition)) = named.or_else(of_family) {
            let unit = match definition.unit.is_empty() && definition.is_family() {
                true => api.units.of(name).unwrap_or_default(),
                false => definition.unit.clone(),
            };
            return Ok(Self { place, definition, name: name.to_owned(), unit });
        }
        let mut known: Vec<String> = Vec::new();
        for (place, definition) in definitions() {
            if definition.is_family() {
                known.extend(directory.metrics(place).iter().map(ToString::to_string));
            } else {
                known.push(definition.name.clone());
            }
        }
        let lacking = api.hub.coverage(now_micros()).lacking().unwrap_or(0);
        Err(ApiError::new(ErrorKind::NotFound, no_such_metric(name, &known, lacking)))
    }
}

/// What is said where there is no metric of a name: which one may be meant, some that there are, and whether readings
/// are still on their way.
fn no_such_metric(name: &str, known: &[String], lacking: i64) -> String {
    let close = close_names(name, known);
    let mut message = format!("there is no metric {name:?}");
    match close.as_slice() {
        [] => {}
        close => message.push_str(&format!("; is it {}?", close.join(" or "))),
    }
    if lacking > 0 {
        message.push_str(&format!(
            "; {lacking} records of the log are not in answers yet and may hold it: ask again in a moment, or with \
             ?after=POSITION of the write"
        ));
    }
    if known.is_empty() {
        message.push_str("; no reading has come yet: send some by POST /v1/readings or wye load");
    } else if close.is_empty() {
        let some: Vec<String> = known.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
        let more = if known.len() > LISTED { ", and more" } else { "" };
        message.push_str(&format!("; there are {}{more}", some.join(", ")));
    }
    message.push_str("; GET /v1/metrics lists all");
    message
}

/// What a query asks for of a metric.
#[derive(Debug)]
pub(super) struct Choice {
    /// By dimension of the definition: the values that are wanted; all when empty.
    groups: Vec<Vec<String>>,
    pub(super) aggregates: Vec<Aggregate>,
    /// The aggregate that is the answer's `value`.
    pub(super) value: Aggregate,
    /// Parameters of the path's own, by the place of their name.
    others: Vec<Option<String>>,
}

impl Choice {
    /// Reads the parameters: `agg`, those named `own`, and one for each dimension.
    pub(super) fn read(metric: &Metric<'_>, own: &[&str], pairs: Pairs) -> Result<Self, ApiError> {
        let dimensions = metric.definition.dimension_names();
        let mut groups = vec![Vec::new(); dimensions.len()];
        let mut others = vec![None; own.len()];
        let mut agg = None;
        for (name, value) in pairs {
            if name == "agg" {
                agg = Some(value);
            } else if let Some(place) = own.iter().position(|known| *known == name) {
                others[place] = Some(value);
            } else if let Some(place) = dimensions.iter().position(|known| *known == name) {
                groups[place].push(value);
            } else {
                let known = own.iter().chain(&["agg"]).chain(&dimensions).chain(&PARAMETERS);
                let known = known.copied().collect::<Vec<_>>().join(", ");
                return Err(ApiError::invalid(format!("unknown parameter {name:?}; known are {known}")));
            }
        }
        let (aggregates, value) = match agg {
            None => {
                let mut all = metric.definition.aggregates.clone();
                if !all.contains(&Aggregate::Count) {
                    all.insert(0, Aggregate::Count);
                }
                (all, Aggregate::Last)
            }
            Some(text) => {
                let listed = aggregates(metric.definition, &text)?;
                let value = listed[0];
                (listed, value)
            }
        };
        Ok(Self { groups, aggregates, value, others })
    }

    /// A parameter of the path's own, by the place of its name.
    pub(super) fn other(&self, place: usize) -> Option<&str> {
        self.others.get(place)?.as_deref()
    }

    /// The series that are wanted.
    pub(super) fn series(&self, directory: &Directory, metric: &Metric<'_>) -> Vec<Arc<SeriesInfo>> {
        if let Some(exact) = self.exact(metric) {
            return directory.find(&exact.encode()).map(|id| directory.info(id)).into_iter().collect();
        }
        directory.select(metric.place, &metric.name, |info| self.wants(info))
    }

    /// The one series that is wanted, where every dimension is given once. An empty text may mean null, so it is not
    /// exact.
    fn exact(&self, metric: &Metric<'_>) -> Option<SeriesKey> {
        let only = |values: &Vec<String>| match values.as_slice() {
            [value] if !value.is_empty() => Some(Some(Arc::from(value.as_str()))),
            _ => None,
        };
        let group = self.groups.iter().map(only).collect::<Option<Box<[_]>>>()?;
        let definition = metric.definition.name.as_str().into();
        Some(SeriesKey { definition, metric: metric.name.as_str().into(), group })
    }

    fn wants(&self, info: &SeriesInfo) -> bool {
        let mut each = self.groups.iter().zip(&*info.key.group);
        each.all(|(wanted, value)| {
            let value = value.as_deref().unwrap_or_default();
            wanted.is_empty() || wanted.iter().any(|wanted| wanted == value)
        })
    }
}

fn aggregates(definition: &Definition, text: &str) -> Result<Vec<Aggregate>, ApiError> {
    let listed =
        |aggregate: &Aggregate| *aggregate == Aggregate::Count || definition.aggregates.contains(aggregate);
    let each = text.split(',').map(str::trim).map(|name| {
        Aggregate::parse(name).filter(listed).ok_or_else(|| {
            let known = Aggregate::ALL.into_iter().filter(listed).map(Aggregate::name).collect::<Vec<_>>();
            ApiError::invalid(format!("agg: {name:?} is not answered here; choose from {}", known.join(", ")))
        })
    });
    each.collect()
}

/// Reads a time (µs): RFC 3339, integer milliseconds, `now`, or an age such as `-1h`.
pub(super) fn time(name: &str, text: &str, now: i64) -> Result<i64, ApiError> {
    let refuse = || {
        ApiError::invalid(format!(
            "{name}: {text:?} is not a time; write 2026-01-31T12:00:00Z, milliseconds since 1970, or an age such as -1h"
        ))
    };
    if text == "now" {
        return Ok(now);
    }
    if let Ok(millis) = text.parse::<i64>() {
        return millis.checked_mul(1_000).ok_or_else(refuse);
    }
    if let Some(age) = text.strip_prefix('-') {
        let age = WindowSize::parse(age).map_err(|_| refuse())?;
        return Ok(now.saturating_sub(age.micros()));
    }
    // A plus sign in a URL that was not escaped arrives as a space.
    parse_rfc3339(&text.replace(' ', "+")).map_err(|_| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_four_ways() {
        let now = 1_700_000_000_000_000;
        assert_eq!(time("from", "now", now).unwrap(), now);
        assert_eq!(time("from", "-1h", now).unwrap(), now - 3_600_000_000);
        assert_eq!(time("from", "1500", now).unwrap(), 1_500_000);
        assert_eq!(time("from", "1970-01-01T00:00:01Z", now).unwrap(), 1_000_000);
        assert_eq!(time("from", "1970-01-01T01:00:01 01:00", now).unwrap(), 1_000_000);
        assert!(time("from", "yesterday", now).is_err());
    }
}

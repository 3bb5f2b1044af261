//! What is in a request's path and query: a metric, a choice of its series, aggregates, times. Pure.

use std::sync::Arc;

use wye_domain::ErrorKind;
use wye_domain::series::SeriesKey;
use wye_domain::time::{Micros, WindowSize, parse_rfc3339};
use wye_metrics::definition::{Aggregate, Definition};

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
    pub(super) index: usize,
    pub(super) definition: &'a Definition,
    /// The name as it is served.
    pub(super) name: String,
    /// As defined; of a family what its readings carry, empty where none does.
    pub(super) unit: String,
}

impl<'a> Metric<'a> {
    /// A definition of this name, otherwise a reading name of a family.
    pub(super) fn find(api: &'a Api, name: &str) -> Result<Self, ApiError> {
        let directory = api.hub.directory();
        if let Some((index, definition)) = find_definition(directory, name) {
            let unit = match definition.unit.is_empty() && definition.is_family() {
                true => api.units.of(name).unwrap_or_default(),
                false => definition.unit.clone(),
            };
            return Ok(Self { index, definition, name: name.to_owned(), unit });
        }
        let known = known_metrics(directory);
        let lacking = api.hub.read().coverage(api.clock.now()).lacking().unwrap_or(0);
        Err(ApiError::new(ErrorKind::NotFound, no_such_metric(name, &known, lacking)))
    }
}

/// The definition of a metric, with its index: one of this name, otherwise a family that has the reading name.
fn find_definition<'a>(directory: &'a Directory, name: &str) -> Option<(usize, &'a Definition)> {
    let definitions = directory.plans().plans().iter().map(|plan| plan.definition()).enumerate();
    let (families, named): (Vec<_>, Vec<_>) = definitions.partition(|(_, definition)| definition.is_family());
    let named = named.into_iter().find(|(_, definition)| definition.name == name);
    named.or_else(|| families.into_iter().find(|(index, _)| directory.has_metric(*index, name)))
}

/// The names of all metrics.
fn known_metrics(directory: &Directory) -> Vec<String> {
    let mut known = Vec::new();
    for (index, plan) in directory.plans().plans().iter().enumerate() {
        if plan.definition().is_family() {
            known.extend(directory.metrics(index).iter().map(ToString::to_string));
        } else {
            known.push(plan.definition().name.clone());
        }
    }
    known
}

/// The message where there is no metric of a name: which one may be meant, some that there are, and whether readings are
/// not in answers yet.
fn no_such_metric(name: &str, known: &[String], lacking: u64) -> String {
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
        message.push_str("; no reading was received yet: send some with POST /v1/readings or wye load");
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
    /// The path's own parameters, in the order of their names.
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
            } else if let Some(index) = own.iter().position(|known| *known == name) {
                others[index] = Some(value);
            } else if let Some(index) = dimensions.iter().position(|known| *known == name) {
                groups[index].push(value);
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

    /// One of the path's own parameters, by the index of its name.
    pub(super) fn other(&self, index: usize) -> Option<&str> {
        self.others.get(index)?.as_deref()
    }

    /// The series that are wanted.
    pub(super) fn series(&self, directory: &Directory, metric: &Metric<'_>) -> Vec<Arc<SeriesInfo>> {
        if let Some(exact) = self.exact(metric) {
            return directory.find(&exact.encode()).map(|id| directory.info(id)).into_iter().collect();
        }
        directory.select(metric.index, &metric.name, |info| self.wants(info))
    }

    /// The one series that is wanted, where every dimension is given once. An empty text may mean null, so it is not
    /// exact.
    fn exact(&self, metric: &Metric<'_>) -> Option<SeriesKey> {
        let only = self.groups.iter().map(|values| match values.as_slice() {
            [value] if !value.is_empty() => Some(Some(Arc::from(value.as_str()))),
            _ => None,
        });
        let group = only.collect::<Option<Box<[_]>>>()?;
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

/// Reads a list of aggregates, such as `avg,max`.
fn aggregates(definition: &Definition, text: &str) -> Result<Vec<Aggregate>, ApiError> {
    let offered: Vec<Aggregate> = Aggregate::ALL
        .into_iter()
        .filter(|aggregate| *aggregate == Aggregate::Count || definition.aggregates.contains(aggregate))
        .collect();
    let each = text.split(',').map(str::trim).map(|name| {
        Aggregate::parse(name).filter(|aggregate| offered.contains(aggregate)).ok_or_else(|| {
            let offered: Vec<&str> = offered.iter().copied().map(Aggregate::name).collect();
            let offered = offered.join(", ");
            ApiError::invalid(format!("agg: this metric does not have {name:?}; choose from {offered}"))
        })
    });
    each.collect()
}

/// Reads a time: RFC 3339, integer milliseconds, `now`, or an age such as `-1h`.
pub(super) fn time(name: &str, text: &str, now: Micros) -> Result<Micros, ApiError> {
    read_time(text, now).ok_or_else(|| {
        ApiError::invalid(format!(
            "{name}: {text:?} is not a time; write 2026-01-31T12:00:00Z, milliseconds since 1970, or an age such as -1h"
        ))
    })
}

fn read_time(text: &str, now: Micros) -> Option<Micros> {
    if text == "now" {
        return Some(now);
    }
    if let Ok(millis) = text.parse::<i64>() {
        return millis.checked_mul(1_000).map(Micros);
    }
    if let Some(age) = text.strip_prefix('-') {
        return Some(now - WindowSize::parse(age).ok()?.span());
    }
    // A plus sign in a URL that was not escaped arrives as a space.
    parse_rfc3339(&text.replace(' ', "+")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_four_ways() {
        let now = Micros(1_700_000_000_000_000);
        for (text, micros) in [
            ("now", now.0),
            ("-1h", now.0 - 3_600_000_000),
            ("1500", 1_500_000),
            ("1970-01-01T00:00:01Z", 1_000_000),
            ("1970-01-01T01:00:01 01:00", 1_000_000),
        ] {
            assert_eq!(time("from", text, now).unwrap(), Micros(micros), "{text}");
        }
        assert!(time("from", "yesterday", now).is_err());
    }
}

//! The oracle for confidence: what a window should get, how much of that it got, and how far along it is.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::comparison::Judgement;
use super::layers::Answered;
use super::oracle::{Expected, RunFacts};
use super::readings::Sent;
use super::versions::{DAY, Metric, Version, device_name};

/// From this settledness on a window of a batch view is settled.
const SETTLED: f64 = 0.999;
/// The largest score where nothing says how many readings to expect.
const CAP: f64 = 0.9;

/// What one device should send to a series.
struct ExpectedDevice {
    number: u8,
    /// In µs.
    interval: i64,
    /// How many of its reading names go into the series.
    names: i64,
}

/// Whether an answer is one of all windows, or the current value of its series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Window,
    Current,
}

/// Checks source, state and confidence of an answer with readings.
pub(crate) fn check(
    context: &Judgement<'_>,
    metric: &Metric,
    expected: &Expected,
    answer: &Answered,
    kind: Kind,
) -> Result<()> {
    let is_batch = !expected.batch_windows.is_empty();
    let source = match (is_batch, expected.is_live) {
        (true, true) => "merged",
        (true, false) => "batch",
        (false, _) => "realtime",
    };
    ensure!(answer.source == source, "the source is {source}");
    let devices = expected_devices(context.version, metric, answer.group.as_deref());
    let as_of = context.facts.as_of;
    let silence = (answer.window_end, as_of - context.facts.usual_age().unwrap_or(DAY));
    let is_silent = kind == Kind::Current
        && devices.as_ref().is_some_and(|devices| readings(devices, silence.0, silence.1) >= 2.0);
    let state = match is_silent {
        true => "INSUFFICIENT_DATA",
        false => state(context.facts, expected, answer.window_end),
    };
    if is_silent {
        context.count_silent();
    }
    ensure!(answer.state == state, "the state is {state}");

    let at = if expected.is_live { context.now } else { context.facts.as_of };
    let (start, end) = (answer.window_start, answer.window_end);
    // Of a window that may still be filled, only the readings of whole intervals are due.
    let due = at - context.facts.usual_age().unwrap_or(0);
    let elapsed = (end <= due).then_some(end - start).ok_or_else(|| (due - start).max(0));
    let readings = devices.as_ref().map(|devices| match elapsed {
        Ok(_) => readings(devices, start, end),
        Err(begun) => devices.iter().map(|device| (device.names * (begun / device.interval)) as f64).sum(),
    });
    let (completeness, cap) = match (&devices, readings) {
        (Some(devices), Some(readings)) if readings > 0.0 => (
            ((received(context.version, metric, expected, devices, elapsed) as f64) / readings).min(1.0),
            1.0,
        ),
        (Some(_), Some(_)) => (1.0, 1.0),
        _ => (context.facts.settledness(at - end), CAP),
    };
    let count = expected.values.len() as f64;
    let faults = (expected.invalid + expected.conflicts) as f64;
    let validity = (count - faults).max(0.0) / count;
    let expected_source = if devices.is_some() { "registry" } else { "unknown" };
    ensure!(answer.expected_source == expected_source, "the source of the expectation is {expected_source}");
    ensure!(
        match (answer.expected, readings) {
            (Some(answered), Some(expected)) => is_close(answered, expected),
            (answered, expected) => answered.is_none() && expected.is_none(),
        },
        "expected readings are {readings:?}"
    );
    let score = if is_silent { 0.0 } else { (completeness * validity).min(cap) };
    let completeness = if is_silent { 0.0 } else { completeness };
    // The current value is then as complete as the window before, if that is at hand.
    let is_nothing_due = readings == Some(0.0) && kind == Kind::Current && !is_silent;
    if is_nothing_due {
        let score = answer.completeness * validity;
        ensure!(
            (0.0..=1.0).contains(&answer.completeness) && is_close(answer.score, score),
            "the score is {score}"
        );
        return Ok(());
    }
    for (name, answered, right) in [
        ("completeness", answer.completeness, completeness),
        ("validity", answer.validity, validity),
        ("precision", answer.precision, 1.0),
        ("score", answer.score, score),
    ] {
        ensure!(is_close(answered, right), "{name} is {right}");
    }
    Ok(())
}

/// How many readings devices should send in a stretch of time (µs).
fn readings(devices: &[ExpectedDevice], start: i64, end: i64) -> f64 {
    let length = (end - start).max(0) as f64;
    devices.iter().map(|device| device.names as f64 * length / device.interval as f64).sum()
}

/// The starts of the windows of a series that should have readings and have none. `present` are those that have some, `oldest`
/// is the first of the metric's own windows that has.
pub(crate) fn missing(
    context: &Judgement<'_>,
    metric: &Metric,
    group: Option<&str>,
    (length, oldest): (i64, i64),
    present: &BTreeSet<i64>,
) -> BTreeSet<i64> {
    let facts = context.facts;
    let (Some(devices), Some(first_ingest)) =
        (expected_devices(context.version, metric, group), facts.first_ingest)
    else {
        return BTreeSet::new();
    };
    let from = oldest.max(first_ingest);
    let first = from.div_euclid(length) * length;
    let first = if first < from { first + length } else { first };
    let starts = (0..).map(|place| first + place * length).take_while(|start| start + length <= facts.as_of);
    let lacks = |start: &i64| {
        let landed = facts.settledness(facts.as_of - (start + length));
        let expected = readings(&devices, *start, start + length);
        landed > 0.0 && (expected * landed >= 1.0 || (landed >= SETTLED && expected >= 1.0))
    };
    starts.filter(|start| !present.contains(start)).filter(lacks).collect()
}

/// Checks the confidence of an answer without readings.
pub(crate) fn check_missing(answer: &Answered) -> Result<()> {
    ensure!(
        answer.count == 0 && answer.state == "INSUFFICIENT_DATA" && answer.source == "merged",
        "it is missing"
    );
    ensure!(answer.expected.is_some_and(|expected| expected >= 1.0), "a reading is expected");
    let factors = [answer.completeness, answer.validity, answer.score];
    ensure!(factors == [0.0; 3] && answer.precision == 1.0, "its score is 0");
    ensure!(
        answer.aggregates.iter().all(|(name, value)| *name == "count" || value.is_none()),
        "it has no number"
    );
    Ok(())
}

fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs().max(1.0)
}

fn state(facts: &RunFacts, expected: &Expected, end: i64) -> &'static str {
    match expected.is_live {
        true => "LIVE",
        false if facts.settledness(facts.as_of - end) >= SETTLED => "SETTLED",
        false => "PRELIMINARY",
    }
}

/// The devices that the registry expects in the series of a group; `None` where nothing is known.
fn expected_devices(version: &Version, metric: &Metric, group: Option<&str>) -> Option<Vec<ExpectedDevice>> {
    if !metric.is_predictable {
        return None;
    }
    let mut found = Vec::new();
    for device in version.devices {
        let Some(interval) = device.interval else { continue };
        let names = if metric.is_by_device() {
            // Each series of a device is expected at its interval.
            i64::from(group == Some(&*device_name(device.number)))
        } else {
            let named = device.metrics.iter().filter(|name| {
                let plain = Sent {
                    device: device.number,
                    metric: **name,
                    value: 1.0,
                    event_time: 0,
                    sequence: None,
                    unit: None,
                    line: None,
                    is_refused: false,
                };
                let own = (metric.group)(&plain, version);
                // Without an attribute in the registry, a tag decides.
                own.is_some() && own.as_deref() == group && (metric.wants)(&plain)
            });
            named.count() as i64
        };
        if names > 0 {
            found.push(ExpectedDevice { number: device.number, interval, names });
        }
    }
    (!found.is_empty()).then_some(found)
}

/// How many readings meet the expectation: of each device no more than it can send in a whole window (`Ok`, in µs), or than are
/// due of one that has begun (`Err`), where a group spans devices.
fn received(
    version: &Version,
    metric: &Metric,
    expected: &Expected,
    devices: &[ExpectedDevice],
    elapsed: std::result::Result<i64, i64>,
) -> u64 {
    let is_counted = !metric.is_by_device()
        && version.devices.iter().any(|device| device.interval.is_some() && !device.metrics.is_empty());
    if !is_counted {
        return expected.values.len() as u64;
    }
    let each = devices.iter().map(|device| {
        let most = device.names
            * match elapsed {
                Ok(whole) => (whole + device.interval - 1) / device.interval,
                Err(begun) => begun / device.interval,
            };
        expected.devices.get(&device.number).copied().unwrap_or(0).min(most as u64)
    });
    each.sum()
}

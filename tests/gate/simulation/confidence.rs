//! The oracle for confidence: what a window should get, how much of that it got, and how far along it is.

use anyhow::{Result, ensure};

use super::comparison::Judgement;
use super::layers::Answered;
use super::oracle::{Expected, RunFacts};
use super::readings::Sent;
use super::versions::{Metric, Version, device_name};

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

/// Checks source, state and confidence of an answer.
pub(crate) fn check(
    context: &Judgement<'_>,
    metric: &Metric,
    expected: &Expected,
    answer: &Answered,
) -> Result<()> {
    let is_batch = !expected.batch_windows.is_empty();
    let source = match (is_batch, expected.is_live) {
        (true, true) => "merged",
        (true, false) => "batch",
        (false, _) => "realtime",
    };
    ensure!(answer.source == source, "the source is {source}");
    let state = state(context.facts, metric, expected);
    ensure!(answer.state == state, "the state is {state}");

    let at = if expected.is_live { context.now } else { context.facts.as_of };
    let (start, end) = (answer.window_start, answer.window_end);
    let elapsed = (at.min(end) - start).max(0);
    let devices = expected_devices(context.version, metric, answer);
    let readings = devices.as_ref().map(|devices| {
        let each = devices.iter().map(|device| device.names as f64 * elapsed as f64 / device.interval as f64);
        each.sum::<f64>()
    });
    let (completeness, cap) = match (&devices, readings) {
        (Some(devices), Some(readings)) if readings > 0.0 => (
            ((received(context.version, metric, expected, devices, elapsed) as f64) / readings).min(1.0),
            1.0,
        ),
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
    for (name, answered, right) in [
        ("completeness", answer.completeness, completeness),
        ("validity", answer.validity, validity),
        ("precision", answer.precision, 1.0),
        ("score", answer.score, (completeness * validity).min(cap)),
    ] {
        ensure!(is_close(answered, right), "{name} is {right}");
    }
    Ok(())
}

fn is_close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs().max(1.0)
}

fn state(facts: &RunFacts, metric: &Metric, expected: &Expected) -> &'static str {
    let is_settled = |start: &i64| facts.settledness(facts.as_of - (start + metric.length)) >= SETTLED;
    match expected.is_live {
        true => "LIVE",
        false if expected.batch_windows.iter().all(is_settled) => "SETTLED",
        false => "PRELIMINARY",
    }
}

/// The devices that the registry expects in the series of an answer; `None` where nothing is known.
fn expected_devices(version: &Version, metric: &Metric, answer: &Answered) -> Option<Vec<ExpectedDevice>> {
    if !metric.is_predictable {
        return None;
    }
    let mut found = Vec::new();
    for device in version.devices {
        let Some(interval) = device.interval else { continue };
        let names = if metric.is_by_device() {
            // Each series of a device is expected at its interval.
            i64::from(answer.group == Some(device_name(device.number)))
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
                let group = (metric.group)(&plain, version);
                // Without an attribute in the registry, a tag decides.
                group.is_some() && group == answer.group && (metric.wants)(&plain)
            });
            named.count() as i64
        };
        if names > 0 {
            found.push(ExpectedDevice { number: device.number, interval, names });
        }
    }
    (!found.is_empty()).then_some(found)
}

/// How many readings meet the expectation: of each device no more than it can send, where a group spans devices.
fn received(
    version: &Version,
    metric: &Metric,
    expected: &Expected,
    devices: &[ExpectedDevice],
    elapsed: i64,
) -> u64 {
    let is_counted = !metric.is_by_device()
        && version.devices.iter().any(|device| device.interval.is_some() && !device.metrics.is_empty());
    if !is_counted {
        return expected.values.len() as u64;
    }
    let each = devices.iter().map(|device| {
        let most = device.names * ((elapsed + device.interval - 1) / device.interval);
        expected.devices.get(&device.number).copied().unwrap_or(0).min(most as u64)
    });
    each.sum()
}

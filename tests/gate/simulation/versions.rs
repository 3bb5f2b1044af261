//! What the processes of a history are configured with: metric definitions and a device registry. Everything is written
//! twice: as configuration, which the layers plan, and as plain functions, by which the oracle computes.

use super::readings::Sent;

/// A second in µs.
pub(crate) const SECOND: i64 = 1_000_000;
/// A minute in µs.
pub(crate) const MINUTE: i64 = 60 * SECOND;
/// A day in µs.
pub(crate) const DAY: i64 = 24 * 60 * MINUTE;

/// One configuration. Processes are restarted with another one in the middle of a history.
pub(crate) struct Version {
    pub(crate) metrics: &'static [Metric],
    pub(crate) devices: &'static [Device],
    pub(crate) limits: &'static [Limits],
}

/// A metric definition with one dimension.
pub(crate) struct Metric {
    /// `*` for the family: each reading name is a metric of its own then.
    pub(crate) name: &'static str,
    pub(crate) filter: Option<&'static str>,
    /// The same as `filter`.
    pub(crate) wants: fn(&Sent) -> bool,
    pub(crate) expression: Option<&'static str>,
    /// The same as `expression`. A value that is not finite adds nothing.
    pub(crate) value: fn(&Sent) -> f64,
    pub(crate) by: &'static str,
    /// The same as `by`.
    pub(crate) group: fn(&Sent, &Version) -> Option<String>,
    pub(crate) window: &'static str,
    /// The same as `window`, in µs.
    pub(crate) length: i64,
    pub(crate) aggregates: &'static [&'static str],
    /// Whether the registry alone says how many readings to expect: the definition looks at nothing of a reading but
    /// its device, its name and what the registry says about the device.
    pub(crate) is_predictable: bool,
}

/// A `[[device]]` of the registry.
pub(crate) struct Device {
    pub(crate) number: u8,
    /// Reporting interval in µs.
    pub(crate) interval: Option<i64>,
    /// The reading names that it reports.
    pub(crate) metrics: &'static [u8],
    /// Its attribute `line`.
    pub(crate) line: Option<&'static str>,
}

/// A `[[metric_limits]]` of the registry.
pub(crate) struct Limits {
    pub(crate) metric: u8,
    pub(crate) unit: Option<&'static str>,
    pub(crate) min: Option<f64>,
    pub(crate) max: Option<f64>,
}

impl Version {
    /// Whether two versions differ in their registry at most.
    pub(crate) fn has_definitions_of(&self, other: &Self) -> bool {
        let names =
            |version: &Self| version.metrics.iter().map(|metric| (metric.name, metric.window, metric.filter));
        names(self).eq(names(other))
    }

    pub(crate) fn device(&self, number: u8) -> Option<&Device> {
        self.devices.iter().find(|device| device.number == number)
    }
}

impl Metric {
    /// Whether summaries have a quantile sketch.
    pub(crate) fn has_quantiles(&self) -> bool {
        self.aggregates.iter().any(|name| name.starts_with('p'))
    }

    /// Whether summaries have a sketch of distinct devices.
    pub(crate) fn has_distinct(&self) -> bool {
        self.aggregates.contains(&"distinct_devices")
    }

    /// Whether all readings of a series are of one device.
    pub(crate) fn is_by_device(&self) -> bool {
        self.by == "device_id"
    }

    /// The name of the metric that a reading is in.
    pub(crate) fn metric_name(&self, reading: &Sent) -> String {
        if self.name == "*" { reading.metric_name() } else { self.name.to_owned() }
    }
}

/// The name of a device.
pub(crate) fn device_name(number: u8) -> String {
    format!("d{number}")
}

fn everything(_: &Sent) -> bool {
    true
}

fn not_m0(reading: &Sent) -> bool {
    reading.metric != 0
}

fn warm(reading: &Sent) -> bool {
    reading.metric != 0 && reading.value > -50.0
}

fn plain(reading: &Sent) -> f64 {
    reading.value
}

fn doubled(reading: &Sent) -> f64 {
    reading.value * 2.0
}

fn per_thousand(reading: &Sent) -> f64 {
    1_000.0 / reading.value
}

fn device(reading: &Sent, _: &Version) -> Option<String> {
    Some(device_name(reading.device))
}

fn reading_name(reading: &Sent, _: &Version) -> Option<String> {
    Some(reading.metric_name())
}

/// The tag, else the registry's attribute.
fn line(reading: &Sent, version: &Version) -> Option<String> {
    let tag = reading.line.map(|line| line.to_string());
    tag.or_else(|| version.device(reading.device)?.line.map(str::to_owned))
}

const NUMBERS: &[&str] = &["count", "sum", "avg", "min", "max", "stddev", "first", "last"];

const FAMILY: Metric = Metric {
    name: "*",
    filter: None,
    wants: everything,
    expression: None,
    value: plain,
    by: "device_id",
    group: device,
    window: "1m",
    length: MINUTE,
    aggregates: NUMBERS,
    is_predictable: true,
};

/// Looks at values, so that nothing is expected; with sketches.
const WARM_LINES: Metric = Metric {
    name: "by_line",
    filter: Some("metric <> 'm0' AND value > -50"),
    wants: warm,
    expression: Some("value * 2"),
    value: doubled,
    by: "line",
    group: line,
    window: "2m",
    length: 2 * MINUTE,
    aggregates: &["count", "p50", "p95", "distinct_devices"],
    is_predictable: false,
};

/// Groups that span devices and Kafka partitions, with readings counted by device.
const EVERYONE: Metric = Metric {
    name: "everyone",
    filter: Some("metric <> 'm0'"),
    wants: not_m0,
    expression: None,
    value: plain,
    by: "metric AS reading_name",
    group: reading_name,
    window: "2m",
    length: 2 * MINUTE,
    aggregates: NUMBERS,
    is_predictable: true,
};

/// The name of [`WARM_LINES`] with other numbers: other readings, a value that cannot be computed of 0, other windows.
const LINES: Metric = Metric {
    name: "by_line",
    filter: Some("metric <> 'm0'"),
    wants: not_m0,
    expression: Some("1000 / value"),
    value: per_thousand,
    by: "line",
    group: line,
    window: "1m",
    length: MINUTE,
    aggregates: &["sum", "p99"],
    is_predictable: true,
};

const SHORT_FAMILY: Metric = Metric { window: "30s", length: 30 * SECOND, ..FAMILY };

const FIRST_DEVICES: &[Device] = &[
    Device { number: 0, interval: Some(10 * SECOND), metrics: &[0, 1], line: None },
    Device { number: 1, interval: Some(10 * SECOND), metrics: &[0, 1], line: None },
    Device { number: 2, interval: Some(10 * SECOND), metrics: &[0, 1], line: None },
];

/// Other numbers for the devices, other intervals, and lines.
const LATER_DEVICES: &[Device] = &[
    Device { number: 1, interval: Some(20 * SECOND), metrics: &[1, 2], line: Some("1") },
    Device { number: 2, interval: Some(10 * SECOND), metrics: &[1], line: None },
    Device { number: 4, interval: Some(25 * SECOND), metrics: &[0, 1, 2], line: Some("2") },
    Device { number: 5, interval: None, metrics: &[1], line: Some("1") },
];

const FIRST_LIMITS: &[Limits] = &[Limits { metric: 1, unit: Some("Cel"), min: Some(-60.0), max: Some(60.0) }];

const LATER_LIMITS: &[Limits] = &[
    Limits { metric: 1, unit: None, min: None, max: Some(40.0) },
    Limits { metric: 2, unit: Some("K"), min: None, max: None },
];

/// All configurations. The second has another registry, the third other definitions.
pub(crate) const VERSIONS: [Version; 3] = [
    Version { metrics: &[FAMILY, WARM_LINES, EVERYONE], devices: FIRST_DEVICES, limits: FIRST_LIMITS },
    Version { metrics: &[FAMILY, WARM_LINES, EVERYONE], devices: LATER_DEVICES, limits: LATER_LIMITS },
    Version { metrics: &[SHORT_FAMILY, LINES], devices: LATER_DEVICES, limits: LATER_LIMITS },
];

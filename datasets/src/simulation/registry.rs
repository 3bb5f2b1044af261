//! The device registry file of a simulation. It must not know how a registry is read.

use std::fmt::Write;

use super::Device;
use super::signal::Sensor;

/// The registry's text; `interval` in microseconds.
pub(super) fn toml(sensors: &[Sensor], devices: &[Device], interval: i64) -> String {
    let mut text = String::new();
    let interval = if interval % 1_000_000 == 0 {
        format!("{}s", interval / 1_000_000)
    } else {
        format!("{interval}us")
    };
    let infallible = "writing to a string cannot fail";
    let metrics: Vec<_> = sensors.iter().map(|sensor| format!("{:?}", sensor.metric)).collect();
    let metrics = metrics.join(", ");
    for device in devices {
        let attributes: Vec<_> =
            device.attributes.iter().map(|(key, value)| format!("{key} = {value:?}")).collect();
        let (id, attributes) = (&device.id, attributes.join(", "));
        writeln!(
            text,
            "[[device]]\ndevice_id = {id:?}\nreporting_interval = {interval:?}\nmetrics = [{metrics}]"
        )
        .expect(infallible);
        writeln!(text, "attributes = {{ {attributes} }}\n").expect(infallible);
    }
    for Sensor { metric, unit, range: (min, max), .. } in sensors {
        writeln!(text, "[[metric_limits]]\nmetric = {metric:?}\nunit = {unit:?}").expect(infallible);
        writeln!(text, "min = {min:?}\nmax = {max:?}\n").expect(infallible);
    }
    text
}

//! The device registry file of a simulation. It must not know how a registry is read.

use wye_domain::time::Span;

use super::Device;
use super::signal::Sensor;

/// The text of the registry. The devices report once in each `interval`.
pub(super) fn toml(sensors: &[Sensor], devices: &[Device], interval: Span) -> String {
    let interval = if interval.0 % 1_000_000 == 0 {
        format!("{}s", interval.0 / 1_000_000)
    } else {
        format!("{}us", interval.0)
    };
    let metrics: Vec<_> = sensors.iter().map(|sensor| format!("{:?}", sensor.metric)).collect();
    let metrics = metrics.join(", ");
    let mut text = String::new();
    for device in devices {
        let attributes: Vec<_> =
            device.attributes.iter().map(|(key, value)| format!("{key} = {value:?}")).collect();
        let (id, attributes) = (&device.id, attributes.join(", "));
        text += &format!(
            "[[device]]\ndevice_id = {id:?}\nreporting_interval = {interval:?}\nmetrics = [{metrics}]\n\
             attributes = {{ {attributes} }}\n\n"
        );
    }
    for Sensor { metric, unit, range: (min, max), .. } in sensors {
        text += &format!(
            "[[metric_limits]]\nmetric = {metric:?}\nunit = {unit:?}\nmin = {min:?}\nmax = {max:?}\n\n"
        );
    }
    text
}

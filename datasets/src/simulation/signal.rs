//! The value that a sensor measures at a time. It must not know devices, the path or any earlier value.

use std::f64::consts::TAU;

use wye_domain::time::Micros;

use super::dice;

/// Microseconds in an hour.
const HOUR: f64 = 3.6e9;

/// One kind of sensor, the same on every device of a simulation.
#[derive(Clone, Debug)]
pub(crate) struct Sensor {
    pub(crate) metric: &'static str,
    /// UCUM.
    pub(crate) unit: &'static str,
    /// Values are multiples of this. It is a power of two, as in real converters, so that the sum of the values of a
    /// window is exact in any order.
    pub(crate) step: f64,
    /// Least and greatest value, also the plausible range in the registry.
    pub(crate) range: (f64, f64),
}

/// One sensor on one device: `base + swing * shape(t) + noise`.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    pub(crate) base: f64,
    pub(crate) swing: f64,
    pub(crate) shape: Shape,
    /// Half the width of the noise, which is uniform.
    pub(crate) noise: f64,
    /// The key of the noise; it differs between series.
    pub(crate) key: u64,
}

/// A curve between about 0 and 1.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// The load of a machine, in cycles of some minutes. `turn` in `[0, 1)` sets period and phase.
    Load { turn: f64 },
    /// A daily cycle, highest at this hour, UTC.
    Day { peak_hour: f64 },
    /// Two rush hours a day, at 8 and 18 UTC.
    Rush,
    /// Days of good and bad weather; `turn` in `[0, 1)` sets the phase.
    Weather { turn: f64 },
}

impl Signal {
    /// The value at `event_time`, in the interval number `slot`.
    pub(crate) fn value(&self, sensor: &Sensor, event_time: Micros, slot: i64) -> f64 {
        let noise = (dice::share(&[self.key, slot as u64]) * 2.0 - 1.0) * self.noise;
        let (least, greatest) = sensor.range;
        let value = (self.base + self.swing * self.shape.at(event_time) + noise).clamp(least, greatest);
        // The ends of a range are multiples of the step, so the rounded value stays within the range.
        (value / sensor.step).round() * sensor.step
    }
}

impl Shape {
    fn at(self, event_time: Micros) -> f64 {
        let hours = Hours(event_time.0 as f64 / HOUR);
        match self {
            Self::Load { turn } => {
                0.5 + 0.3 * hours.wave(0.1 + 0.1 * turn, turn)
                    + 0.15 * hours.wave(0.031, turn)
                    + 0.05 * hours.wave(8.0, 0.0)
            }
            Self::Day { peak_hour } => 0.5 + 0.5 * hours.wave(24.0, 0.25 - peak_hour / 24.0),
            Self::Rush => hours.bump(8.0) + hours.bump(18.0),
            Self::Weather { turn } => 0.5 + 0.3 * hours.wave(77.0, turn) + 0.2 * hours.wave(23.0, turn),
        }
    }
}

/// A point in time in hours since 1970.
#[derive(Clone, Copy)]
struct Hours(f64);

impl Hours {
    /// A sine wave with this period in hours, shifted by `turn` periods.
    fn wave(self, period: f64, turn: f64) -> f64 {
        ((self.0 / period).fract() * TAU + turn * TAU).sin()
    }

    /// A bell curve around one hour of the day.
    fn bump(self, peak: f64) -> f64 {
        (-((self.0.rem_euclid(24.0) - peak) / 2.0).powi(2)).exp()
    }
}

//! What a sensor would measure at a time. It must not know devices, the path or any earlier value.

use std::f64::consts::TAU;

use super::dice;

const HOUR: f64 = 3.6e9;

/// One kind of sensor, the same on every device of a simulation.
#[derive(Clone, Debug)]
pub(crate) struct Sensor {
    pub(crate) metric: &'static str,
    /// UCUM.
    pub(crate) unit: &'static str,
    /// Values are multiples of this. It is a power of two, as with real converters, so that sums of any number of
    /// values that fits a window are exact in any order.
    pub(crate) step: f64,
    /// Least and greatest value; the plausible range in the registry as well.
    pub(crate) range: (f64, f64),
}

/// One sensor on one device: `base + swing * shape(t) + noise`.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    pub(crate) base: f64,
    pub(crate) swing: f64,
    pub(crate) shape: Shape,
    /// Half width of the noise, uniform.
    pub(crate) noise: f64,
    /// What the noise is drawn from; another for every series.
    pub(crate) key: u64,
}

/// A curve between about 0 and 1.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// A machine's load: work pieces come and go in cycles of some minutes. `turn` in `[0, 1)` sets period and phase.
    Load { turn: f64 },
    /// Highest once a day at this hour, UTC.
    Day { peak_hour: f64 },
    /// Two rush hours a day, 8 and 18 UTC.
    Rush,
    /// Days of good and bad weather; `turn` in `[0, 1)` sets the phase.
    Weather { turn: f64 },
}

impl Signal {
    /// The value at `event_time`, UTC microseconds, in the interval with this number.
    pub(crate) fn value(&self, sensor: &Sensor, event_time: i64, slot: i64) -> f64 {
        let noise = (dice::share(&[self.key, slot as u64]) * 2.0 - 1.0) * self.noise;
        let (least, greatest) = sensor.range;
        let value = (self.base + self.swing * self.shape.at(event_time) + noise).clamp(least, greatest);
        // The ends of a range are multiples of the step, so rounding stays inside.
        (value / sensor.step).round() * sensor.step
    }
}

impl Shape {
    fn at(self, event_time: i64) -> f64 {
        let hours = event_time as f64 / HOUR;
        let wave = |period: f64, turn: f64| ((hours / period).fract() * TAU + turn * TAU).sin();
        match self {
            Self::Load { turn } => {
                0.5 + 0.3 * wave(0.1 + 0.1 * turn, turn) + 0.15 * wave(0.031, turn) + 0.05 * wave(8.0, 0.0)
            }
            Self::Day { peak_hour } => 0.5 + 0.5 * wave(24.0, 0.25 - peak_hour / 24.0),
            Self::Rush => {
                let bump = |peak: f64| (-((hours.rem_euclid(24.0) - peak) / 2.0).powi(2)).exp();
                bump(8.0) + bump(18.0)
            }
            Self::Weather { turn } => 0.5 + 0.3 * wave(77.0, turn) + 0.2 * wave(23.0, turn),
        }
    }
}

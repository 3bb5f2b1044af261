//! A factory: production lines of machines, each with temperature, vibration, pressure and power that follow its load.
//! It only says which devices there are; [`simulation`](crate::simulation) runs them.

use crate::simulation::signal::{Sensor, Shape, Signal};
use crate::simulation::{Device, Setup, Simulation, dice};

/// The size of a plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plant {
    /// Production lines, `line-1` and on: tag and registry attribute `production_line`.
    pub lines: u32,
    /// Machines on each line, numbered through the plant from `machine-001`.
    pub machines_per_line: u32,
}

const SENSORS: [Sensor; 4] = [
    Sensor { metric: "temperature", unit: "Cel", step: 0.0625, range: (-50.0, 400.0) },
    Sensor { metric: "vibration", unit: "mm/s", step: 0.007_812_5, range: (0.0, 50.0) },
    Sensor { metric: "pressure", unit: "bar", step: 0.015_625, range: (0.0, 16.0) },
    Sensor { metric: "power", unit: "kW", step: 0.0625, range: (0.0, 500.0) },
];

impl Plant {
    /// The metrics of each machine.
    pub const METRICS: [&'static str; 4] = ["temperature", "vibration", "pressure", "power"];

    /// Starts the plant.
    pub fn simulate(self, setup: &Setup) -> Simulation {
        let devices = (0..self.lines * self.machines_per_line).map(|machine| Device {
            id: format!("machine-{:03}", machine + 1),
            attributes: vec![("production_line", format!("line-{}", machine / self.machines_per_line + 1))],
            signals: signals(setup.seed, u64::from(machine)),
        });
        Simulation::new(SENSORS.to_vec(), devices.collect(), setup)
    }
}

/// The signals of one machine, in the order of `SENSORS`. All follow one load; each machine is a little different.
fn signals(seed: u64, machine: u64) -> Vec<Signal> {
    let own = |question: u64| dice::share(&[seed, 20, machine, question]);
    let load = Shape::Load { turn: own(0) };
    let signal = |sensor: u64, base: f64, swing: f64, noise: f64| {
        let size = 0.9 + 0.2 * own(sensor);
        let key = (dice::share(&[seed, 21, machine, sensor]) * (1_u64 << 53) as f64) as u64;
        Signal { base: base * size, swing: swing * size, shape: load, noise, key }
    };
    vec![
        signal(1, 55.0, 30.0, 0.75),
        signal(2, 1.5, 3.0, 0.25),
        signal(3, 6.0, 1.5, 0.125),
        signal(4, 20.0, 60.0, 2.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::{Plant, SENSORS};

    #[test]
    fn metrics_are_those_of_the_sensors() {
        assert_eq!(Plant::METRICS.to_vec(), SENSORS.iter().map(|sensor| sensor.metric).collect::<Vec<_>>());
    }
}

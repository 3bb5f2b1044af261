//! A factory: production lines of machines. The temperature, vibration, pressure and power of a machine follow its load.
//! It only defines the devices; [`simulation`](crate::simulation) runs them.

use crate::simulation::signal::{Sensor, Shape, Signal};
use crate::simulation::{Device, Setup, Simulation, dice};

/// The size of a plant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plant {
    /// The number of production lines, which are named from `line-1` on (tag and registry attribute `production_line`).
    pub lines: u32,
    /// The number of machines on each line. Machines are named from `machine-001` on, across all lines.
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

    /// Starts the simulation of the plant.
    pub fn simulate(self, setup: &Setup) -> Simulation {
        let devices = (0..self.lines * self.machines_per_line).map(|machine| Device {
            id: format!("machine-{:03}", machine + 1),
            attributes: vec![("production_line", format!("line-{}", machine / self.machines_per_line + 1))],
            signals: signals(setup.seed, u64::from(machine)),
        });
        Simulation::new(SENSORS.to_vec(), devices.collect(), setup)
    }
}

/// The signals of one machine, in the order of `SENSORS`. All follow the same load; each machine differs a little.
fn signals(seed: u64, machine: u64) -> Vec<Signal> {
    let load = Shape::Load { turn: dice::share(&[seed, 20, machine, 0]) };
    // Base, swing and noise.
    let curves = [(55.0, 30.0, 0.75), (1.5, 3.0, 0.25), (6.0, 1.5, 0.125), (20.0, 60.0, 2.0)];
    (1..)
        .zip(curves)
        .map(|(sensor, (base, swing, noise))| {
            let size = 0.9 + 0.2 * dice::share(&[seed, 20, machine, sensor]);
            let key = dice::key(&[seed, 21, machine, sensor]);
            Signal { base: base * size, swing: swing * size, shape: load, noise, key }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Plant, SENSORS};

    #[test]
    fn metrics_are_those_of_the_sensors() {
        assert_eq!(Plant::METRICS.to_vec(), SENSORS.iter().map(|sensor| sensor.metric).collect::<Vec<_>>());
    }
}

//! A city: air-quality stations in districts, with weather that all share and traffic that differs between them. It only
//! defines the devices; [`simulation`](crate::simulation) runs them.

use crate::simulation::signal::{Sensor, Shape, Signal};
use crate::simulation::{Device, Setup, Simulation, dice};

/// The size of a city.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct City {
    /// The number of stations, which are named from `station-01` on and assigned to the districts in turn (tag and
    /// registry attribute `district`).
    pub stations: u32,
}

const DISTRICTS: [&str; 5] = ["centre", "north", "east", "south", "west"];

const SENSORS: [Sensor; 6] = [
    Sensor { metric: "pm2_5", unit: "ug/m3", step: 0.25, range: (0.0, 1000.0) },
    Sensor { metric: "pm10", unit: "ug/m3", step: 0.25, range: (0.0, 1500.0) },
    Sensor { metric: "no2", unit: "ug/m3", step: 0.125, range: (0.0, 1000.0) },
    Sensor { metric: "o3", unit: "ug/m3", step: 0.125, range: (0.0, 1000.0) },
    Sensor { metric: "air_temperature", unit: "Cel", step: 0.0625, range: (-50.0, 60.0) },
    Sensor { metric: "humidity", unit: "%", step: 0.25, range: (0.0, 100.0) },
];

impl City {
    /// The metrics of each station.
    pub const METRICS: [&'static str; 6] = ["pm2_5", "pm10", "no2", "o3", "air_temperature", "humidity"];

    /// Starts the simulation of the city.
    pub fn simulate(self, setup: &Setup) -> Simulation {
        let devices = (0..self.stations).map(|station| Device {
            id: format!("station-{:02}", station + 1),
            attributes: vec![("district", DISTRICTS[station as usize % DISTRICTS.len()].to_owned())],
            signals: signals(setup.seed, u64::from(station)),
        });
        Simulation::new(SENSORS.to_vec(), devices.collect(), setup)
    }
}

/// The signals of one station, in the order of `SENSORS`. Fine dust is a part of all dust, so both depend on the same
/// weather, and the first is always less than the second.
fn signals(seed: u64, station: u64) -> Vec<Signal> {
    let size = 0.8 + 0.4 * dice::share(&[seed, 30, station]);
    let weather = Shape::Weather { turn: dice::share(&[seed, 31]) };
    let curves = [
        (8.0, 60.0, weather),
        (14.0, 90.0, weather),
        (18.0, 40.0, Shape::Rush),
        (30.0, 70.0, Shape::Day { peak_hour: 14.0 }),
        (9.0, 11.0, Shape::Day { peak_hour: 15.0 }),
        (45.0, 35.0, Shape::Day { peak_hour: 4.0 }),
    ];
    (1..)
        .zip(curves)
        .map(|(sensor, (base, swing, shape))| Signal {
            base: base * size,
            swing: swing * size,
            shape,
            noise: 0.5,
            key: dice::key(&[seed, 32, station, sensor]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{City, SENSORS};

    #[test]
    fn metrics_are_those_of_the_sensors() {
        assert_eq!(City::METRICS.to_vec(), SENSORS.iter().map(|sensor| sensor.metric).collect::<Vec<_>>());
    }
}

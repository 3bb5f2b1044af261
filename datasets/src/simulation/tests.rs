//! The readings of a simulation, and its correct results.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use chrono::{DateTime, TimeDelta, Utc};
use wye_domain::reading::{self, ReadingColumns};
use wye_domain::registry::{Registry, RegistryConfig};
use wye_domain::time::Micros;

use super::{PathFaults, Setup, Simulation};
use crate::city::City;
use crate::plant::Plant;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn setup(faults: PathFaults) -> Setup {
    Setup { seed: 7, start: start(), interval: TimeDelta::seconds(1), faults }
}

fn plant() -> Simulation {
    Plant { lines: 2, machines_per_line: 3 }.simulate(&setup(PathFaults::default()))
}

/// All readings of `minutes`, delivered in steps of this length, and then the rest.
fn run(simulation: &mut Simulation, minutes: i64, step: TimeDelta) -> RecordBatch {
    let (mut batches, mut now, end) = (Vec::new(), start(), start() + TimeDelta::minutes(minutes));
    while now < end {
        now = (now + step).min(end);
        batches.push(simulation.next_batch(now));
    }
    batches.push(simulation.finish());
    concat_batches(&reading::schema(), &batches).unwrap()
}

#[test]
fn readings_do_not_depend_on_the_steps() {
    let short = rows(&run(&mut plant(), 30, TimeDelta::milliseconds(137)));
    let long = rows(&run(&mut plant(), 30, TimeDelta::seconds(60)));
    assert!(short == long, "the readings depend on the steps");
}

#[test]
fn a_restart_continues_with_the_same_readings() {
    let whole: HashSet<String> = rows(&run(&mut plant(), 20, TimeDelta::seconds(1))).into_iter().collect();
    let late = Setup { start: start() + TimeDelta::minutes(10), ..setup(PathFaults::default()) };
    let mut again = Plant { lines: 2, machines_per_line: 3 }.simulate(&late);
    let batch = again.next_batch(start() + TimeDelta::minutes(20));
    assert!(batch.num_rows() > 10_000);
    for row in rows(&batch) {
        assert!(whole.contains(&row), "{row}");
    }
}

#[test]
fn the_correct_results_match_the_readings() {
    for mut simulation in [plant(), City { stations: 4 }.simulate(&setup(PathFaults::default()))] {
        let batch = run(&mut simulation, 30, TimeDelta::seconds(1));
        let columns = ReadingColumns::of(&batch).unwrap();
        let mut seen = HashSet::new();
        let mut windows = BTreeMap::<(Micros, &str, &str), Vec<f64>>::new();
        for row in 0..batch.num_rows() {
            let reading = columns.reading(row);
            let identity = (reading.device_id, reading.metric, reading.event_time, reading.sequence);
            if seen.insert(identity) {
                let window = Micros(reading.event_time.0 - reading.event_time.0 % 60_000_000);
                windows.entry((window, reading.device_id, reading.metric)).or_default().push(reading.value);
            }
        }
        let mut truth = 0;
        for row in simulation.truth() {
            truth += 1;
            let mut values = windows[&(row.window_start, row.device_id, row.metric)].clone();
            values.sort_by(f64::total_cmp);
            // The sum has the same bits in any order.
            assert_eq!(row.summary.sum.to_bits(), values.iter().sum::<f64>().to_bits());
            assert_eq!(row.summary.count, values.len() as u64);
            assert_eq!((row.summary.min, row.summary.max), (values[0], values[values.len() - 1]));
        }
        assert_eq!(truth, windows.len());
        let counts = simulation.counts();
        assert_eq!(counts.readings, seen.len() as u64);
        assert_eq!(counts.readings + counts.duplicates, batch.num_rows() as u64);
    }
}

#[test]
fn the_path_has_the_faults_of_its_settings() {
    let mut simulation = plant();
    let batch = run(&mut simulation, 60, TimeDelta::seconds(1));
    let counts = simulation.counts();
    // 6 machines, 4 sensors, one a second, for an hour.
    assert!((86_300..=86_400).contains(&counts.readings), "{counts:?}");
    let readings = counts.readings as f64;
    assert!((0.005..0.015).contains(&(counts.duplicates as f64 / readings)), "{counts:?}");
    assert!((0.001..0.1).contains(&(counts.backlog as f64 / readings)), "{counts:?}");
    let columns = ReadingColumns::of(&batch).unwrap();
    let backwards = columns.event_time.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(backwards > 1000, "{backwards}");

    let mut clean = Plant { lines: 1, machines_per_line: 2 }.simulate(&setup(PathFaults::none()));
    let batch = run(&mut clean, 5, TimeDelta::seconds(1));
    let columns = ReadingColumns::of(&batch).unwrap();
    assert!(columns.event_time.is_sorted());
    let mut last = HashMap::new();
    for row in 0..batch.num_rows() {
        let reading = columns.reading(row);
        let sequence = reading.sequence.unwrap();
        let before = last.insert((reading.device_id, reading.metric), sequence);
        assert!(before.is_none_or(|before| before + 1 == sequence));
    }
    assert_eq!(clean.counts().duplicates + clean.counts().backlog, 0);
}

#[test]
fn correct_results_can_be_removed() {
    let mut simulation = plant();
    run(&mut simulation, 10, TimeDelta::seconds(10));
    let border = start() + TimeDelta::minutes(5);
    simulation.forget_truth_before(border);
    assert!(simulation.truth().next().is_some());
    assert!(simulation.truth().all(|row| row.window_start >= Micros(border.timestamp_micros())));
}

#[test]
fn the_registry_is_valid_and_all_values_are_in_its_limits() {
    for mut simulation in [plant(), City { stations: 3 }.simulate(&setup(PathFaults::none()))] {
        let config: RegistryConfig = toml::from_str(&simulation.registry_toml()).unwrap();
        let limits: HashMap<_, _> = config
            .metric_limits
            .iter()
            .map(|limits| (limits.metric.clone(), (limits.min, limits.max)))
            .collect();
        let devices: HashSet<_> = config.device.iter().map(|device| device.device_id.clone()).collect();
        assert!(config.device.iter().all(|device| device.reporting_interval.as_deref() == Some("1s")));
        Registry::check(config).unwrap();
        let batch = run(&mut simulation, 3, TimeDelta::seconds(1));
        let columns = ReadingColumns::of(&batch).unwrap();
        for row in 0..batch.num_rows() {
            let reading = columns.reading(row);
            let (min, max) = limits[reading.metric];
            assert!(min.unwrap() <= reading.value && reading.value <= max.unwrap());
            assert!(devices.contains(reading.device_id));
        }
    }
}

/// Each reading as text, for comparison.
fn rows(batch: &RecordBatch) -> Vec<String> {
    let columns = ReadingColumns::of(batch).unwrap();
    (0..batch.num_rows()).map(|row| format!("{:?}", columns.reading(row))).collect()
}

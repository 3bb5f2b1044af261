//! Generated source files in the format of the Beijing air-quality data set, for tests that must also run without that data
//! set: hourly rows of invented stations, with missing values, repeated rows and rows out of order.
//!
//! The oracle for the real data set reads them too. The same arguments give the same files.

use std::f64::consts::TAU;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Columns with their mean and their amplitude over a day.
const COLUMNS: [(&str, f64, f64); 11] = [
    ("PM2.5", 80.0, 30.0),
    ("PM10", 105.0, 40.0),
    ("SO2", 16.0, 8.0),
    ("NO2", 50.0, 20.0),
    ("CO", 1200.0, 500.0),
    ("O3", 57.0, 40.0),
    ("TEMP", 13.5, 6.0),
    ("PRES", 1010.0, 3.0),
    ("DEWP", 2.5, 4.0),
    ("RAIN", 0.1, 0.1),
    ("WSPM", 1.7, 0.8),
];
/// The share of values that are missing.
const MISSING: f64 = 0.02;
/// The share of rows that are written twice, with the same values.
const REPEATED: f64 = 0.005;
/// The largest distance of two rows that are swapped.
const DISORDER: usize = 48;

/// Writes one CSV file with about `hours` rows for each of `stations` stations, and returns the paths.
///
/// # Errors
/// When a file cannot be written.
pub fn stations(stations: usize, hours: usize, into: &Path) -> Result<Vec<PathBuf>> {
    (0..stations)
        .map(|number| {
            let path = into.join(format!("generated-{number}.csv"));
            write_station(number, hours, &path).with_context(|| format!("write {}", path.display()))?;
            Ok(path)
        })
        .collect()
}

fn write_station(number: usize, hours: usize, path: &Path) -> Result<()> {
    let mut random = StdRng::seed_from_u64(number as u64);
    let mut rows = Vec::with_capacity(hours);
    for hour in 0..hours {
        rows.push(row(number, hour, &mut random));
        if random.random_bool(REPEATED) {
            rows.extend_from_within(rows.len() - 1..);
        }
    }
    for index in 0..rows.len() / 50 {
        let from = index * 50;
        let to = (from + random.random_range(0..DISORDER)).min(rows.len() - 1);
        rows.swap(from, to);
    }
    let mut file = BufWriter::new(File::create(path)?);
    let names: Vec<&str> = COLUMNS.iter().map(|(name, _, _)| *name).collect();
    writeln!(file, "No,year,month,day,hour,{},wd,station", names.join(","))?;
    for (index, row) in rows.iter().enumerate() {
        writeln!(file, "{},{row}", index + 1)?;
    }
    file.flush()?;
    Ok(())
}

/// The columns of a row after its number. Months have 28 days here, so that every date exists.
fn row(station: usize, hour: usize, random: &mut StdRng) -> String {
    let (day_of_all, hour_of_day) = (hour / 24, hour % 24);
    let (year, month, day) = (2013 + day_of_all / 336, day_of_all / 28 % 12 + 1, day_of_all % 28 + 1);
    let mut text = format!("{year},{month},{day},{hour_of_day}");
    for (_, mean, swing) in COLUMNS {
        if random.random_bool(MISSING) {
            text.push_str(",NA");
            continue;
        }
        let daily = (hour_of_day as f64 / 24.0 * TAU).sin() * swing;
        let value = mean + daily + random.random_range(-0.2..0.2) * swing;
        text.push_str(&format!(",{:.1}", (value * 10.0).round() / 10.0));
    }
    text.push_str(&format!(",NNW,Station-{station}"));
    text
}

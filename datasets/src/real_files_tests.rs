//! The mappings of the public files. The expected numbers were computed by another program in another way. The files are
//! not a part of the project; where they are missing, these tests print a message and pass.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use wye_domain::reading::ReadingColumns;

use crate::csv_source::CsvSource;
use crate::mapping::Mapping;

/// The content of the files.
#[derive(Default)]
struct Found {
    rows: u64,
    readings: u64,
    missing: u64,
    rejected: u64,
    largest_chunk: usize,
    /// Count, min, max and sum by metric.
    metrics: BTreeMap<String, (u64, f64, f64, f64)>,
    devices: BTreeMap<String, u64>,
    times: Vec<i64>,
}

/// The files of a folder of public data whose names start with `start`; `None`, with a message, where the folder is
/// missing.
fn files(folder: &str, start: &str) -> Option<Vec<PathBuf>> {
    // Unit tests are started in the folder of their package.
    let folder = Path::new("../../shared/datasets").join(folder);
    let Ok(entries) = folder.read_dir() else {
        assert!(std::env::var_os("CI").is_none(), "CI needs {}", folder.display());
        eprintln!("skipped: {} is missing", folder.display());
        return None;
    };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(start));
    files.sort();
    Some(files)
}

fn read(mapping: &str, files: &[PathBuf]) -> Found {
    let mapping = Mapping::load(Path::new(mapping)).unwrap();
    let mut found = Found::default();
    for file in files {
        for chunk in CsvSource::open(file, &mapping).unwrap() {
            let chunk = chunk.unwrap();
            found.rows += chunk.csv_rows;
            found.readings += chunk.batch.num_rows() as u64;
            found.missing += chunk.missing;
            found.rejected += chunk.rejected.len() as u64;
            found.largest_chunk = found.largest_chunk.max(chunk.batch.num_rows());
            let columns = ReadingColumns::of(&chunk.batch).unwrap();
            for row in 0..chunk.batch.num_rows() {
                let reading = columns.reading(row);
                let metric = found.metrics.entry(reading.metric.to_owned());
                let (count, min, max, sum) = metric.or_insert((0, f64::INFINITY, f64::NEG_INFINITY, 0.0));
                *count += 1;
                *min = min.min(reading.value);
                *max = max.max(reading.value);
                *sum += reading.value;
                *found.devices.entry(reading.device_id.to_owned()).or_default() += 1;
            }
            found.times.extend_from_slice(columns.event_time);
        }
    }
    found
}

#[test]
fn beijing() {
    let Some(files) = files("beijing-multisite", "PRSA") else { return };
    let found = read("beijing-multisite.toml", &files);
    assert_eq!((found.rows, found.readings, found.missing, found.rejected), (350_640, 3_796_226, 60_814, 0));
    assert!((50_000..65_000).contains(&found.largest_chunk), "{}", found.largest_chunk);
    let expected = [
        ("PM2.5", 342_979, 2.0, 941.0, 27_063_495.0),
        ("PM10", 344_959, 2.0, 999.0, 35_616_205.3),
        ("SO2", 342_863, 0.2856, 500.0, 5_294_686.052_8),
        ("NO2", 340_348, 1.0265, 290.0, 16_569_932.789),
        ("CO", 333_048, 100.0, 10_000.0, 402_243_771.0),
        ("O3", 340_548, 0.2142, 1071.0, 19_856_927.001_4),
        ("TEMP", 350_281, -19.9, 41.6, 4_737_701.139_9),
        ("PRES", 350_286, 982.4, 1042.8, 354_011_429.351_7),
        ("DEWP", 350_276, -43.4, 29.1, 837_697.8),
        ("RAIN", 350_289, 0.0, 72.5, 22_457.9),
        ("WSPM", 350_349, 0.0, 12.9, 613_464.2),
    ];
    assert_eq!(found.metrics.len(), expected.len());
    for (metric, count, min, max, sum) in expected {
        let (found_count, found_min, found_max, found_sum) = found.metrics[metric];
        assert_eq!((found_count, found_min, found_max), (count, min, max), "{metric}");
        assert!((found_sum - sum).abs() < 1e-3, "{metric}: {found_sum}");
    }
    assert_eq!(found.devices["Aotizhongxin"], 378_514);
    assert_eq!(found.devices.len(), 10);
    // 2013-03-01 00:00 to 2017-02-28 23:00, UTC+8.
    assert_eq!(found.times.iter().min(), Some(&1_362_067_200_000_000));
    assert_eq!(found.times.iter().max(), Some(&1_488_294_000_000_000));
}

#[test]
fn machine_temperature() {
    let Some(files) = files("nab/realKnownCause", "machine_temperature") else { return };
    let found = read("nab-machine-temperature.toml", &files);
    assert_eq!((found.rows, found.readings, found.missing, found.rejected), (22_695, 22_695, 0, 0));
    let (_, min, max, _) = found.metrics["temperature"];
    assert_eq!((min, max), (2.084_721_205_999_999_8, 108.510_542_800_000_01));
    let distinct: HashSet<_> = found.times.iter().collect();
    assert_eq!(found.times.len() - distinct.len(), 12);
    assert_eq!(found.times.windows(2).filter(|pair| pair[0] > pair[1]).count(), 1);
}

#[test]
fn italy() {
    let Some(files) = files("italy-air", "AirQuality") else { return };
    let found = read("italy-air.toml", &files);
    assert_eq!((found.rows, found.readings, found.missing, found.rejected), (9357, 104_940, 16_701, 0));
    let (count, min, max, sum) = found.metrics["T"];
    assert_eq!((count, min, max), (8991, -1.9, 44.6));
    assert!((sum - 164_695.6).abs() < 1e-6, "{sum}");
    assert_eq!(found.metrics["NMHC(GT)"].0, 914);
    // One row for each hour, through both clock changes.
    let (first, last) = (found.times.iter().min().unwrap(), found.times.iter().max().unwrap());
    assert_eq!((last - first) / 3_600_000_000 + 1, found.rows as i64);
    // 2004-03-10 18:00 at UTC+1.
    assert_eq!(*first, 1_078_938_000_000_000);
}

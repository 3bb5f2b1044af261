//! Reading CSV files: comparison with a simple reader, repeatability, and invalid content.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;
use wye_domain::reading::ReadingColumns;

use super::{Chunk, CsvSource, RejectReason, device_from_file_name};
use crate::error::DatasetError;
use crate::file_id::file_id;
use crate::mapping::Mapping;

const MAPPING: &str = r#"
missing = ["NA", "", -200]
[device]
column = "station"
[time]
columns = ["t"]
format = "unix_seconds"
[tags]
site = { constant = "s" }
road = { column = "road" }
[[metric]]
column = "a"
unit = "Cel"
[[metric]]
column = "b"
name = "bee"
scale = 2.0
offset = 1.0
"#;

/// Device, metric, value, time (µs), unit, tags.
type Row = (String, String, f64, i64, Option<String>, Option<String>);

fn mapping(text: &str) -> Mapping {
    Mapping::parse(text, Path::new("m.toml")).unwrap()
}

fn file(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn chunks(path: &Path, mapping: &Mapping) -> Vec<Chunk> {
    CsvSource::open(path, mapping).unwrap().map(Result::unwrap).collect()
}

fn rows(chunk: &Chunk) -> Vec<Row> {
    let columns = ReadingColumns::of(&chunk.batch).unwrap();
    (0..chunk.batch.num_rows())
        .map(|row| {
            let reading = columns.reading(row);
            assert_eq!(reading.sequence, None);
            let (device, metric) = (reading.device_id.to_owned(), reading.metric.to_owned());
            let (unit, tags) = (reading.unit.map(str::to_owned), reading.tags.map(str::to_owned));
            (device, metric, reading.value, reading.event_time.0, unit, tags)
        })
        .collect()
}

fn read(text: &str) -> Chunk {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "f.csv", text.as_bytes());
    let mut chunks = chunks(&path, &mapping(MAPPING));
    assert_eq!(chunks.len(), 1);
    chunks.remove(0)
}

/// A reading of [`MAPPING`].
fn row(device: &str, metric: &str, value: f64, seconds: i64, tags: &str) -> Row {
    let unit = (metric == "a").then(|| "Cel".to_owned());
    (device.into(), metric.into(), value, seconds * 1_000_000, unit, Some(tags.into()))
}

#[test]
fn readings_are_ordered_by_device_then_metric_then_file_order() {
    let chunk = read("station,t,road,a,b\nx,2,r,1,2\ny,1,,3,NA\nx,1,r,-200.0,4\n");
    let road = r#"{"road":"r","site":"s"}"#;
    assert_eq!(
        rows(&chunk),
        [
            row("x", "a", 1.0, 2, road),
            row("x", "bee", 5.0, 2, road),
            row("x", "bee", 9.0, 1, road),
            row("y", "a", 3.0, 1, r#"{"site":"s"}"#),
        ]
    );
    assert_eq!((chunk.csv_rows, chunk.missing, chunk.rejected.len()), (3, 2, 0));
}

#[test]
fn invalid_rows_and_cells_are_rejected_and_the_others_are_read() {
    let chunk = read(concat!(
        "station,t,road,a,b\n",
        "x,1,r,1\n",
        "x,soon,r,1,2\n",
        ",3,r,1,2\n",
        "x,4,r,one,2\n",
        "x,5,r,nan,1e309\n",
        "x,6,r,\"quoted \"\"7\"\"\",2\n",
        "x,7,r, 1 ,2\n"
    ));
    let rejected: Vec<_> = chunk
        .rejected
        .iter()
        .map(|r| (r.row, r.column.as_str(), r.text.as_str(), r.reason, r.readings))
        .collect();
    assert_eq!(
        rejected,
        [
            (2, "", "x,1,r,1", RejectReason::ColumnCount { found: 4, expected: 5 }, 2),
            (3, "t", "soon", RejectReason::UnreadableTime, 2),
            (4, "station", "", RejectReason::NoDevice, 2),
            (5, "a", "one", RejectReason::NotANumber, 1),
            (6, "a", "nan", RejectReason::NotFinite, 1),
            (6, "b", "1e309", RejectReason::NotFinite, 1),
            (7, "a", "quoted \"7\"", RejectReason::NotANumber, 1),
        ]
    );
    assert_eq!(
        rows(&chunk).iter().map(|row| (row.2, row.3)).collect::<Vec<_>>(),
        [(1.0, 7_000_000), (5.0, 4_000_000), (5.0, 6_000_000), (5.0, 7_000_000),]
    );
}

#[test]
fn gzip_byte_order_mark_semicolons_and_decimal_commas() {
    let folder = TempDir::new().unwrap();
    let text = "\u{feff}t;\"v\"\r\n01/02/2020 03.04.05;-1,5\r\n;;\r\n";
    let mapping = mapping(
        r#"
        delimiter = ";"
        decimal_comma = true
        device = { file_name = true }
        time = { columns = ["t"], format = "%d/%m/%Y %H.%M.%S", zone = "UTC" }
        metric = [{ column = "v" }]
        "#,
    );
    // Gzip is detected by the bytes, not by the name.
    for (name, bytes) in [("dev.csv.gz", text.as_bytes().to_vec()), ("dev.csv", gzip(text.as_bytes()))] {
        let path = file(&folder, name, &bytes);
        let source = CsvSource::open(&path, &mapping).unwrap();
        assert_eq!(source.bytes_total(), bytes.len() as u64);
        let chunks: Vec<_> = source.map(Result::unwrap).collect();
        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].bytes_read, bytes.len() as u64);
        assert_eq!(rows(&chunks[0]), [("dev".into(), "v".into(), -1.5, 1_580_526_245_000_000, None, None)]);
        assert_eq!(chunks[0].rejected.len(), 1);
    }
}

#[test]
fn damaged_gzip_is_an_error() {
    let folder = TempDir::new().unwrap();
    let mut text = String::from("station,t,road,a,b\n");
    for row in 0..200_000 {
        text.push_str(&format!("x,{row},r,{},{}\n", row * 7919 % 1000, row % 7));
    }
    let whole = gzip(text.as_bytes());
    let path = file(&folder, "cut.csv.gz", &whole[..whole.len() / 2]);
    let mut source = CsvSource::open(&path, &mapping(MAPPING)).unwrap();
    let good: Vec<_> = source.by_ref().take_while(Result::is_ok).collect();
    assert!(!good.is_empty());
    assert!(source.next().is_none());
    let error = CsvSource::open(&path, &mapping(MAPPING)).unwrap().find_map(Result::err).unwrap();
    assert!(matches!(error, DatasetError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("cut off or damaged after"), "{error}");

    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle..middle + 64].fill(0xff);
    let path = file(&folder, "flipped.csv.gz", &flipped);
    let error = CsvSource::open(&path, &mapping(MAPPING)).unwrap().find_map(Result::err).unwrap();
    assert!(matches!(error, DatasetError::Damaged { .. }), "{error:?}");

    let path = file(&folder, "head.csv.gz", &whole[..5]);
    assert!(matches!(CsvSource::open(&path, &mapping(MAPPING)), Err(DatasetError::Damaged { .. })));
}

#[test]
fn files_that_do_not_fit_the_mapping_are_refused() {
    let folder = TempDir::new().unwrap();
    assert!(refused(&folder, b"").contains("the file is empty"));
    assert!(refused(&folder, b"\xff\xfes\0t\0").contains("UTF-16"));
    let error = refused(&folder, b"station,time,road,a,b\n");
    assert!(error.starts_with("m.toml: time.columns: ") && error.contains("has no column `t`"), "{error}");
    assert!(error.ends_with("write one of: station, time, road, a, b"), "{error}");
    assert!(refused(&folder, b"station,t,road,a,a,b\n").contains("metric[0].column: `a` is twice"));
    let absent = CsvSource::open(&folder.path().join("none.csv"), &mapping(MAPPING)).err().unwrap();
    assert_eq!(absent.kind(), wye_domain::ErrorKind::NotFound);
    let path = file(&folder, "f.csv", b"station,t,road,a,b\n");
    assert!(chunks(&path, &mapping(MAPPING)).is_empty());
}

/// The error of opening a file with this content.
fn refused(folder: &TempDir, bytes: &[u8]) -> String {
    let path = file(folder, "f.csv", bytes);
    CsvSource::open(&path, &mapping(MAPPING)).err().map(|error| error.to_string()).unwrap()
}

#[test]
fn a_file_is_identified_by_its_bytes_and_the_meaning_of_the_mapping() {
    let folder = TempDir::new().unwrap();
    let one = file(&folder, "one.csv", b"station,t,road,a,b\nx,1,r,1,2\n");
    let two = file(&folder, "two.csv", b"station,t,road,a,b\nx,1,r,1,2\n");
    let other = file(&folder, "other.csv", b"station,t,road,a,b\nx,1,r,1,3\n");
    let plain = mapping(MAPPING);
    let id = file_id(&one, &plain).unwrap();
    assert_eq!(id.len(), 64);
    assert_eq!(id, file_id(&two, &mapping(&format!("# comment\n{MAPPING}"))).unwrap());
    assert_ne!(id, file_id(&other, &plain).unwrap());
    assert_ne!(id, file_id(&one, &mapping(&MAPPING.replace("2.0", "3.0"))).unwrap());
    let by_file = mapping(&MAPPING.replace("column = \"station\"", "file_name = true"));
    assert_ne!(file_id(&one, &by_file).unwrap(), file_id(&two, &by_file).unwrap());
    assert_eq!(device_from_file_name(Path::new("/a/b.c.csv.gz")), "b.c");
}

/// One generated line.
#[derive(Clone, Debug)]
struct Line {
    station: &'static str,
    seconds: i32,
    cells: [&'static str; 2],
}

fn line() -> impl Strategy<Value = Line> {
    let station = prop::sample::select(vec!["x", "y", "z", ""]);
    (station, any::<i32>(), [cell(), cell()]).prop_map(|(station, seconds, cells)| Line {
        station,
        seconds,
        cells,
    })
}

fn cell() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["1", "-2.5", "NA", "", "-200", "-200.00", "bad", "1e3", "0.1"])
}

/// The chunks of a file with two metrics.
fn small_chunks(path: &Path, mapping: &Mapping, rows_per_chunk: usize) -> Vec<Chunk> {
    CsvSource::open_with(path, mapping, rows_per_chunk * 2).unwrap().map(Result::unwrap).collect()
}

/// The readings of one chunk in a slow and simple way, with the numbers of missing and lost ones.
fn naive(lines: &[Line]) -> (Vec<Row>, u64, u64) {
    let (mut readings, mut missing, mut lost) = (Vec::new(), 0, 0);
    let mut devices = Vec::new();
    for line in lines.iter().filter(|line| !line.station.is_empty()) {
        if !devices.contains(&line.station) {
            devices.push(line.station);
        }
    }
    for device in devices {
        for (metric, name) in ["a", "bee"].into_iter().enumerate() {
            for line in lines.iter().filter(|line| line.station == device) {
                let number: Option<f64> = line.cells[metric].parse().ok();
                match number {
                    Some(-200.0) => missing += 1,
                    Some(number) => readings.push((
                        device.to_owned(),
                        name.to_owned(),
                        if metric == 1 { number * 2.0 + 1.0 } else { number },
                        i64::from(line.seconds) * 1_000_000,
                        (metric == 0).then(|| "Cel".to_owned()),
                        Some(r#"{"site":"s"}"#.to_owned()),
                    )),
                    None if line.cells[metric] == "bad" => lost += 1,
                    None => missing += 1,
                }
            }
        }
    }
    lost += 2 * lines.iter().filter(|line| line.station.is_empty()).count() as u64;
    (readings, missing, lost)
}

proptest! {
    #[test]
    fn readings_are_those_of_a_simple_reader(
        lines in prop::collection::vec(line(), 1..60), rows_per_chunk in 1_usize..20, packed in any::<bool>(),
    ) {
        let mut text = String::from("station,t,road,a,b\n");
        for Line { station, seconds, cells: [a, b] } in &lines {
            text.push_str(&format!("{station},{seconds},,{a},{b}\n"));
        }
        let folder = TempDir::new().unwrap();
        let bytes = if packed { gzip(text.as_bytes()) } else { text.into_bytes() };
        let path = file(&folder, "f.csv", &bytes);
        let mapping = mapping(MAPPING);
        let first = small_chunks(&path, &mapping, rows_per_chunk);
        let second = small_chunks(&path, &mapping, rows_per_chunk);
        prop_assert_eq!(first.len(), lines.len().div_ceil(rows_per_chunk));
        for (index, (chunk, lines)) in first.iter().zip(lines.chunks(rows_per_chunk)).enumerate() {
            let (readings, missing, lost) = naive(lines);
            prop_assert_eq!(rows(chunk), readings);
            prop_assert_eq!(chunk.missing, missing);
            prop_assert_eq!(chunk.rejected.iter().map(|rejected| rejected.readings).sum::<u64>(), lost);
            prop_assert_eq!((chunk.index, chunk.csv_rows), (index as u64, lines.len() as u64));
            prop_assert_eq!(&chunk.batch, &second[index].batch);
            prop_assert_eq!(&chunk.rejected, &second[index].rejected);
        }
    }
}

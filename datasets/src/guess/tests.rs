//! Proposals for files of many kinds, and how they read these files.

use std::path::PathBuf;

use super::*;

struct File {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn file(text: &str) -> File {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("boiler-7.csv");
    std::fs::write(&path, text).unwrap();
    File { path, _directory: directory }
}

/// The proposal for a file, with the numbers of readings, missing cells and rejected cells that it gives.
fn check(text: &str) -> (usize, u64, usize, String) {
    let file = file(text);
    let proposed = propose(&file.path).unwrap();
    let mapping = Mapping::parse(&proposed, Path::new("proposed.toml")).unwrap();
    let (mut readings, mut missing, mut rejected) = (0, 0, 0);
    for chunk in CsvSource::open(&file.path, &mapping).unwrap() {
        let chunk = chunk.unwrap();
        readings += chunk.batch.num_rows();
        missing += chunk.missing;
        rejected += chunk.rejected.len();
    }
    (readings, missing, rejected, proposed)
}

fn refuses(text: &str, word: &str) {
    let error = propose(&file(text).path).unwrap_err().to_string();
    assert!(error.contains(word), "{error}");
}

#[test]
fn a_plain_file_is_read_whole() {
    let (readings, missing, rejected, text) = check(
        "sensor_id,timestamp,Temp,Status\np1,2026-01-01T00:00:00Z,1.5,ok\np2,2026-01-01T00:01:00+02:00,NA,ok\n\
         p1,2026-01-01T00:02:00Z,,low\n",
    );
    assert_eq!((readings, missing, rejected), (1, 2, 0), "{text}");
    assert!(text.contains("column = \"sensor_id\"") && text.contains("format = \"rfc3339\""), "{text}");
    assert!(text.contains(r#"missing = ["", "NA"]"#) && !text.contains("column = \"Status\"\n"), "{text}");
}

#[test]
fn semicolons_decimal_commas_and_two_columns_of_time() {
    let (readings, missing, rejected, text) = check(
        "Nr;Datum;Zeit;Druck;Fluss\n1;31.12.2025;23:58;1,5;-999\n2;31.12.2025;23:59;1,25;3,0\n\
         3;01.01.2026;00:00;1,75;3,5\n",
    );
    assert_eq!((readings, missing, rejected), (5, 1, 0), "{text}");
    assert!(text.contains("decimal_comma = true") && text.contains("constant = \"boiler-7\""), "{text}");
    assert!(text.contains("zone = \"UTC\"   # check") && text.contains("-999"), "{text}");
    assert!(!text.contains("\"Nr\""), "{text}");
}

#[test]
fn times_in_all_formats_are_found() {
    for (header, first, second) in [
        ("time", "1767225600", "1767225660"),
        ("ts", "1767225600000", "1767225660000"),
        ("date", "2026/01/31 12:00", "2026/01/31 12:01"),
        ("when", "2026-01-31 12:00:00.250", "2026-01-31 12:01:00.250"),
        ("Date Time", "1/31/2026 1:05:00 PM", "1/31/2026 1:06:00 PM"),
        ("t", "2026-01-31 12:00:00+01:00", "2026-01-31 12:01:00+01:00"),
        ("date", "2026-01-30", "2026-01-31"),
        ("year,month,day,hour", "2026,1,31,12", "2026,1,31,13"),
    ] {
        let (readings, missing, rejected, text) = check(&format!("{header},v\n{first},5\n{second},7\n"));
        assert_eq!((readings, missing, rejected), (2, 0, 0), "{header} {first}: {text}");
    }
    let (.., text) = check("date,v\n02/01/2026 12:00,5\n");
    assert!(text.contains("# check: \"%m/%d/%Y %H:%M\" fits as well"), "{text}");
}

#[test]
fn a_file_without_readings_is_refused_with_a_reason() {
    refuses("", "header");
    refuses("a,b\n1,2\n", "time");
    refuses(
        "time,b\n2026-01-01T00:00:00Z,x\n2026-01-01T00:00:00Z,y\n2026-01-01T00:00:00Z,z\n2026-01-01T00:00:00Z,w\n",
        "numbers",
    );
}

#[test]
fn hostile_files_do_not_panic() {
    let seed = "id,time,v\nd,2026-01-01T00:00:00Z,1.5\n";
    for at in 0..=seed.len() {
        for piece in ["\"", ",", ";", "\n", "\0", "é", "\u{feff}", "'", "]", "\\", "1e999", "NaN", "-"] {
            let text = format!("{}{piece}{}", &seed[..at], &seed[at..]);
            if let Ok(proposed) = propose(&file(&text).path) {
                Mapping::parse(&proposed, Path::new("proposed.toml")).unwrap();
            }
        }
    }
}

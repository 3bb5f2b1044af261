//! Files of readings, plain or gzip.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;
use wye_datasets::csv_source::CsvSource;
use wye_datasets::guess;
use wye_datasets::mapping::Mapping;

/// Stands between a mapping and a file.
const BETWEEN: &[u8] = b"\n---\n";

/// A mapping and the file that it is for.
pub(crate) fn csv(bytes: &[u8]) {
    let Some(at) = bytes.windows(BETWEEN.len()).position(|window| window == BETWEEN) else { return };
    let (mapping, content) = (&bytes[..at], &bytes[at + BETWEEN.len()..]);
    let Ok(mapping) = std::str::from_utf8(mapping) else { return };
    let Ok(mapping) = Mapping::parse(mapping, Path::new("mapping.toml")) else { return };
    read(&scratch("readings.csv", content), &mapping);
}

/// A file whose mapping is guessed; what is guessed must be a mapping that reads the file.
pub(crate) fn guess(bytes: &[u8]) {
    let file = scratch("guess.csv", bytes);
    let Ok(proposed) = guess::propose(&file) else { return };
    let mapping = Mapping::parse(&proposed, Path::new("mapping.toml"))
        .unwrap_or_else(|error| panic!("the proposed mapping is none: {error}\n{proposed}"));
    read(&file, &mapping);
}

fn read(file: &Path, mapping: &Mapping) {
    let Ok(source) = CsvSource::open(file, mapping) else { return };
    for chunk in source {
        let Ok(_) = chunk else { return };
    }
}

/// A file with this content, in memory where the system has a place for that.
pub(crate) fn scratch(name: &str, content: &[u8]) -> PathBuf {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| directory().expect("there is room for small files"));
    let path = directory.path().join(name);
    fs::write(&path, content).expect("there is room for a small file");
    path
}

/// A new directory, in memory where the system has a place for that.
pub(crate) fn directory() -> std::io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

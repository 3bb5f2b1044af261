//! Files of readings, plain or gzip.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fs, io};

use tempfile::TempDir;
use wye_datasets::csv_source::CsvSource;
use wye_datasets::guess;
use wye_datasets::mapping::Mapping;

use crate::Outcome;

/// The separator of a mapping and a data file.
const BETWEEN: &[u8] = b"\n---\n";

/// A mapping and a data file.
pub(crate) fn csv(bytes: &[u8]) -> Outcome {
    let Some(at) = bytes.windows(BETWEEN.len()).position(|window| window == BETWEEN) else { return Ok(()) };
    let (mapping, content) = (&bytes[..at], &bytes[at + BETWEEN.len()..]);
    let Ok(mapping) = std::str::from_utf8(mapping) else { return Ok(()) };
    let Ok(mapping) = Mapping::parse(mapping, Path::new("mapping.toml")) else { return Ok(()) };
    read(&scratch("readings.csv", content)?, &mapping);
    Ok(())
}

/// A data file whose mapping is guessed; a proposal must be a valid mapping.
pub(crate) fn guess(bytes: &[u8]) -> Outcome {
    let file = scratch("guess.csv", bytes)?;
    let Ok(proposed) = guess::propose(&file) else { return Ok(()) };
    let mapping = Mapping::parse(&proposed, Path::new("mapping.toml"))
        .map_err(|error| format!("the proposed mapping is invalid: {error}\n{proposed}"))?;
    read(&file, &mapping);
    Ok(())
}

fn read(file: &Path, mapping: &Mapping) {
    let Ok(source) = CsvSource::open(file, mapping) else { return };
    for chunk in source {
        let Ok(_) = chunk else { return };
    }
}

/// A file with this content, in memory if possible.
pub(crate) fn scratch(name: &str, content: &[u8]) -> io::Result<PathBuf> {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    let directory = match DIRECTORY.get() {
        Some(directory) => directory,
        None => {
            let created = directory()?;
            DIRECTORY.get_or_init(|| created)
        }
    };
    let path = directory.path().join(name);
    fs::write(&path, content)?;
    Ok(path)
}

/// A new directory, in memory if possible.
pub(crate) fn directory() -> io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

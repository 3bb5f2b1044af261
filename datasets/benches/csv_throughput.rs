//! The throughput of reading CSV files: `csv_throughput MAPPING FILES...`, or the Beijing files without arguments.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use wye_datasets::csv_source::CsvSource;
use wye_datasets::error::DatasetError;
use wye_datasets::mapping::Mapping;

fn main() -> Result<(), DatasetError> {
    let mut arguments =
        std::env::args_os().skip(1).filter(|argument| argument != "--bench").map(PathBuf::from);
    // Must be started at the root of the project, as the README of the data sets says.
    let mapping = arguments.next().unwrap_or_else(|| PathBuf::from("datasets/beijing-multisite.toml"));
    let mut files: Vec<PathBuf> = arguments.collect();
    if files.is_empty() {
        let folder = Path::new("../shared/datasets/beijing-multisite");
        files = list(folder).map_err(|source| DatasetError::Read { path: folder.to_owned(), source })?;
    }
    let mapping = Mapping::load(&mapping)?;
    for _ in 0..5 {
        let begin = Instant::now();
        let (mut readings, mut missing, mut rejected, mut bytes) = (0, 0, 0, 0);
        for file in &files {
            let source = CsvSource::open(file, &mapping)?;
            bytes += source.bytes_total();
            for chunk in source {
                let chunk = chunk?;
                readings += chunk.batch.num_rows();
                missing += chunk.missing;
                rejected += chunk.rejected.len();
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        let (rate, megabytes) = (readings as f64 / seconds, bytes as f64 / 1e6);
        println!(
            "{readings} readings, {missing} missing, {rejected} rejected, {megabytes:.1} MB in {seconds:.3} s: {rate:.0} readings/s"
        );
    }
    Ok(())
}

/// The files in a folder.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    folder.read_dir()?.map(|entry| Ok(entry?.path())).collect()
}

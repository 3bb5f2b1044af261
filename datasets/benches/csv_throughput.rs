//! How fast files become readings: `csv_throughput MAPPING FILES...`, or the Beijing set where none are named.

#![expect(clippy::print_stdout, reason = "a benchmark reports on its terminal")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::path::PathBuf;
use std::time::Instant;

use wye_datasets::csv_source::CsvSource;
use wye_datasets::error::DatasetError;
use wye_datasets::mapping::Mapping;

fn main() -> Result<(), DatasetError> {
    let mut arguments =
        std::env::args_os().skip(1).filter(|argument| argument != "--bench").map(PathBuf::from);
    // It is started at the root of the project, as the README of the data sets says.
    let mapping = arguments.next().unwrap_or_else(|| PathBuf::from("datasets/beijing-multisite.toml"));
    let mut files: Vec<PathBuf> = arguments.collect();
    if files.is_empty() {
        let folder = PathBuf::from("../shared/datasets/beijing-multisite");
        let read_error = |source| DatasetError::Read { path: folder.clone(), source };
        for entry in folder.read_dir().map_err(read_error)? {
            files.push(entry.map_err(read_error)?.path());
        }
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

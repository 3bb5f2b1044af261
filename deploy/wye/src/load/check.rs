//! `wye load --check`: reports the content and the errors of files by a mapping, without sending anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use wye_datasets::csv_source::{Chunk, CsvSource};
use wye_datasets::mapping::Mapping;
use wye_domain::reading::{ReadingColumns, TextColumn};
use wye_domain::time::{Micros, format_rfc3339};
use wye_domain::wire::{self, Acceptance, AcceptedRows, Collected};
use wye_runtime::clock::{Clock, SystemClock};

use super::{example, print_rejected};
use crate::terminal::{grouped, tell};

/// How many rejected readings are shown.
const SHOWN: usize = 20;
/// How many names of devices and of metrics are shown.
const NAMES: usize = 12;

/// What was found in the files.
#[derive(Debug, Default)]
struct Findings {
    csv_rows: u64,
    readings: u64,
    missing: u64,
    /// The first and the last event time.
    times: Option<(Micros, Micros)>,
    devices: BTreeSet<String>,
    metrics: BTreeSet<String>,
    rejected: BTreeMap<String, u64>,
    examples: Vec<String>,
}

/// Reads all files and prints what was found.
///
/// # Errors
/// When a file cannot be read, or the files have no valid reading.
pub(super) fn run(files: &[PathBuf], mapping: &Mapping, bar: &ProgressBar) -> Result<()> {
    let mut findings = Findings::default();
    let mut done_before = 0;
    for file in files {
        let source = CsvSource::open(file, mapping)?;
        let size = source.bytes_total();
        for chunk in source {
            let chunk = chunk?;
            bar.set_position(done_before + chunk.bytes_read);
            findings.add(&chunk, &file.display().to_string())?;
        }
        done_before += size;
    }
    bar.finish_and_clear();
    findings.print(files.len());
    if findings.readings == 0 {
        bail!("the files have no valid reading; change the mapping, see the rejected readings above");
    }
    Ok(())
}

impl Findings {
    fn add(&mut self, chunk: &Chunk, file: &str) -> Result<()> {
        self.csv_rows += chunk.csv_rows;
        self.missing += chunk.missing;
        for rejected in &chunk.rejected {
            *self.rejected.entry(rejected.reason.label().to_owned()).or_default() += rejected.readings;
            self.show(format!("{file}, {}", example(rejected)));
        }
        // Ingest accepts the same readings, with its default settings.
        let mut collected = Collected::default();
        let stream = wire::encode_arrow(std::slice::from_ref(&chunk.batch));
        let now = SystemClock::default().now();
        let accepted = wire::decode_arrow(&stream, now, &Acceptance::default(), &mut collected);
        for rejected in &collected.rejected {
            let reason = rejected.reason.name().to_owned();
            *self.rejected.entry(reason).or_default() += u64::from(rejected.readings);
            self.show(format!("{file}: {}: {}", rejected.detail, String::from_utf8_lossy(&rejected.payload)));
        }
        for AcceptedRows { batch, .. } in &accepted {
            let columns = ReadingColumns::of(batch)?;
            self.readings += batch.num_rows() as u64;
            for time in columns.event_time.iter().copied().map(Micros) {
                let (first, last) = self.times.unwrap_or((time, time));
                self.times = Some((first.min(time), last.max(time)));
            }
            add_used(&mut self.devices, &columns.device_id, batch.num_rows());
            add_used(&mut self.metrics, &columns.metric, batch.num_rows());
        }
        Ok(())
    }

    fn show(&mut self, example: String) {
        if self.examples.len() < SHOWN {
            self.examples.push(example);
        }
    }

    fn print(&self, files: usize) {
        tell(format!("files          {files:>12}"));
        tell(format!("rows read      {:>12}", grouped(self.csv_rows)));
        tell(format!("readings       {:>12}", grouped(self.readings)));
        tell(format!("missing        {:>12}   cells without a value", grouped(self.missing)));
        if let Some((first, last)) = self.times {
            tell(format!("first time     {:>12}   {}", "", format_rfc3339(first)));
            tell(format!("last time      {:>12}   {}", "", format_rfc3339(last)));
        }
        for (title, names) in [("devices", &self.devices), ("metrics", &self.metrics)] {
            tell(format!("{title:<14} {:>12}   {}", grouped(names.len() as u64), list(names)));
        }
        print_rejected(&self.rejected, &self.examples);
        tell("nothing was sent");
    }
}

/// Adds the names that rows use.
fn add_used(names: &mut BTreeSet<String>, column: &TextColumn<'_>, rows: usize) {
    let codes: BTreeSet<usize> = (0..rows).filter_map(|row| column.code(row)).collect();
    names.extend(codes.into_iter().map(|code| column.words().value(code).to_owned()));
}

fn list(names: &BTreeSet<String>) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES).map(String::as_str).collect();
    let more = if names.len() > NAMES { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

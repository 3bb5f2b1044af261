//! `wye batch sql`: cleans files and runs an SQL query on them, without a running Wye, Kafka or a data directory.
//!
//! The report of what was cleaned is on standard error, so that the result can be piped; with --json it is on standard output.

mod lines;
mod rows;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow, bail};
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wye_batch::compute::Compute;
use wye_batch::file_job::input::{CsvOptions, Header, Input};
use wye_batch::file_job::output::{Destination, Existing};
use wye_batch::file_job::recipe::Recipe;
use wye_batch::file_job::report::{JobReport, Outcome};
use wye_batch::file_job::{self, FileJob, FileJobError, LEAST_MEMORY};
use wye_domain::ErrorKind;
use wye_runtime::clock::{Clock, SystemClock};
use wye_runtime::memory::machine_memory;

use crate::cli::BatchSql;
use crate::client::Misused;
use crate::terminal::{Progress, ReaderClosed, say, spinner};

/// The most memory that a job has where none is given.
const DEFAULT_MEMORY: usize = 4 << 30;
/// The part of the machine's memory that a job has where none is given.
const MEMORY_SHARE: usize = 4;
/// Batches that wait to be printed.
const WAITING: usize = 2;

/// Runs the command.
///
/// # Errors
/// [`Misused`] when arguments, a recipe or the SQL are wrong; [`ReaderClosed`] when the reader of the output is; else what
/// failed.
pub(crate) async fn run(arguments: &BatchSql) -> Result<()> {
    let clock = SystemClock::default();
    let shutdown = CancellationToken::new();
    let mut signals = JoinSet::new();
    signals.spawn(wye_runtime::shutdown::cancel_on_signal(shutdown.clone()));
    let compute = Compute::new()?;
    let mut job = job(arguments, compute.threads())?;
    let reading = Progress::new("reading", "bytes");
    job.on_read = Some(reading.callback());
    let querying: Arc<OnceLock<ProgressBar>> = Arc::default();
    let started = Arc::clone(&querying);
    job.on_query = Some(Arc::new(move || {
        started.get_or_init(|| spinner("query"));
    }));
    let outcome = match &arguments.output {
        Some(path) => {
            let existing = if arguments.overwrite { Existing::Replace } else { Existing::Refuse };
            let destination = Destination::File { path: path.clone(), existing };
            compute.run(file_job::run(job, destination, shutdown)).await?
        }
        None => {
            let (sender, receiver) = mpsc::channel(WAITING);
            let running = compute.run(file_job::run(job, Destination::Channel(sender), shutdown));
            let (outcome, printed) = tokio::join!(running, rows::print(receiver, &querying));
            printed?;
            outcome?
        }
    };
    if let Some(bar) = querying.get() {
        bar.finish_and_clear();
    }
    drop(reading);
    let report = match outcome {
        // The reader has all rows that it wants.
        Err(FileJobError::Closed) => return Ok(()),
        outcome => outcome.map_err(as_outcome)?,
    };
    print_report(arguments, &report, &clock)?;
    match report.outcome {
        Outcome::Done => Ok(()),
        Outcome::Rejected => Err(rejected(&report)),
    }
}

/// What the arguments say.
fn job(arguments: &BatchSql, threads: usize) -> Result<FileJob> {
    let inputs: Result<Vec<Input>, FileJobError> =
        arguments.input.iter().map(|written| Input::parse(written)).collect();
    let inputs = inputs.map_err(as_outcome)?;
    let mut recipes: Vec<(String, Recipe)> = Vec::new();
    for written in &arguments.clean {
        let (table, path) = recipe_of(written, &inputs);
        if recipes.iter().any(|(known, _)| *known == table) {
            bail!(Misused(format!(
                "there are two recipes for the table {table}; name another table with --clean NAME=FILE"
            )));
        }
        recipes.push((table, Recipe::load(&path).map_err(as_outcome)?));
    }
    if arguments.memory.is_some_and(|memory| memory < LEAST_MEMORY) {
        bail!(Misused(format!("--memory must be at least {}MiB", LEAST_MEMORY >> 20)));
    }
    let default_memory = machine_memory().map_or(LEAST_MEMORY, |memory| memory / MEMORY_SHARE);
    let header = if arguments.no_header { Header::Absent } else { Header::Present };
    Ok(FileJob {
        inputs,
        csv: CsvOptions { delimiter: arguments.delimiter, header },
        recipes,
        sql: sql(arguments)?,
        memory: arguments.memory.unwrap_or(default_memory.clamp(LEAST_MEMORY, DEFAULT_MEMORY)),
        threads,
        temp_dir: arguments.temp_dir.clone().unwrap_or_else(std::env::temp_dir),
        on_read: None,
        on_query: None,
    })
}

/// The query.
fn sql(arguments: &BatchSql) -> Result<String> {
    match (&arguments.sql, &arguments.sql_file) {
        (Some(sql), _) => Ok(sql.clone()),
        (None, Some(path)) => std::fs::read_to_string(path)
            .map_err(|error| anyhow!(Misused(format!("cannot read the SQL in {}: {error}", path.display())))),
        (None, None) => bail!(Misused("there is no SQL; write it with --sql or --sql-file".to_owned())),
    }
}

/// The table and the file of a recipe that is written as `FILE` or `NAME=FILE`.
fn recipe_of(written: &str, inputs: &[Input]) -> (String, PathBuf) {
    let first = inputs.first().map(|input| input.name.clone()).unwrap_or_default();
    match written.split_once('=') {
        Some((table, path)) if !Path::new(written).exists() => (table.to_owned(), path.into()),
        _ => (first, written.into()),
    }
}

fn print_report(arguments: &BatchSql, report: &JobReport, clock: &SystemClock) -> Result<()> {
    if arguments.json {
        let mut value = serde_json::to_value(report)?;
        value["duration_ms"] = (clock.monotonic().as_millis() as u64).into();
        return say(value);
    }
    lines::print(report, clock.monotonic());
    Ok(())
}

/// The outcome of the command for a rule that says `fail`.
fn rejected(report: &JobReport) -> anyhow::Error {
    let failures = report.failures.iter().map(|failure| format!("\n  {failure}"));
    anyhow!(
        "the query was not run, since the recipe says \"fail\" for values that were found:{}",
        failures.collect::<String>()
    )
}

/// An error of the job as one of the command.
fn as_outcome(error: FileJobError) -> anyhow::Error {
    match error.kind() {
        ErrorKind::Invalid => anyhow!(Misused(error.to_string())),
        _ if matches!(error, FileJobError::Closed) => ReaderClosed.into(),
        _ => anyhow!(error.to_string()),
    }
}

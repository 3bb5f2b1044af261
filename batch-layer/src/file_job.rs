//! A job over files alone: reads tables from files, cleans them by recipes, and runs one SQL query over them. Must not know
//! Kafka, the master dataset, or the command line.
//!
//! A table goes through these steps:
//!
//! 1. [`input`] names the table and finds its files. `source` finds the columns, and reads the rows in the order of the
//!    files. The cells of CSV files are read as texts.
//! 2. `guess` finds types for the columns of CSV files that have none in the [`recipe`], from a sample.
//! 3. `clean` makes the rules of a recipe into a plan on DataFusion's expressions. The plan adds a column of flags for
//!    each rule, true where the rule has found a value.
//! 4. `stage` executes the plan once, counts the flags for the [`report`], drops rows, and writes the others to a
//!    temporary Parquet file. If a guessed type does not fit all values, it is done again with a wider type. `dedupe`
//!    then removes repeated rows. Parquet files without a recipe are used as they are.
//! 5. `query` checks that the SQL only reads, and executes it over the tables. The rows go to [`output`].

mod clean;
mod dedupe;
mod error;
mod guess;
pub mod input;
mod json_array;
mod memory;
mod messages;
pub mod output;
mod query;
pub mod recipe;
pub mod report;
mod scratch;
mod source;
mod stage;
mod time_format;
mod values;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio_util::sync::CancellationToken;

use crate::recompute::OnProgress;
use clean::Cleaning;
pub use error::FileJobError;
use input::{CsvOptions, Input};
use memory::JobMemory;
use output::Destination;
use query::{Query, Table};
use recipe::Recipe;
use report::{InputReport, JobReport, Outcome};
use scratch::Scratch;
use source::Source;

/// The least memory of a job in bytes: sorting and grouping need some before they can spill.
pub const LEAST_MEMORY: usize = 64 << 20;
/// Memory for each thread of a query; with less, a query has fewer threads.
const MEMORY_PER_THREAD: usize = 64 << 20;

/// Called when a query starts.
pub type OnQuery = Arc<dyn Fn() + Send + Sync>;

/// What a job does.
pub struct FileJob {
    /// The tables. At least one.
    pub inputs: Vec<Input>,
    /// How CSV files are written.
    pub csv: CsvOptions,
    /// By name of the table: how it is cleaned.
    pub recipes: Vec<(String, Recipe)>,
    /// The query.
    pub sql: String,
    /// Bytes of memory for sorting, grouping and joining. What needs more is spilled to `temp_dir`.
    pub memory: usize,
    /// How many threads compute.
    pub threads: usize,
    /// Where temporary files are.
    pub temp_dir: PathBuf,
    /// Called with the bytes that were read of the files.
    pub on_read: Option<OnProgress>,
    /// Called when the tables are ready and the query starts.
    pub on_query: Option<OnQuery>,
}

/// Does a job. To be run on the threads of [`crate::compute`].
///
/// If a rule of a recipe that says `fail` has found a value, the query is not run, and the outcome in the report is
/// [`Outcome::Rejected`].
///
/// # Errors
/// When the job cannot work as it is written, a file cannot be read or written, the query fails, or `shutdown` is cancelled.
/// No output is written then.
pub async fn run(
    job: FileJob,
    destination: Destination,
    shutdown: CancellationToken,
) -> Result<JobReport, FileJobError> {
    let done = shutdown.run_until_cancelled(work(job, destination)).await;
    done.unwrap_or(Err(FileJobError::Stopped))
}

async fn work(job: FileJob, destination: Destination) -> Result<JobReport, FileJobError> {
    let query = Query::parse(&job.sql)?;
    destination.check()?;
    input::check_names(&job.inputs)?;
    destination.check_apart(&job.inputs)?;
    let scratch = Scratch::new(&job.temp_dir)?;
    let runtime = runtime(&job, &scratch)?;
    let mut config = SessionConfig::new().with_target_partitions(1);
    // The types of temporary files are those that they were written with.
    config.options_mut().execution.parquet.schema_force_view_types = false;
    let reading = SessionContext::new_with_config_rt(config, runtime);
    let sources = open(&job).await?;
    query.check_tables(&table_names(&job.inputs))?;

    let mut cleanings = Vec::new();
    for source in &sources {
        let recipe = job.recipes.iter().find(|(table, _)| *table == source.name).map(|(_, recipe)| recipe);
        let mut cleaning = Cleaning::new(source, recipe)?;
        guess::guess(&reading, source, &mut cleaning).await?;
        cleanings.push(cleaning);
    }
    let planned = sources.iter().zip(&cleanings);
    query.check_columns(planned.map(|(source, cleaning)| (source.name.clone(), cleaning.schema()))).await?;

    let progress = source::ReadProgress::new(&sources, job.on_read.clone());
    let (mut tables, mut inputs) = (Vec::new(), Vec::new());
    for (source, cleaning) in sources.iter().zip(cleanings) {
        let (table, report) = prepare(&reading, source, cleaning, &progress, &scratch).await?;
        tables.push(table);
        inputs.push(report);
    }
    let failures: Vec<String> = inputs.iter().flat_map(InputReport::failures).collect();
    if !failures.is_empty() {
        return Ok(JobReport { outcome: Outcome::Rejected, inputs, rows: 0, output: None, failures });
    }
    if let [only] = tables.as_slice()
        && only.name != input::ONLY
    {
        tables.push(Table { name: input::ONLY.to_owned(), ..only.clone() });
    }
    if let Some(on_query) = &job.on_query {
        on_query();
    }
    let threads = job.threads.min(job.memory / MEMORY_PER_THREAD).max(1);
    let rows = query.execute(reading.runtime_env(), threads, &tables).await?;
    let output = destination.file();
    let rows = destination.write(rows).await?;
    Ok(JobReport { outcome: Outcome::Done, inputs, rows, output, failures })
}

/// Makes the files of one table ready for the query, and reports what was cleaned.
async fn prepare(
    reading: &SessionContext,
    source: &Arc<Source>,
    mut cleaning: Cleaning,
    progress: &Arc<source::ReadProgress>,
    scratch: &Scratch,
) -> Result<(Table, InputReport), FileJobError> {
    if source.is_parquet() && cleaning.recipe.is_none() {
        let files = source.files.iter().map(|file| file.path.clone()).collect();
        let table = Table { name: source.name.clone(), files };
        return Ok((table, InputReport::unchanged(source, &cleaning)));
    }
    let staged = loop {
        match stage::stage(reading, source, &cleaning, progress, scratch).await? {
            stage::Staged::Done(staged) => break staged,
            stage::Staged::Widen(types) => cleaning.widen(types),
        }
    };
    let staged = dedupe::dedupe(reading, &cleaning, staged, scratch).await?;
    let table = Table { name: source.name.clone(), files: vec![staged.file] };
    Ok((table, InputReport::new(source, &cleaning, staged.tally)))
}

/// Finds the files and columns of all tables, on threads that may block.
async fn open(job: &FileJob) -> Result<Vec<Arc<Source>>, FileJobError> {
    let mut sources = Vec::new();
    for input in job.inputs.clone() {
        let csv = job.csv;
        let opening = datafusion::common::runtime::SpawnedTask::spawn_blocking(move || {
            Source::open(&input, csv).map(Arc::new)
        });
        sources.push(opening.join_unwind().await.map_err(|_| FileJobError::Stopped)??);
    }
    let known = table_names(&job.inputs);
    match job.recipes.iter().find(|(table, _)| !known.contains(table)) {
        None => Ok(sources),
        Some((table, _)) => Err(FileJobError::Arguments(format!(
            "there is a recipe for the table {table}, but the tables are {}",
            known.join(", ")
        ))),
    }
}

/// The names that a query can use.
fn table_names(inputs: &[Input]) -> Vec<String> {
    let mut names: Vec<String> = inputs.iter().map(|input| input.name.clone()).collect();
    if let [only] = names.as_slice()
        && only != input::ONLY
    {
        names.push(input::ONLY.to_owned());
    }
    names
}

/// Memory and disk space of all plans of a job.
fn runtime(job: &FileJob, scratch: &Scratch) -> Result<Arc<RuntimeEnv>, FileJobError> {
    let disk = DiskManagerBuilder::default()
        .with_mode(DiskManagerMode::Directories(vec![scratch.folder().to_owned()]))
        .with_max_temp_directory_size(u64::MAX);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(JobMemory::new(job.memory.max(LEAST_MEMORY))))
        .with_disk_manager_builder(disk)
        .build_arc()
        .map_err(FileJobError::step("prepare the query"))
}

//! The command line. Must not do anything but read it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};
use wye_runtime::config::value;

/// Wye answers what an IoT metric is now and over time, and how far the answer can be trusted.
#[derive(Debug, Parser)]
#[command(name = "wye", version, propagate_version = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine in one process: broker, ingest, and the speed, batch and serving layers
    Up(Up),
    /// Run everything with readings of a simulated plant and city, whose true values are known
    Demo(Demo),
    /// Load CSV files (plain or .gz) into a running Wye; loading them again changes no answer
    Load(Load),
    /// Control the batch layer
    Batch(Batch),
    /// Store what the log contains in the master dataset, and end; not needed where `wye up` runs, which always does it
    Archive(Archive),
    /// Leave out or correct stored readings; the readings stay as they are, and an amendment can be revoked
    ///
    /// The next batch run applies amendments; it computes the stretches of time again that they are about. Until then, and for
    /// readings that no batch run has reached yet, answers are without them.
    Amend(Amend),
    /// Run an SQL query on a running Wye
    Sql(Sql),
    /// Check the log of a stopped `wye up` for damage on the disk; with --accept-loss, remove the damaged records
    RepairLog(RepairLog),
}

/// `wye up`
#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Directory for all data
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// File with settings and metric definitions; `wye up --print-defaults` lists all settings
    #[arg(long, value_name = "FILE", env = "WYE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address of the API; port 0 selects a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Print all settings with their defaults, and exit
    #[arg(long)]
    pub print_defaults: bool,
}

/// `wye demo`
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// Directory for all data
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-demo")]
    pub data_dir: PathBuf,
    /// Address of the API; port 0 selects a free port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Number of machines in the plant, on four production lines
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub machines: u32,
    /// Number of air-quality stations in the city
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub stations: u32,
    /// Stop after this time, such as 2m
    #[arg(long, value_name = "TIME")]
    pub duration: Option<String>,
}

/// The running Wye that a command connects to.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// Data directory of the running `wye up`
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// URL of a running Wye, such as http://127.0.0.1:8080; used instead of --data-dir
    #[arg(long, value_name = "URL", env = "WYE_URL")]
    pub url: Option<String>,
}

/// `wye load`
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// Mapping file, which says what the columns mean; --guess proposes one
    #[arg(long, value_name = "FILE", required_unless_present = "guess")]
    pub mapping: Option<PathBuf>,
    /// CSV files, plain or gzip
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// Print a proposed mapping for each file, and exit
    #[arg(long, conflicts_with_all = ["mapping", "check"])]
    pub guess: bool,
    /// Read the files and report their content and their errors, without sending anything
    #[arg(long)]
    pub check: bool,
    /// Do not wait until the loaded readings are in the answers
    #[arg(long)]
    pub no_wait: bool,
    /// The Wye that receives the readings.
    #[command(flatten)]
    pub target: Target,
}

/// `wye batch`
#[derive(Clone, Debug, Args)]
pub(crate) struct Batch {
    /// The command of the batch layer.
    #[command(subcommand)]
    pub command: BatchCommand,
}

/// The commands of the batch layer.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// Do one batch run now, and print its report
    ///
    /// A running `wye up` on the data directory, or at --url, does the run. Where none is running, the command archives what
    /// the log contains and does the run itself, as a job of cron or Kubernetes does; Kafka and the tables are those of the
    /// settings (--config, or variables such as WYE_LOG__BOOTSTRAP_SERVERS), or of the data directory.
    ///
    /// Exit codes: 0 done, or nothing to do; 2 wrong arguments or settings; 75 try again later; 1 failed.
    Run(BatchRun),
    /// Clean files and run an SQL query on them; needs no running Wye, no Kafka and no data directory
    ///
    /// Each input is a table, named by its file: data.csv is the table data. The only input is also the table input. A folder
    /// is one table of all its files. Inputs end with .csv, .tsv, .json, .jsonl, .ndjson or .parquet; .csv.gz and the like are
    /// possible. Names of columns are used as they are written in the file; a name with spaces or dots needs quotes: "Temp (C)".
    ///
    /// A recipe says what is trimmed, missing, wrong or repeated. Everything that it does is counted, and reported on standard
    /// error. README.md has an example.
    ///
    /// Exit codes: 0 done; 2 wrong arguments, recipe or SQL; 1 failed, or a rule of the recipe that says "fail" has found a
    /// value.
    Sql(BatchSql),
}

/// `wye batch sql`
#[derive(Clone, Debug, Args)]
pub(crate) struct BatchSql {
    /// File or folder to read, such as data.csv or other=data.parquet; may be repeated
    #[arg(long, value_name = "[NAME=]PATH", required = true)]
    pub input: Vec<String>,
    /// Recipe (TOML) for the first input, or for the table that is named; may be repeated
    #[arg(long, value_name = "[NAME=]FILE")]
    pub clean: Vec<String>,
    /// SQL query, which only reads
    #[arg(long, value_name = "SQL", required_unless_present = "sql_file")]
    pub sql: Option<String>,
    /// File with the SQL query
    #[arg(long, value_name = "FILE", conflicts_with = "sql")]
    pub sql_file: Option<PathBuf>,
    /// File for the result: .csv, .tsv, .json, .jsonl, .ndjson or .parquet; without it, the result is printed, as a table on a
    /// terminal, else as CSV
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long, requires = "output")]
    pub overwrite: bool,
    /// Print the report as JSON on standard output
    #[arg(long, requires = "output")]
    pub json: bool,
    /// What separates the cells of CSV files: one ASCII character, or \t for a tab [default: a comma; a tab in .tsv files]
    #[arg(long, value_name = "CHARACTER", value_parser = delimiter)]
    pub delimiter: Option<u8>,
    /// The first line of CSV files is a row; the columns are named column_1, column_2 and so on
    #[arg(long)]
    pub no_header: bool,
    /// Memory for sorting, grouping and joining, such as 512MiB; what needs more is spilled to --temp-dir [default: a quarter
    /// of the machine's memory, at most 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    pub memory: Option<usize>,
    /// Folder for temporary files, as large as the inputs; they are removed at the end [default: that of the system]
    #[arg(long, value_name = "DIR")]
    pub temp_dir: Option<PathBuf>,
}

/// Reads a size such as 64MiB.
fn byte_size(text: &str) -> Result<usize, String> {
    let text: StrDeserializer<'_, ValueError> = text.into_deserializer();
    value::byte_size(text).map_err(|error| error.to_string())
}

/// Reads a delimiter of CSV files.
fn delimiter(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(*byte),
        _ => Err("it must be one ASCII character, or \\t for a tab".to_owned()),
    }
}

/// What a command works on that needs no running `wye up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LocalArguments {
    /// Data directory of a `wye up`; used for what the settings do not place elsewhere
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// File with settings and metric definitions; `wye up --print-defaults` lists all settings
    #[arg(long, value_name = "FILE", env = "WYE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// What a command does while another process does the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WhenBusy {
    /// Wait until the data directory is free; start again if another run has committed first
    Wait,
    /// End with exit code 75 if another process has the data directory, or another run has committed first
    Leave,
}

/// `wye batch run`
#[derive(Clone, Debug, Args)]
pub(crate) struct BatchRun {
    /// Compute what has changed since the last run; this is the default
    #[arg(long, conflicts_with_all = ["full", "from"])]
    pub incremental: bool,
    /// Run even if nothing is new, and compute everything again
    #[arg(long, alias = "force")]
    pub full: bool,
    /// Compute what is from this time on too, even if nothing has changed there, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", requires = "to", conflicts_with = "full")]
    pub from: Option<String>,
    /// Where that ends
    #[arg(long, value_name = "TIME", requires = "from")]
    pub to: Option<String>,
    /// Only print which stretches of time would be computed, and why; of what is archived now
    #[arg(long, conflicts_with_all = ["no_wait", "url"])]
    pub dry_run: bool,
    /// Do not wait until the result is in the answers of a running Wye
    #[arg(long)]
    pub no_wait: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// What to do while another batch run is under way
    #[arg(long, value_enum, default_value = "wait")]
    pub when_busy: WhenBusy,
    /// URL of a running Wye that does the run, such as http://127.0.0.1:8080; used instead of --data-dir
    #[arg(long, value_name = "URL", env = "WYE_URL")]
    pub url: Option<String>,
    /// Where it does the run itself.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// `wye amend`
#[derive(Clone, Debug, Args)]
pub(crate) struct Amend {
    /// What is done.
    #[command(subcommand)]
    pub command: AmendCommand,
}

/// The commands for amendments.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AmendCommand {
    /// Leave readings out of all metrics
    Drop(AmendDrop),
    /// Give readings another value
    Correct(AmendCorrect),
    /// Give readings other tags
    Retag(AmendRetag),
    /// Take an amendment back
    Revoke(AmendRevoke),
    /// Print all amendments
    List(AmendList),
}

/// `wye amend drop`
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendDrop {
    /// Which readings, and why.
    #[command(flatten)]
    pub about: AmendAbout,
}

/// `wye amend correct`
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendCorrect {
    /// SQL expression of the new value over the columns of a reading, such as "value / 10"
    #[arg(long, value_name = "SQL", allow_hyphen_values = true)]
    pub value: String,
    /// Which readings, and why.
    #[command(flatten)]
    pub about: AmendAbout,
}

/// `wye amend retag`
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendRetag {
    /// A tag that the readings get, such as line=9; may be repeated
    #[arg(long, value_name = "NAME=VALUE", required_unless_present = "remove_tag")]
    pub tag: Vec<String>,
    /// A tag that is removed; may be repeated
    #[arg(long, value_name = "NAME")]
    pub remove_tag: Vec<String>,
    /// Which readings, and why.
    #[command(flatten)]
    pub about: AmendAbout,
}

/// Which readings an amendment is about, and why it is made.
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendAbout {
    /// Only readings of this device; may be repeated
    #[arg(
        long,
        value_name = "DEVICE",
        required_unless_present = "all_devices",
        conflicts_with = "all_devices"
    )]
    pub device: Vec<String>,
    /// Readings of all devices
    #[arg(long)]
    pub all_devices: bool,
    /// Only readings with this metric name; may be repeated [default: all]
    #[arg(long, value_name = "METRIC")]
    pub metric: Vec<String>,
    /// Only readings with this event time or a later one, such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub from: String,
    /// Only readings with an earlier event time
    #[arg(long, value_name = "TIME")]
    pub until: String,
    /// Only count the readings that it would be about
    #[arg(long)]
    pub dry_run: bool,
    /// Why, who, and where.
    #[command(flatten)]
    pub made: AmendMade,
}

/// Who makes an amendment, why, and where it is stored.
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendMade {
    /// Why the amendment is made
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Who makes it
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    pub author: String,
    /// Print what was done as JSON
    #[arg(long)]
    pub json: bool,
    /// Where the tables are.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// `wye amend revoke`
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendRevoke {
    /// ID of the amendment, as `wye amend list` prints it
    pub id: String,
    /// Why, who, and where.
    #[command(flatten)]
    pub made: AmendMade,
}

/// `wye amend list`
#[derive(Clone, Debug, Args)]
pub(crate) struct AmendList {
    /// Print them as JSON
    #[arg(long)]
    pub json: bool,
    /// Where the tables are.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// `wye archive`
#[derive(Clone, Debug, Args)]
pub(crate) struct Archive {
    /// Archive until Ctrl-C or SIGTERM, instead of ending when everything is archived
    #[arg(long)]
    pub follow: bool,
    /// Print the report as JSON
    #[arg(long, conflicts_with = "follow")]
    pub json: bool,
    /// What it works on.
    #[command(flatten)]
    pub local: LocalArguments,
}

/// `wye repair-log`
#[derive(Clone, Debug, Args)]
pub(crate) struct RepairLog {
    /// Data directory of the stopped `wye up`
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// Remove the damaged records, so that Wye can start; copies of the damaged files are kept
    #[arg(long)]
    pub accept_loss: bool,
}

/// The format of an SQL result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table to read on the terminal
    Table,
    /// Comma-separated values with a header
    Csv,
    /// A JSON array of objects
    Json,
}

/// `wye sql`
#[derive(Clone, Debug, Args)]
pub(crate) struct Sql {
    /// SQL query; `-` reads it from standard input
    #[arg(value_name = "SQL")]
    pub query: String,
    /// Format of the output
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// The Wye that does it.
    #[command(flatten)]
    pub target: Target,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Cli, byte_size, delimiter};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_delimiters_are_read() {
        assert_eq!(byte_size("64MiB"), Ok(64 << 20));
        assert!(byte_size("64MB").unwrap_err().contains("64MiB"));
        assert_eq!((delimiter(";"), delimiter("\\t")), (Ok(b';'), Ok(b'\t')));
        assert!(delimiter("tab").is_err() && delimiter("\"").is_err());
    }
}

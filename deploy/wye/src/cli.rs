//! The command line: what was written, nothing done yet.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Wye answers what an IoT metric is now, and over time, and how far it can be trusted.
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
    /// Run everything on this machine: broker, ingest, speed, batch and serving layer, in one process
    Up(Up),
    /// Run everything, fed by a simulated plant and city whose true values are known
    Demo(Demo),
    /// Bring CSV files (plain or .gz) into a running Wye; repeating it changes nothing
    Load(Load),
    /// The batch layer
    Batch(Batch),
    /// Run an SQL query on a running Wye
    Sql(Sql),
    /// Check the log of a stopped `wye up` for damage on the disk, and give up what is damaged if told so
    RepairLog(RepairLog),
}

/// `wye up`
#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// Settings and metric definitions; see `wye up --print-defaults`
    #[arg(long, value_name = "FILE", env = "WYE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address of the API; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Print all settings with their defaults, and end
    #[arg(long)]
    pub print_defaults: bool,
}

/// `wye demo`
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// Where everything is kept
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-demo")]
    pub data_dir: PathBuf,
    /// Address of the API; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Machines in the plant, on four production lines
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub machines: u32,
    /// Air-quality stations in the city
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub stations: u32,
    /// Stop by itself after this time, such as 2m
    #[arg(long, value_name = "TIME")]
    pub duration: Option<String>,
}

/// Where the running Wye is.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// The data directory of the running `wye up`
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// The address of a running Wye, such as http://127.0.0.1:8080; goes before --data-dir
    #[arg(long, value_name = "URL", env = "WYE_URL")]
    pub url: Option<String>,
}

/// `wye load`
#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    /// What the columns mean: a mapping, such as `--guess` proposes
    #[arg(long, value_name = "FILE", required_unless_present = "guess")]
    pub mapping: Option<PathBuf>,
    /// CSV files, plain or gzip
    #[arg(required = true, value_name = "FILES")]
    pub files: Vec<PathBuf>,
    /// Print a mapping proposed for the file, and end
    #[arg(long, conflicts_with_all = ["mapping", "check"])]
    pub guess: bool,
    /// Read the files and say what is in them and what is wrong, without sending anything
    #[arg(long)]
    pub check: bool,
    /// Do not wait until what was loaded is in the answers
    #[arg(long)]
    pub no_wait: bool,
    /// Where to.
    #[command(flatten)]
    pub target: Target,
}

/// `wye batch`
#[derive(Clone, Debug, Args)]
pub(crate) struct Batch {
    /// What to do with it.
    #[command(subcommand)]
    pub command: BatchCommand,
}

/// The commands of the batch layer.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BatchCommand {
    /// Do one batch run now and say what it did
    Run(BatchRun),
}

/// `wye batch run`
#[derive(Clone, Debug, Args)]
pub(crate) struct BatchRun {
    /// Run even where nothing is new, and compute everything again
    #[arg(long)]
    pub force: bool,
    /// Do not wait until the result is in the answers
    #[arg(long)]
    pub no_wait: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Where.
    #[command(flatten)]
    pub target: Target,
}

/// `wye repair-log`
#[derive(Clone, Debug, Args)]
pub(crate) struct RepairLog {
    /// The data directory of the stopped `wye up`
    #[arg(long, value_name = "DIR", env = "WYE_DATA_DIR", default_value = "wye-data")]
    pub data_dir: PathBuf,
    /// Give up the records that are damaged, so that Wye starts again; the damaged files are kept
    #[arg(long)]
    pub accept_loss: bool,
}

/// How an SQL result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people
    Table,
    /// Comma-separated values with a header
    Csv,
    /// A JSON array of objects
    Json,
}

/// `wye sql`
#[derive(Clone, Debug, Args)]
pub(crate) struct Sql {
    /// The query; `-` reads it from standard input
    #[arg(value_name = "SQL")]
    pub query: String,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
    /// Where.
    #[command(flatten)]
    pub target: Target,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

//! `wye`: the whole platform in one program, and its commands.
//!
//! This file runs the chosen command, and turns its outcome into an exit code.

#![expect(clippy::print_stderr, reason = "a command-line program prints its errors")]

mod allocator;
mod alone;
mod amend;
mod archive;
mod batch;
mod cli;
mod client;
mod demo;
mod host;
mod load;
mod open_files;
mod repair_log;
mod settings;
mod site;
mod sql;
mod terminal;
mod up;

use std::process::ExitCode;

use clap::Parser;

use cli::{BatchCommand, Cli, Command};
use wye_runtime::config::ConfigError;

/// The exit code of a failure that a retry may not have (`EX_TEMPFAIL` of sysexits.h).
const TRY_AGAIN: u8 = 75;
/// The exit code of wrong arguments, as clap has it, and of wrong settings.
const MISUSED: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let serves = matches!(&cli.command, Command::Up(_) | Command::Archive(cli::Archive { follow: true, .. }));
    wye_runtime::telemetry::start_logging(if serves {
        "warn,wye=info,buoyant_kernel=off"
    } else {
        "warn,buoyant_kernel=off"
    });
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("wye: cannot start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Up(arguments) => up::run(&arguments).await,
            Command::Demo(arguments) => demo::run(&arguments).await,
            Command::Load(arguments) => load::run(&arguments).await,
            Command::Batch(arguments) => match arguments.command {
                BatchCommand::Run(arguments) => batch::run(&arguments).await,
                BatchCommand::Sql(arguments) => batch::sql::run(&arguments).await,
            },
            Command::Archive(arguments) => archive::run(&arguments).await,
            Command::Amend(arguments) => amend::run(&arguments.command).await,
            Command::Sql(arguments) => sql::run(&arguments).await,
            Command::RepairLog(arguments) => repair_log::run(&arguments),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<terminal::ReaderClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wye: {error:#}");
            if error.is::<client::TryAgain>() {
                ExitCode::from(TRY_AGAIN)
            } else if error.is::<client::Misused>() || error.is::<ConfigError>() {
                ExitCode::from(MISUSED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

//! One process of the program under test. Its output goes to a file, and it is killed when its handle is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait;

/// How much of an output an error shows, in bytes.
const SHOWN: usize = 4000;

/// A signal to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// End, as by Ctrl-C.
    Interrupt,
    /// End, as a scheduler asks.
    Terminate,
    /// Stop until [`Signal::Resume`]: the process does not run, and its connections stay open.
    Stop,
    /// Run again.
    Resume,
}

/// Sends a signal to a process by its number.
///
/// # Errors
/// When the system rejects it.
pub fn send(signal: Signal, process: u32) -> Result<()> {
    let name = match signal {
        Signal::Interrupt => "-INT",
        Signal::Terminate => "-TERM",
        Signal::Stop => "-STOP",
        Signal::Resume => "-CONT",
    };
    let status = Command::new("kill").args([name, &process.to_string()]).status().context("run kill")?;
    ensure!(status.success(), "cannot send {signal:?} to process {process}");
    Ok(())
}

/// A running or ended process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and standard error go to the file `output`. `name` is for messages.
    ///
    /// # Errors
    /// When the file cannot be created or the program cannot be started.
    pub fn start(mut command: Command, name: &str, output: PathBuf) -> Result<Self> {
        let file = File::create(&output).with_context(|| format!("create {}", output.display()))?;
        let same_file = file.try_clone().context("share the output file")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(same_file)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, name: name.to_owned(), output })
    }

    /// The process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("check whether {} has ended", self.name))
    }

    /// Whether the process has ended with success.
    ///
    /// # Errors
    /// When it has failed, with the end of its output.
    pub fn done(&mut self) -> Result<bool> {
        let status = self.ended()?;
        ensure!(status.is_none_or(|it| it.success()), "{}", self.ending(status));
        Ok(status.is_some())
    }

    /// Waits for the end for at most `patience`; `None` if it still runs then.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn ended_within(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        wait::at_most(patience, || self.ended())
    }

    /// Checks that the process runs.
    ///
    /// # Errors
    /// When it has ended, with the end of its output.
    pub fn still_runs(&mut self) -> Result<()> {
        let status = self.ended()?;
        ensure!(status.is_none(), "{}", self.ending(status));
        Ok(())
    }

    /// Waits until the process ends with success, and returns its output.
    ///
    /// # Errors
    /// When it fails, or does not end within `patience`, with the end of its output.
    pub fn succeed(mut self, patience: Duration) -> Result<String> {
        let status = self.ended_within(patience)?;
        ensure!(status.is_some_and(|it| it.success()), "{}", self.ending(status));
        std::fs::read_to_string(&self.output).with_context(|| format!("read {}", self.output.display()))
    }

    /// `kill -9`, and waits for the end.
    ///
    /// # Errors
    /// When the system rejects it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send(signal, self.child.id()).with_context(|| self.name.clone())
    }

    /// The file with the process's output.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// How it ended, or that it still runs, with the end of its output.
    fn ending(&self, status: Option<ExitStatus>) -> String {
        let ended = status.map_or("still runs".to_owned(), |status| format!("ended with {status}"));
        let bytes = std::fs::read(&self.output).unwrap_or_default();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]);
        format!("{} {ended}:\n{tail}", self.name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

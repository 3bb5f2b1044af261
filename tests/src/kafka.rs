//! A real Apache Kafka for one test, started and stopped by `scripts/kafka.sh`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::datasets::{self, say};
use crate::process::{self, Signal};

/// A running Apache Kafka with one node; stopped when dropped.
#[derive(Debug)]
pub struct Kafka {
    directory: PathBuf,
}

impl Kafka {
    /// Starts one with its data in `directory`; `None`, with a message, where `WYE_TEST_KAFKA` is not set, with which
    /// `make test` says that one is installed.
    ///
    /// # Errors
    /// When it does not start, or is not installed in CI.
    pub fn start(directory: PathBuf) -> Result<Option<Self>> {
        if std::env::var_os("WYE_TEST_KAFKA").is_none() {
            return datasets::absent("WYE_TEST_KAFKA is not set (make test sets it)").map(|()| None);
        }
        let kafka = Self { directory };
        kafka.script("start")?;
        Ok(Some(kafka))
    }

    /// `host:port`.
    ///
    /// # Errors
    /// When it is unknown.
    pub fn bootstrap_servers(&self) -> Result<String> {
        Ok(self.read("bootstrap")?.trim().to_owned())
    }

    /// Stops (SIGSTOP) or resumes (SIGCONT) the node. For its clients it is then like a broker that cannot be reached.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::send(signal, self.read("pid")?.trim().parse().context("read the process number")?)
    }

    fn read(&self, name: &str) -> Result<String> {
        let path: &Path = &self.directory.join(name);
        std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
    }

    fn script(&self, verb: &str) -> Result<()> {
        let script = datasets::project_root().join("scripts/kafka.sh");
        let status = Command::new(script).arg(verb).arg(&self.directory).status()?;
        ensure!(status.success(), "scripts/kafka.sh {verb}: {status}");
        Ok(())
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if let Err(error) = self.script("stop") {
            say(&format!("{error:#}"));
        }
    }
}

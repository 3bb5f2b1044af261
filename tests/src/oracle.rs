//! The independent oracle in `tests/oracle`: DuckDB over the source files, run as a process. It shares no code with the
//! program under test or with this crate.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::datasets::project_root;

/// A program of the oracle and the files that it computes from.
#[derive(Clone, Debug)]
pub struct Oracle {
    python: PathBuf,
    script: PathBuf,
    files: Vec<PathBuf>,
}

/// The content of the source files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Readings in the files, duplicates included.
    pub rows: u64,
    /// Readings with different identities.
    pub readings: u64,
    /// Windows with at least one reading.
    pub windows: u64,
}

impl Oracle {
    /// The oracle `tests/oracle/NAME.py` over `files`. Its Python is `WYE_TEST_PYTHON`, or that of `scripts/venv.sh`.
    ///
    /// # Errors
    /// When there is no Python for it.
    pub fn new(name: &str, files: Vec<PathBuf>) -> Result<Self> {
        let script = project_root().join("tests/oracle").join(name).with_extension("py");
        Ok(Self { python: python()?, script, files })
    }

    /// Computes what is expected, from the files alone.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn expectation(&self) -> Result<Expectation> {
        let printed = self.run(&[])?;
        let json: serde_json::Value =
            serde_json::from_str(&printed).with_context(|| format!("read {printed:?}"))?;
        let [rows, readings, windows] = ["rows", "readings", "windows"]
            .map(|key| json[key].as_u64().with_context(|| format!("no {key} in {printed:?}")));
        Ok(Expectation { rows: rows?, readings: readings?, windows: windows? })
    }

    /// Compares every window with the answers of the Wye at `url`, and returns the output.
    ///
    /// # Errors
    /// When a window differs, with the differences, or there is no answer.
    pub fn compare(&self, url: &str) -> Result<String> {
        self.run(&["--url", url])
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.python)
            .arg(&self.script)
            .args(arguments)
            .arg("--data")
            .args(&self.files)
            .output()
            .with_context(|| format!("run {}", self.script.display()))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{} ended with {}:\n{printed}{}",
            self.script.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(printed.trim_end().to_owned())
    }
}

/// The Python of the tests.
///
/// # Errors
/// When `WYE_TEST_PYTHON` is not set and `scripts/venv.sh` fails.
pub fn python() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WYE_TEST_PYTHON") {
        return Ok(path.into());
    }
    let script = project_root().join("scripts/venv.sh");
    let output = Command::new(&script).output().with_context(|| format!("run {}", script.display()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout).context("the path of Python is not UTF-8")?.trim_end().into())
}

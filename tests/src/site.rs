//! A directory in which the program under test runs, with its data directory and the output of each process, and the
//! commands of a user.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::api::Api;
use crate::process::{Process, Signal};
use crate::turn::Turn;
use crate::wait;

/// How long `wye up` may take to be ready, also after a crash.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long `wye up` may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A data directory and the program that uses it. It is removed at the end, unless [`Site::keep`] is called.
#[derive(Debug)]
pub struct Site {
    program: PathBuf,
    config: Option<PathBuf>,
    /// The directory of the test; removed with the last of its sites.
    directory: Rc<RefCell<TempDir>>,
    root: PathBuf,
    /// The data directory's name below `root`.
    name: &'static str,
    started: Rc<Cell<usize>>,
    _turn: Rc<Turn>,
}

/// A running `wye up`. Dropping it kills the process (`kill -9`).
#[derive(Debug)]
pub struct Server {
    /// The process, which tests may kill.
    pub process: Process,
    address_file: PathBuf,
}

impl Site {
    /// A new site. Waits while two other tests of this binary have one.
    ///
    /// # Errors
    /// When the program is not built, or the directory cannot be created.
    pub fn new() -> Result<Self> {
        Self::in_turn(Turn::shared())
    }

    /// A new site for a test that measures how long something takes. Waits until no other test of this binary has one.
    ///
    /// # Errors
    /// As [`Site::new`].
    pub fn alone() -> Result<Self> {
        Self::in_turn(Turn::alone())
    }

    fn in_turn(turn: Turn) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("wye-test.").tempdir().context("create a directory")?;
        Ok(Self {
            program: program()?,
            config: None,
            root: directory.path().to_owned(),
            directory: Rc::new(RefCell::new(directory)),
            name: "data",
            started: Rc::default(),
            _turn: Rc::new(turn),
        })
    }

    /// Another site of the same test, with its own data directory `name` and the same configuration.
    pub fn another(&self, name: &'static str) -> Self {
        Self {
            program: self.program.clone(),
            config: self.config.clone(),
            directory: Rc::clone(&self.directory),
            root: self.root.clone(),
            name,
            started: Rc::clone(&self.started),
            _turn: Rc::clone(&self._turn),
        }
    }

    /// Writes `toml` as the configuration of each `wye up` that is started later.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&mut self, toml: &str) -> Result<()> {
        let path = self.root.join("wye.toml");
        std::fs::write(&path, toml).with_context(|| format!("write {}", path.display()))?;
        self.config = Some(path);
        Ok(())
    }

    /// The program under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The directory for other files of the test.
    pub fn directory(&self) -> &Path {
        &self.root
    }

    /// The value of `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.root.join(self.name)
    }

    /// Starts `wye up` on a free port. It is not ready yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn up(&self) -> Result<Server> {
        // A killed server does not remove its address.
        let address_file = self.data_dir().join("http.addr");
        if address_file.exists() {
            std::fs::remove_file(&address_file).context("remove the old address")?;
        }
        let mut arguments = vec!["--http".to_owned(), "127.0.0.1:0".to_owned()];
        if let Some(config) = &self.config {
            arguments.extend(["--config".to_owned(), config.display().to_string()]);
        }
        Ok(Server { process: self.command(&["up"], arguments)?, address_file })
    }

    /// Starts `wye load` with a mapping and files.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn load(&self, mapping: &Path, files: &[PathBuf]) -> Result<Process> {
        self.command(&["load"], load_arguments(mapping, files))
    }

    /// Starts `wye load --no-wait`, which ends when everything is in the log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn load_into_log(&self, mapping: &Path, files: &[PathBuf]) -> Result<Process> {
        let mut arguments = load_arguments(mapping, files);
        arguments.push("--no-wait".to_owned());
        self.command(&["load"], arguments)
    }

    /// Starts `wye batch run`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn batch_run(&self) -> Result<Process> {
        self.command(&["batch", "run"], Vec::new())
    }

    /// Keeps the directory after the test, and returns its path.
    pub fn keep(&self) -> PathBuf {
        self.directory.borrow_mut().disable_cleanup(true);
        self.root.clone()
    }

    /// Starts `wye COMMAND --data-dir DIR ARGUMENTS`.
    fn command(&self, words: &[&str], arguments: Vec<String>) -> Result<Process> {
        let number = self.started.get();
        self.started.set(number + 1);
        let output = self.root.join(format!("{number:03}-{}.log", words.join("-")));
        let mut command = Command::new(&self.program);
        command.args(words).arg("--data-dir").arg(self.data_dir()).args(arguments);
        // Several servers run at the same time, and perhaps another Kafka.
        command.env("WYE_LOG__EMBEDDED_PORT", "0");
        Process::start(command, &format!("wye {}", words.join(" ")), output)
    }
}

impl Server {
    /// Waits until the server is ready: its address is in the data directory, and `/readyz` says so.
    ///
    /// # Errors
    /// When it ends, or does not become ready in time.
    pub fn ready(&mut self) -> Result<Api> {
        let address = wait::until("address in the data directory", READY_WITHIN, || self.address())?;
        let api = Api::new(&address)?;
        wait::until("ready server", READY_WITHIN, || {
            self.process.still_runs()?;
            Ok(matches!(api.get("/readyz"), Ok((200, _))).then_some(()))
        })?;
        Ok(api)
    }

    /// `HOST:PORT` of the API; `None` until the server is ready.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn address(&mut self) -> Result<Option<String>> {
        self.process.still_runs()?;
        let text = std::fs::read_to_string(&self.address_file).unwrap_or_default();
        Ok(text.strip_suffix('\n').map(str::to_owned))
    }

    /// Stops it as Ctrl-C does, and waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time, or fails.
    pub fn stop(self) -> Result<()> {
        self.process.signal(Signal::Interrupt)?;
        self.process.succeed(STOP_WITHIN).context("stop wye up")?;
        Ok(())
    }
}

/// The program: `WYE_BIN`, or the one in the target directory of the tests.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WYE_BIN") {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("find the test's own program")?;
    // target/PROFILE/deps/gate-0123456789abcdef
    let built =
        test.ancestors().nth(2).context("the test's program is not in a target directory")?.join("wye");
    ensure!(
        built.exists(),
        "{} is missing: build it (cargo build --release --workspace --bins)",
        built.display()
    );
    Ok(built)
}

fn load_arguments(mapping: &Path, files: &[PathBuf]) -> Vec<String> {
    let mapping = ["--mapping".to_owned(), mapping.display().to_string()];
    mapping.into_iter().chain(files.iter().map(|file| file.display().to_string())).collect()
}

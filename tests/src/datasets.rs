//! The locations of the project, its mappings and the public data sets. The data sets are beside the project, not in it. A
//! test that needs one is skipped with a message where it is absent.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

/// The root of the source tree: the folder with `Cargo.lock` at or above the working directory. It is not taken at compile
/// time, since clones share what they have built.
pub fn project_root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let here = std::env::current_dir().expect("the working directory exists");
        let root = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
        root.expect("tests and benchmarks are started in the source tree").to_owned()
    });
    &ROOT
}

/// The mapping file of a data set.
pub fn mapping(name: &str) -> PathBuf {
    project_root().join("datasets").join(name).with_extension("toml")
}

/// The first `stations` files of the Beijing data set by name; `None`, with a message, where the data set is absent.
///
/// # Errors
/// When the folder cannot be read, or is absent in CI.
pub fn beijing(stations: usize) -> Result<Option<Vec<PathBuf>>> {
    let Some(folder) = folder("beijing-multisite")? else { return Ok(None) };
    let entries = std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    files.truncate(stations);
    Ok(Some(files))
}

/// The machine temperature recording; `None`, with a message, where the data set is absent.
///
/// # Errors
/// When it is absent in CI.
pub fn machine_temperature() -> Result<Option<PathBuf>> {
    let file = "realKnownCause/machine_temperature_system_failure.csv.gz";
    Ok(folder("nab")?.map(|folder| folder.join(file)))
}

/// Prints that a test is skipped, and why. In CI that is an error, so that a test never passes without having run.
///
/// # Errors
/// In CI (where the variable `CI` is set).
pub fn absent(reason: &str) -> Result<()> {
    ensure!(std::env::var_os("CI").is_none(), "a test cannot run in CI: {reason}");
    say(&format!("skipped: {reason}"));
    Ok(())
}

fn folder(name: &str) -> Result<Option<PathBuf>> {
    let folder = project_root().join("../shared/datasets").join(name);
    if folder.is_dir() {
        return Ok(Some(folder));
    }
    absent(&format!("the data set {name} is not at {}", folder.display())).map(|()| None)
}

/// Prints a message that is visible although the test harness captures what a test prints.
pub fn say(message: &str) {
    // A test does not fail because standard error is closed.
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Splits a CSV file, plain or gzip, into plain files of about `rows` rows, each with the header.
///
/// # Errors
/// When the file cannot be read or a piece cannot be written.
pub fn cut(file: &Path, rows: usize, into: &Path) -> Result<Vec<PathBuf>> {
    let name = file.file_name().and_then(|name| name.to_str()).context("a file has a name")?;
    let stem = name.split('.').next().context("a name has a first part")?;
    let source = File::open(file).with_context(|| format!("open {}", file.display()))?;
    let source: Box<dyn Read> =
        if name.ends_with(".gz") { Box::new(GzDecoder::new(source)) } else { Box::new(source) };
    let mut lines = BufReader::new(source).lines();
    let header = lines.next().context("no header")??;
    let mut pieces = Vec::new();
    let mut lines = lines.peekable();
    while lines.peek().is_some() {
        let path = into.join(format!("{stem}-{:03}.csv", pieces.len()));
        let mut piece =
            BufWriter::new(File::create(&path).with_context(|| format!("create {}", path.display()))?);
        writeln!(piece, "{header}")?;
        for line in lines.by_ref().take(rows) {
            writeln!(piece, "{}", line?)?;
        }
        piece.flush()?;
        pieces.push(path);
    }
    ensure!(!pieces.is_empty(), "{} has no rows", file.display());
    Ok(pieces)
}

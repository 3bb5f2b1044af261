//! Where the project, its mappings and the public data sets are. The data sets stand beside the project, not in it: a
//! test that needs one says so and is skipped where it is absent.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

/// The root of the source tree: the folder with `Cargo.lock` that the process was started in or below. (Not the folder
/// that this was compiled in: clones share what they have built.)
pub fn project_root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let here = std::env::current_dir().expect("the working directory is there");
        let root = here.ancestors().find(|folder| folder.join("Cargo.lock").is_file());
        root.expect("tests and benchmarks are started within the source tree").to_owned()
    });
    &ROOT
}

/// The mapping file of a data set.
pub fn mapping(name: &str) -> PathBuf {
    project_root().join("datasets").join(name).with_extension("toml")
}

/// The first `stations` files of the Beijing set by name; `None`, with a message, where the set is absent.
///
/// # Errors
/// If the folder cannot be read, or is absent in CI.
pub fn beijing(stations: usize) -> Result<Option<Vec<PathBuf>>> {
    let Some(folder) = folder("beijing-multisite")? else { return Ok(None) };
    let entries = std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    files.truncate(stations);
    Ok(Some(files))
}

/// The machine temperature recording; `None`, with a message, where the set is absent.
///
/// # Errors
/// If it is absent in CI.
pub fn machine_temperature() -> Result<Option<PathBuf>> {
    let file = "realKnownCause/machine_temperature_system_failure.csv.gz";
    Ok(folder("nab")?.map(|folder| folder.join(file)))
}

/// Says that a test is skipped because of what `is absent`; in CI that is a failure, so that no test passes in silence.
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

/// Says something that is seen although the test harness captures what a test prints.
pub fn say(message: &str) {
    // Nothing is lost with a message that nobody can read.
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Cuts a CSV file, plain or gzip, into plain files of about `rows` rows each, every one with the header.
///
/// # Errors
/// If the file cannot be read or the pieces not be written.
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

//! What an input is: the name of its table and its files, found by their names. Must not read the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datafusion::datasource::file_format::file_compression_type::FileCompressionType;

use super::FileJobError;

/// The second name of the table of the only input.
pub const ONLY: &str = "input";

/// A table that is read from a file, or from all files of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The name of the table: letters, digits and `_`.
    pub name: String,
    /// The file or folder.
    pub path: PathBuf,
}

/// How CSV files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CsvOptions {
    /// What separates two cells; `None`: a tab in `.tsv` files, else a comma.
    pub delimiter: Option<u8>,
    /// Whether the first line of each file has the names of the columns.
    pub header: Header,
}

/// Whether the first line of a CSV file has the names of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// It has.
    Present,
    /// It is the first row; the columns are named `column_1`, `column_2` and so on.
    Absent,
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Comma-separated values.
    Csv,
    /// Tab-separated values.
    Tsv,
    /// JSON: an array of objects. As input also one object a line.
    Json,
    /// JSON: one object a line.
    JsonLines,
    /// Parquet.
    Parquet,
}

/// The names that the formats are known by.
const ENDINGS: [(&str, Format); 7] = [
    ("csv", Format::Csv),
    ("tsv", Format::Tsv),
    ("json", Format::Json),
    ("jsonl", Format::JsonLines),
    ("ndjson", Format::JsonLines),
    ("parquet", Format::Parquet),
    ("pq", Format::Parquet),
];
/// The names that compressed files end with.
const COMPRESSED: [(&str, FileCompressionType); 4] = [
    ("gz", FileCompressionType::GZIP),
    ("zst", FileCompressionType::ZSTD),
    ("bz2", FileCompressionType::BZIP2),
    ("xz", FileCompressionType::XZ),
];

impl Format {
    /// The format of a file by its name; `None` for other names.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, format)| *format)
    }
}

impl Input {
    /// An input as it is written on the command line: `FILE`, or `NAME=FILE`.
    ///
    /// # Errors
    /// When the name is not one of a table.
    pub fn parse(written: &str) -> Result<Self, FileJobError> {
        let whole = Path::new(written);
        if let Some((name, path)) = written.split_once('=')
            && !name.contains(std::path::MAIN_SEPARATOR)
            && !whole.exists()
        {
            if !is_name(name) {
                return Err(FileJobError::Arguments(format!(
                    "{name:?} cannot name a table; use letters, digits and _, and a letter first"
                )));
            }
            return Ok(Self { name: name.to_owned(), path: path.into() });
        }
        Ok(Self { name: name_of(whole), path: whole.to_owned() })
    }

    /// The files of the input in the order of their names, all of one format.
    pub(crate) fn files(&self) -> Result<(Format, Vec<Found>), FileJobError> {
        let metadata = std::fs::metadata(&self.path).map_err(|error| {
            FileJobError::Arguments(format!("cannot read the input {}: {error}", self.path.display()))
        })?;
        let paths = if metadata.is_dir() { files_of_folder(&self.path)? } else { vec![self.path.clone()] };
        let mut by_format: BTreeMap<Format, Vec<Found>> = BTreeMap::new();
        for path in paths {
            match Found::new(&path)? {
                Some((format, found)) => by_format.entry(format).or_default().push(found),
                // A folder may have other files, such as a README.
                None if metadata.is_dir() => {}
                None => {
                    return Err(FileJobError::Arguments(format!(
                        "cannot tell the format of {} by its name; it must end with .csv, .tsv, .json, .jsonl, .ndjson or \
                         .parquet (.csv.gz and the like are possible)",
                        path.display()
                    )));
                }
            }
        }
        match by_format.len() {
            1 => {}
            0 => {
                return Err(FileJobError::Arguments(format!(
                    "there is no CSV, JSON or Parquet file in the folder {}",
                    self.path.display()
                )));
            }
            _ => {
                return Err(FileJobError::Arguments(format!(
                    "the folder {} has files of several formats; select some with a folder for each",
                    self.path.display()
                )));
            }
        }
        by_format.pop_first().ok_or(FileJobError::Stopped)
    }
}

/// A file of an input.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) compression: FileCompressionType,
}

impl Found {
    /// `None` for a file of no known format.
    fn new(path: &Path) -> Result<Option<(Format, Self)>, FileJobError> {
        let (compression, inner) = uncompressed(path);
        let Some(format) = Format::of(&inner) else { return Ok(None) };
        if format == Format::Parquet && compression != FileCompressionType::UNCOMPRESSED {
            return Err(FileJobError::Arguments(format!(
                "{} is a compressed Parquet file; decompress it first",
                path.display()
            )));
        }
        let bytes = std::fs::metadata(path).map_err(FileJobError::file("read", path))?.len();
        let path = std::path::absolute(path).map_err(FileJobError::file("find", path))?;
        Ok(Some((format, Self { path, bytes, compression })))
    }
}

/// Checks that there are inputs, each with a name of its own.
pub(crate) fn check_names(inputs: &[Input]) -> Result<(), FileJobError> {
    if inputs.is_empty() {
        return Err(FileJobError::Arguments("there is no input; name a file with --input".to_owned()));
    }
    for (index, input) in inputs.iter().enumerate() {
        if let Some(other) = inputs[..index].iter().find(|other| other.name == input.name) {
            return Err(FileJobError::Arguments(format!(
                "{} and {} are both the table {}; name one with --input NAME={}",
                other.path.display(),
                input.path.display(),
                input.name,
                input.path.display()
            )));
        }
    }
    Ok(())
}

/// The compression of a file by its name, and the name without its ending.
fn uncompressed(path: &Path) -> (FileCompressionType, PathBuf) {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match COMPRESSED.into_iter().find(|(known, _)| *known == ending) {
        Some((_, compression)) => (compression, path.with_extension("")),
        None => (FileCompressionType::UNCOMPRESSED, path.to_owned()),
    }
}

/// The files directly in a folder, without hidden ones, in the order of their names.
fn files_of_folder(folder: &Path) -> Result<Vec<PathBuf>, FileJobError> {
    let failed = FileJobError::file("list", folder);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(&failed)? {
        let entry = entry.map_err(&failed)?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !is_hidden && entry.path().is_file() {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The name of the table of a file: its stem, with `_` for other signs.
fn name_of(path: &Path) -> String {
    let (_, inner) = uncompressed(path);
    let stem = match Format::of(&inner) {
        Some(_) => inner.file_stem(),
        None => inner.file_name(),
    };
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name: String = stem.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    if is_name(&name) { name } else { format!("_{name}") }
}

fn is_name(name: &str) -> bool {
    let starts = name.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_');
    starts && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_by_its_file_or_on_the_command_line() {
        for (written, name, path) in [
            ("data.csv", "data", "data.csv"),
            ("folder/my-data.2024.csv.gz", "my_data_2024", "folder/my-data.2024.csv.gz"),
            ("2024.parquet", "_2024", "2024.parquet"),
            ("other=folder/x.json", "other", "folder/x.json"),
            ("folder/year=2024/x.json", "x", "folder/year=2024/x.json"),
        ] {
            let expected = Input { name: name.to_owned(), path: path.into() };
            assert_eq!(Input::parse(written).unwrap(), expected, "{written}");
        }
        assert!(Input::parse("a b=x.csv").unwrap_err().to_string().contains("letters"));
    }

    #[test]
    fn two_inputs_need_two_names() {
        let inputs = ["a/x.csv", "b/x.csv"].map(|written| Input::parse(written).unwrap());
        let message = check_names(&inputs).unwrap_err().to_string();
        assert!(message.contains("--input NAME=b/x.csv"), "{message}");
    }

    #[test]
    fn a_folder_is_all_its_files_of_one_format() {
        let folder = tempfile::tempdir().unwrap();
        let input = Input { name: "t".to_owned(), path: folder.path().to_owned() };
        assert!(input.files().unwrap_err().to_string().contains("no CSV"));
        for name in ["b.csv", "a.csv.gz", "README", ".hidden.json"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let (format, files) = input.files().unwrap();
        let names: Vec<_> = files.iter().filter_map(|file| file.path.file_name()).collect();
        assert_eq!((format, names), (Format::Csv, vec!["a.csv.gz".as_ref(), "b.csv".as_ref()]));
        std::fs::write(folder.path().join("c.json"), "x").unwrap();
        assert!(input.files().unwrap_err().to_string().contains("several formats"));
    }
}

//! Proposes a mapping for a CSV file from its header and its first rows: a start for someone who knows the file. It must
//! not know the public data sets.
//!
//! A proposal can be used without changes. A comment marks what is only likely: the zone, the order of day and month, a
//! number that may mean missing.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use csv::ReaderBuilder;

use crate::csv_source::{CsvSource, device_from_file_name, open_text};
use crate::error::DatasetError;
use crate::mapping::Mapping;
use column::{Column, Kind};
use time_columns::TimeGuess;

mod column;
#[cfg(test)]
mod tests;
mod time_columns;

/// The most rows that are read.
const ROWS: usize = 5_000;
/// The most bytes of the decompressed file that are read.
const BYTES: u64 = 1 << 20;
/// Possible delimiters, the most likely first.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// Names of columns that can identify a device, in lower case without punctuation, the most likely first.
const DEVICE_NAMES: [&str; 22] = [
    "deviceid",
    "device",
    "devicename",
    "sensorid",
    "sensor",
    "sensorname",
    "stationid",
    "station",
    "stationname",
    "machineid",
    "machine",
    "machinename",
    "assetid",
    "asset",
    "meterid",
    "meter",
    "nodeid",
    "node",
    "siteid",
    "site",
    "id",
    "name",
];

/// The first rows of a file.
struct Head {
    delimiter: u8,
    decimal_mark: u8,
    columns: Vec<Column>,
}

/// Proposes a mapping for the file at `path`, as the text of a mapping file.
///
/// # Errors
/// [`DatasetError::Read`] where the file cannot be read; [`DatasetError::Form`] where no column is a time, or no column has
/// numbers.
pub fn propose(path: &Path) -> Result<String, DatasetError> {
    let head = Head::read(path)?;
    let Some(time) = time_columns::find(&head.columns) else {
        let problem =
            "no column looks like a time; write a mapping by hand (see the top of datasets/src/mapping.rs)";
        return Err(form(path, problem));
    };
    let device = head.device(&time);
    let metrics: Vec<&Column> = head
        .others(&time, device)
        .filter(|column| column.kind == Kind::Numbers && !column.counts_rows())
        .collect();
    if metrics.is_empty() {
        return Err(form(path, "no column except the time has numbers; there is nothing to load"));
    }
    let text = render(path, &head, &time, device, &metrics);
    // A proposal may be used without changes, so it must at least fit the file.
    CsvSource::open(path, &Mapping::parse(&text, path)?)?;
    Ok(text)
}

fn form(path: &Path, problem: impl Into<String>) -> DatasetError {
    DatasetError::Form { path: path.to_path_buf(), problem: problem.into() }
}

impl Head {
    fn read(path: &Path) -> Result<Self, DatasetError> {
        let mut text = Vec::new();
        open_text(path)?
            .take(BYTES)
            .read_to_end(&mut text)
            .map_err(|source| DatasetError::Read { path: path.to_path_buf(), source })?;
        let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        // `max_by_key` returns the last of several equal ones; reversed, that is the most likely delimiter.
        let delimiter = DELIMITERS
            .into_iter()
            .rev()
            .max_by_key(|delimiter| first_line.iter().filter(|byte| *byte == delimiter).count())
            .unwrap_or(b',');
        let mut reader =
            ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text.as_slice());
        let names: Vec<String> = match reader.byte_headers() {
            Ok(header) => header.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect(),
            Err(error) => return Err(form(path, error.to_string())),
        };
        if names.iter().all(String::is_empty) {
            return Err(form(path, "the file has no header; its first row must name the columns"));
        }
        let mut cells = vec![Vec::new(); names.len()];
        for record in reader.byte_records().take(ROWS).map_while(Result::ok) {
            if record.len() == names.len() {
                for (column, cell) in cells.iter_mut().zip(&record) {
                    column.push(String::from_utf8_lossy(cell).trim().to_owned());
                }
            }
        }
        let decimal_mark = match delimiter {
            b',' => b'.',
            _ => column::decimal_mark(cells.iter().flatten()),
        };
        let columns = names
            .into_iter()
            .zip(cells)
            .map(|(name, cells)| Column::new(name, cells, decimal_mark))
            .collect();
        Ok(Self { delimiter, decimal_mark, columns })
    }

    /// The column that identifies the device, by its name; a column of row numbers does not.
    fn device(&self, time: &TimeGuess) -> Option<&Column> {
        DEVICE_NAMES.iter().find_map(|name| {
            self.columns.iter().find(|column| {
                column.plain_name() == *name && !column.counts_rows() && !time.columns.contains(&column.name)
            })
        })
    }

    /// The columns that are neither time nor device.
    fn others<'a>(
        &'a self,
        time: &'a TimeGuess,
        device: Option<&'a Column>,
    ) -> impl Iterator<Item = &'a Column> {
        self.columns.iter().filter(move |column| {
            !time.columns.contains(&column.name)
                && device.is_none_or(|device| device.name != column.name)
                && self.columns.iter().filter(|other| other.name == column.name).count() == 1
                && !column.name.is_empty()
        })
    }
}

fn render(
    path: &Path,
    head: &Head,
    time: &TimeGuess,
    device: Option<&Column>,
    metrics: &[&Column],
) -> String {
    let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let rows = head.columns.first().map_or(0, |column| column.cells.len());
    let mut lines = vec![
        format!("# Proposed for {file} from its first {rows} rows. Check the comments."),
        format!("delimiter = {}", quoted(&(head.delimiter as char).to_string())),
    ];
    if head.decimal_mark == b',' {
        lines.push("decimal_comma = true".to_owned());
    }
    // Each with a comment, which may be empty.
    let mut missing: BTreeMap<String, &str> = BTreeMap::from([(quoted(""), "")]);
    for column in metrics {
        missing.extend(column.words.iter().map(|word| (quoted(word), "")));
        let number = column.missing_number();
        missing.extend(number.map(|number| (number.to_string(), "is a number that may mean missing")));
    }
    let list: Vec<&str> = missing.keys().map(String::as_str).collect();
    lines.push(format!("missing = [{}]", list.join(", ")));
    for (word, comment) in missing.iter().filter(|(_, comment)| !comment.is_empty()) {
        lines.push(format!("# check: {word} {comment}"));
    }
    lines.push("\n[device]".to_owned());
    match device {
        Some(column) => lines.push(format!("column = {}", quoted(&column.name))),
        None => {
            lines.push("# no column identifies a device, so the whole file is one device".to_owned());
            lines.push(format!("constant = {}", quoted(&device_from_file_name(path))));
        }
    }
    lines.push(format!("\n[time]\n{}", time.settings));
    for column in head.others(time, device).filter(|column| column.kind == Kind::Texts) {
        if column.is_label() {
            let name = quoted(&column.name);
            lines.push(format!("\n# [tags]\n# {name} = {{ column = {name} }}"));
        }
    }
    for column in metrics {
        lines.push(format!("\n[[metric]]\ncolumn = {}", quoted(&column.name)));
    }
    lines.push(
        "# unit = \"Cel\"   # of the last metric; add a UCUM unit to each metric that has one\n".to_owned(),
    );
    lines.join("\n")
}

/// A text as a TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

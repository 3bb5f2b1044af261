//! A mapping proposed for a CSV file at hand, from its header and its first rows: a start for whoever knows the file
//! better. It must not know the public data sets.
//!
//! What is proposed can be used as it is. What is only likely (the zone, the order of day and month, a number that
//! stands for missing) says so in a comment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
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

/// So many rows are looked at.
const ROWS: usize = 5_000;
/// What a header may hold between its columns, the likeliest first.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// Names of columns that say who measured, without case and punctuation.
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

/// The head of a file.
struct Head {
    delimiter: u8,
    decimal_mark: u8,
    columns: Vec<Column>,
}

/// Proposes a mapping for the file at `path`, as the text of a mapping file.
///
/// # Errors
/// [`DatasetError::Read`] where the file cannot be read, [`DatasetError::Form`] where it has no time or no column of
/// numbers that could be found.
pub fn propose(path: &Path) -> Result<String, DatasetError> {
    let fail = |problem: &str| DatasetError::Form { path: path.to_path_buf(), problem: problem.to_owned() };
    let head = Head::read(path)?;
    let time = time_columns::find(&head.columns).ok_or_else(|| {
        fail("no column looks like a time; write a mapping by hand (see the top of datasets/src/mapping.rs)")
    })?;
    let device = head.device(&time);
    let metrics: Vec<&Column> = head
        .others(&time, device)
        .filter(|column| column.kind == Kind::Numbers && !column.counts_rows())
        .collect();
    if metrics.is_empty() {
        return Err(fail("no column beside the time holds numbers; there is nothing to load"));
    }
    let text = render(path, &head, &time, device, &metrics);
    // What is proposed is used as it is, so it must be right as far as the program can tell.
    CsvSource::open(path, &Mapping::parse(&text, path)?)?;
    Ok(text)
}

impl Head {
    fn read(path: &Path) -> Result<Self, DatasetError> {
        let form = |problem: String| DatasetError::Form { path: path.to_path_buf(), problem };
        let read = |source| DatasetError::Read { path: path.to_path_buf(), source };
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(open_text(path)?, 1 << 20), &mut text)
            .map_err(read)?;
        let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let count = |delimiter: u8| first_line.iter().filter(|byte| **byte == delimiter).count();
        // Of several that come equally often the first counts, which `max_by_key` would give only from the end.
        let delimiter =
            DELIMITERS.into_iter().rev().max_by_key(|delimiter| count(*delimiter)).unwrap_or(b',');
        let mut reader =
            ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text.as_slice());
        let names: Vec<String> = match reader.byte_headers() {
            Ok(header) => header.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect(),
            Err(error) => return Err(form(error.to_string())),
        };
        if names.iter().all(String::is_empty) {
            return Err(form("the file has no header; its first row must name the columns".to_owned()));
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

    /// The column that says who measured: one that is called so, and does not only count the rows.
    fn device(&self, time: &TimeGuess) -> Option<&Column> {
        let named = |wanted: &&str| {
            self.columns.iter().find(|column| {
                column.plain_name() == *wanted
                    && !column.counts_rows()
                    && !time.columns.contains(&column.name)
            })
        };
        DEVICE_NAMES.iter().find_map(named)
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
    let mut text = String::new();
    let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let rows = head.columns.first().map_or(0, |column| column.cells.len());
    push(&mut text, format_args!("# Proposed for {file} from its first {rows} rows. Check the comments."));
    push(&mut text, format_args!("delimiter = {}", quoted(&(head.delimiter as char).to_string())));
    if head.decimal_mark == b',' {
        push(&mut text, format_args!("decimal_comma = true"));
    }
    let mut missing: BTreeMap<String, &str> = BTreeMap::from([(quoted(""), "")]);
    for column in metrics {
        missing.extend(column.words.iter().map(|word| (quoted(word), "")));
        missing.extend(
            column.stand_in().map(|number| (number.to_string(), "is a number that stands for missing")),
        );
    }
    let list: Vec<&str> = missing.keys().map(String::as_str).collect();
    push(&mut text, format_args!("missing = [{}]", list.join(", ")));
    for (word, remark) in missing.iter().filter(|(_, remark)| !remark.is_empty()) {
        push(&mut text, format_args!("# check: {word} {remark}"));
    }
    push(&mut text, format_args!("\n[device]"));
    match device {
        Some(column) => push(&mut text, format_args!("column = {}", quoted(&column.name))),
        None => {
            push(&mut text, format_args!("# no column names a device, so the whole file is one"));
            push(&mut text, format_args!("constant = {}", quoted(&device_from_file_name(path))));
        }
    }
    push(&mut text, format_args!("\n[time]"));
    push(&mut text, format_args!("{}", time.settings));
    for column in head.others(time, device).filter(|column| column.kind == Kind::Texts) {
        if column.is_label() {
            let (key, name) = (quoted(&column.name), quoted(&column.name));
            push(&mut text, format_args!("\n# [tags]\n# {key} = {{ column = {name} }}"));
        }
    }
    for column in metrics {
        push(&mut text, format_args!("\n[[metric]]\ncolumn = {}", quoted(&column.name)));
    }
    push(
        &mut text,
        format_args!("# unit = \"Cel\"   # of the last metric; UCUM, for each metric that has one"),
    );
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to memory cannot fail");
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

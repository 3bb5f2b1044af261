//! Finds the columns of the files of a table: from the header of CSV files, from all objects of JSON files, and from the
//! schema of Parquet files. The files of a table have the same columns, in any order.

use std::fs::File;
use std::io::BufReader;

use arrow::csv::reader::Format as CsvFormat;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::json::reader::infer_json_schema_from_iterator;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Deserializer, Value};

use super::{SourceColumn, SourceFile, delimiter, reader};
use crate::file_job::FileJobError;
use crate::file_job::input::{CsvOptions, Format, Found, Header};
use crate::file_job::json_array::JsonArray;
use crate::file_job::messages;
use crate::file_job::values::type_name;

/// Delimiters that files have instead of a comma.
const OTHER_DELIMITERS: [(u8, &str); 3] = [(b';', ";"), (b'\t', "\\t"), (b'|', "|")];

/// The columns of a table, and its files.
pub(super) fn find(
    format: Format,
    csv: CsvOptions,
    found: Vec<Found>,
) -> Result<(Vec<SourceColumn>, Vec<SourceFile>), FileJobError> {
    let mut table: Option<Vec<SourceColumn>> = None;
    if matches!(format, Format::Json | Format::JsonLines) {
        table = Some(of_json(&found)?);
    }
    let mut files = Vec::new();
    for file in found {
        let (columns, rows) = match (format, &table) {
            (Format::Parquet, _) => of_parquet(&file)?,
            (Format::Json | Format::JsonLines, Some(columns)) => (columns.clone(), None),
            _ => (of_csv(&file, format, csv)?, None),
        };
        let expected = table.get_or_insert_with(|| columns.clone());
        let places = places(expected, &columns).map_err(|problem| FileJobError::Failed {
            what: format!("read {} together with the files before it", file.path.display()),
            problem,
        })?;
        files.push(SourceFile { path: file.path.clone(), bytes: file.bytes, rows, found: file, places });
    }
    let columns = table.unwrap_or_default();
    Ok((columns, files))
}

/// Where the columns of a table are in a file.
fn places(table: &[SourceColumn], file: &[SourceColumn]) -> Result<Vec<usize>, String> {
    if let Some(more) = file.iter().find(|column| !table.iter().any(|known| known.name == column.name)) {
        return Err(format!("it has a column more, {:?}", more.name));
    }
    table
        .iter()
        .map(|column| {
            let place = file.iter().position(|found| found.name == column.name);
            let place = place.ok_or_else(|| format!("it has no column {:?}", column.name))?;
            let (found, expected) = (&file[place].data_type, &column.data_type);
            if found != expected {
                return Err(format!(
                    "its column {:?} is of type {}, not {}",
                    column.name,
                    type_name(found),
                    type_name(expected)
                ));
            }
            Ok(place)
        })
        .collect()
}

fn of_csv(file: &Found, format: Format, csv: CsvOptions) -> Result<Vec<SourceColumn>, FileJobError> {
    let delimiter = delimiter(format, csv);
    let header = CsvFormat::default().with_header(csv.header == Header::Present).with_delimiter(delimiter);
    // Without a header, the first row has as many columns as the others.
    let rows = usize::from(csv.header == Header::Absent);
    let schema = reader(file, None).and_then(|reader| header.infer_schema(reader, Some(rows)));
    let (schema, _) = schema.map_err(|error| failed(file, &error))?;
    let names: Vec<String> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(place, field)| match field.name().trim() {
            "" => format!("column_{}", place + 1),
            name => name.to_owned(),
        })
        .collect();
    if names.is_empty() {
        return Err(wrong(file, "it is empty".to_owned()));
    }
    for (place, name) in names.iter().enumerate() {
        if names[..place].contains(name) {
            return Err(wrong(file, format!("it has two columns {name:?}; rename one in the file")));
        }
    }
    if let [only] = names.as_slice()
        && let Some((_, other)) =
            OTHER_DELIMITERS.iter().find(|(byte, _)| *byte != delimiter && only.as_bytes().contains(byte))
    {
        return Err(FileJobError::Arguments(format!(
            "the first line of {} has no {:?} but {other:?}; write --delimiter {other:?}",
            file.path.display(),
            char::from(delimiter)
        )));
    }
    Ok(names.into_iter().map(|name| SourceColumn { name, data_type: DataType::Utf8 }).collect())
}

/// A key may be in the last object only, so all are read.
fn of_json(files: &[Found]) -> Result<Vec<SourceColumn>, FileJobError> {
    let mut schemas = Vec::new();
    for file in files {
        let schema = reader(file, None).and_then(|reader| {
            let objects =
                Deserializer::from_reader(BufReader::new(JsonArray::new(reader))).into_iter::<Value>();
            infer_json_schema_from_iterator(
                objects.map(|object| object.map_err(|error| ArrowError::JsonError(error.to_string()))),
            )
        });
        schemas.push(schema.map_err(|error| failed(file, &error))?);
    }
    let mut columns: Vec<SourceColumn> = Vec::new();
    for (schema, file) in schemas.iter().zip(files) {
        for field in schema.fields() {
            let Some(known) = columns.iter_mut().find(|column| column.name == *field.name()) else {
                columns.push(column(field));
                continue;
            };
            let merged = merged(&known.data_type, field.data_type());
            known.data_type = merged.ok_or_else(|| {
                wrong(file, format!("the values of {:?} differ from those in the files before", known.name))
            })?;
        }
    }
    for column in &mut columns {
        if column.data_type == DataType::Null {
            column.data_type = DataType::Utf8;
        }
    }
    if columns.is_empty() {
        let names: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
        return Err(FileJobError::Failed {
            what: format!("read {}", names.join(", ")),
            problem: "there are no JSON objects".to_owned(),
        });
    }
    Ok(columns)
}

/// One type for the values of two; `None` where one is nested and the other is not the same.
fn merged(one: &DataType, other: &DataType) -> Option<DataType> {
    use DataType::{Float64, Int64, Null, Utf8};
    Some(match (one, other) {
        (one, other) if one == other => one.clone(),
        (Null, other) | (other, Null) => other.clone(),
        (Int64, Float64) | (Float64, Int64) => Float64,
        (one, other) if !one.is_nested() && !other.is_nested() => Utf8,
        _ => return None,
    })
}

fn of_parquet(file: &Found) -> Result<(Vec<SourceColumn>, Option<u64>), FileJobError> {
    let opened = File::open(&file.path).map_err(FileJobError::file("read", &file.path))?;
    let opened = ParquetRecordBatchReaderBuilder::try_new(opened);
    let opened = opened.map_err(|error| wrong(file, error.to_string()))?;
    let rows = u64::try_from(opened.metadata().file_metadata().num_rows()).unwrap_or_default();
    let schema: &Schema = opened.schema();
    Ok((schema.fields().iter().map(|field| column(field)).collect(), Some(rows)))
}

fn column(field: &Field) -> SourceColumn {
    SourceColumn { name: field.name().clone(), data_type: field.data_type().clone() }
}

fn failed(file: &Found, error: &ArrowError) -> FileJobError {
    wrong(file, messages::of_arrow(error))
}

fn wrong(file: &Found, problem: String) -> FileJobError {
    FileJobError::Failed { what: format!("read {}", file.path.display()), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_names() {
        let columns =
            ["a", "b"].map(|name| SourceColumn { name: name.to_owned(), data_type: DataType::Utf8 });
        let [a, b] = columns.clone();
        assert_eq!(places(&columns, &[b.clone(), a.clone()]), Ok(vec![1, 0]));
        assert!(places(&columns, std::slice::from_ref(&a)).unwrap_err().contains("no column \"b\""));
        assert!(places(std::slice::from_ref(&a), &columns).unwrap_err().contains("a column more, \"b\""));
        let number = SourceColumn { data_type: DataType::Int64, ..a };
        assert!(places(&columns, &[number, b]).unwrap_err().contains("type integer, not text"));
    }

    #[test]
    fn json_values_of_several_types_have_one_that_takes_all() {
        assert_eq!(merged(&DataType::Int64, &DataType::Float64), Some(DataType::Float64));
        assert_eq!(merged(&DataType::Int64, &DataType::Utf8), Some(DataType::Utf8));
        assert_eq!(merged(&DataType::Null, &DataType::Boolean), Some(DataType::Boolean));
        let list = DataType::new_list(DataType::Int64, true);
        assert_eq!(merged(&list, &DataType::Int64), None);
    }
}

//! Where the rows of a query go: a file, or a channel. A file is written beside its place, and renamed when it is complete.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::json::writer::{JsonArray, LineDelimited};
use arrow::json::{Writer as JsonWriter, WriterBuilder as JsonWriterBuilder};
use datafusion::common::runtime::SpawnedTask;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::Compression;
use datafusion::parquet::file::properties::WriterProperties;
use futures::TryStreamExt;
use tokio::sync::mpsc;
use wye_runtime::unique;

use super::FileJobError;
use super::input::{Format, Input};
use super::messages;
use super::query::{Rows, failed_query};

/// Batches that wait to be written.
const WAITING: usize = 4;

/// Where the rows of a query go.
pub enum Destination {
    /// A file; its name says the format.
    File {
        /// Its path.
        path: PathBuf,
        /// What happens if it exists.
        existing: Existing,
    },
    /// A channel. The first batch comes in any case, so that the receiver knows the columns.
    Channel(mpsc::Sender<RecordBatch>),
}

/// What happens with a file that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The job is refused.
    Refuse,
    /// It is replaced when the new file is complete.
    Replace,
}

impl Destination {
    /// Checks that the file can be written.
    pub(crate) fn check(&self) -> Result<(), FileJobError> {
        let Self::File { path, existing } = self else { return Ok(()) };
        if Format::of(path).is_none() {
            return Err(FileJobError::Arguments(format!(
                "cannot tell the format of the output {} by its name; it must end with .csv, .tsv, .json, .jsonl, .ndjson \
                 or .parquet",
                path.display()
            )));
        }
        if path.is_dir() {
            return Err(FileJobError::Arguments(format!("the output {} is a folder", path.display())));
        }
        if !folder_of(path).is_dir() {
            return Err(FileJobError::Arguments(format!(
                "the folder of the output {} does not exist; create it first",
                path.display()
            )));
        }
        refuse_existing(path, *existing)
    }

    /// Checks that the file is not one that the same job would read the next time.
    pub(crate) fn check_apart(&self, inputs: &[Input]) -> Result<(), FileJobError> {
        let Self::File { path, .. } = self else { return Ok(()) };
        let Ok(folder) = folder_of(path).canonicalize() else { return Ok(()) };
        let is_folder = |input: &&Input| input.path.canonicalize().is_ok_and(|input| input == folder);
        inputs.iter().find(is_folder).map_or(Ok(()), |input| {
            Err(FileJobError::Arguments(format!(
                "the output {} is in the folder of the input {}, so the next job would read it; write it to another folder",
                path.display(),
                input.path.display()
            )))
        })
    }

    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<PathBuf> {
        match self {
            Self::File { path, .. } => Some(path.clone()),
            Self::Channel(_) => None,
        }
    }

    /// Writes the rows, and returns how many there are.
    pub(crate) async fn write(self, rows: Rows) -> Result<u64, FileJobError> {
        match self {
            Self::Channel(sender) => send(rows, sender).await,
            Self::File { path, existing } => {
                let temporary = Temporary::beside(&path);
                let format = Format::of(&path).unwrap_or(Format::Csv);
                let schema = Arc::clone(&rows.schema);
                let (sender, receiver) = mpsc::channel(WAITING);
                let at = temporary.path.clone();
                let writing = SpawnedTask::spawn_blocking(move || write_file(&at, format, schema, receiver));
                let sent = send(rows, sender).await;
                // Where the writer has failed, the rows are not sent either.
                writing.join_unwind().await.map_err(|_| FileJobError::Stopped)??;
                let count = sent?;
                refuse_existing(&path, existing)?;
                std::fs::rename(&temporary.path, &path).map_err(FileJobError::file("write", &path))?;
                Ok(count)
            }
        }
    }
}

fn refuse_existing(path: &Path, existing: Existing) -> Result<(), FileJobError> {
    if existing == Existing::Refuse && path.exists() {
        return Err(FileJobError::Arguments(format!(
            "the output {} exists; write --overwrite to replace it",
            path.display()
        )));
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file beside another one. It is removed when it is dropped, unless it was renamed.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self { path: folder_of(path).join(format!(".{name}.{}.tmp", unique::name())) }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is not there if it was renamed, or never created.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Sends the rows with the names that their columns get.
async fn send(mut rows: Rows, sender: mpsc::Sender<RecordBatch>) -> Result<u64, FileJobError> {
    let empty = RecordBatch::new_empty(Arc::clone(&rows.schema));
    sender.send(empty).await.map_err(|_| FileJobError::Closed)?;
    let mut count = 0;
    while let Some(batch) = rows.batches.try_next().await.map_err(|error| failed_query(&error))? {
        count += batch.num_rows() as u64;
        let batch = as_schema(&batch, &rows.schema)?;
        sender.send(batch).await.map_err(|_| FileJobError::Closed)?;
    }
    Ok(count)
}

fn as_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, FileJobError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns: Result<Vec<_>, _> =
        columns.map(|(column, field)| arrow::compute::cast(column, field.data_type())).collect();
    columns
        .and_then(|columns| RecordBatch::try_new(Arc::clone(schema), columns))
        .map_err(|error| FileJobError::Query(messages::of_arrow(&error)))
}

/// Writes batches to a file until no more come, and syncs it. Blocks.
fn write_file(
    path: &Path,
    format: Format,
    schema: SchemaRef,
    mut batches: mpsc::Receiver<RecordBatch>,
) -> Result<(), FileJobError> {
    let file = File::create(path).map_err(FileJobError::file("write", path))?;
    let synced = file.try_clone().map_err(FileJobError::file("write", path))?;
    let mut encoder = Encoder::new(file, format, schema)?;
    while let Some(batch) = batches.blocking_recv() {
        encoder.write(&batch)?;
    }
    encoder.finish()?;
    synced.sync_all().map_err(FileJobError::file("write", path))
}

/// Writes batches as one of the formats.
enum Encoder<W: Write + Send> {
    /// Comma-separated or tab-separated values, with a header.
    Csv(Box<arrow::csv::Writer<BufWriter<W>>>),
    /// An array of objects.
    Json(JsonWriter<BufWriter<W>, JsonArray>),
    /// One object a line.
    JsonLines(JsonWriter<BufWriter<W>, LineDelimited>),
    /// Parquet.
    Parquet(Box<ArrowWriter<W>>),
}

impl<W: Write + Send> Encoder<W> {
    /// An encoder of batches with a schema.
    ///
    /// # Errors
    /// When the format cannot have a type of the schema.
    fn new(writer: W, format: Format, schema: SchemaRef) -> Result<Self, FileJobError> {
        let json = JsonWriterBuilder::new().with_explicit_nulls(true);
        Ok(match format {
            Format::Csv | Format::Tsv => {
                if let Some(field) = schema.fields().iter().find(|field| !is_one_cell(field.data_type())) {
                    return Err(FileJobError::Arguments(format!(
                        "the column {} has lists or objects, which CSV cannot have; write to .json or .parquet",
                        field.name()
                    )));
                }
                let delimiter = if format == Format::Tsv { b'\t' } else { b',' };
                let builder = arrow::csv::WriterBuilder::new().with_header(true).with_delimiter(delimiter);
                Self::Csv(Box::new(builder.build(BufWriter::new(writer))))
            }
            Format::Json => Self::Json(json.build(BufWriter::new(writer))),
            Format::JsonLines => Self::JsonLines(json.build(BufWriter::new(writer))),
            Format::Parquet => {
                let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
                let writer = ArrowWriter::try_new(writer, schema, Some(properties));
                Self::Parquet(Box::new(writer.map_err(|error| failed(&error.into()))?))
            }
        })
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), FileJobError> {
        let written = match self {
            Self::Csv(writer) => writer.write(batch),
            Self::Json(writer) => writer.write(batch),
            Self::JsonLines(writer) => writer.write(batch),
            Self::Parquet(writer) => writer.write(batch).map_err(Into::into),
        };
        written.map_err(|error| failed(&error))
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// When it cannot be written.
    fn finish(self) -> Result<(), FileJobError> {
        let flushed = match self {
            Self::Csv(writer) => writer.into_inner().flush().map_err(Into::into),
            Self::Json(mut writer) => writer.finish().and_then(|()| Ok(writer.into_inner().flush()?)),
            Self::JsonLines(mut writer) => writer.finish().and_then(|()| Ok(writer.into_inner().flush()?)),
            Self::Parquet(writer) => writer.close().map(drop).map_err(Into::into),
        };
        flushed.map_err(|error| failed(&error))
    }
}

/// Whether a value is one cell of a CSV file.
fn is_one_cell(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_one_cell(values),
        data_type => !data_type.is_nested(),
    }
}

fn failed(error: &arrow::error::ArrowError) -> FileJobError {
    FileJobError::Failed { what: "write the result".to_owned(), problem: messages::of_arrow(error) }
}

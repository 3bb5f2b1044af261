//! The columns of a table, and its rows as a table of DataFusion. Rows are read in the order of the files. Columns are named
//! by their position, so that no name of a file can be mistaken for another one.

mod columns;

use std::fmt::{Debug, Formatter};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::csv::ReaderBuilder as CsvReaderBuilder;
use arrow::csv::reader::BufReader as CsvReader;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder as JsonReaderBuilder;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::PartitionStream;

use super::FileJobError;
use super::input::{CsvOptions, Format, Found, Header, Input};
use super::json_array::JsonArray;
use super::messages;
use crate::recompute::{OnProgress, Progress};

/// Rows of one batch that is read.
const BATCH_ROWS: usize = 8 * 1024;
/// Batches that are read ahead.
const AHEAD: usize = 4;
/// The bytes that some programs write at the beginning of a text file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The batches of a file.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// A table as it is in its files.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The name of the table.
    pub(crate) name: String,
    /// Its files, in order.
    pub(crate) files: Vec<SourceFile>,
    /// Its columns.
    pub(crate) columns: Vec<SourceColumn>,
    format: Format,
    csv: CsvOptions,
}

/// A column as it is in the files.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SourceColumn {
    pub(crate) name: String,
    /// Texts in CSV files.
    pub(crate) data_type: DataType,
}

/// A file of a table.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    pub(crate) path: std::path::PathBuf,
    pub(crate) bytes: u64,
    /// Rows, where the file says how many it has.
    pub(crate) rows: Option<u64>,
    found: Found,
    /// Where the columns of the table are in this file.
    places: Vec<usize>,
}

impl Source {
    /// Finds the files and columns of an input. Blocks.
    ///
    /// # Errors
    /// When a file cannot be read, or files have different columns.
    pub(crate) fn open(input: &Input, csv: CsvOptions) -> Result<Self, FileJobError> {
        let (format, found) = input.files()?;
        let (columns, files) = columns::find(format, csv, found)?;
        Ok(Self { name: input.name.clone(), files, columns, format, csv })
    }

    /// Whether the files are Parquet.
    pub(crate) fn is_parquet(&self) -> bool {
        self.format == Format::Parquet
    }

    /// Whether the values of all columns are texts because the files have no types.
    pub(crate) fn is_csv(&self) -> bool {
        matches!(self.format, Format::Csv | Format::Tsv)
    }

    /// The rows as a table with the columns `c0`, `c1` and so on.
    ///
    /// # Errors
    /// When DataFusion rejects it.
    pub(crate) fn table(
        self: &Arc<Self>,
        progress: Option<Arc<ReadProgress>>,
    ) -> Result<Arc<StreamingTable>, FileJobError> {
        let fields = self.columns.iter().enumerate();
        let fields =
            fields.map(|(place, column)| Field::new(original(place), column.data_type.clone(), true));
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let rows = Rows { source: Arc::clone(self), schema: Arc::clone(&schema), progress };
        let table = StreamingTable::try_new(schema, vec![Arc::new(rows)]);
        table.map(Arc::new).map_err(FileJobError::step(format!("read {}", self.name)))
    }
}

/// The name of the column at a place, as it is in the file.
pub(crate) fn original(place: usize) -> String {
    format!("c{place}")
}

/// How much of the files is read.
pub(crate) struct ReadProgress {
    done: AtomicU64,
    total: u64,
    on_read: Option<OnProgress>,
}

impl ReadProgress {
    /// Of all files of some tables.
    pub(crate) fn new(sources: &[Arc<Source>], on_read: Option<OnProgress>) -> Arc<Self> {
        let files = sources.iter().flat_map(|source| &source.files);
        Arc::new(Self { done: AtomicU64::new(0), total: files.map(|file| file.bytes).sum(), on_read })
    }

    fn show(&self) {
        if let Some(on_read) = &self.on_read {
            // A table may be read twice.
            let done = self.done.load(Ordering::Relaxed).min(self.total);
            on_read(Progress { done, total: self.total });
        }
    }
}

/// The rows of a table, in one stream.
struct Rows {
    source: Arc<Source>,
    schema: SchemaRef,
    progress: Option<Arc<ReadProgress>>,
}

impl Debug for Rows {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "rows of {}", self.source.name)
    }
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStream::builder(Arc::clone(&self.schema), AHEAD);
        let (sender, source) = (builder.tx(), Arc::clone(&self.source));
        let (schema, progress) = (Arc::clone(&self.schema), self.progress.clone());
        builder.spawn_blocking(move || {
            for file in &source.files {
                let opened = batches(&source, file, progress.as_ref());
                for batch in opened.map_err(|error| external(&file.path, &error))? {
                    let batch = batch.and_then(|batch| in_order(&batch, file, &schema));
                    let batch = batch.map_err(|error| external(&file.path, &error))?;
                    // A closed stream needs no more rows.
                    if sender.blocking_send(Ok(batch)).is_err() {
                        return Ok(());
                    }
                    if let Some(progress) = &progress {
                        progress.show();
                    }
                }
            }
            Ok(())
        });
        builder.build()
    }
}

/// The columns of a batch in the order of the table.
fn in_order(batch: &RecordBatch, file: &SourceFile, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(Arc::clone(schema), batch.project(&file.places)?.columns().to_vec())
}

/// The batches of a file, with its own order of columns.
fn batches(
    source: &Source,
    file: &SourceFile,
    progress: Option<&Arc<ReadProgress>>,
) -> Result<Batches, ArrowError> {
    if source.is_parquet() {
        let opened = ParquetRecordBatchReaderBuilder::try_new(File::open(&file.path)?)?;
        let reader = opened.with_batch_size(BATCH_ROWS).build()?;
        let (progress, file) = (progress.cloned(), file.clone());
        return Ok(Box::new(reader.inspect(move |batch| {
            if let (Some(progress), Ok(batch)) = (&progress, batch) {
                let share = file.bytes * batch.num_rows() as u64 / file.rows.unwrap_or(1).max(1);
                progress.done.fetch_add(share, Ordering::Relaxed);
            }
        })));
    }
    let reader = reader(&file.found, progress)?;
    if source.is_csv() {
        let fields = file.places.iter().map(|_| Field::new("", DataType::Utf8, true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let builder = CsvReaderBuilder::new(schema)
            .with_header(source.csv.header == Header::Present)
            .with_delimiter(delimiter(source.format, source.csv))
            .with_batch_size(BATCH_ROWS);
        let quotes = Arc::new(AtomicU64::new(0));
        let reader = Quotes { inner: reader, count: Arc::clone(&quotes) };
        let inner = builder.build_buffered(BufReader::new(reader))?;
        return Ok(Box::new(CsvBatches { inner, quotes, has_break: false }));
    }
    let fields = source.columns.iter().map(|column| Field::new(&column.name, column.data_type.clone(), true));
    let builder = JsonReaderBuilder::new(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
        .with_coerce_primitive(true)
        .with_batch_size(BATCH_ROWS);
    Ok(Box::new(builder.build(BufReader::new(JsonArray::new(reader)))?))
}

/// The batches of a CSV file. A quote that is not closed would silently make the rest of the file one cell, so it is an error.
struct CsvBatches {
    inner: CsvReader<BufReader<Quotes>>,
    quotes: Arc<AtomicU64>,
    /// Whether the last row has a line break in a cell.
    has_break: bool,
}

impl Iterator for CsvBatches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match self.inner.next() {
            Some(Ok(batch)) => batch,
            None if self.has_break && !self.quotes.load(Ordering::Relaxed).is_multiple_of(2) => {
                self.has_break = false;
                let problem =
                    "a quote is not closed, so the rest of the file is one cell; correct the last rows";
                return Some(Err(ArrowError::CsvError(problem.to_owned())));
            }
            other => return other,
        };
        let last = batch.num_rows().saturating_sub(1);
        let mut cells = batch.columns().iter().map(|column| column.as_string::<i32>());
        self.has_break = cells.any(|cells| cells.len() > last && cells.value(last).contains('\n'));
        Some(Ok(batch))
    }
}

/// Counts quotes.
struct Quotes {
    inner: Box<dyn Read + Send>,
    count: Arc<AtomicU64>,
}

impl Read for Quotes {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let quotes = buffer[..count].iter().filter(|byte| **byte == b'"').count();
        self.count.fetch_add(quotes as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// What separates two cells.
fn delimiter(format: Format, csv: CsvOptions) -> u8 {
    csv.delimiter.unwrap_or(if format == Format::Tsv { b'\t' } else { b',' })
}

/// The text of a file: decompressed, and without a byte order mark.
fn reader(found: &Found, progress: Option<&Arc<ReadProgress>>) -> Result<Box<dyn Read + Send>, ArrowError> {
    let counted = Counted { inner: File::open(&found.path)?, progress: progress.cloned() };
    let text = found.compression.convert_read(BufReader::with_capacity(1 << 18, counted));
    let mut text = text.map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
    let mut start = Vec::new();
    text.by_ref().take(BYTE_ORDER_MARK.len() as u64).read_to_end(&mut start)?;
    if start == BYTE_ORDER_MARK {
        start.clear();
    }
    Ok(Box::new(std::io::Cursor::new(start).chain(text)))
}

/// Counts the bytes that are read.
struct Counted<R> {
    inner: R,
    progress: Option<Arc<ReadProgress>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(progress) = &self.progress {
            progress.done.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(count)
    }
}

/// An error in a file, as one of DataFusion's.
fn external(path: &Path, error: &ArrowError) -> DataFusionError {
    DataFusionError::External(format!("{}: {}", path.display(), messages::of_arrow(error)).into())
}

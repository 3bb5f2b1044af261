//! One wide CSV file, plain or gzip, as a sequence of Arrow batches of readings. It must not know where the batches go,
//! and keeps at most one chunk in memory.
//!
//! The sequence is a function of the file's bytes and the mapping: chunk `n` has the same readings in the same order every
//! time, which makes a load repeatable (see [`file_id`](crate::file_id::file_id)). A chunk is a fixed number of CSV rows.
//! Its readings are grouped by device, and for each device by metric in the order of the mapping; the readings of a metric
//! are in the order of the file. So the readings of a series are together.

use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use csv::{ByteRecord, ReaderBuilder};
use flate2::read::MultiGzDecoder;

use crate::error::DatasetError;
use crate::mapping::Mapping;
use melt::ChunkBuilder;
use plan::Plan;

mod melt;
mod plan;

#[cfg(test)]
mod tests;

/// The most readings in a chunk, unless one row has more. It is a part of the meaning of
/// [`file_id`](crate::file_id::file_id): a change needs a new chunking version there.
const READINGS_PER_CHUNK: usize = 61_440;

/// Consecutive CSV rows of one file as readings.
#[derive(Debug)]
pub struct Chunk {
    /// The number of the chunk in the file, from 0.
    pub index: u64,
    /// The readings, in the reading schema; may have no rows.
    pub batch: RecordBatch,
    /// CSV rows of the chunk, invalid ones included, without the header.
    pub csv_rows: u64,
    /// Cells that mean that there is no reading.
    pub missing: u64,
    /// Invalid rows and cells. `batch.num_rows() + missing + Σ rejected.readings = csv_rows * metrics`.
    pub rejected: Vec<Rejected>,
    /// Bytes of the (compressed) file that have been read so far: for a progress bar.
    pub bytes_read: u64,
}

/// An invalid row or cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The line in the decompressed file on which the row starts; the header is line 1.
    pub row: u64,
    /// The column of the cell; empty where the whole row is invalid.
    pub column: String,
    /// The first 200 characters of the invalid text.
    pub text: String,
    /// Why it is invalid.
    pub reason: RejectReason,
    /// The number of readings that are lost: 1 for a cell, the number of metrics for a row.
    pub readings: u64,
}

/// Why a row or a cell is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RejectReason {
    /// The row has more or fewer columns than the header.
    ColumnCount {
        /// Columns of the row.
        found: usize,
        /// Columns of the header.
        expected: usize,
    },
    /// The cell of the device is empty, means missing, or is not UTF-8.
    NoDevice,
    /// The time does not match the format of the mapping.
    UnreadableTime,
    /// The local time does not exist, because of a clock change.
    TimeInGap,
    /// The cell is neither a number nor a text that means missing.
    NotANumber,
    /// The number is NaN or infinite, or scale and offset make it so.
    NotFinite,
}

impl RejectReason {
    /// The reason without its details, for counting.
    pub fn label(self) -> &'static str {
        match self {
            Self::ColumnCount { .. } => "column_count",
            Self::NoDevice => "no_device",
            Self::UnreadableTime => "unreadable_time",
            Self::TimeInGap => "time_in_gap",
            Self::NotANumber => "not_a_number",
            Self::NotFinite => "not_finite",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ColumnCount { found, expected } => {
                write!(out, "the row has {found} columns, the header has {expected}")
            }
            Self::NoDevice => out.write_str("the row has no device"),
            Self::UnreadableTime => out.write_str("the time does not match the format of the mapping"),
            Self::TimeInGap => out.write_str("this local time does not exist, because of a clock change"),
            Self::NotANumber => out.write_str("neither a number nor a text that means missing"),
            Self::NotFinite => out.write_str("the number is not finite"),
        }
    }
}

/// The chunks of one file. An error is the last item.
pub struct CsvSource {
    path: PathBuf,
    reader: csv::Reader<Box<dyn Read + Send>>,
    builder: ChunkBuilder,
    record: ByteRecord,
    rows_per_chunk: u64,
    next_index: u64,
    rows_before: u64,
    bytes_total: u64,
    bytes_read: Arc<AtomicU64>,
    finished: bool,
}

impl CsvSource {
    /// Opens the file and finds the columns of the mapping in its header. Gzip is detected by the first bytes, not by the
    /// file name; a byte order mark is skipped.
    ///
    /// # Errors
    /// [`DatasetError::Read`], [`DatasetError::Damaged`]; [`DatasetError::Form`] where the file has no header or is
    /// UTF-16; [`DatasetError::Mapping`] where a column of the mapping is not in the header.
    pub fn open(path: &Path, mapping: &Mapping) -> Result<Self, DatasetError> {
        Self::open_with(path, mapping, READINGS_PER_CHUNK)
    }

    fn open_with(path: &Path, mapping: &Mapping, readings_per_chunk: usize) -> Result<Self, DatasetError> {
        let (file, bytes_total) = open(path)?;
        let bytes_read = Arc::new(AtomicU64::new(0));
        let input = text_of(path, Counted { inner: file, count: Arc::clone(&bytes_read) })?;
        let mut reader = ReaderBuilder::new()
            .delimiter(mapping.delimiter)
            .flexible(true)
            .buffer_capacity(128 * 1024)
            .from_reader(input);
        let header = reader.byte_headers().map_err(|error| classify(path, cause(error), 0))?;
        if header.is_empty() {
            let problem = "the file is empty; it must start with a header row".to_owned();
            return Err(DatasetError::Form { path: path.to_path_buf(), problem });
        }
        let plan = Plan::new(mapping, header, path)?;
        let metrics = mapping.metrics().len();
        Ok(Self {
            path: path.to_path_buf(),
            rows_per_chunk: (readings_per_chunk / metrics).max(1) as u64,
            builder: ChunkBuilder::new(plan),
            reader,
            record: ByteRecord::new(),
            next_index: 0,
            rows_before: 0,
            bytes_total,
            bytes_read,
            finished: false,
        })
    }

    /// The size of the (compressed) file in bytes.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    fn read_chunk(&mut self) -> Result<Option<Chunk>, DatasetError> {
        let mut csv_rows = 0;
        while csv_rows < self.rows_per_chunk {
            let more = self.reader.read_byte_record(&mut self.record);
            let rows = self.rows_before + csv_rows;
            if !more.map_err(|error| classify(&self.path, cause(error), rows))? {
                self.finished = true;
                break;
            }
            self.builder.push(&self.record);
            csv_rows += 1;
        }
        if csv_rows == 0 {
            return Ok(None);
        }
        let index = self.next_index;
        self.next_index += 1;
        self.rows_before += csv_rows;
        let melted = self.builder.finish();
        Ok(Some(Chunk {
            index,
            batch: melted.batch,
            csv_rows,
            missing: melted.missing,
            rejected: melted.rejected,
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
        }))
    }
}

impl Iterator for CsvSource {
    type Item = Result<Chunk, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let chunk = self.read_chunk().transpose();
        if !matches!(chunk, Some(Ok(_))) {
            self.finished = true;
        }
        chunk
    }
}

/// The name of the file without folders and without extensions such as `.csv` and `.gz`.
pub(crate) fn device_from_file_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut stem = name.as_str();
    for ending in [".gz", ".csv", ".tsv", ".txt"] {
        stem = stem.strip_suffix(ending).unwrap_or(stem);
    }
    stem.to_owned()
}

/// Counts the bytes that are read.
struct Counted {
    inner: File,
    count: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// The text of a file, plain or gzip, without its byte order mark.
pub(crate) fn open_text(path: &Path) -> Result<Box<dyn Read + Send>, DatasetError> {
    let (file, _) = open(path)?;
    text_of(path, Counted { inner: file, count: Arc::default() })
}

/// A file and its size in bytes.
fn open(path: &Path) -> Result<(File, u64), DatasetError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
    opened.map(|(bytes, file)| (file, bytes)).map_err(|source| classify(path, source, 0))
}

fn text_of(path: &Path, file: Counted) -> Result<Box<dyn Read + Send>, DatasetError> {
    let text = decompressed(file).and_then(|input| without_mark(path, input));
    text.map_err(|error| match error.downcast::<DatasetError>() {
        Ok(error) => error,
        Err(source) => classify(path, source, 0),
    })
}

fn decompressed(mut file: Counted) -> io::Result<Box<dyn Read + Send>> {
    let (magic, length) = first_bytes::<2>(&mut file)?;
    let whole = Cursor::new(magic).take(length as u64).chain(file);
    if magic == [0x1f, 0x8b] { Ok(Box::new(MultiGzDecoder::new(whole))) } else { Ok(Box::new(whole)) }
}

fn without_mark(path: &Path, mut input: Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    let (start, length) = first_bytes::<3>(&mut input)?;
    if matches!(start[..2], [0xff, 0xfe] | [0xfe, 0xff]) {
        let problem = "the text is UTF-16; convert it, such as with iconv -f UTF-16 -t UTF-8".to_owned();
        return Err(io::Error::other(DatasetError::Form { path: path.to_path_buf(), problem }));
    }
    let skip = if start == [0xef, 0xbb, 0xbf] { 3 } else { 0 };
    let mut start = Cursor::new(start).take(length as u64);
    start.get_mut().set_position(skip);
    start.set_limit(length as u64 - skip);
    Ok(Box::new(start.chain(input)))
}

/// The first `N` bytes, or as many as there are.
fn first_bytes<const N: usize>(input: &mut impl Read) -> io::Result<([u8; N], usize)> {
    let mut bytes = [0; N];
    let mut length = 0;
    while length < N {
        match input.read(&mut bytes[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok((bytes, length))
}

/// The I/O error inside an error of the CSV parser.
fn cause(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// Tells damaged data from errors of reading: errors of the decoder have no code of the operating system.
fn classify(path: &Path, source: io::Error, csv_rows: u64) -> DatasetError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
            if source.raw_os_error().is_none() =>
        {
            DatasetError::Damaged { path, csv_rows, source }
        }
        _ => DatasetError::Read { path, source },
    }
}

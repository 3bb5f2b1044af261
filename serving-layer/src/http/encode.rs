//! Rows of an answer as bytes of a format, batch by batch.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json;
use arrow::json::writer::JsonArray;
use bytes::Bytes;

/// How an answer can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Csv,
    Arrow,
}

impl Format {
    const ALL: [Self; 3] = [Self::Json, Self::Csv, Self::Arrow];

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Csv => "text/csv",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// The first format in an `Accept` header that is known; JSON where anything will do.
    pub(super) fn accepted(accept: Option<&str>) -> Option<Self> {
        let Some(accept) = accept else { return Some(Self::Json) };
        accept.split(',').find_map(|entry| {
            let wanted = entry.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            let anything = ["*/*", "application/*", ""].contains(&wanted.as_str());
            Self::ALL.into_iter().find(|format| anything || format.media_type() == wanted)
        })
    }
}

/// Writes batches in a format.
pub(super) struct Encoder {
    pipe: Pipe,
    writer: Writer,
}

enum Writer {
    Json(Box<json::Writer<Pipe, JsonArray>>),
    Csv(Box<csv::Writer<Pipe>>),
    Arrow(Box<StreamWriter<Pipe>>),
}

impl Encoder {
    pub(super) fn new(format: Format, schema: &Schema) -> Result<Self, ArrowError> {
        let pipe = Pipe::default();
        let writer = match format {
            Format::Json => {
                let builder = json::WriterBuilder::new().with_explicit_nulls(true);
                Writer::Json(Box::new(builder.build::<_, JsonArray>(pipe.clone())))
            }
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(pipe.clone());
                // The header stands there even where no row follows.
                writer.write(&RecordBatch::new_empty(Arc::new(schema.clone())))?;
                Writer::Csv(Box::new(writer))
            }
            Format::Arrow => Writer::Arrow(Box::new(StreamWriter::try_new(pipe.clone(), schema)?)),
        };
        Ok(Self { pipe, writer })
    }

    /// The bytes of some rows, and of whatever comes before them.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<Bytes, ArrowError> {
        match &mut self.writer {
            Writer::Json(writer) => writer.write(batch)?,
            Writer::Csv(writer) => writer.write(batch)?,
            Writer::Arrow(writer) => writer.write(batch)?,
        }
        Ok(self.pipe.take())
    }

    /// What comes after all rows.
    pub(super) fn finish(mut self) -> Result<Bytes, ArrowError> {
        match &mut self.writer {
            Writer::Json(writer) => writer.finish()?,
            Writer::Csv(_) => {}
            Writer::Arrow(writer) => writer.finish()?,
        }
        drop(self.writer);
        Ok(self.pipe.take())
    }
}

/// Where a writer writes to, emptied after each batch.
#[derive(Clone, Debug, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

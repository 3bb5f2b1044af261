//! Rows of an answer as bytes of a format, batch by batch.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::cast;
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema};
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

    /// The first known format in an `Accept` header; JSON where any is accepted.
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
                // The header is written even where no row follows.
                writer.write(&RecordBatch::new_empty(Arc::new(schema.clone())))?;
                Writer::Csv(Box::new(writer))
            }
            Format::Arrow => Writer::Arrow(Box::new(StreamWriter::try_new(pipe.clone(), schema)?)),
        };
        Ok(Self { pipe, writer })
    }

    /// The bytes of some rows, and of what comes before them.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<Bytes, ArrowError> {
        match &mut self.writer {
            Writer::Json(writer) => writer.write(&readable(batch)?)?,
            Writer::Csv(writer) => writer.write(&readable(batch)?)?,
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

/// Rows for people to read: bytes as text where they are text, otherwise as `\\x` and hexadecimal digits.
///
/// # Errors
/// When Arrow cannot cast the bytes.
pub fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if !is_bytes(column.data_type()) {
            fields.push(Arc::clone(field));
            columns.push(Arc::clone(column));
            continue;
        }
        let bytes = cast(column, &DataType::LargeBinary)?;
        let texts = bytes.as_binary::<i64>().iter().map(|bytes| bytes.map(text_of));
        columns.push(Arc::new(texts.collect::<StringArray>()) as ArrayRef);
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, field.is_nullable())));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
    )
}

/// Bytes as text; `\\x` and hexadecimal digits where they are not text.
fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t')) => {
            text.to_owned()
        }
        _ => bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
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

#[cfg(test)]
mod tests {
    use arrow::array::BinaryArray;

    use super::*;

    #[test]
    fn bytes_are_text_where_they_are_text() {
        let payload = BinaryArray::from_opt_vec(vec![
            Some(b"{\"value\": 1}"),
            Some(b"\xff\x00{"),
            Some(b"a\x00b"),
            None,
            Some("Grüße\n".as_bytes()),
        ]);
        let batch = RecordBatch::try_from_iter([("payload", Arc::new(payload) as ArrayRef)]).unwrap();
        let shown = readable(&batch).unwrap();
        let shown: Vec<Option<&str>> = shown.column(0).as_string::<i32>().iter().collect();
        assert_eq!(
            shown,
            [Some("{\"value\": 1}"), Some("\\xff007b"), Some("\\x610062"), None, Some("Grüße\n")]
        );
    }
}

//! Record batches into Parquet bytes: which encoding suits which column of which table. Must not know Delta commits.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{ParquetMetaData, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::delta::stats;
use crate::error::TablesError;
use crate::store::TableName;

/// Rows in a row group of readings: small enough to skip by device, large enough that dictionaries cost nothing.
const READINGS_GROUP: usize = 256 * 1024;
/// Rows in a row group of a batch view.
const VIEW_GROUP: usize = 256 * 1024;
/// A dictionary of numbers larger than this does not pay: 32,000 distinct values in a row group.
const NUMBER_DICTIONARY: usize = 256 * 1024;

/// How readings are stored: for size. They are written once and kept for years.
///
/// Times and offsets come in runs with constant steps, which delta packing makes nearly free; values of one metric
/// are few distinct numbers, which a dictionary makes one or two bytes.
pub(crate) fn readings_properties(schema: &Schema, sorted_by: &[&str]) -> WriterProperties {
    let mut builder = sorted(common(3), schema, sorted_by).set_max_row_group_row_count(Some(READINGS_GROUP));
    for name in ["event_time", "ingest_time", "kafka_offset", "kafka_index", "sequence"] {
        let column = ColumnPath::from(name);
        builder = builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    builder.build()
}

/// How batch views are stored: for speed. They are rewritten with every run.
///
/// Text and floating point numbers get dictionaries, which give way by themselves where values hardly repeat; integers
/// and times get delta packing; sketches are left alone. Byte stream splitting would be faster still for numbers, but
/// other engines' readers do not all know it.
pub(crate) fn view_properties(schema: &Schema) -> WriterProperties {
    let mut builder = common(1).set_max_row_group_row_count(Some(VIEW_GROUP)).set_dictionary_enabled(false);
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        builder = match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
                builder.set_column_dictionary_enabled(column, true)
            }
            DataType::Int64 | DataType::Int32 | DataType::Timestamp(..) | DataType::Date32 => {
                builder.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
            }
            DataType::Float64 | DataType::Float32 => builder
                .set_column_dictionary_enabled(column.clone(), true)
                .set_column_dictionary_page_size_limit(column, NUMBER_DICTIONARY),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                builder.set_column_statistics_enabled(column, EnabledStatistics::None)
            }
            _ => builder,
        };
    }
    builder.build()
}

/// How dead letters are stored.
pub(crate) fn letter_properties() -> WriterProperties {
    common(3).set_column_statistics_enabled(ColumnPath::from("payload"), EnabledStatistics::None).build()
}

fn common(level: i32) -> WriterPropertiesBuilder {
    let level = ZstdLevel::try_new(level).expect("zstd has levels 1 to 22");
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by(concat!("wye ", env!("CARGO_PKG_VERSION")).to_owned())
        // Files are put in order by these bounds, so they must not be cut short.
        .set_statistics_truncate_length(None)
        .set_statistics_enabled(EnabledStatistics::Page)
}

fn sorted(builder: WriterPropertiesBuilder, schema: &Schema, by: &[&str]) -> WriterPropertiesBuilder {
    let columns = by.iter().filter_map(|name| {
        let index = i32::try_from(schema.index_of(name).ok()?).ok()?;
        Some(SortingColumn { column_idx: index, descending: false, nulls_first: true })
    });
    builder.set_sorting_columns(Some(columns.collect()))
}

/// A Parquet file in the making, in memory.
#[derive(Debug)]
pub(crate) struct Encoder {
    table: TableName,
    schema: SchemaRef,
    writer: ArrowWriter<Vec<u8>>,
    rows: usize,
}

impl Encoder {
    pub(crate) fn new(
        table: TableName,
        schema: SchemaRef,
        properties: WriterProperties,
    ) -> Result<Self, TablesError> {
        // Readers get their types from Delta; Arrow's own schema would make them dictionaries for everybody.
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)
            .map_err(|source| TablesError::Encode { table, source: source.into() })?;
        Ok(Self { table, schema, writer, rows: 0 })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<(), TablesError> {
        self.rows += batch.num_rows();
        self.writer
            .write(batch)
            .map_err(|source| TablesError::Encode { table: self.table, source: source.into() })
    }

    /// Rows written so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes held so far, an estimate for what is still in columns.
    pub(crate) fn size(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// The finished file and its statistics.
    pub(crate) fn finish(mut self) -> Result<(Bytes, String), TablesError> {
        let failed = |source: parquet::errors::ParquetError| TablesError::Encode {
            table: self.table,
            source: source.into(),
        };
        let metadata: ParquetMetaData = self.writer.finish().map_err(failed)?;
        let stats = stats::of_parquet(&metadata, &self.schema).to_json();
        let bytes = std::mem::take(self.writer.inner_mut());
        Ok((bytes.into(), stats))
    }
}

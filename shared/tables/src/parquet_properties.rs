//! How Parquet files are encoded: the encoding of each column of each table. Must not know where files are stored.

use arrow::datatypes::{DataType, Schema};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::columns::{
    EVENT_TIME, INGEST_TIME, KAFKA_INDEX, KAFKA_OFFSET, PAYLOAD, READING_ORDER, SEQUENCE, stored_schema,
};

/// Rows in a row group of readings: small enough to skip devices, large enough that dictionaries take hardly any space.
const READINGS_GROUP: usize = 256 * 1024;
/// Rows in a row group of a batch view.
const VIEW_GROUP: usize = 256 * 1024;
/// The largest dictionary of numbers in bytes, which is 32,000 distinct values in a row group; larger ones save nothing.
const NUMBER_DICTIONARY: usize = 256 * 1024;

/// Readings are stored for size: they are written once and kept for years.
///
/// Times and offsets have long runs with a constant step, which take almost no space with delta packing. A metric has few
/// distinct values, which take one or two bytes each with a dictionary.
pub(crate) fn readings_properties() -> WriterProperties {
    let schema = stored_schema();
    let order = READING_ORDER.iter().filter_map(|name| {
        let column_idx = i32::try_from(schema.index_of(name).ok()?).ok()?;
        Some(SortingColumn { column_idx, descending: false, nulls_first: true })
    });
    let mut builder = common(3)
        .set_sorting_columns(Some(order.collect()))
        .set_max_row_group_row_count(Some(READINGS_GROUP));
    for name in [EVENT_TIME, INGEST_TIME, KAFKA_OFFSET, KAFKA_INDEX, SEQUENCE] {
        let column = ColumnPath::from(name);
        builder = builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    builder.build()
}

/// Batch views are stored for speed: every run rewrites them.
///
/// Text and floating point numbers have dictionaries, which the writer drops where values hardly repeat. Integers and times
/// have delta packing. Sketches are stored unencoded. Byte stream splitting would be faster for numbers, but not every
/// engine can read it.
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

/// Dead letters are stored for size.
pub(crate) fn letter_properties() -> WriterProperties {
    common(3).set_column_statistics_enabled(ColumnPath::from(PAYLOAD), EnabledStatistics::None).build()
}

/// The properties that all tables share, with a level of zstd.
fn common(level: i32) -> WriterPropertiesBuilder {
    // Zstd has the levels 1 to 22, so the default is never taken.
    let level = ZstdLevel::try_new(level).unwrap_or_default();
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by(concat!("wye ", env!("CARGO_PKG_VERSION")).to_owned())
        // Files are ordered by these bounds, so they must not be truncated.
        .set_statistics_truncate_length(None)
        .set_statistics_enabled(EnabledStatistics::Page)
}

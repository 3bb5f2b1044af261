//! How Parquet files are encoded: which encoding suits which column of which table. Must not know where files go.

use arrow::datatypes::{DataType, Schema};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::columns::{
    EVENT_TIME, INGEST_TIME, KAFKA_INDEX, KAFKA_OFFSET, PAYLOAD, READING_ORDER, SEQUENCE, stored_schema,
};

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

/// How batch views are stored: for speed. They are rewritten by every run.
///
/// Text and floating point numbers get dictionaries, which the writer gives up where values hardly repeat; integers and
/// times get delta packing; sketches stay as they are. Byte stream splitting would be faster still for numbers, but not
/// every engine's reader supports it.
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
    common(3).set_column_statistics_enabled(ColumnPath::from(PAYLOAD), EnabledStatistics::None).build()
}

fn common(level: i32) -> WriterPropertiesBuilder {
    let level = ZstdLevel::try_new(level).expect("zstd has levels 1 to 22, and callers give 1 or 3");
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_created_by(concat!("wye ", env!("CARGO_PKG_VERSION")).to_owned())
        // Files are put in order by these bounds, so they must not be truncated.
        .set_statistics_truncate_length(None)
        .set_statistics_enabled(EnabledStatistics::Page)
}

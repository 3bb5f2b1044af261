//! The columns of the tables whose shape is fixed. Must not know how they are stored.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use wye_domain::reading::{self, text_type, time_type};

/// The column that readings are partitioned by: the UTC day of `ingest_time`.
///
/// Ingest time and not event time, so that one load of years of readings makes a few large files instead of
/// thousands of small ones, while a busy day stands apart from other days.
pub(crate) const INGEST_DATE: &str = "ingest_date";

/// What every file of readings is sorted by, ascending, nulls first. Copies of one reading are side by side, the first
/// in log order first.
///
/// There is no one log order across Kafka partitions: there the reading counts that the log has stamped first, and of
/// two with the same stamp the one in the lower Kafka partition. Within a Kafka partition the log stamps in the order of
/// offsets. (A Kafka broker whose clock is set back, or behind that of the leader before it, stamps out of order; then
/// the stamp decides.)
pub const READING_ORDER: [&str; 8] = [
    "device_id",
    "metric",
    "event_time",
    "sequence",
    "ingest_time",
    "kafka_partition",
    "kafka_offset",
    "kafka_index",
];

/// What every file of batch views is sorted by, ascending.
pub const VIEW_ORDER: [&str; 2] = ["series", "window_start"];

/// A batch of readings on its way into the master dataset: the columns of [`wye_domain::reading::schema`] and
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `ingest_time` | Timestamp(µs, UTC) | no | when the log took it |
/// | `kafka_offset` | Int64 | no | offset of its message |
/// | `kafka_index` | Int32 | no | its place in its message |
pub fn archive_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let added = [
            Field::new("ingest_time", time_type(), false),
            Field::new("kafka_offset", DataType::Int64, false),
            Field::new("kafka_index", DataType::Int32, false),
        ];
        extended(&reading::schema(), added)
    });
    Arc::clone(&SCHEMA)
}

/// A batch of readings as it comes out of the master dataset: the columns of [`wye_domain::reading::schema`] and
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `ingest_time` | Timestamp(µs, UTC) | no | when the log took it |
/// | `kafka_partition` | Int32 | no | Kafka partition of its message |
/// | `kafka_offset` | Int64 | no | offset of its message |
/// | `kafka_index` | Int32 | no | its place in its message |
pub fn stored_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let added = [
            Field::new("ingest_time", time_type(), false),
            Field::new("kafka_partition", DataType::Int32, false),
            Field::new("kafka_offset", DataType::Int64, false),
            Field::new("kafka_index", DataType::Int32, false),
        ];
        extended(&reading::schema(), added)
    });
    Arc::clone(&SCHEMA)
}

/// The Delta table `readings`: [`stored_schema`] with plain text, and `ingest_date` (Date32).
pub fn readings_table_schema() -> SchemaRef {
    extended(&plain_text(&stored_schema()), [Field::new(INGEST_DATE, DataType::Date32, false)])
}

/// The Delta table `dead_letters`, and a batch on its way into it.
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `received_time` | Timestamp(µs, UTC) | no | when it was refused |
/// | `reason` | Utf8 | no | one of a small set of words |
/// | `detail` | Utf8 | no | what exactly is wrong |
/// | `source` | Utf8 | no | `kafka`, `http`, ... |
/// | `kafka_topic` | Utf8 | yes | where it was read |
/// | `kafka_partition` | Int32 | yes | where it was read |
/// | `kafka_offset` | Int64 | yes | where it was read |
/// | `item_index` | Int32 | yes | its place in its message or request |
/// | `payload` | Binary | no | its bytes |
/// | `letter_offset` | Int64 | no | its own offset in the dead-letter topic |
pub fn dead_letter_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("received_time", time_type(), false),
            Field::new("reason", DataType::Utf8, false),
            Field::new("detail", DataType::Utf8, false),
            Field::new("source", DataType::Utf8, false),
            Field::new("kafka_topic", DataType::Utf8, true),
            Field::new("kafka_partition", DataType::Int32, true),
            Field::new("kafka_offset", DataType::Int64, true),
            Field::new("item_index", DataType::Int32, true),
            Field::new("payload", DataType::Binary, false),
            Field::new("letter_offset", DataType::Int64, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// The same columns with dictionaries turned into plain text, as Delta knows them.
pub(crate) fn plain_text(schema: &Schema) -> SchemaRef {
    let plain = |field: &Arc<Field>| match field.data_type() {
        DataType::Dictionary(_, value) => {
            Arc::new(field.as_ref().clone().with_data_type(value.as_ref().clone()))
        }
        _ => Arc::clone(field),
    };
    Arc::new(Schema::new(schema.fields().iter().map(plain).collect::<Fields>()))
}

/// The same columns with text as dictionaries, as the layers compute on them.
pub(crate) fn dictionary_text(schema: &Schema) -> SchemaRef {
    let coded = |field: &Arc<Field>| match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            Arc::new(field.as_ref().clone().with_data_type(text_type()))
        }
        _ => Arc::clone(field),
    };
    Arc::new(Schema::new(schema.fields().iter().map(coded).collect::<Fields>()))
}

fn extended<const N: usize>(schema: &Schema, added: [Field; N]) -> SchemaRef {
    let fields = schema.fields().iter().cloned().chain(added.into_iter().map(Arc::new));
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

//! The names, schemas and sort orders of the tables whose shape is fixed. Must not know how they are stored.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, lit};
use wye_domain::reading::{self, text_type, time_type};
use wye_domain::time::Micros;

// Columns of readings.
pub(crate) const DEVICE_ID: &str = "device_id";
pub(crate) const METRIC: &str = "metric";
pub(crate) const EVENT_TIME: &str = "event_time";
pub(crate) const SEQUENCE: &str = "sequence";
pub(crate) const INGEST_TIME: &str = "ingest_time";
pub(crate) const KAFKA_PARTITION: &str = "kafka_partition";
pub(crate) const KAFKA_OFFSET: &str = "kafka_offset";
pub(crate) const KAFKA_INDEX: &str = "kafka_index";
/// The column that readings are partitioned by: the UTC day of `ingest_time`.
///
/// Ingest time and not event time, so that one load of readings of many years is stored in a few large files instead of
/// thousands of small ones, while each busy day has its own files.
pub(crate) const INGEST_DATE: &str = "ingest_date";

// Further columns of dead letters.
pub(crate) const ITEM_INDEX: &str = "item_index";
pub(crate) const PAYLOAD: &str = "payload";

/// What every file of readings is sorted by, ascending, nulls first. Duplicates of a reading are adjacent, the first in
/// log order first.
///
/// Kafka partitions have no common order. Of duplicates in several Kafka partitions, the one with the earliest ingest time
/// is the first, and of those with the same ingest time, the one in the lowest Kafka partition. Within a Kafka partition
/// ingest times are in the order of offsets. (Where the clock of a broker was set back, or is behind that of the leader
/// before it, they are not; then the ingest time decides.)
pub const READING_ORDER: [&str; 8] =
    [DEVICE_ID, METRIC, EVENT_TIME, SEQUENCE, INGEST_TIME, KAFKA_PARTITION, KAFKA_OFFSET, KAFKA_INDEX];

/// What every file of batch views is sorted by, ascending.
pub const VIEW_ORDER: [&str; 2] = ["series", "window_start"];

/// A batch of readings to be appended to the master dataset: the columns of [`wye_domain::reading::schema`] and
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `ingest_time` | Timestamp(µs, UTC) | no | when the log received it |
/// | `kafka_offset` | Int64 | no | offset of its message |
/// | `kafka_index` | Int32 | no | its index in its message |
pub fn archive_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let added = [
            Field::new(INGEST_TIME, time_type(), false),
            Field::new(KAFKA_OFFSET, DataType::Int64, false),
            Field::new(KAFKA_INDEX, DataType::Int32, false),
        ];
        extended(&reading::schema(), added)
    });
    Arc::clone(&SCHEMA)
}

/// A batch of readings read from the master dataset: the columns of [`wye_domain::reading::schema`] and
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `ingest_time` | Timestamp(µs, UTC) | no | when the log received it |
/// | `kafka_partition` | Int32 | no | Kafka partition of its message |
/// | `kafka_offset` | Int64 | no | offset of its message |
/// | `kafka_index` | Int32 | no | its index in its message |
pub fn stored_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let added = [
            Field::new(INGEST_TIME, time_type(), false),
            Field::new(KAFKA_PARTITION, DataType::Int32, false),
            Field::new(KAFKA_OFFSET, DataType::Int64, false),
            Field::new(KAFKA_INDEX, DataType::Int32, false),
        ];
        extended(&reading::schema(), added)
    });
    Arc::clone(&SCHEMA)
}

/// The Delta table `readings`: [`stored_schema`] with plain text, and `ingest_date` (Date32).
pub fn readings_table_schema() -> SchemaRef {
    extended(&plain_text(&stored_schema()), [Field::new(INGEST_DATE, DataType::Date32, false)])
}

/// The Delta table `dead_letters`, and a batch to be appended to it.
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `received_time` | Timestamp(µs, UTC) | no | when it was rejected |
/// | `reason` | Utf8 | no | one of a small set of words |
/// | `detail` | Utf8 | no | what exactly is wrong |
/// | `source` | Utf8 | no | `kafka`, `http`, ... |
/// | `kafka_topic` | Utf8 | yes | topic of its message |
/// | `kafka_partition` | Int32 | yes | Kafka partition of its message |
/// | `kafka_offset` | Int64 | yes | offset of its message |
/// | `item_index` | Int32 | yes | its index in its message or request |
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
            Field::new(KAFKA_PARTITION, DataType::Int32, true),
            Field::new(KAFKA_OFFSET, DataType::Int64, true),
            Field::new(ITEM_INDEX, DataType::Int32, true),
            Field::new(PAYLOAD, DataType::Binary, false),
            Field::new("letter_offset", DataType::Int64, false),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// The Delta table `amendments`.
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `id` | Utf8 | no | its name |
/// | `created_at` | Timestamp(µs, UTC) | no | when it was made |
/// | `author`, `reason` | Utf8 | no | who made it, and why |
/// | `action` | Utf8 | no | `drop`, `correct`, `retag` or `revoke` |
/// | `devices`, `metrics` | Utf8 | no | JSON lists; an empty one means all |
/// | `from_time`, `until_time` | Timestamp(µs, UTC) | no | event times from the first, before the second |
/// | `value` | Utf8 | yes | the expression of the new value |
/// | `tags` | Utf8 | yes | JSON object of the new tags; null removes a tag |
/// | `revokes` | Utf8 | yes | the amendment that is not applied any more |
pub fn amendment_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let text = |name: &str, is_null| Field::new(name, DataType::Utf8, is_null);
        Arc::new(Schema::new(vec![
            text("id", false),
            Field::new("created_at", time_type(), false),
            text("author", false),
            text("reason", false),
            text("action", false),
            text("devices", false),
            text("metrics", false),
            Field::new("from_time", time_type(), false),
            Field::new("until_time", time_type(), false),
            text("value", true),
            text("tags", true),
            text("revokes", true),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// The Delta table `restatements`, and a batch to be written to it.
///
/// | column | type | null | meaning |
/// |---|---|---|---|
/// | `run_id` | Utf8 | no | the batch run that has changed the number |
/// | `restated_at` | Timestamp(µs, UTC) | no | when the run started |
/// | `metric_key`, `definition`, `metric` | Utf8 | no | the series |
/// | `window_start`, `window_end` | Timestamp(µs, UTC) | no | the window |
/// | `reason` | Utf8 | no | `late_readings`, `amendment`, `definition` or `registry` |
/// | `old`, `new` | Utf8 | where there is no reading | JSON objects: `count`, the aggregates of the definition, `confidence_score` |
pub fn restatement_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let text = |name: &str, is_null| Field::new(name, DataType::Utf8, is_null);
        let time = |name: &str| Field::new(name, time_type(), false);
        Arc::new(Schema::new(vec![
            text("run_id", false),
            time("restated_at"),
            text("metric_key", false),
            text("definition", false),
            text("metric", false),
            time("window_start"),
            time("window_end"),
            text("reason", false),
            text("old", true),
            text("new", true),
        ]))
    });
    Arc::clone(&SCHEMA)
}

/// A time as the type of the tables' time columns, for conditions.
pub fn time_literal(time: Micros) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(time.0), Some("UTC".into())))
}

/// The names of all columns of a schema.
pub(crate) fn names(schema: &Schema) -> Vec<&str> {
    schema.fields().iter().map(|field| field.name().as_str()).collect()
}

/// The same columns with plain text instead of dictionaries, the form of text in Delta.
pub(crate) fn plain_text(schema: &Schema) -> SchemaRef {
    retyped(schema, |data_type| match data_type {
        DataType::Dictionary(_, value) => Some(value.as_ref().clone()),
        _ => None,
    })
}

/// The same columns with text as dictionaries, the form in which the layers compute.
pub(crate) fn dictionary_text(schema: &Schema) -> SchemaRef {
    retyped(schema, |data_type| match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(text_type()),
        _ => None,
    })
}

/// The same columns, with another type where `change` returns one.
fn retyped(schema: &Schema, change: impl Fn(&DataType) -> Option<DataType>) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match change(field.data_type()) {
        Some(data_type) => Arc::new(field.as_ref().clone().with_data_type(data_type)),
        None => Arc::clone(field),
    });
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

fn extended<const N: usize>(schema: &Schema, added: [Field; N]) -> SchemaRef {
    let fields = schema.fields().iter().cloned().chain(added.into_iter().map(Arc::new));
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

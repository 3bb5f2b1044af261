//! Arrow messages: the bulk form. A batch whose rows are all accepted passes through without a copy.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, RecordBatch, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field};
use arrow::ipc::writer::StreamWriter;

use super::{
    ARROW_PREFIX, Acceptance, AcceptedRows, Collected, LONGEST_NAME, LONGEST_TAGS, Reason, check_texts,
};
use crate::arrow_stream;
use crate::reading::{ReadingBatchBuilder, ReadingColumns, TextColumn, schema};
use crate::time::Micros;

/// So many words of a column are looked at before the rows are, and do no harm where no row uses them.
const FEW_WORDS: usize = 1_024;
/// So many bytes of words of a column may come along unused.
const MUCH_TEXT: usize = 1 << 20;

/// Writes batches of readings as one message of the topic.
pub fn encode(batches: &[RecordBatch]) -> Vec<u8> {
    write(batches, ARROW_PREFIX)
}

/// Writes batches of readings as an Arrow IPC stream, as [`super::decode_arrow`] reads it.
pub fn encode_stream(batches: &[RecordBatch]) -> Vec<u8> {
    write(batches, &[])
}

fn write(batches: &[RecordBatch], prefix: &[u8]) -> Vec<u8> {
    let size: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let mut bytes = Vec::with_capacity(size + 2_048);
    bytes.extend_from_slice(prefix);
    let mut writer = StreamWriter::try_new(&mut bytes, &schema()).expect("writing to memory cannot fail");
    for batch in batches {
        writer.write(batch).expect("writing to memory cannot fail");
    }
    writer.finish().expect("writing to memory cannot fail");
    drop(writer);
    bytes
}

/// Reads the stream after the prefix.
pub(super) fn decode(
    stream: &[u8],
    ingest_time: Micros,
    acceptance: &Acceptance,
    into: &mut Collected,
) -> Vec<AcceptedRows> {
    let normal = arrow_stream::read(stream)
        .and_then(|batches| batches.iter().map(normalise).collect::<Result<Vec<_>, _>>());
    let batches = match normal {
        Ok(batches) => batches,
        Err(detail) => {
            into.reject(0, Reason::BadArrow, detail, &[ARROW_PREFIX.as_slice(), stream].concat());
            return Vec::new();
        }
    };
    let mut row_of_message = 0;
    let mut accepted = Vec::with_capacity(batches.len());
    for batch in batches {
        let rows = batch.num_rows() as i32;
        accepted.push(accept_rows(batch, row_of_message, ingest_time, acceptance, into));
        row_of_message += rows;
    }
    accepted
}

/// Brings a batch into the schema of readings: casts what is castable, fills absent optional columns with null.
fn normalise(batch: &RecordBatch) -> Result<RecordBatch, String> {
    let schema = schema();
    if batch.schema().fields() == schema.fields() {
        return Ok(batch.clone());
    }
    let columns: Result<Vec<ArrayRef>, String> = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
            Some(column) if *column.data_type() != DataType::Null => cast_column(field, column),
            _ if field.is_nullable() => Ok(new_null_array(field.data_type(), batch.num_rows())),
            _ => Err(format!("column {:?} is missing", field.name())),
        })
        .collect();
    let columns = columns?;
    let open = arrow::datatypes::Schema::new(
        schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
    );
    RecordBatch::try_new(Arc::new(open), columns).map_err(|error| error.to_string())
}

/// Casts from types whose rows take their room in the message: a run of equal values, or a view into a shared text,
/// could stand for more than fits into memory.
fn cast_column(field: &Field, column: &ArrayRef) -> Result<ArrayRef, String> {
    let from = column.data_type();
    let is_plain = match field.data_type() {
        DataType::Dictionary(..) => match from {
            DataType::Dictionary(_, words) => is_text(words),
            other => is_text(other),
        },
        DataType::Timestamp(..) => {
            matches!(from, DataType::Timestamp(..) | DataType::Int64 | DataType::Date32 | DataType::Date64)
                || is_text(from)
        }
        _ => from.is_numeric(),
    };
    if !is_plain {
        return Err(format!("column {:?} is of type {from}; write {}", field.name(), field.data_type()));
    }
    cast(column, field.data_type()).map_err(|error| format!("column {:?}: {error}", field.name()))
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8)
}

fn accept_rows(
    batch: RecordBatch,
    first_row: i32,
    ingest_time: Micros,
    acceptance: &Acceptance,
    into: &mut Collected,
) -> AcceptedRows {
    let rows = batch.num_rows();
    let mut keep = vec![true; rows];
    {
        let columns = ReadingColumns::of(&batch).expect("the batch is in the schema of readings");
        let no_nulls = (0..4).all(|index| batch.column(index).null_count() == 0);
        let texts = [
            Texts::of(&columns.device_id, 1..=LONGEST_NAME),
            Texts::of(&columns.metric, 1..=LONGEST_NAME),
            Texts::of(&columns.unit, 0..=LONGEST_NAME),
            Texts::of(&columns.tags, 0..=LONGEST_TAGS),
        ];
        let times = acceptance.plausible(ingest_time);
        for (row, kept) in keep.iter_mut().enumerate() {
            if no_nulls
                && texts.iter().all(|texts| texts.are_good(row))
                && columns.value[row].is_finite()
                && times.contains(&Micros(columns.event_time[row]))
            {
                continue;
            }
            if let Err((reason, detail)) = accept_row(&batch, &columns, row, ingest_time, acceptance) {
                *kept = false;
                into.reject(
                    first_row as u32 + row as u32,
                    reason,
                    detail,
                    &row_as_json(&columns, &batch, row),
                );
            }
        }
    }
    let index: Vec<i32> = (first_row..first_row + rows as i32).collect();
    let (batch, index) = if keep.iter().all(|kept| *kept) {
        (batch, index)
    } else {
        let keep = BooleanArray::from(keep);
        let kept = filter_record_batch(&batch, &keep).expect("the mask has one entry per row");
        let index =
            arrow::compute::filter(&Int32Array::from(index), &keep).expect("the mask has one entry per row");
        let index =
            index.as_any().downcast_ref::<Int32Array>().expect("filtering keeps the type").values().to_vec();
        (kept, index)
    };
    AcceptedRows { batch: compact(finish(batch)), item_index: index }
}

/// Why a row is no reading, if it is none.
fn accept_row(
    batch: &RecordBatch,
    columns: &ReadingColumns<'_>,
    row: usize,
    ingest_time: Micros,
    acceptance: &Acceptance,
) -> Result<(), (Reason, String)> {
    if let Some(index) = (0..4).find(|index| batch.column(*index).is_null(row)) {
        return Err((
            Reason::MissingField,
            format!("field {:?} is missing", batch.schema().field(index).name()),
        ));
    }
    for name in [&columns.device_id, &columns.metric] {
        if !(1..=LONGEST_NAME).contains(&name.text(row).map_or(0, str::len)) {
            return Err((
                Reason::BadName,
                format!("device_id and metric must have 1 to {LONGEST_NAME} bytes"),
            ));
        }
    }
    if !columns.value[row].is_finite() {
        return Err((Reason::NotFinite, "value must be finite".to_owned()));
    }
    acceptance
        .event_time(Micros(columns.event_time[row]), ingest_time)
        .map_err(|detail| (Reason::EventTimeOutOfRange, detail))?;
    check_texts(columns.unit.text(row), columns.tags.text(row))
}

/// The batch with the exact schema, and with −0 as 0 so that minima do not depend on the order of arrival.
fn finish(batch: RecordBatch) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    let values = columns[2].as_any().downcast_ref::<Float64Array>().expect("value is Float64");
    if values.values().iter().any(|value| *value == 0.0 && value.is_sign_negative()) {
        columns[2] = Arc::new(values.unary::<_, arrow::datatypes::Float64Type>(|value| value + 0.0));
    }
    debug_assert!(columns[3].as_any().is::<TimestampMicrosecondArray>());
    RecordBatch::try_new(schema(), columns).expect("rows with nulls in required columns are gone")
}

/// Leaves out the words that no row uses, where there are many of them: a batch of few rows must not carry along the
/// words of a large stream.
fn compact(batch: RecordBatch) -> RecordBatch {
    let columns = ReadingColumns::of(&batch).expect("the batch is in the schema of readings");
    let words = [&columns.device_id, &columns.metric, &columns.unit, &columns.tags].map(|text| text.words());
    if words
        .iter()
        .all(|words| words.len() <= batch.num_rows() + FEW_WORDS && words.value_data().len() <= MUCH_TEXT)
    {
        return batch;
    }
    let mut builder = ReadingBatchBuilder::default();
    for row in 0..batch.num_rows() {
        builder.append(&columns.reading(row));
    }
    builder.finish()
}

/// Which lengths the words of a column may have.
struct Texts<'a> {
    column: &'a TextColumn<'a>,
    lengths: RangeInclusive<usize>,
    /// Whether all words are known to be good.
    all_good: bool,
}

impl<'a> Texts<'a> {
    fn of(column: &'a TextColumn<'a>, lengths: RangeInclusive<usize>) -> Self {
        let words = column.words();
        let all_good = words.len() <= FEW_WORDS
            && words.null_count() == 0
            && words.offsets().lengths().all(|length| lengths.contains(&length));
        Self { column, lengths, all_good }
    }

    #[inline]
    fn are_good(&self, row: usize) -> bool {
        self.all_good || self.column.text(row).is_none_or(|text| self.lengths.contains(&text.len()))
    }
}

fn row_as_json(columns: &ReadingColumns<'_>, batch: &RecordBatch, row: usize) -> Vec<u8> {
    let present = |index: usize| !batch.column(index).is_null(row);
    let mut reading = columns.reading(row);
    for text in [&mut reading.device_id, &mut reading.metric] {
        *text = start_of(text, 2 * LONGEST_NAME);
    }
    reading.unit = reading.unit.map(|unit| start_of(unit, 2 * LONGEST_NAME));
    reading.tags = reading.tags.map(|tags| start_of(tags, 2 * LONGEST_TAGS));
    let json = serde_json::json!({
        "device_id": present(0).then_some(reading.device_id),
        "metric": present(1).then_some(reading.metric),
        "value": present(2).then(|| serde_json::Number::from_f64(reading.value).map_or_else(|| reading.value.to_string().into(), serde_json::Value::Number)),
        "event_time": present(3).then(|| crate::time::format_rfc3339(reading.event_time)),
        "sequence": reading.sequence,
        "unit": reading.unit,
        "tags": reading.tags,
    });
    json.to_string().into_bytes()
}

/// The start of a text: many rows may share one that is very long.
fn start_of(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

//! Arrow messages, the form for bulk. A batch whose rows are all accepted is not copied.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};

use super::{
    ARROW_PREFIX, Acceptance, AcceptedRows, Collected, LONGEST_NAME, LONGEST_TAGS, Reason, check_texts,
};
use crate::reading::{Reading, ReadingBatchBuilder, ReadingColumns, TextColumn, column, schema};
use crate::time::{Micros, format_rfc3339};
use crate::{DomainError, arrow_stream};

const VALUE: &str = "value";
/// The columns that a reading must have.
const REQUIRED: [&str; 4] = ["device_id", "metric", VALUE, "event_time"];
/// Up to this many words of a column are checked as a whole before the rows are, and are kept where no row uses them.
const FEW_WORDS: usize = 1_024;
/// Up to this many bytes of words of a column are kept unused.
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
    arrow_stream::write(&mut bytes, &schema(), batches);
    bytes
}

/// Reads the stream after the prefix.
pub(super) fn decode(
    stream: &[u8],
    ingest_time: Micros,
    acceptance: &Acceptance,
    into: &mut Collected,
) -> Vec<AcceptedRows> {
    let mut checker = Checker { ingest_time, acceptance, into, rows_before: 0 };
    let accepted = arrow_stream::read(stream).and_then(|batches| {
        let normal = batches.iter().map(normalise).collect::<Result<Vec<_>, _>>()?;
        normal.iter().map(|batch| checker.accept_rows(batch)).collect()
    });
    accepted.unwrap_or_else(|detail: String| {
        into.reject(0, Reason::BadArrow, detail, &[ARROW_PREFIX.as_slice(), stream].concat());
        Vec::new()
    })
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
    let open = Schema::new(
        schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
    );
    RecordBatch::try_new(Arc::new(open), columns).map_err(|error| error.to_string())
}

/// Casts a column. Only types whose rows take space in the message are cast: a run of equal values, or a view into a shared
/// text, could unpack to more than fits into memory.
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

/// A batch in the schema of readings, with nulls in any column.
struct Rows<'a> {
    columns: ReadingColumns<'a>,
    /// The columns that may not be null, with their names.
    required: Vec<(&'a str, &'a ArrayRef)>,
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        let columns = ReadingColumns::of(batch)?;
        let required = REQUIRED.iter().map(|name| {
            let column = batch.column_by_name(name).ok_or(DomainError::Shape { column: name })?;
            Ok((*name, column))
        });
        Ok(Self { columns, required: required.collect::<Result<_, _>>()? })
    }

    /// The name of a required column that is null in a row.
    fn missing(&self, row: usize) -> Option<&'a str> {
        self.required.iter().find(|(_, column)| column.is_null(row)).map(|(name, _)| *name)
    }
}

/// Checks the rows of a stream, batch by batch.
struct Checker<'a> {
    ingest_time: Micros,
    acceptance: &'a Acceptance,
    into: &'a mut Collected,
    /// The rows of the batches before.
    rows_before: usize,
}

impl Checker<'_> {
    /// The rows of a batch that are readings; the others are rejected.
    fn accept_rows(&mut self, batch: &RecordBatch) -> Result<AcceptedRows, String> {
        let keep = self.check(batch).map_err(|error| error.to_string())?;
        let first = self.rows_before;
        self.rows_before += batch.num_rows();
        let indexes = first as i32..self.rows_before as i32;
        if keep.iter().all(|kept| *kept) {
            return Ok(AcceptedRows { batch: compact(finish(batch)?)?, item_index: indexes.collect() });
        }
        let item_index = indexes.zip(&keep).filter(|(_, kept)| **kept).map(|(index, _)| index).collect();
        let kept =
            filter_record_batch(batch, &BooleanArray::from(keep)).map_err(|error| error.to_string())?;
        Ok(AcceptedRows { batch: compact(finish(&kept)?)?, item_index })
    }

    /// By row, whether it is a reading.
    fn check(&mut self, batch: &RecordBatch) -> Result<Vec<bool>, DomainError> {
        let rows = Rows::of(batch)?;
        let columns = &rows.columns;
        let no_nulls = rows.required.iter().all(|(_, column)| column.null_count() == 0);
        let texts = [
            Texts::of(&columns.device_id, 1..=LONGEST_NAME),
            Texts::of(&columns.metric, 1..=LONGEST_NAME),
            Texts::of(&columns.unit, 0..=LONGEST_NAME),
            Texts::of(&columns.tags, 0..=LONGEST_TAGS),
        ];
        let times = self.acceptance.plausible(self.ingest_time);
        let mut keep = vec![true; batch.num_rows()];
        for (row, kept) in keep.iter_mut().enumerate() {
            if no_nulls
                && texts.iter().all(|texts| texts.are_good(row))
                && columns.value[row].is_finite()
                && times.contains(&Micros(columns.event_time[row]))
            {
                continue;
            }
            if let Err((reason, detail)) = self.check_row(&rows, row) {
                *kept = false;
                let index = (self.rows_before + row) as u32;
                self.into.reject(index, reason, detail, &row_as_json(&rows, row));
            }
        }
        Ok(keep)
    }

    /// Why a row is not a reading, if it is not.
    fn check_row(&self, rows: &Rows<'_>, row: usize) -> Result<(), (Reason, String)> {
        if let Some(name) = rows.missing(row) {
            return Err((Reason::MissingField, format!("field {name:?} is missing")));
        }
        let columns = &rows.columns;
        for name in [&columns.device_id, &columns.metric] {
            if !(1..=LONGEST_NAME).contains(&name.text(row).map_or(0, str::len)) {
                let detail = format!("device_id and metric must have 1 to {LONGEST_NAME} bytes");
                return Err((Reason::BadName, detail));
            }
        }
        if !columns.value[row].is_finite() {
            return Err((Reason::NotFinite, "value must be finite".to_owned()));
        }
        self.acceptance
            .event_time(Micros(columns.event_time[row]), self.ingest_time)
            .map_err(|detail| (Reason::EventTimeOutOfRange, detail))?;
        check_texts(columns.unit.text(row), columns.tags.text(row))
    }
}

/// The batch with the exact schema, and with −0 as 0 so that minima do not depend on the order of arrival.
fn finish(batch: &RecordBatch) -> Result<RecordBatch, String> {
    let values = column::<Float64Array>(batch, VALUE).map_err(|error| error.to_string())?;
    let has_negative_zero = values.values().iter().any(|value| *value == 0.0 && value.is_sign_negative());
    let columns =
        batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| -> ArrayRef {
            if has_negative_zero && field.name() == VALUE {
                Arc::new(values.unary::<_, Float64Type>(|value| value + 0.0))
            } else {
                Arc::clone(column)
            }
        });
    RecordBatch::try_new(schema(), columns.collect()).map_err(|error| error.to_string())
}

/// Drops the words that no row uses, where there are many of them: a batch of few rows must not keep the words of a
/// large stream.
fn compact(batch: RecordBatch) -> Result<RecordBatch, String> {
    let columns = ReadingColumns::of(&batch).map_err(|error| error.to_string())?;
    let words = [&columns.device_id, &columns.metric, &columns.unit, &columns.tags].map(|text| text.words());
    if words
        .iter()
        .all(|words| words.len() <= batch.num_rows() + FEW_WORDS && words.value_data().len() <= MUCH_TEXT)
    {
        return Ok(batch);
    }
    let mut builder = ReadingBatchBuilder::default();
    for row in 0..batch.num_rows() {
        builder.append(&columns.reading(row));
    }
    Ok(builder.finish())
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

/// A rejected row, for people.
fn row_as_json(rows: &Rows<'_>, row: usize) -> Vec<u8> {
    let Reading { device_id, metric, value, event_time, sequence, unit, tags } = rows.columns.reading(row);
    let number = serde_json::Number::from_f64(value);
    let mut json = serde_json::json!({
        "device_id": start_of(device_id, 2 * LONGEST_NAME),
        "metric": start_of(metric, 2 * LONGEST_NAME),
        "value": number.map_or_else(|| value.to_string().into(), serde_json::Value::Number),
        "event_time": format_rfc3339(event_time),
        "sequence": sequence,
        "unit": unit.map(|unit| start_of(unit, 2 * LONGEST_NAME)),
        "tags": tags.map(|tags| start_of(tags, 2 * LONGEST_TAGS)),
    });
    for (name, column) in &rows.required {
        if column.is_null(row) {
            json[*name] = serde_json::Value::Null;
        }
    }
    json.to_string().into_bytes()
}

/// The start of a text: many rows may share one that is very long.
fn start_of(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

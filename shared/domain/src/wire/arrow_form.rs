//! Arrow messages: the bulk form. A batch whose rows are all accepted passes through without a copy.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, RecordBatch, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::buffer::Buffer;
use arrow::compute::{cast, filter_record_batch};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;

use super::{ARROW_PREFIX, Acceptance, LONGEST_NAME, Reason, Rejected};
use crate::reading::{ReadingColumns, TextColumn, schema};

/// Writes batches of readings as one message.
pub fn encode(batches: &[RecordBatch]) -> Vec<u8> {
    let size: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
    let mut bytes = Vec::with_capacity(size + 2_048);
    bytes.extend_from_slice(ARROW_PREFIX);
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
    ingest_time: i64,
    acceptance: &Acceptance,
    rejected: &mut Vec<Rejected>,
) -> Vec<(RecordBatch, Vec<i32>)> {
    let mut whole = |detail: String| {
        let payload = [ARROW_PREFIX.as_slice(), stream].concat();
        rejected.push(Rejected { item_index: 0, reason: Reason::BadArrow, detail, payload });
    };
    let batches = read(stream);
    let batches = match batches {
        Ok(batches) => batches,
        Err(error) => {
            whole(error);
            return Vec::new();
        }
    };
    let mut normal = Vec::with_capacity(batches.len());
    for batch in &batches {
        match normalise(batch) {
            Ok(batch) => normal.push(batch),
            Err(detail) => {
                whole(detail);
                return Vec::new();
            }
        }
    }
    let mut row_of_message = 0;
    let mut accepted = Vec::with_capacity(normal.len());
    for batch in normal {
        let rows = batch.num_rows() as i32;
        accepted.push(accept_rows(batch, row_of_message, ingest_time, acceptance, rejected));
        row_of_message += rows;
    }
    accepted
}

/// Reads a stream to its end; one that breaks off is not taken at all.
///
/// The decoder waits for bytes that a damaged stream announces instead of making room for them. It panics on some
/// damaged schemas; for us that is one more way to refuse.
fn read(stream: &[u8]) -> Result<Vec<RecordBatch>, String> {
    let decode = || -> Result<Vec<RecordBatch>, ArrowError> {
        let mut bytes = Buffer::from(stream);
        let mut decoder = StreamDecoder::new();
        let mut batches = Vec::new();
        while !bytes.is_empty() {
            match decoder.decode(&mut bytes)? {
                Some(batch) => batches.push(batch),
                None => break,
            }
        }
        decoder.finish()?;
        Ok(batches)
    };
    match std::panic::catch_unwind(decode) {
        Ok(Ok(batches)) => Ok(batches),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the stream is damaged".to_owned()),
    }
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
            Some(column) => {
                cast(column, field.data_type()).map_err(|error| format!("column {:?}: {error}", field.name()))
            }
            None if field.is_nullable() => Ok(new_null_array(field.data_type(), batch.num_rows())),
            None => Err(format!("column {:?} is missing", field.name())),
        })
        .collect();
    let columns = columns?;
    let open = arrow::datatypes::Schema::new(
        schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
    );
    RecordBatch::try_new(Arc::new(open), columns).map_err(|error| error.to_string())
}

fn accept_rows(
    batch: RecordBatch,
    first_row: i32,
    ingest_time: i64,
    acceptance: &Acceptance,
    rejected: &mut Vec<Rejected>,
) -> (RecordBatch, Vec<i32>) {
    let rows = batch.num_rows();
    let mut wrong: Vec<(usize, Reason, String)> = Vec::new();
    {
        let columns = ReadingColumns::of(&batch).expect("the batch is in the schema of readings");
        let null = |index: usize, row: usize| batch.column(index).is_null(row);
        let no_nulls = (0..4).all(|index| batch.column(index).null_count() == 0);
        let good_device = good_words(&columns.device_id);
        let good_metric = good_words(&columns.metric);
        let latest = ingest_time.saturating_add(acceptance.max_future);
        for row in 0..rows {
            if !no_nulls && let Some(index) = (0..4).find(|index| null(*index, row)) {
                wrong.push((
                    row,
                    Reason::MissingField,
                    format!("field {:?} is missing", schema().field(index).name()),
                ));
                continue;
            }
            let named =
                good_device.is_good(&columns.device_id, row) && good_metric.is_good(&columns.metric, row);
            let time = columns.event_time[row];
            if named && columns.value[row].is_finite() && time >= acceptance.earliest && time <= latest {
                continue;
            }
            wrong.push(if !named {
                (row, Reason::BadName, format!("device_id and metric must have 1 to {LONGEST_NAME} bytes"))
            } else if !columns.value[row].is_finite() {
                (row, Reason::NotFinite, "value must be finite".to_owned())
            } else {
                let detail = acceptance.event_time(time, ingest_time).err().unwrap_or_default();
                (row, Reason::EventTimeOutOfRange, detail)
            });
        }
        for (row, reason, detail) in &wrong {
            rejected.push(Rejected {
                item_index: first_row as u32 + *row as u32,
                reason: *reason,
                detail: detail.clone(),
                payload: row_as_json(&columns, &batch, *row),
            });
        }
    }
    let index: Vec<i32> = (first_row..first_row + rows as i32).collect();
    let (batch, index) = if wrong.is_empty() {
        (batch, index)
    } else {
        let mut keep = vec![true; rows];
        for (row, ..) in &wrong {
            keep[*row] = false;
        }
        let keep = BooleanArray::from(keep);
        let kept = filter_record_batch(&batch, &keep).expect("the mask has one entry per row");
        let index =
            arrow::compute::filter(&Int32Array::from(index), &keep).expect("the mask has one entry per row");
        let index =
            index.as_any().downcast_ref::<Int32Array>().expect("filtering keeps the type").values().to_vec();
        (kept, index)
    };
    (finish(batch), index)
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

/// Which words of a name column may be names.
struct GoodWords(Option<Vec<bool>>);

fn good_words(column: &TextColumn<'_>) -> GoodWords {
    let good: Vec<bool> = column
        .words()
        .iter()
        .map(|word| word.is_some_and(|word| !word.is_empty() && word.len() <= LONGEST_NAME))
        .collect();
    GoodWords(if good.iter().all(|good| *good) { None } else { Some(good) })
}

impl GoodWords {
    #[inline]
    fn is_good(&self, column: &TextColumn<'_>, row: usize) -> bool {
        match &self.0 {
            None => true,
            Some(good) => column.code(row).is_some_and(|code| good[code]),
        }
    }
}

fn row_as_json(columns: &ReadingColumns<'_>, batch: &RecordBatch, row: usize) -> Vec<u8> {
    let present = |index: usize| !batch.column(index).is_null(row);
    let reading = columns.reading(row);
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

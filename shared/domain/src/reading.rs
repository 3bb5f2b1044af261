//! Readings as Arrow record batches, the form in memory that both layers compute on.
//!
//! | column | type | null | meaning |
//! |---|---|---|---|
//! | `device_id` | Dictionary(Int32, Utf8) | no | the device |
//! | `metric` | Dictionary(Int32, Utf8) | no | the reading name |
//! | `value` | Float64 | no | finite |
//! | `event_time` | Timestamp(µs, UTC) | no | when, by the device's clock |
//! | `sequence` | Int64 | yes | the device's own counter |
//! | `unit` | Dictionary(Int32, Utf8) | yes | UCUM |
//! | `tags` | Dictionary(Int32, Utf8) | yes | canonical JSON object, see [`crate::tags`] |

use std::hash::BuildHasher;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, DictionaryArray, Float64Array, Float64Builder, Int32Array, Int64Array, Int64Builder,
    RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef, TimeUnit};
use hashbrown::HashTable;

use crate::DomainError;
use crate::batch;
use crate::time::Micros;

/// Dictionary-encoded text, the type of all names in a batch.
pub fn text_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// Microseconds in UTC, the type of all times in a batch.
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The schema of a batch of readings (see the table above).
pub fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        Arc::new(Schema::new(vec![
            Field::new("device_id", text_type(), false),
            Field::new("metric", text_type(), false),
            Field::new("value", DataType::Float64, false),
            Field::new("event_time", time_type(), false),
            Field::new("sequence", DataType::Int64, true),
            Field::new("unit", text_type(), true),
            Field::new("tags", text_type(), true),
        ]))
    });
    SCHEMA.clone()
}

/// One reading, borrowed from the text or batch that it comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading<'a> {
    /// The device; not empty.
    pub device_id: &'a str,
    /// The reading name; not empty.
    pub metric: &'a str,
    /// The measured value; finite.
    pub value: f64,
    /// When, by the device's clock.
    pub event_time: Micros,
    /// The device's own counter, where it sends one.
    pub sequence: Option<i64>,
    /// UCUM unit, where it sends one.
    pub unit: Option<&'a str>,
    /// Canonical tag text.
    pub tags: Option<&'a str>,
}

/// A text column with its types resolved, for hot loops.
#[derive(Clone, Copy, Debug)]
pub struct TextColumn<'a> {
    codes: &'a [i32],
    nulls: Option<&'a NullBuffer>,
    words: &'a StringArray,
}

impl<'a> TextColumn<'a> {
    /// The dictionary column `name` of `batch`.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when it is absent or of another type.
    pub fn of(batch: &'a RecordBatch, name: &'static str) -> Result<Self, DomainError> {
        let column = batch.column_by_name(name).ok_or(DomainError::Shape { column: name })?;
        Self::of_array(column).ok_or(DomainError::Shape { column: name })
    }

    /// The same for an array; `None` for another type.
    pub fn of_array(column: &'a ArrayRef) -> Option<Self> {
        let dictionary = column.as_any().downcast_ref::<DictionaryArray<Int32Type>>()?;
        let words = dictionary.values().as_any().downcast_ref::<StringArray>()?;
        Some(Self { codes: dictionary.keys().values(), nulls: dictionary.keys().nulls(), words })
    }

    /// The dictionary code of a row; `None` for null.
    #[inline]
    pub fn code(&self, row: usize) -> Option<usize> {
        match self.nulls {
            Some(nulls) if nulls.is_null(row) => None,
            _ => Some(self.codes[row] as usize),
        }
    }

    /// The text of a row; `None` for null.
    #[inline]
    pub fn text(&self, row: usize) -> Option<&'a str> {
        self.code(row).map(|code| self.words.value(code))
    }

    /// The distinct words, by code.
    pub fn words(&self) -> &'a StringArray {
        self.words
    }
}

/// The column `name` of a batch as an array of type `T`.
///
/// # Errors
/// [`DomainError::Shape`] when it is absent or of another type.
pub fn column<'a, T: Array + 'static>(
    batch: &'a RecordBatch,
    name: &'static str,
) -> Result<&'a T, DomainError> {
    batch
        .column_by_name(name)
        .and_then(|array| array.as_any().downcast_ref::<T>())
        .ok_or(DomainError::Shape { column: name })
}

/// The columns of a batch of readings with their types resolved.
#[derive(Clone, Copy, Debug)]
pub struct ReadingColumns<'a> {
    /// Devices.
    pub device_id: TextColumn<'a>,
    /// Reading names.
    pub metric: TextColumn<'a>,
    /// Values.
    pub value: &'a [f64],
    /// Event times in µs.
    pub event_time: &'a [i64],
    /// Sequence numbers.
    pub sequence: &'a Int64Array,
    /// Units.
    pub unit: TextColumn<'a>,
    /// Canonical tag texts.
    pub tags: TextColumn<'a>,
}

impl<'a> ReadingColumns<'a> {
    /// Resolves the columns by name; further columns are ignored.
    ///
    /// # Errors
    /// [`DomainError::Shape`] naming the first column that is absent or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        Ok(Self {
            device_id: TextColumn::of(batch, "device_id")?,
            metric: TextColumn::of(batch, "metric")?,
            value: column::<Float64Array>(batch, "value")?.values(),
            event_time: column::<TimestampMicrosecondArray>(batch, "event_time")?.values(),
            sequence: column::<Int64Array>(batch, "sequence")?,
            unit: TextColumn::of(batch, "unit")?,
            tags: TextColumn::of(batch, "tags")?,
        })
    }

    /// One row as a [`Reading`].
    pub fn reading(&self, row: usize) -> Reading<'a> {
        Reading {
            device_id: self.device_id.text(row).unwrap_or_default(),
            metric: self.metric.text(row).unwrap_or_default(),
            value: self.value[row],
            event_time: Micros(self.event_time[row]),
            sequence: (!self.sequence.is_null(row)).then(|| self.sequence.value(row)),
            unit: self.unit.text(row),
            tags: self.tags.text(row),
        }
    }
}

/// Builds a dictionary column, each distinct word stored once.
///
/// Words are looked up by hash. A word equal to the previous one, the common case in runs, is found without hashing.
#[derive(Debug, Default)]
pub struct TextBuilder {
    codes: Vec<i32>,
    validity: Option<Vec<bool>>,
    words: Words,
    table: HashTable<i32>,
    hasher: foldhash::fast::FixedState,
    last: i32,
}

impl TextBuilder {
    /// Appends a word or null.
    #[inline]
    pub fn append(&mut self, word: Option<&str>) {
        let Some(word) = word else {
            let rows = self.codes.len();
            self.validity.get_or_insert_with(|| vec![true; rows]).push(false);
            self.codes.push(0);
            return;
        };
        let code = self.code_of(word);
        self.codes.push(code);
        if let Some(validity) = &mut self.validity {
            validity.push(true);
        }
    }

    #[inline]
    fn code_of(&mut self, word: &str) -> i32 {
        if !self.words.ends.is_empty() && self.words.get(self.last) == word {
            return self.last;
        }
        let hash = self.hasher.hash_one(word);
        if let Some(code) = self.table.find(hash, |code| self.words.get(*code) == word) {
            self.last = *code;
            return self.last;
        }
        let code = self.words.push(word);
        let (words, hasher) = (&self.words, &self.hasher);
        self.table.insert_unique(hash, code, |code| hasher.hash_one(words.get(*code)));
        self.last = code;
        code
    }

    /// The finished column; the builder is empty again.
    pub fn finish(&mut self) -> ArrayRef {
        let built = std::mem::take(self);
        let words: StringArray = built.words.iter().map(Some).collect();
        let words =
            if words.is_empty() && !built.codes.is_empty() { StringArray::from(vec![""]) } else { words };
        let keys = Int32Array::new(built.codes.into(), built.validity.map(NullBuffer::from));
        Arc::new(DictionaryArray::new(keys, Arc::new(words)))
    }
}

/// Distinct words by code, one after the other in one text.
#[derive(Debug, Default)]
struct Words {
    text: String,
    ends: Vec<usize>,
}

impl Words {
    #[inline]
    fn get(&self, code: i32) -> &str {
        let code = code as usize;
        let start = if code == 0 { 0 } else { self.ends[code - 1] };
        &self.text[start..self.ends[code]]
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..*end])
    }

    /// Adds a word, and returns its code.
    fn push(&mut self, word: &str) -> i32 {
        let code = i32::try_from(self.ends.len()).expect("a batch has fewer than 2^31 words");
        self.text.push_str(word);
        self.ends.push(self.text.len());
        code
    }
}

/// Builds batches of readings row by row.
#[derive(Debug, Default)]
pub struct ReadingBatchBuilder {
    device_id: TextBuilder,
    metric: TextBuilder,
    value: Float64Builder,
    event_time: Vec<i64>,
    sequence: Int64Builder,
    unit: TextBuilder,
    tags: TextBuilder,
}

impl ReadingBatchBuilder {
    /// Appends one reading.
    #[inline]
    pub fn append(&mut self, reading: &Reading<'_>) {
        self.device_id.append(Some(reading.device_id));
        self.metric.append(Some(reading.metric));
        self.value.append_value(reading.value);
        self.event_time.push(reading.event_time.0);
        self.sequence.append_option(reading.sequence);
        self.unit.append(reading.unit);
        self.tags.append(reading.tags);
    }

    /// How many readings are in the batch being built.
    pub fn len(&self) -> usize {
        self.event_time.len()
    }

    /// Whether no reading is in the batch being built.
    pub fn is_empty(&self) -> bool {
        self.event_time.is_empty()
    }

    /// The finished batch; the builder is empty again.
    pub fn finish(&mut self) -> RecordBatch {
        let event_time =
            TimestampMicrosecondArray::from(std::mem::take(&mut self.event_time)).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            self.device_id.finish(),
            self.metric.finish(),
            Arc::new(self.value.finish()),
            Arc::new(event_time),
            Arc::new(self.sequence.finish()),
            self.unit.finish(),
            self.tags.finish(),
        ];
        batch::of_columns(schema(), columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_readings_that_were_appended() {
        let readings = [
            Reading {
                device_id: "a",
                metric: "t",
                value: 1.5,
                event_time: Micros(-1),
                sequence: None,
                unit: None,
                tags: None,
            },
            Reading {
                device_id: "b",
                metric: "t",
                value: 2.5,
                event_time: Micros(9),
                sequence: Some(4),
                unit: Some("Cel"),
                tags: Some(r#"{"x":"1"}"#),
            },
            Reading {
                device_id: "a",
                metric: "p",
                value: -3.0,
                event_time: Micros(10),
                sequence: None,
                unit: None,
                tags: None,
            },
        ];
        let mut builder = ReadingBatchBuilder::default();
        for reading in &readings {
            builder.append(reading);
        }
        assert_eq!(builder.len(), 3);
        let batch = builder.finish();
        assert!(builder.is_empty());
        let columns = ReadingColumns::of(&batch).unwrap();
        for (row, reading) in readings.iter().enumerate() {
            assert_eq!(columns.reading(row), *reading);
        }
        assert_eq!(columns.device_id.words().len(), 2);
    }
}

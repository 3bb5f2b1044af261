//! Sorts readings into the order of the master dataset, by dictionary codes instead of texts. Must not know files or commits.
//!
//! Readings arrive in log order, which within one series is almost time order. So rows are first distributed to their
//! series, in one pass; then each series is sorted, unless it is in order already.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, DictionaryArray, Float64Array, Int32Array, Int64Array,
    PrimitiveArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, NaiveDate};
use wye_domain::DomainError;
use wye_domain::batch;
use wye_domain::place::KafkaPartition;
use wye_domain::reading::{ReadingColumns, TextColumn};

use crate::columns::{
    DEVICE_ID, INGEST_TIME, KAFKA_INDEX, KAFKA_OFFSET, KAFKA_PARTITION, METRIC, stored_schema,
};

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// The code of a null.
const NO_WORD: u32 = u32::MAX;

/// The readings of one ingest day, in the order of [`crate::columns::READING_ORDER`].
#[derive(Debug)]
pub(crate) struct SortedDay {
    /// The day, in UTC.
    pub(crate) ingest_date: NaiveDate,
    /// Columns of [`stored_schema`].
    pub(crate) readings: RecordBatch,
}

/// Sorts batches of [`crate::columns::archive_schema`], each with the Kafka partition that it comes from.
///
/// # Errors
/// [`DomainError::Shape`] when a batch lacks a column.
pub(crate) fn sort_by_day(batches: &[(KafkaPartition, RecordBatch)]) -> Result<Vec<SortedDay>, DomainError> {
    let mut rows = Rows::default();
    for (kafka_partition, batch) in batches {
        rows.append(batch)?;
        rows.kafka_partition.extend(std::iter::repeat_n(kafka_partition.0, batch.num_rows()));
    }
    if rows.len() == 0 {
        return Ok(Vec::new());
    }
    let order = rows.order();
    let mut days: Vec<i64> = rows.ingest_time.iter().map(|time| time.div_euclid(MICROS_PER_DAY)).collect();
    if days.iter().all(|day| *day == days[0]) {
        return Ok(vec![SortedDay { ingest_date: date(days[0]), readings: rows.gather(&order) }]);
    }
    let day_of_row = days.clone();
    days.sort_unstable();
    days.dedup();
    let mut sorted = Vec::with_capacity(days.len());
    for day in days {
        let of_day = order.iter().copied().filter(|row| day_of_row[*row as usize] == day);
        let readings = rows.gather(&of_day.collect::<Vec<_>>());
        sorted.push(SortedDay { ingest_date: date(day), readings });
    }
    Ok(sorted)
}

/// Sorts readings that have the columns of [`stored_schema`], in any order.
#[derive(Debug)]
pub(crate) struct SortedRows {
    rows: Rows,
}

impl SortedRows {
    /// With room for this many rows.
    pub(crate) fn with_capacity(rows: usize) -> Self {
        Self { rows: Rows::with_capacity(rows) }
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when the batch lacks a column.
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<(), DomainError> {
        self.rows.append(batch)?;
        self.rows.kafka_partition.extend_from_slice(numbers::<Int32Type>(batch, KAFKA_PARTITION)?.values());
        Ok(())
    }

    /// All rows in order, in batches of this many.
    pub(crate) fn sorted(self, batch_rows: usize) -> impl Iterator<Item = RecordBatch> + Send + 'static {
        let order = self.rows.order();
        let starts = (0..order.len()).step_by(batch_rows.max(1));
        starts.map(move |start| self.rows.gather(&order[start..order.len().min(start + batch_rows)]))
    }
}

/// All rows of all batches, column by column, words as codes.
#[derive(Debug, Default)]
struct Rows {
    words: Words,
    /// Device and metric of each series, as codes.
    series: Vec<(u32, u32)>,
    series_codes: HashMap<(u32, u32), u32, foldhash::fast::FixedState>,
    series_of_row: Vec<u32>,
    value: Vec<f64>,
    event_time: Vec<i64>,
    sequence: Vec<i64>,
    has_sequence: Vec<bool>,
    unit: Vec<u32>,
    tags: Vec<u32>,
    ingest_time: Vec<i64>,
    kafka_partition: Vec<i32>,
    kafka_offset: Vec<i64>,
    kafka_index: Vec<i32>,
}

impl Rows {
    fn with_capacity(rows: usize) -> Self {
        Self {
            series_of_row: Vec::with_capacity(rows),
            value: Vec::with_capacity(rows),
            event_time: Vec::with_capacity(rows),
            sequence: Vec::with_capacity(rows),
            has_sequence: Vec::with_capacity(rows),
            unit: Vec::with_capacity(rows),
            tags: Vec::with_capacity(rows),
            ingest_time: Vec::with_capacity(rows),
            kafka_partition: Vec::with_capacity(rows),
            kafka_offset: Vec::with_capacity(rows),
            kafka_index: Vec::with_capacity(rows),
            ..Self::default()
        }
    }

    fn len(&self) -> usize {
        self.value.len()
    }

    /// Appends everything but the Kafka partition.
    fn append(&mut self, batch: &RecordBatch) -> Result<(), DomainError> {
        let columns = ReadingColumns::of(batch)?;
        let ingest_time = numbers::<TimestampMicrosecondType>(batch, INGEST_TIME)?;
        let kafka_offset = numbers::<Int64Type>(batch, KAFKA_OFFSET)?;
        let kafka_index = numbers::<Int32Type>(batch, KAFKA_INDEX)?;

        let devices = self.words.codes(columns.device_id);
        let metrics = self.words.codes(columns.metric);
        let mut last = None;
        for row in 0..batch.num_rows() {
            let device = columns.device_id.code(row).ok_or(DomainError::Shape { column: DEVICE_ID })?;
            let metric = columns.metric.code(row).ok_or(DomainError::Shape { column: METRIC })?;
            let series = match last {
                Some((seen, series)) if seen == (device, metric) => series,
                _ => {
                    let next = code_after(self.series.len());
                    let key = (devices[device], metrics[metric]);
                    *self.series_codes.entry(key).or_insert_with(|| {
                        self.series.push(key);
                        next
                    })
                }
            };
            last = Some(((device, metric), series));
            self.series_of_row.push(series);
        }
        self.value.extend_from_slice(columns.value);
        self.event_time.extend_from_slice(columns.event_time);
        self.sequence.extend_from_slice(columns.sequence.values());
        self.has_sequence.extend((0..batch.num_rows()).map(|row| columns.sequence.is_valid(row)));
        for (column, into) in [(columns.unit, &mut self.unit), (columns.tags, &mut self.tags)] {
            let codes = self.words.codes(column);
            into.extend(
                (0..batch.num_rows()).map(|row| column.code(row).map_or(NO_WORD, |code| codes[code])),
            );
        }
        self.ingest_time.extend_from_slice(ingest_time.values());
        self.kafka_offset.extend_from_slice(kafka_offset.values());
        self.kafka_index.extend_from_slice(kafka_index.values());
        Ok(())
    }

    /// The rows in order.
    fn order(&self) -> Vec<u32> {
        let mut by_name: Vec<u32> = (0..self.series.len() as u32).collect();
        by_name.sort_unstable_by_key(|series| {
            let (device, metric) = self.series[*series as usize];
            (self.words.word(device), self.words.word(metric))
        });
        let mut counts = vec![0_u32; self.series.len()];
        for series in &self.series_of_row {
            counts[*series as usize] += 1;
        }
        let mut next = vec![0_u32; self.series.len()];
        let mut ends = Vec::with_capacity(by_name.len());
        let mut end = 0;
        for series in by_name {
            next[series as usize] = end;
            end += counts[series as usize];
            ends.push(end as usize);
        }
        let mut order = vec![0_u32; self.len()];
        for (row, series) in self.series_of_row.iter().enumerate() {
            let place = &mut next[*series as usize];
            order[*place as usize] = row as u32;
            *place += 1;
        }
        let mut start = 0;
        for end in ends {
            let rows = &mut order[start..end];
            if !rows.is_sorted_by(|a, b| self.compare(*a, *b) != Ordering::Greater) {
                rows.sort_by(|a, b| self.compare(*a, *b));
            }
            start = end;
        }
        order
    }

    /// The order of two rows of one series.
    #[inline]
    fn compare(&self, a: u32, b: u32) -> Ordering {
        let (a, b) = (a as usize, b as usize);
        self.event_time[a].cmp(&self.event_time[b]).then_with(|| {
            self.sequence(a)
                .cmp(&self.sequence(b))
                .then_with(|| self.log_position(a).cmp(&self.log_position(b)))
        })
    }

    fn sequence(&self, row: usize) -> Option<i64> {
        self.has_sequence[row].then_some(self.sequence[row])
    }

    /// Ingest time, Kafka partition, offset, and index in the message.
    fn log_position(&self, row: usize) -> (i64, i32, i64, i32) {
        let (partition, offset) = (self.kafka_partition[row], self.kafka_offset[row]);
        (self.ingest_time[row], partition, offset, self.kafka_index[row])
    }

    /// These rows as a batch.
    fn gather(&self, order: &[u32]) -> RecordBatch {
        let has_sequence: Vec<bool> = picked(&self.has_sequence, order);
        let sequence =
            Int64Array::new(picked(&self.sequence, order).into(), Some(NullBuffer::from(has_sequence)));
        let series: Vec<(u32, u32)> =
            order.iter().map(|row| self.series[self.series_of_row[*row as usize] as usize]).collect();
        let columns: Vec<ArrayRef> = vec![
            self.words.column(series.iter().map(|series| series.0)),
            self.words.column(series.iter().map(|series| series.1)),
            Arc::new(Float64Array::from(picked(&self.value, order))),
            picked_times(&self.event_time, order),
            Arc::new(sequence),
            self.words.column(picked(&self.unit, order).into_iter()),
            self.words.column(picked(&self.tags, order).into_iter()),
            picked_times(&self.ingest_time, order),
            Arc::new(Int32Array::from(picked(&self.kafka_partition, order))),
            Arc::new(Int64Array::from(picked(&self.kafka_offset, order))),
            Arc::new(Int32Array::from(picked(&self.kafka_index, order))),
        ];
        batch::of_columns(stored_schema(), columns)
    }
}

/// The code of the next entry of a list with this many entries. An entry belongs to a row, and rows are counted in `u32`.
fn code_after(entries: usize) -> u32 {
    u32::try_from(entries).expect("memory holds fewer than 2^32 rows of one append")
}

/// A column of numbers or times.
fn numbers<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    column: &'static str,
) -> Result<&'a PrimitiveArray<T>, DomainError> {
    let found = batch.column_by_name(column).and_then(|found| found.as_primitive_opt::<T>());
    found.ok_or(DomainError::Shape { column })
}

/// The values of some rows.
fn picked<T: Copy>(from: &[T], rows: &[u32]) -> Vec<T> {
    rows.iter().map(|row| from[*row as usize]).collect()
}

/// The times of some rows as a column.
fn picked_times(from: &[i64], rows: &[u32]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(picked(from, rows)).with_timezone("UTC"))
}

/// The date of a day, counted from 1970-01-01; 1970-01-01 where the day is outside of the calendar.
fn date(day: i64) -> NaiveDate {
    let midnight = DateTime::from_timestamp_micros(day.saturating_mul(MICROS_PER_DAY));
    midnight.unwrap_or_default().date_naive()
}

/// The distinct texts of all batches.
#[derive(Debug, Default)]
struct Words {
    words: Vec<Arc<str>>,
    codes: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
}

impl Words {
    /// The codes here of the dictionary of a column.
    fn codes(&mut self, column: TextColumn<'_>) -> Vec<u32> {
        let words = column.words();
        (0..words.len()).map(|code| self.code(words.value(code))).collect()
    }

    fn code(&mut self, word: &str) -> u32 {
        if let Some(code) = self.codes.get(word) {
            return *code;
        }
        let (code, word) = (code_after(self.words.len()), Arc::<str>::from(word));
        self.words.push(Arc::clone(&word));
        self.codes.insert(word, code);
        code
    }

    fn word(&self, code: u32) -> &str {
        &self.words[code as usize]
    }

    /// A column of these words. Its dictionary has only the words that it uses, in the order of first use.
    fn column(&self, codes: impl Iterator<Item = u32>) -> ArrayRef {
        let mut own_codes: Vec<Option<i32>> = vec![None; self.words.len()];
        let mut used = Vec::new();
        let mut next = 0;
        let mut nulls = Vec::new();
        let keys: Vec<i32> = codes
            .enumerate()
            .map(|(row, code)| {
                if code == NO_WORD {
                    nulls.push(row);
                    return 0;
                }
                *own_codes[code as usize].get_or_insert_with(|| {
                    used.push(self.word(code));
                    next += 1;
                    next - 1
                })
            })
            .collect();
        let validity = (!nulls.is_empty()).then(|| {
            let mut valid = vec![true; keys.len()];
            nulls.iter().for_each(|row| valid[*row] = false);
            NullBuffer::from(valid)
        });
        if used.is_empty() {
            used.push("");
        }
        let keys = Int32Array::new(keys.into(), validity);
        Arc::new(DictionaryArray::<Int32Type>::new(keys, Arc::new(StringArray::from(used))))
    }
}

#[cfg(test)]
mod tests;

//! Converts wide rows to one batch of readings, one row per reading. It must not know files or chunk sizes.
//!
//! A row needs no allocation: numbers are parsed from the bytes of the record into one column of doubles per metric, and
//! device and tags are looked up among those of the chunk.

use std::borrow::Cow;
use std::collections::HashMap;
use std::iter;
use std::sync::Arc;

use arrow::array::{Int32Array, Int32Builder, Int64Array, RecordBatch, StringArray};
use csv::ByteRecord;
use wye_domain::tags;
use wye_domain::time::Micros;

use super::plan::{DevicePlan, Plan, TagValue, TimePlan};
use super::{RejectReason, Rejected};
use crate::columns::{Columns, dictionary};
use crate::mapping::Missing;
use crate::mapping::time::TimeProblem;
use crate::number::parse_number;

/// Characters of an invalid text that are kept.
const KEPT_TEXT: usize = 200;

/// Collects rows until [`finish`](Self::finish), which leaves it empty for the next chunk.
pub(super) struct ChunkBuilder {
    plan: Plan,
    rows: Rows,
    cells: Cells,
    scratch: Vec<u8>,
}

/// The readings of a chunk, and its other cells.
pub(super) struct Melted {
    pub(super) batch: RecordBatch,
    pub(super) missing: u64,
    pub(super) rejected: Vec<Rejected>,
}

/// The columns of valid rows, except the values.
#[derive(Default)]
struct Rows {
    times: Vec<Micros>,
    /// Codes in `device_words`.
    devices: Vec<i32>,
    /// Codes in `tag_words`; `None` for a row without tags.
    tags: Vec<Option<i32>>,
    device_words: Words,
    tag_words: Words,
}

/// The values, one column per metric, and the cells without a value. NaN marks a cell without a reading, to keep the
/// columns small: the value of a reading is never NaN.
struct Cells {
    columns: Vec<Vec<f64>>,
    missing: u64,
    rejected: Vec<Rejected>,
}

/// The distinct words of a chunk in order of appearance, found by their bytes in the file.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    by_word: HashMap<String, i32>,
    /// `None` for bytes without a word.
    by_bytes: HashMap<Box<[u8]>, Option<i32>>,
    last: Option<(Box<[u8]>, Option<i32>)>,
}

/// Why a row or a cell is invalid.
struct Fault {
    /// `None` where the whole row is invalid.
    column: Option<usize>,
    reason: RejectReason,
}

impl ChunkBuilder {
    pub(super) fn new(plan: Plan) -> Self {
        let cells = Cells::new(plan.metrics.len());
        Self { plan, rows: Rows::default(), cells, scratch: Vec::new() }
    }

    /// Adds one row.
    pub(super) fn push(&mut self, record: &ByteRecord) {
        match self.row_head(record) {
            Ok((time, device)) => {
                self.rows.times.push(time);
                self.rows.devices.push(device);
                let tags = tags_code(&self.plan, record, &mut self.scratch, &mut self.rows.tag_words);
                self.rows.tags.push(tags);
                self.cells.push(&self.plan, record);
            }
            Err(fault) => {
                let text = match fault.column {
                    Some(column) => record[column].to_vec(),
                    None => record.iter().collect::<Vec<_>>().join(&b","[..]),
                };
                let readings = self.plan.metrics.len() as u64;
                self.cells.rejected.push(rejected(&self.plan, record, &fault, &text, readings));
            }
        }
    }

    /// Time and device of a row.
    fn row_head(&mut self, record: &ByteRecord) -> Result<(Micros, i32), Fault> {
        let (found, expected) = (record.len(), self.plan.columns);
        if found != expected {
            return Err(Fault { column: None, reason: RejectReason::ColumnCount { found, expected } });
        }
        let time = time(&self.plan.time, record, &mut self.scratch)?;
        let words = &mut self.rows.device_words;
        let (column, device) = match &self.plan.device {
            DevicePlan::Constant(device) => (None, words.find(b"", || Some(device.clone()))),
            DevicePlan::Column { column, prefix } => {
                let text = record[*column].trim_ascii();
                let missing = &self.plan.missing;
                let device = words.find(text, || {
                    let name = std::str::from_utf8(text).ok()?;
                    let named = !text.is_empty() && !missing.is_word(text);
                    named.then(|| format!("{prefix}{name}"))
                });
                (Some(*column), device)
            }
        };
        let device = device.ok_or(Fault { column, reason: RejectReason::NoDevice })?;
        Ok((time, device))
    }

    /// The rows since the last call as one batch; the builder is empty after it.
    pub(super) fn finish(&mut self) -> Melted {
        let metrics = self.plan.metrics.len();
        let rows = std::mem::take(&mut self.rows);
        let cells = std::mem::replace(&mut self.cells, Cells::new(metrics));
        let mut long = Long::new(&rows, metrics);
        for (device, rows_of_device) in (0..).zip(by_device(&rows)) {
            for (metric, column) in cells.columns.iter().enumerate() {
                let before = long.values.len();
                for &row in &rows_of_device {
                    let row = row as usize;
                    let value = column[row];
                    if !value.is_nan() {
                        long.values.push(value);
                        long.times.push(rows.times[row].0);
                        if let Some(tags) = &mut long.tags {
                            tags.append_option(rows.tags[row]);
                        }
                    }
                }
                let readings = long.values.len() - before;
                long.add_series(device, metric as i32, self.plan.metrics[metric].unit, readings);
            }
        }
        let batch = long.batch(&self.plan, &rows);
        Melted { batch, missing: cells.missing, rejected: cells.rejected }
    }
}

impl Cells {
    fn new(metrics: usize) -> Self {
        Self { columns: vec![Vec::new(); metrics], missing: 0, rejected: Vec::new() }
    }

    fn push(&mut self, plan: &Plan, record: &ByteRecord) {
        for (metric, column) in plan.metrics.iter().zip(&mut self.columns) {
            let text = record[metric.column].trim_ascii();
            let value = if plan.missing.is_word(text) {
                self.missing += 1;
                f64::NAN
            } else {
                match parse_number(text, plan.decimal_mark) {
                    Some(number) if plan.missing.is_number(number) => {
                        self.missing += 1;
                        f64::NAN
                    }
                    Some(number) if (number * metric.scale + metric.offset).is_finite() => {
                        scaled(number, metric.scale, metric.offset)
                    }
                    not_a_value => {
                        let reason = match not_a_value {
                            Some(_) => RejectReason::NotFinite,
                            None => RejectReason::NotANumber,
                        };
                        let fault = Fault { column: Some(metric.column), reason };
                        self.rejected.push(rejected(plan, record, &fault, text, 1));
                        f64::NAN
                    }
                }
            };
            column.push(value);
        }
    }
}

/// Keeps every bit of the number, including the sign of zero, where the mapping has no scale and offset.
fn scaled(number: f64, scale: f64, offset: f64) -> f64 {
    if offset == 0.0 { number * scale } else { number * scale + offset }
}

impl Words {
    /// The code of the word for `bytes`. New bytes get the word that `word` returns, if any. Different bytes can have the
    /// same word.
    fn find(&mut self, bytes: &[u8], word: impl FnOnce() -> Option<String>) -> Option<i32> {
        if let Some((last, code)) = &self.last
            && **last == *bytes
        {
            return *code;
        }
        let code = match self.by_bytes.get(bytes) {
            Some(&code) => code,
            None => {
                let code = word().map(|word| self.code_of(word));
                self.by_bytes.insert(bytes.into(), code);
                code
            }
        };
        match &mut self.last {
            // Names mostly have the same length, so the memory of the last one can be used again.
            Some((last, last_code)) if last.len() == bytes.len() => {
                last.copy_from_slice(bytes);
                *last_code = code;
            }
            last => *last = Some((bytes.into(), code)),
        }
        code
    }

    fn code_of(&mut self, word: String) -> i32 {
        let next = self.words.len() as i32;
        let code = *self.by_word.entry(word.clone()).or_insert(next);
        if code == next {
            self.words.push(word);
        }
        code
    }

    fn array(&self) -> Arc<StringArray> {
        Arc::new(StringArray::from_iter_values(&self.words))
    }
}

fn time(plan: &TimePlan, record: &ByteRecord, scratch: &mut Vec<u8>) -> Result<Micros, Fault> {
    let (column, time) = match plan {
        TimePlan::Text { columns, format } => {
            let time = if let [column] = columns[..] {
                format.parse(record[column].trim_ascii())
            } else {
                scratch.clear();
                for (index, &column) in columns.iter().enumerate() {
                    if index > 0 {
                        scratch.push(b' ');
                    }
                    scratch.extend_from_slice(record[column].trim_ascii());
                }
                format.parse(scratch)
            };
            (columns[0], time)
        }
        TimePlan::Parts { date, time, zone } => {
            let columns = date.iter().copied().map(Some).chain(time.iter().copied());
            let mut parts = [0_i32; 6];
            for (part, column) in parts.iter_mut().zip(columns) {
                if let Some(column) = column {
                    *part = integer(record[column].trim_ascii())
                        .ok_or(Fault { column: Some(column), reason: RejectReason::UnreadableTime })?;
                }
            }
            (date[0], zone.time_of_parts(parts))
        }
    };
    time.map_err(|problem| {
        let reason = match problem {
            TimeProblem::Unreadable => RejectReason::UnreadableTime,
            TimeProblem::InGap => RejectReason::TimeInGap,
        };
        Fault { column: Some(column), reason }
    })
}

/// An integer in a column of years or hours, such as `2013` or `07`.
fn integer(text: &[u8]) -> Option<i32> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i32::from(byte - b'0')))
}

/// The code of a row's tags; `None` where it has none.
fn tags_code(plan: &Plan, record: &ByteRecord, scratch: &mut Vec<u8>, words: &mut Words) -> Option<i32> {
    let tags = &plan.tags;
    if tags.is_empty() {
        return None;
    }
    scratch.clear();
    for (_, value) in tags {
        if let TagValue::Column(column) = value {
            let text = record[*column].trim_ascii();
            scratch.extend_from_slice(&(text.len() as u64).to_le_bytes());
            scratch.extend_from_slice(text);
        }
    }
    words.find(scratch, || tag_text(tags, record, &plan.missing, plan.decimal_mark))
}

/// The canonical JSON text of a row's tags, without those whose cell is missing.
fn tag_text(
    tags: &[(String, TagValue)],
    record: &ByteRecord,
    missing: &Missing,
    decimal_mark: u8,
) -> Option<String> {
    let mut pairs = Vec::new();
    for (key, value) in tags {
        let value = match value {
            TagValue::Constant(value) => Cow::Borrowed(value.as_str()),
            TagValue::Column(column) => {
                let text = record[*column].trim_ascii();
                if text.is_empty() || missing.is_text(text, decimal_mark) {
                    continue;
                }
                String::from_utf8_lossy(text)
            }
        };
        pairs.push((key.as_str(), value));
    }
    tags::canonical(pairs.iter().map(|(key, value)| (*key, value.as_ref())))
}

fn rejected(plan: &Plan, record: &ByteRecord, fault: &Fault, text: &[u8], readings: u64) -> Rejected {
    Rejected {
        row: record.position().map_or(0, csv::Position::line),
        column: fault.column.map_or_else(String::new, |column| plan.names[column].clone()),
        text: String::from_utf8_lossy(text).chars().take(KEPT_TEXT).collect(),
        reason: fault.reason,
        readings,
    }
}

/// The rows of each device, devices in order of appearance, rows in file order.
fn by_device(rows: &Rows) -> Vec<Vec<u32>> {
    let mut lists = vec![Vec::new(); rows.device_words.words.len()];
    for (row, &device) in rows.devices.iter().enumerate() {
        lists[device as usize].push(row as u32);
    }
    lists
}

/// The columns of the batch, while they are built.
struct Long {
    devices: Vec<i32>,
    metrics: Vec<i32>,
    values: Vec<f64>,
    /// UTC microseconds.
    times: Vec<i64>,
    units: Int32Builder,
    /// `None` where no row has tags.
    tags: Option<Int32Builder>,
}

impl Long {
    fn new(rows: &Rows, metrics: usize) -> Self {
        let most = rows.times.len() * metrics;
        let has_tags = rows.tags.iter().any(Option::is_some);
        Self {
            devices: Vec::with_capacity(most),
            metrics: Vec::with_capacity(most),
            values: Vec::with_capacity(most),
            times: Vec::with_capacity(most),
            units: Int32Builder::with_capacity(most),
            tags: has_tags.then(|| Int32Builder::with_capacity(most)),
        }
    }

    /// Adds the columns that are the same for all readings of a device and metric.
    fn add_series(&mut self, device: i32, metric: i32, unit: Option<i32>, readings: usize) {
        self.devices.extend(iter::repeat_n(device, readings));
        self.metrics.extend(iter::repeat_n(metric, readings));
        match unit {
            Some(unit) => self.units.append_value_n(unit, readings),
            None => self.units.append_nulls(readings),
        }
    }

    fn batch(mut self, plan: &Plan, rows: &Rows) -> RecordBatch {
        let readings = self.values.len();
        let tags = match &mut self.tags {
            Some(tags) => tags.finish(),
            None => Int32Array::new_null(readings),
        };
        let columns = Columns {
            sequence: Int64Array::new_null(readings),
            device_id: dictionary(Int32Array::from(self.devices), rows.device_words.array()),
            metric: dictionary(Int32Array::from(self.metrics), Arc::clone(&plan.metric_names)),
            value: self.values,
            event_time: self.times,
            unit: dictionary(self.units.finish(), Arc::clone(&plan.units)),
            tags: dictionary(tags, rows.tag_words.array()),
        };
        columns.into_batch()
    }
}

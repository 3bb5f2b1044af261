//! Rows in, one batch of readings out: wide becomes long. It must not know files or chunk sizes.
//!
//! A row costs no allocation: numbers are parsed from the record's bytes into one column of doubles per metric, and
//! device and tags are looked up among those that the chunk has seen.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use csv::ByteRecord;
use wye_domain::{reading, tags};

use super::plan::{DevicePlan, Plan, TagValue, TimePlan};
use super::{RejectReason, Rejected};
use crate::columns::dictionary;
use crate::mapping::Missing;
use crate::mapping::time::TimeProblem;
use crate::number::parse_number;

/// Characters of a refused text that are kept.
const KEPT_TEXT: usize = 200;

/// Takes rows until [`finish`](Self::finish), which leaves it empty for the next chunk.
pub(super) struct ChunkBuilder {
    plan: Plan,
    rows: Rows,
    cells: Cells,
    scratch: Vec<u8>,
}

/// What a chunk of rows gave.
pub(super) struct Melted {
    pub(super) batch: RecordBatch,
    pub(super) missing: u64,
    pub(super) rejected: Vec<Rejected>,
}

/// What good rows say besides their values.
#[derive(Default)]
struct Rows {
    times: Vec<i64>,
    devices: Vec<i32>,
    tags: Vec<i32>,
    device_words: Words,
    tag_words: Words,
}

/// The values, one column per metric, beside what is not a value. NaN marks a cell without a reading: no reading's
/// value is NaN.
struct Cells {
    columns: Vec<Vec<f64>>,
    missing: u64,
    rejected: Vec<Rejected>,
}

/// The distinct words of a chunk in order of appearance, found by the bytes that stand for them in the file.
#[derive(Default)]
struct Words {
    words: Vec<String>,
    by_word: HashMap<String, i32>,
    by_bytes: HashMap<Box<[u8]>, i32>,
    last: Option<(Box<[u8]>, i32)>,
}

/// What is wrong with a row as a whole.
struct RowFault {
    column: Option<usize>,
    reason: RejectReason,
}

impl ChunkBuilder {
    pub(super) fn new(plan: Plan) -> Self {
        let cells = Cells { columns: vec![Vec::new(); plan.metrics.len()], missing: 0, rejected: Vec::new() };
        Self { plan, rows: Rows::default(), cells, scratch: Vec::new() }
    }

    /// Takes one row.
    pub(super) fn push(&mut self, record: &ByteRecord) {
        match self.row_head(record) {
            Ok((time, device)) => {
                self.rows.times.push(time);
                self.rows.devices.push(device);
                let tags = tag_key(&self.plan, record, &mut self.scratch, &mut self.rows.tag_words);
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
    fn row_head(&mut self, record: &ByteRecord) -> Result<(i64, i32), RowFault> {
        let (found, expected) = (record.len(), self.plan.columns);
        if found != expected {
            return Err(RowFault { column: None, reason: RejectReason::ColumnCount { found, expected } });
        }
        let time = time(&self.plan.time, record, &mut self.scratch)?;
        let device = match &self.plan.device {
            DevicePlan::Constant(device) => self.rows.device_words.find(b"", || Some(device.clone())),
            DevicePlan::Column { column, prefix } => {
                let text = record[*column].trim_ascii();
                let missing = &self.plan.missing;
                self.rows.device_words.find(text, || {
                    let name = std::str::from_utf8(text).ok()?;
                    let named = !text.is_empty() && !missing.is_word(text);
                    named.then(|| format!("{prefix}{name}"))
                })
            }
        };
        match self.plan.device {
            DevicePlan::Column { column, .. } if device < 0 => {
                Err(RowFault { column: Some(column), reason: RejectReason::NoDevice })
            }
            _ => Ok((time, device)),
        }
    }

    /// The rows since the last time as one batch; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> Melted {
        let metrics = self.plan.metrics.len();
        let rows = std::mem::take(&mut self.rows);
        let empty = Cells { columns: vec![Vec::new(); metrics], missing: 0, rejected: Vec::new() };
        let cells = std::mem::replace(&mut self.cells, empty);
        let mut long = Long::with_capacity(rows.times.len() * metrics);
        for rows_of_device in by_device(&rows) {
            for (metric, column) in cells.columns.iter().enumerate() {
                let unit = self.plan.metrics[metric].unit;
                for &row in &rows_of_device {
                    let row = row as usize;
                    let value = column[row];
                    if !value.is_nan() {
                        long.values.push(value);
                        long.times.push(rows.times[row]);
                        long.devices.push(rows.devices[row]);
                        long.metrics.push(metric as i32);
                        long.units.push(unit);
                        long.tags.push(rows.tags[row]);
                    }
                }
            }
        }
        let batch = long.batch(&self.plan, &rows);
        Melted { batch, missing: cells.missing, rejected: cells.rejected }
    }
}

impl Cells {
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
                        let fault = RowFault { column: Some(metric.column), reason };
                        self.rejected.push(rejected(plan, record, &fault, text, 1));
                        f64::NAN
                    }
                }
            };
            column.push(value);
        }
    }
}

/// A number is kept bit by bit, the sign of zero included, where the mapping changes nothing.
fn scaled(number: f64, scale: f64, offset: f64) -> f64 {
    if offset == 0.0 { number * scale } else { number * scale + offset }
}

impl Words {
    /// The index of the word for `bytes`, made by `word` where the bytes are new; -1 where it makes none. Other bytes
    /// may stand for the same word.
    fn find(&mut self, bytes: &[u8], word: impl FnOnce() -> Option<String>) -> i32 {
        if let Some((last, index)) = &self.last
            && **last == *bytes
        {
            return *index;
        }
        let index = match self.by_bytes.get(bytes) {
            Some(&index) => index,
            None => {
                let index = word().map_or(-1, |word| self.index_of(word));
                self.by_bytes.insert(bytes.into(), index);
                index
            }
        };
        match &mut self.last {
            // Names mostly have one length, so the old one's memory serves again.
            Some((last, place)) if last.len() == bytes.len() => {
                last.copy_from_slice(bytes);
                *place = index;
            }
            last => *last = Some((bytes.into(), index)),
        }
        index
    }

    fn index_of(&mut self, word: String) -> i32 {
        let next = self.words.len() as i32;
        let index = *self.by_word.entry(word.clone()).or_insert(next);
        if index == next {
            self.words.push(word);
        }
        index
    }

    fn array(&self) -> Arc<StringArray> {
        Arc::new(StringArray::from_iter_values(&self.words))
    }
}

fn time(plan: &TimePlan, record: &ByteRecord, scratch: &mut Vec<u8>) -> Result<i64, RowFault> {
    let (column, time) = match plan {
        TimePlan::Text { columns, format } => {
            let time = if let [column] = columns[..] {
                format.micros(record[column].trim_ascii())
            } else {
                scratch.clear();
                for (index, &column) in columns.iter().enumerate() {
                    if index > 0 {
                        scratch.push(b' ');
                    }
                    scratch.extend_from_slice(record[column].trim_ascii());
                }
                format.micros(scratch)
            };
            (columns[0], time)
        }
        TimePlan::Parts { columns, zone } => {
            let mut parts = [0_i32; 6];
            for (part, column) in parts.iter_mut().zip(columns) {
                if let Some(column) = *column {
                    *part = integer(record[column].trim_ascii())
                        .ok_or(RowFault { column: Some(column), reason: RejectReason::UnreadableTime })?;
                }
            }
            (columns[0].expect("a plan always has a year"), zone.micros_of_parts(parts))
        }
    };
    time.map_err(|problem| {
        let reason = match problem {
            TimeProblem::Unreadable => RejectReason::UnreadableTime,
            TimeProblem::InGap => RejectReason::TimeInGap,
        };
        RowFault { column: Some(column), reason }
    })
}

/// An integer as people write it in a column of years or hours, `2013` or `07`.
fn integer(text: &[u8]) -> Option<i32> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i32::from(byte - b'0')))
}

/// The index of a row's tags among the chunk's, -1 where it has none.
fn tag_key(plan: &Plan, record: &ByteRecord, scratch: &mut Vec<u8>, words: &mut Words) -> i32 {
    let tags = &plan.tags;
    if tags.is_empty() {
        return -1;
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

/// The canonical JSON text of a row's tags; a tag whose cell is missing is left out.
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

fn rejected(plan: &Plan, record: &ByteRecord, fault: &RowFault, text: &[u8], readings: u64) -> Rejected {
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

/// The columns of the batch while they grow.
struct Long {
    devices: Vec<i32>,
    metrics: Vec<i32>,
    values: Vec<f64>,
    times: Vec<i64>,
    units: Vec<i32>,
    tags: Vec<i32>,
}

impl Long {
    fn with_capacity(rows: usize) -> Self {
        Self {
            devices: Vec::with_capacity(rows),
            metrics: Vec::with_capacity(rows),
            values: Vec::with_capacity(rows),
            times: Vec::with_capacity(rows),
            units: Vec::with_capacity(rows),
            tags: Vec::with_capacity(rows),
        }
    }

    fn batch(self, plan: &Plan, rows: &Rows) -> RecordBatch {
        let length = self.values.len();
        let columns: Vec<ArrayRef> = vec![
            dictionary(self.devices, rows.device_words.array()),
            dictionary(self.metrics, Arc::clone(&plan.metric_names)),
            Arc::new(Float64Array::from(self.values)),
            Arc::new(TimestampMicrosecondArray::from(self.times).with_timezone("UTC")),
            Arc::new(Int64Array::new_null(length)),
            dictionary(self.units, Arc::clone(&plan.units)),
            dictionary(self.tags, rows.tag_words.array()),
        ];
        RecordBatch::try_new(reading::schema(), columns).expect("the columns are built by this schema")
    }
}

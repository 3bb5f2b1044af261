//! Rows of a batch view, with all or only some of its columns, as parts to merge.
//!
//! A merge of some columns of a summary needs only these columns, so what a query does not ask for is not read; it is
//! as if it were empty. This file does not know which columns a query asks for.

use crate::confidence::{Confidence, ExpectedSource, State};
use arrow::array::{
    Array, AsArray, BinaryArray, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType};
use wye_domain::DomainError;
use wye_domain::reading::TextColumn;
use wye_domain::sketches::{Sketches, Stored};
use wye_domain::summary::{CompensatedSum, Summary, Timed};

use crate::merge::{BatchRow, Scored};

/// The columns of a view that make a whole [`BatchRow`].
pub const ROW_COLUMNS: [&str; 24] = [
    "series",
    "window_start",
    "count",
    "invalid",
    "conflicts",
    "sum_high",
    "sum_low",
    "m2",
    "min",
    "max",
    "first",
    "last",
    "first_time",
    "last_time",
    "quantiles",
    "distinct",
    "device_counts",
    "expected",
    "expected_source",
    "completeness",
    "validity",
    "precision",
    "confidence_score",
    "state",
];

/// See the module.
#[derive(Debug)]
pub struct ViewRows<'a> {
    /// The stored form of each row's series.
    pub series: TextColumn<'a>,
    /// The start of each row's window.
    pub window_start: &'a TimestampMicrosecondArray,
    count: &'a Int64Array,
    batch: &'a RecordBatch,
    wholes: [Option<&'a Int64Array>; 2],
    numbers: [Option<&'a Float64Array>; NUMBERS.len()],
    times: [Option<&'a TimestampMicrosecondArray>; 2],
    sketches: [Option<&'a BinaryArray>; 3],
    state: Option<TextColumn<'a>>,
    expected_source: Option<TextColumn<'a>>,
}

const NUMBERS: [&str; 12] = [
    "sum_high",
    "sum_low",
    "m2",
    "min",
    "max",
    "first",
    "last",
    "expected",
    "completeness",
    "validity",
    "confidence_score",
    "precision",
];

impl<'a> ViewRows<'a> {
    /// Resolves `series`, `window_start` and `count`, and whatever else is there.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        let number = |name: &str| {
            batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Float64Type>())
        };
        let whole =
            |name: &str| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let time = |name: &str| {
            batch
                .column_by_name(name)
                .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
        };
        let bytes = |name: &str| batch.column_by_name(name).and_then(|column| column.as_binary_opt::<i32>());
        Ok(Self {
            series: TextColumn::of(batch, "series")?,
            window_start: window_start(batch)?,
            count: count(batch)?,
            batch,
            wholes: ["invalid", "conflicts"].map(whole),
            numbers: NUMBERS.map(number),
            times: ["first_time", "last_time"].map(time),
            sketches: ["quantiles", "distinct", "device_counts"].map(bytes),
            state: TextColumn::of(batch, "state").ok(),
            expected_source: TextColumn::of(batch, "expected_source").ok(),
        })
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.batch.num_rows()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One row as a part to merge.
    pub fn row(&self, row: usize) -> Result<BatchRow, DomainError> {
        let whole = |column: Option<&Int64Array>| {
            column.map_or(0, |column| u64::try_from(column.value(row)).unwrap_or_default())
        };
        let optional = |place: usize| {
            self.numbers[place].filter(|column| !column.is_null(row)).map(|column| column.value(row))
        };
        let number = |place: usize, absent: f64| optional(place).unwrap_or(absent);
        let timed = |value: usize, time: usize, absent: Timed| match (optional(value), self.times[time]) {
            (Some(value), Some(times)) if !times.is_null(row) => {
                Timed { value, event_time: times.value(row) }
            }
            _ => absent,
        };
        let bytes = |place: usize| {
            self.sketches[place].filter(|column| !column.is_null(row)).map(|column| column.value(row))
        };
        let empty = Summary::EMPTY;
        let summary = Summary {
            count: whole(Some(self.count)),
            invalid: whole(self.wholes[0]),
            conflicts: whole(self.wholes[1]),
            sum: CompensatedSum { high: number(0, 0.0), low: number(1, 0.0) },
            m2: number(2, 0.0),
            min: number(3, empty.min),
            max: number(4, empty.max),
            first: timed(5, 0, empty.first),
            last: timed(6, 1, empty.last),
            sketches: Sketches::decode(Stored {
                quantiles: bytes(0),
                distinct: bytes(1),
                devices: bytes(2),
            })?,
        };
        let confidence = Confidence {
            expected: optional(7),
            completeness: number(8, 0.0),
            validity: number(9, 0.0),
            precision: number(11, 1.0),
            score: number(10, 0.0),
        };
        let text = |column: &Option<TextColumn<'a>>| column.as_ref().and_then(|column| column.text(row));
        let expected_source = match text(&self.expected_source) {
            Some(name) if name == ExpectedSource::Registry.name() => ExpectedSource::Registry,
            _ => ExpectedSource::Unknown,
        };
        let state = match text(&self.state) {
            Some(name) if name == State::Settled.name() => State::Settled,
            _ => State::Preliminary,
        };
        let scored = Scored { confidence, expected_source };
        Ok(BatchRow { window_start: self.window_start.value(row), summary, scored, state })
    }
}

/// The window starts of a batch of view rows.
pub fn window_start(batch: &RecordBatch) -> Result<&TimestampMicrosecondArray, DomainError> {
    let column = batch.column_by_name("window_start");
    column
        .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
        .ok_or(DomainError::Shape { column: "window_start" })
}

/// The reading counts of a batch of view rows.
pub fn count(batch: &RecordBatch) -> Result<&Int64Array, DomainError> {
    let column = batch.column_by_name("count");
    column
        .and_then(|column| column.as_primitive_opt::<Int64Type>())
        .ok_or(DomainError::Shape { column: "count" })
}

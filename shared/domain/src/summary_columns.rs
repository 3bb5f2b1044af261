//! Summaries as Arrow columns, the form in which the realtime-views topic and the batch views store them. The list of
//! columns is [`SummaryColumn`]; schema, builder and reader follow it.
//!
//! | column | type | null | meaning |
//! |---|---|---|---|
//! | `count` | Int64 | no | distinct readings |
//! | `invalid`, `conflicts` | Int64 | no | quality counts |
//! | `sum_high`, `sum_low` | Float64 | no | the compensated sum |
//! | `m2` | Float64 | no | squared distances from the mean |
//! | `min`, `max` | Float64 | when empty | extremes |
//! | `first`, `last` | Float64 | when empty | values at the first and last event time |
//! | `first_time`, `last_time` | Timestamp(µs, UTC) | when empty | these event times |
//! | `quantiles`, `distinct` | Binary | where not asked for | sketches, see [`crate::sketches`] |
//! | `device_counts` | Binary | where not needed | readings of each device, see [`crate::device_counts`] |
//!
//! Stability contract: these names, types and meanings are stored in Kafka and in Delta tables; a change needs a new
//! wire version and a conversion.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BinaryBuilder, Float64Array, Float64Builder, Int64Array, RecordBatch,
    TimestampMicrosecondArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field};

use crate::DomainError;
use crate::reading::{column, time_type};
use crate::sketches::{Sketches, Stored};
use crate::summary::{CompensatedSum, Summary, Timed};
use crate::time::Micros;

/// A column of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryColumn {
    /// Distinct readings.
    Count,
    /// Of these, those that fail a check.
    Invalid,
    /// Further readings with a known identity but another value.
    Conflicts,
    /// The running sum.
    SumHigh,
    /// What rounding has taken from it.
    SumLow,
    /// Squared distances from the mean.
    M2,
    /// The smallest value.
    Min,
    /// The largest value.
    Max,
    /// The value at the first event time.
    First,
    /// The value at the last event time.
    Last,
    /// The first event time.
    FirstTime,
    /// The last event time.
    LastTime,
    /// The quantile sketch.
    Quantiles,
    /// The sketch of distinct devices.
    Distinct,
    /// Readings of each device.
    DeviceCounts,
}

impl SummaryColumn {
    /// All of them, in the order in which they are stored.
    pub const ALL: [Self; 15] = [
        Self::Count,
        Self::Invalid,
        Self::Conflicts,
        Self::SumHigh,
        Self::SumLow,
        Self::M2,
        Self::Min,
        Self::Max,
        Self::First,
        Self::Last,
        Self::FirstTime,
        Self::LastTime,
        Self::Quantiles,
        Self::Distinct,
        Self::DeviceCounts,
    ];

    /// The column's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Invalid => "invalid",
            Self::Conflicts => "conflicts",
            Self::SumHigh => "sum_high",
            Self::SumLow => "sum_low",
            Self::M2 => "m2",
            Self::Min => "min",
            Self::Max => "max",
            Self::First => "first",
            Self::Last => "last",
            Self::FirstTime => "first_time",
            Self::LastTime => "last_time",
            Self::Quantiles => "quantiles",
            Self::Distinct => "distinct",
            Self::DeviceCounts => "device_counts",
        }
    }

    /// The column's name, type and whether it may be null.
    #[must_use]
    pub fn field(self) -> Field {
        let (data_type, nullable) = match self {
            Self::Count | Self::Invalid | Self::Conflicts => (DataType::Int64, false),
            Self::SumHigh | Self::SumLow | Self::M2 => (DataType::Float64, false),
            Self::Min | Self::Max | Self::First | Self::Last => (DataType::Float64, true),
            Self::FirstTime | Self::LastTime => (time_type(), true),
            Self::Quantiles | Self::Distinct | Self::DeviceCounts => (DataType::Binary, true),
        };
        Field::new(self.name(), data_type, nullable)
    }

    /// The column in a batch as an array of type `T`.
    fn of<T: Array + 'static>(self, batch: &RecordBatch) -> Result<&T, DomainError> {
        column(batch, self.name())
    }
}

/// The fields of the table above, in order.
pub fn schema_fields() -> Vec<Field> {
    SummaryColumn::ALL.map(SummaryColumn::field).to_vec()
}

/// Collects summaries into columns.
#[derive(Debug, Default)]
pub struct SummaryColumnsBuilder {
    count: Vec<i64>,
    invalid: Vec<i64>,
    conflicts: Vec<i64>,
    sum_high: Vec<f64>,
    sum_low: Vec<f64>,
    m2: Vec<f64>,
    min: Float64Builder,
    max: Float64Builder,
    first: Float64Builder,
    last: Float64Builder,
    first_time: TimestampMicrosecondBuilder,
    last_time: TimestampMicrosecondBuilder,
    quantiles: BinaryBuilder,
    distinct: BinaryBuilder,
    device_counts: BinaryBuilder,
}

impl SummaryColumnsBuilder {
    /// Appends one summary.
    pub fn append(&mut self, summary: &Summary) {
        self.count.push(stored_count(summary.count));
        self.invalid.push(stored_count(summary.invalid));
        self.conflicts.push(stored_count(summary.conflicts));
        self.sum_high.push(summary.sum.high);
        self.sum_low.push(summary.sum.low);
        self.m2.push(summary.m2);
        let filled = (summary.count > 0).then_some(summary);
        self.min.append_option(filled.map(|summary| summary.min));
        self.max.append_option(filled.map(|summary| summary.max));
        self.first.append_option(filled.map(|summary| summary.first.value));
        self.last.append_option(filled.map(|summary| summary.last.value));
        self.first_time.append_option(filled.map(|summary| summary.first.event_time.0));
        self.last_time.append_option(filled.map(|summary| summary.last.event_time.0));
        let Stored { quantiles, distinct, devices } =
            summary.sketches.as_ref().map(|sketches| sketches.encode()).unwrap_or_default();
        self.quantiles.append_option(quantiles);
        self.distinct.append_option(distinct);
        self.device_counts.append_option(devices);
    }

    /// How many summaries were appended.
    pub fn len(&self) -> usize {
        self.count.len()
    }

    /// Whether none was appended.
    pub fn is_empty(&self) -> bool {
        self.count.is_empty()
    }

    /// The columns in the order of [`schema_fields`]; the builder is empty again.
    pub fn finish(&mut self) -> Vec<ArrayRef> {
        SummaryColumn::ALL.map(|column| self.take(column)).to_vec()
    }

    fn take(&mut self, column: SummaryColumn) -> ArrayRef {
        match column {
            SummaryColumn::Count => Arc::new(Int64Array::from(std::mem::take(&mut self.count))),
            SummaryColumn::Invalid => Arc::new(Int64Array::from(std::mem::take(&mut self.invalid))),
            SummaryColumn::Conflicts => Arc::new(Int64Array::from(std::mem::take(&mut self.conflicts))),
            SummaryColumn::SumHigh => Arc::new(Float64Array::from(std::mem::take(&mut self.sum_high))),
            SummaryColumn::SumLow => Arc::new(Float64Array::from(std::mem::take(&mut self.sum_low))),
            SummaryColumn::M2 => Arc::new(Float64Array::from(std::mem::take(&mut self.m2))),
            SummaryColumn::Min => Arc::new(self.min.finish()),
            SummaryColumn::Max => Arc::new(self.max.finish()),
            SummaryColumn::First => Arc::new(self.first.finish()),
            SummaryColumn::Last => Arc::new(self.last.finish()),
            SummaryColumn::FirstTime => Arc::new(self.first_time.finish().with_timezone("UTC")),
            SummaryColumn::LastTime => Arc::new(self.last_time.finish().with_timezone("UTC")),
            SummaryColumn::Quantiles => Arc::new(self.quantiles.finish()),
            SummaryColumn::Distinct => Arc::new(self.distinct.finish()),
            SummaryColumn::DeviceCounts => Arc::new(self.device_counts.finish()),
        }
    }
}

/// A count as it is stored.
fn stored_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Reads summaries out of a batch that has the columns of [`schema_fields`], all or some, among others.
///
/// A merge of some columns of a summary needs only these columns, so a column that is absent reads as that of
/// [`Summary::EMPTY`].
#[derive(Clone, Copy, Debug)]
pub struct SummaryColumns<'a> {
    count: &'a Int64Array,
    invalid: Option<&'a Int64Array>,
    conflicts: Option<&'a Int64Array>,
    sum_high: Option<&'a Float64Array>,
    sum_low: Option<&'a Float64Array>,
    m2: Option<&'a Float64Array>,
    min: Option<&'a Float64Array>,
    max: Option<&'a Float64Array>,
    first: Option<&'a Float64Array>,
    last: Option<&'a Float64Array>,
    first_time: Option<&'a TimestampMicrosecondArray>,
    last_time: Option<&'a TimestampMicrosecondArray>,
    quantiles: Option<&'a BinaryArray>,
    distinct: Option<&'a BinaryArray>,
    device_counts: Option<&'a BinaryArray>,
}

impl<'a> SummaryColumns<'a> {
    /// Resolves the columns by name. Rows of older versions have no `device_counts`.
    ///
    /// # Errors
    /// [`DomainError::Shape`] naming the first other column that is absent or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        let columns = Self::of_some(batch)?;
        let absent = SummaryColumn::ALL.into_iter().find(|column| match column {
            SummaryColumn::DeviceCounts => false,
            column => !columns.has(*column),
        });
        absent.map_or(Ok(columns), |column| Err(DomainError::Shape { column: column.name() }))
    }

    /// Resolves `count`, and each other column that is there.
    ///
    /// # Errors
    /// [`DomainError::Shape`] when `count` is absent or of another type.
    pub fn of_some(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        Ok(Self {
            count: SummaryColumn::Count.of(batch)?,
            invalid: SummaryColumn::Invalid.of(batch).ok(),
            conflicts: SummaryColumn::Conflicts.of(batch).ok(),
            sum_high: SummaryColumn::SumHigh.of(batch).ok(),
            sum_low: SummaryColumn::SumLow.of(batch).ok(),
            m2: SummaryColumn::M2.of(batch).ok(),
            min: SummaryColumn::Min.of(batch).ok(),
            max: SummaryColumn::Max.of(batch).ok(),
            first: SummaryColumn::First.of(batch).ok(),
            last: SummaryColumn::Last.of(batch).ok(),
            first_time: SummaryColumn::FirstTime.of(batch).ok(),
            last_time: SummaryColumn::LastTime.of(batch).ok(),
            quantiles: SummaryColumn::Quantiles.of(batch).ok(),
            distinct: SummaryColumn::Distinct.of(batch).ok(),
            device_counts: SummaryColumn::DeviceCounts.of(batch).ok(),
        })
    }

    fn has(&self, column: SummaryColumn) -> bool {
        match column {
            SummaryColumn::Count => true,
            SummaryColumn::Invalid => self.invalid.is_some(),
            SummaryColumn::Conflicts => self.conflicts.is_some(),
            SummaryColumn::SumHigh => self.sum_high.is_some(),
            SummaryColumn::SumLow => self.sum_low.is_some(),
            SummaryColumn::M2 => self.m2.is_some(),
            SummaryColumn::Min => self.min.is_some(),
            SummaryColumn::Max => self.max.is_some(),
            SummaryColumn::First => self.first.is_some(),
            SummaryColumn::Last => self.last.is_some(),
            SummaryColumn::FirstTime => self.first_time.is_some(),
            SummaryColumn::LastTime => self.last_time.is_some(),
            SummaryColumn::Quantiles => self.quantiles.is_some(),
            SummaryColumn::Distinct => self.distinct.is_some(),
            SummaryColumn::DeviceCounts => self.device_counts.is_some(),
        }
    }

    /// The summary in a row.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when a sketch's bytes do not decode.
    pub fn summary(&self, row: usize) -> Result<Summary, DomainError> {
        let empty = Summary::EMPTY;
        Ok(Summary {
            count: count(Some(self.count), row),
            invalid: count(self.invalid, row),
            conflicts: count(self.conflicts, row),
            sum: CompensatedSum {
                high: number(self.sum_high, row).unwrap_or(empty.sum.high),
                low: number(self.sum_low, row).unwrap_or(empty.sum.low),
            },
            m2: number(self.m2, row).unwrap_or(empty.m2),
            min: number(self.min, row).unwrap_or(empty.min),
            max: number(self.max, row).unwrap_or(empty.max),
            first: timed(self.first, self.first_time, row).unwrap_or(empty.first),
            last: timed(self.last, self.last_time, row).unwrap_or(empty.last),
            sketches: Sketches::decode(Stored {
                quantiles: bytes(self.quantiles, row),
                distinct: bytes(self.distinct, row),
                devices: bytes(self.device_counts, row),
            })?,
        })
    }
}

/// A count in a row; 0 where its column is absent.
fn count(column: Option<&Int64Array>, row: usize) -> u64 {
    column.map_or(0, |column| u64::try_from(column.value(row)).unwrap_or_default())
}

/// A number in a row; `None` where it is null or its column absent.
fn number(column: Option<&Float64Array>, row: usize) -> Option<f64> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

/// A value with its event time in a row; `None` where one of them is null or its column absent.
fn timed(
    value: Option<&Float64Array>,
    time: Option<&TimestampMicrosecondArray>,
    row: usize,
) -> Option<Timed> {
    let value = number(value, row)?;
    let time = time.filter(|column| column.is_valid(row))?;
    Some(Timed { value, event_time: Micros(time.value(row)) })
}

/// Bytes in a row; `None` where they are null or their column absent.
fn bytes(column: Option<&BinaryArray>, row: usize) -> Option<&[u8]> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Schema;

    use super::*;
    use crate::registry::DeviceNumber;
    use crate::sketches::Needs;

    #[test]
    fn summaries_come_back_as_they_went_in() {
        let mut with_sketch = Summary {
            sketches: Sketches::new(Needs { quantiles: true, distinct: true, devices: true }),
            ..Summary::EMPTY
        };
        for i in 0..100u8 {
            with_sketch.add(f64::from(i), Micros(i64::from(i)));
            with_sketch.sketches.as_mut().unwrap().add(
                f64::from(i),
                "d",
                Some(DeviceNumber(u32::from(i) % 3)),
            );
        }
        let mut single = Summary::EMPTY;
        single.add(-4.25, Micros(-7));
        single.conflicts = 2;
        let only_conflict = Summary { conflicts: 1, ..Summary::EMPTY };
        let mut builder = SummaryColumnsBuilder::default();
        let all = [with_sketch, single, only_conflict];
        for summary in &all {
            builder.append(summary);
        }
        let batch = RecordBatch::try_new(Arc::new(Schema::new(schema_fields())), builder.finish()).unwrap();
        let columns = SummaryColumns::of(&batch).unwrap();
        for (row, summary) in all.iter().enumerate() {
            assert_eq!(columns.summary(row).unwrap(), *summary);
        }
    }
}

//! Summaries as Arrow columns: how they stand in the realtime-views topic and in the batch views.
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
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Float64Array, Float64Builder, Int64Array,
    RecordBatch, TimestampMicrosecondArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, TimestampMicrosecondType};

use crate::DomainError;
use crate::reading::time_type;
use crate::sketches::{Sketches, Stored};
use crate::summary::{CompensatedSum, Summary, Timed};

/// The fields of the table above, in order.
pub fn schema_fields() -> Vec<Field> {
    vec![
        Field::new("count", DataType::Int64, false),
        Field::new("invalid", DataType::Int64, false),
        Field::new("conflicts", DataType::Int64, false),
        Field::new("sum_high", DataType::Float64, false),
        Field::new("sum_low", DataType::Float64, false),
        Field::new("m2", DataType::Float64, false),
        Field::new("min", DataType::Float64, true),
        Field::new("max", DataType::Float64, true),
        Field::new("first", DataType::Float64, true),
        Field::new("last", DataType::Float64, true),
        Field::new("first_time", time_type(), true),
        Field::new("last_time", time_type(), true),
        Field::new("quantiles", DataType::Binary, true),
        Field::new("distinct", DataType::Binary, true),
        Field::new("device_counts", DataType::Binary, true),
    ]
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
        let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.count.push(whole(summary.count));
        self.invalid.push(whole(summary.invalid));
        self.conflicts.push(whole(summary.conflicts));
        self.sum_high.push(summary.sum.high);
        self.sum_low.push(summary.sum.low);
        self.m2.push(summary.m2);
        let some = summary.count > 0;
        self.min.append_option(some.then_some(summary.min));
        self.max.append_option(some.then_some(summary.max));
        self.first.append_option(some.then_some(summary.first.value));
        self.last.append_option(some.then_some(summary.last.value));
        self.first_time.append_option(some.then_some(summary.first.event_time));
        self.last_time.append_option(some.then_some(summary.last.event_time));
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
        let mut built = std::mem::take(self);
        vec![
            Arc::new(Int64Array::from(built.count)),
            Arc::new(Int64Array::from(built.invalid)),
            Arc::new(Int64Array::from(built.conflicts)),
            Arc::new(Float64Array::from(built.sum_high)),
            Arc::new(Float64Array::from(built.sum_low)),
            Arc::new(Float64Array::from(built.m2)),
            Arc::new(built.min.finish()),
            Arc::new(built.max.finish()),
            Arc::new(built.first.finish()),
            Arc::new(built.last.finish()),
            Arc::new(built.first_time.finish().with_timezone("UTC")),
            Arc::new(built.last_time.finish().with_timezone("UTC")),
            Arc::new(built.quantiles.finish()),
            Arc::new(built.distinct.finish()),
            Arc::new(built.device_counts.finish()),
        ]
    }
}

/// Reads summaries out of a batch that has the columns of [`schema_fields`] among others.
#[derive(Clone, Copy, Debug)]
pub struct SummaryColumns<'a> {
    count: &'a Int64Array,
    invalid: &'a Int64Array,
    conflicts: &'a Int64Array,
    sum_high: &'a Float64Array,
    sum_low: &'a Float64Array,
    m2: &'a Float64Array,
    min: &'a Float64Array,
    max: &'a Float64Array,
    first: &'a Float64Array,
    last: &'a Float64Array,
    first_time: &'a TimestampMicrosecondArray,
    last_time: &'a TimestampMicrosecondArray,
    quantiles: &'a BinaryArray,
    distinct: &'a BinaryArray,
    /// Absent in rows of older versions.
    device_counts: Option<&'a BinaryArray>,
}

impl<'a> SummaryColumns<'a> {
    /// Resolves the columns by name.
    ///
    /// # Errors
    /// [`DomainError::Shape`] naming the first column that is absent or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        let column =
            |name: &'static str| batch.column_by_name(name).ok_or(DomainError::Shape { column: name });
        let int =
            |name| column(name)?.as_primitive_opt::<Int64Type>().ok_or(DomainError::Shape { column: name });
        let float =
            |name| column(name)?.as_primitive_opt::<Float64Type>().ok_or(DomainError::Shape { column: name });
        let time = |name| {
            column(name)?
                .as_primitive_opt::<TimestampMicrosecondType>()
                .ok_or(DomainError::Shape { column: name })
        };
        let binary = |name| column(name)?.as_binary_opt::<i32>().ok_or(DomainError::Shape { column: name });
        Ok(Self {
            count: int("count")?,
            invalid: int("invalid")?,
            conflicts: int("conflicts")?,
            sum_high: float("sum_high")?,
            sum_low: float("sum_low")?,
            m2: float("m2")?,
            min: float("min")?,
            max: float("max")?,
            first: float("first")?,
            last: float("last")?,
            first_time: time("first_time")?,
            last_time: time("last_time")?,
            quantiles: binary("quantiles")?,
            distinct: binary("distinct")?,
            device_counts: binary("device_counts").ok(),
        })
    }

    /// The summary in a row.
    ///
    /// # Errors
    /// [`DomainError::Decode`] when a sketch's bytes do not decode.
    pub fn summary(&self, row: usize) -> Result<Summary, DomainError> {
        let whole = |column: &Int64Array| u64::try_from(column.value(row)).unwrap_or_default();
        let count = whole(self.count);
        let bytes = |column: &'a BinaryArray| (!column.is_null(row)).then(|| column.value(row));
        let filled = count > 0;
        let timed = |value: &Float64Array, time: &TimestampMicrosecondArray| Timed {
            value: value.value(row),
            event_time: time.value(row),
        };
        Ok(Summary {
            count,
            invalid: whole(self.invalid),
            conflicts: whole(self.conflicts),
            sum: CompensatedSum { high: self.sum_high.value(row), low: self.sum_low.value(row) },
            m2: self.m2.value(row),
            min: if filled { self.min.value(row) } else { Summary::EMPTY.min },
            max: if filled { self.max.value(row) } else { Summary::EMPTY.max },
            first: if filled { timed(self.first, self.first_time) } else { Summary::EMPTY.first },
            last: if filled { timed(self.last, self.last_time) } else { Summary::EMPTY.last },
            sketches: Sketches::decode(Stored {
                quantiles: bytes(self.quantiles),
                distinct: bytes(self.distinct),
                devices: self.device_counts.and_then(bytes),
            })?,
        })
    }
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
            with_sketch.add(f64::from(i), i64::from(i));
            with_sketch.sketches.as_mut().unwrap().add(
                f64::from(i),
                "d",
                Some(DeviceNumber(u32::from(i) % 3)),
            );
        }
        let mut single = Summary::EMPTY;
        single.add(-4.25, -7);
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

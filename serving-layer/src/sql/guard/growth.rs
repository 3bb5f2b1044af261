//! How long the results of functions get. A function whose result has at most a few times the bytes of its arguments,
//! once, is not listed: nothing can be made large with it that was not large before.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;

use super::sizes::Sizes;

/// The least µs of a month, a day.
const DAY: u64 = 86_400_000_000;

/// How many bytes a row of the result has at most, by the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// The first as often as the second says.
    Copies,
    /// As many characters as the second says.
    Padded,
    /// As many items as the second says.
    Resized,
    /// The third for each occurrence of the second in the first.
    Replaced,
    /// The third for each match in the first, matches repeated in it included.
    Rewritten,
    /// The items of the first with the second between them.
    Joined,
    /// All arguments together.
    Together,
    /// Numbers or times from a start to an end.
    Range,
    /// The time it takes, in steps: the product of both texts.
    Product,
}

impl Growth {
    /// That of a function by its name.
    pub(super) fn of(function: &str) -> Option<Self> {
        Some(match function {
            "repeat" => Self::Copies,
            // The item comes first here too.
            "array_repeat" => Self::Copies,
            "lpad" | "rpad" => Self::Padded,
            "array_resize" => Self::Resized,
            "replace" => Self::Replaced,
            "regexp_replace" => Self::Rewritten,
            "array_to_string" => Self::Joined,
            "concat" | "concat_ws" | "||" | "overlay" | "make_array" | "array_append" | "array_prepend"
            | "array_concat" | "struct" | "named_struct" | "map" | "encode" | "decode" | "to_char"
            | "translate" | "upper" | "lower" | "initcap" | "string_to_array" | "array_replace"
            | "array_replace_n" | "array_replace_all" | "array_union" | "arrays_zip" | "greatest"
            | "least" | "coalesce" => Self::Together,
            "range" | "generate_series" => Self::Range,
            "levenshtein" => Self::Product,
            _ => return None,
        })
    }

    /// Bytes of each row of the result, at most.
    pub(super) fn bytes(self, args: &[ColumnarValue], rows: usize) -> Result<Vec<u64>> {
        let sizes: Vec<Sizes> = args.iter().map(Sizes::of).collect();
        let size = |place: usize, row: usize| sizes.get(place).map_or(0, |sizes| sizes.at(row));
        let each = |bytes: &dyn Fn(usize) -> u64| (0..rows).map(bytes).collect();
        Ok(match self {
            Self::Copies => {
                let times = numbers(args.get(1))?;
                each(&|row| (size(0, row) + 1).saturating_mul(times.at(row)))
            }
            Self::Padded => {
                let length = numbers(args.get(1))?;
                each(&|row| size(0, row).saturating_add(length.at(row).saturating_mul(4)))
            }
            Self::Resized => {
                let items = numbers(args.get(1))?;
                each(&|row| size(0, row).saturating_add(items.at(row).saturating_mul(size(2, row).max(16))))
            }
            Self::Replaced => each(&|row| {
                let found = size(0, row) / size(1, row).max(1) + 1;
                size(0, row).saturating_add(found.saturating_mul(size(2, row)))
            }),
            Self::Rewritten => each(&|row| (size(0, row) + 1).saturating_mul(size(2, row) + 1)),
            Self::Joined => each(&|row| (size(0, row) + 1).saturating_mul(size(1, row) + 6)),
            Self::Together => {
                each(&|row| sizes.iter().map(|sizes| sizes.at(row)).sum::<u64>().saturating_mul(2))
            }
            Self::Product => each(&|row| size(0, row).saturating_mul(size(1, row)) / 64),
            Self::Range => range(args, rows)?,
        })
    }
}

/// A whole number for each row; none and negative ones are zero.
enum Numbers {
    Same(u64),
    Each(arrow::array::Int64Array),
}

impl Numbers {
    fn at(&self, row: usize) -> u64 {
        match self {
            Self::Same(number) => *number,
            Self::Each(numbers) if numbers.is_valid(row) => {
                u64::try_from(numbers.value(row)).unwrap_or_default()
            }
            Self::Each(_) => 0,
        }
    }
}

fn numbers(arg: Option<&ColumnarValue>) -> Result<Numbers> {
    let Some(arg) = arg else { return Ok(Numbers::Same(0)) };
    let values = signed(arg)?;
    Ok(match arg {
        ColumnarValue::Scalar(_) if values.is_valid(0) => {
            Numbers::Same(u64::try_from(values.value(0)).unwrap_or_default())
        }
        ColumnarValue::Scalar(_) => Numbers::Same(0),
        ColumnarValue::Array(_) => Numbers::Each(values),
    })
}

/// Whole numbers; of times their µs, of intervals the least µs that they have.
fn signed(arg: &ColumnarValue) -> Result<arrow::array::Int64Array> {
    let array = arg.to_array(1)?;
    let array = match array.data_type() {
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => {
            arrow::compute::cast(&array, &DataType::Timestamp(TimeUnit::Microsecond, None))?
        }
        DataType::Interval(_) => {
            let exact = arrow::compute::cast(&array, &DataType::Interval(IntervalUnit::MonthDayNano))?;
            let micros = exact.as_primitive::<IntervalMonthDayNanoType>().iter().map(|interval| {
                let interval = interval?;
                let days =
                    u64::from(interval.months.unsigned_abs()) * 28 + u64::from(interval.days.unsigned_abs());
                i64::try_from(days * DAY + interval.nanoseconds.unsigned_abs() / 1_000).ok()
            });
            return Ok(micros.collect());
        }
        _ => array,
    };
    let array = arrow::compute::cast(&array, &DataType::Int64)?;
    Ok(array.as_primitive::<Int64Type>().clone())
}

fn range(args: &[ColumnarValue], rows: usize) -> Result<Vec<u64>> {
    let columns = args.iter().map(signed).collect::<Result<Vec<_>>>()?;
    let at = |place: usize, row: usize| -> Option<i64> {
        let column = columns.get(place)?;
        let row = if matches!(args[place], ColumnarValue::Scalar(_)) { 0 } else { row };
        column.is_valid(row).then(|| column.value(row))
    };
    let each = (0..rows).map(|row| {
        let (start, stop) = match columns.len() {
            1 => (0, at(0, row)),
            _ => match at(0, row) {
                Some(start) => (start, at(1, row)),
                None => return 0,
            },
        };
        let Some(stop) = stop else { return 0 };
        let step = at(2, row).map_or(1, i64::unsigned_abs).max(1);
        (stop.abs_diff(start) / step + 1).saturating_mul(8)
    });
    Ok(each.collect())
}

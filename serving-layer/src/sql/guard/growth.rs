//! How long the results of functions can be. A function whose results are at most a few times as long as its arguments is
//! not listed, since nothing small becomes large by it.

use arrow::array::{Array, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit};
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;

use super::sizes::Sizes;

/// Microseconds of a day.
const DAY: u64 = 86_400_000_000;

/// How the size of a function's result depends on its arguments: the most bytes of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Growth {
    /// The first argument, as often as the second one says.
    Repeated,
    /// As many characters as the second argument says.
    Padded,
    /// As many items as the second argument says.
    Resized,
    /// The third argument for each occurrence of the second one in the first one.
    Replaced,
    /// The third argument for each match in the first one, also where the third one repeats what was matched.
    RegexReplaced,
    /// The items of the first argument with the second one between them.
    Joined,
    /// All arguments together.
    Sum,
    /// Numbers or times from a start to an end.
    Range,
    /// The product of both arguments is the number of steps that it takes; the result is small.
    Product,
}

impl Growth {
    /// That of a function by its name; `None` where the result is not much longer than the arguments.
    pub(super) fn of(function: &str) -> Option<Self> {
        Some(match function {
            "repeat" | "array_repeat" => Self::Repeated,
            "lpad" | "rpad" => Self::Padded,
            "array_resize" => Self::Resized,
            "replace" => Self::Replaced,
            "regexp_replace" => Self::RegexReplaced,
            "array_to_string" => Self::Joined,
            "concat" | "concat_ws" | "||" | "overlay" | "make_array" | "array_append" | "array_prepend"
            | "array_concat" | "struct" | "named_struct" | "map" | "encode" | "decode" | "to_char"
            | "translate" | "upper" | "lower" | "initcap" | "string_to_array" | "array_replace"
            | "array_replace_n" | "array_replace_all" | "array_union" | "arrays_zip" | "greatest"
            | "least" | "coalesce" => Self::Sum,
            "range" | "generate_series" => Self::Range,
            "levenshtein" => Self::Product,
            _ => return None,
        })
    }

    /// The most bytes of each row of the result.
    pub(super) fn bytes(self, args: &[ColumnarValue], rows: usize) -> Result<Vec<u64>> {
        let sizes: Vec<Sizes> = args.iter().map(Sizes::of).collect();
        let numbers = self.numbers(args).iter().map(whole_numbers).collect::<Result<Vec<_>>>()?;
        Ok((0..rows).map(|row| self.row_bytes(&sizes, &numbers, row)).collect())
    }

    /// The arguments that say how long the result is.
    fn numbers(self, args: &[ColumnarValue]) -> &[ColumnarValue] {
        match self {
            Self::Repeated | Self::Padded | Self::Resized => args.get(1..2).unwrap_or_default(),
            Self::Range => args,
            _ => &[],
        }
    }

    /// The most bytes of one row, by the sizes of all arguments and the values of [`Growth::numbers`].
    fn row_bytes(self, sizes: &[Sizes], numbers: &[Int64Array], row: usize) -> u64 {
        let [first, second, third] = [0, 1, 2].map(|index| sizes.get(index).map_or(0, |sizes| sizes.at(row)));
        let number = numbers.first().and_then(|numbers| value_at(numbers, row)).unwrap_or(0);
        let number = u64::try_from(number).unwrap_or(0);
        match self {
            Self::Repeated => (first + 1).saturating_mul(number),
            Self::Padded => first.saturating_add(number.saturating_mul(4)),
            Self::Resized => first.saturating_add(number.saturating_mul(third.max(16))),
            Self::Replaced => first.saturating_add((first / second.max(1) + 1).saturating_mul(third)),
            Self::RegexReplaced => (first + 1).saturating_mul(third + 1),
            Self::Joined => (first + 1).saturating_mul(second + 6),
            Self::Sum => sizes.iter().map(|sizes| sizes.at(row)).sum::<u64>().saturating_mul(2),
            Self::Product => first.saturating_mul(second) / 64,
            Self::Range => range_bytes(numbers, row).unwrap_or(0),
        }
    }
}

/// An argument as whole numbers: times in µs, intervals in the least µs that they can have. One value where it is the same
/// in every row.
fn whole_numbers(arg: &ColumnarValue) -> Result<Int64Array> {
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

/// The value in a row of whole numbers, where one value counts for every row.
fn value_at(numbers: &Int64Array, row: usize) -> Option<i64> {
    let row = if numbers.len() == 1 { 0 } else { row };
    numbers.is_valid(row).then(|| numbers.value(row))
}

/// The bytes of a range from a start (0 if there is only one argument) to an end in steps (of 1 if there is no third
/// argument); `None` where one of them is null.
fn range_bytes(args: &[Int64Array], row: usize) -> Option<u64> {
    let (start, end) = match args {
        [end] => (0, value_at(end, row)?),
        [start, end, ..] => (value_at(start, row)?, value_at(end, row)?),
        [] => return None,
    };
    let step = args.get(2).and_then(|step| value_at(step, row)).map_or(1, i64::unsigned_abs).max(1);
    Some((end.abs_diff(start) / step + 1).saturating_mul(8))
}

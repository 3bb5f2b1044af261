//! How many bytes values have, row by row; an estimate that is good enough to limit what is made of them.

use std::ops::Range;

use arrow::array::{Array, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::ColumnarValue;

/// Bytes of each row of an argument.
pub(super) enum Sizes {
    /// The same in every row.
    Same(u64),
    Each(Vec<u64>),
}

impl Sizes {
    pub(super) fn of(value: &ColumnarValue) -> Self {
        match value {
            ColumnarValue::Scalar(value) => Self::Same(bytes(value)),
            ColumnarValue::Array(array) => Self::Each(row_bytes(array)),
        }
    }

    pub(super) fn at(&self, row: usize) -> u64 {
        match self {
            Self::Same(bytes) => *bytes,
            Self::Each(bytes) => bytes.get(row).copied().unwrap_or_default(),
        }
    }
}

/// Bytes of a value.
fn bytes(value: &ScalarValue) -> u64 {
    match value {
        ScalarValue::Utf8(text) | ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text) => {
            text.as_ref().map_or(0, |text| text.len() as u64)
        }
        ScalarValue::Dictionary(_, value) => bytes(value),
        value => value.size() as u64,
    }
}

/// Bytes of each row of an array.
pub(super) fn row_bytes(array: &dyn Array) -> Vec<u64> {
    let rows = 0..array.len();
    match array.data_type() {
        DataType::Utf8 => each(rows, |row| array.as_string::<i32>().value_length(row) as usize),
        DataType::LargeUtf8 => each(rows, |row| array.as_string::<i64>().value_length(row) as usize),
        DataType::Binary => each(rows, |row| array.as_binary::<i32>().value_length(row) as usize),
        DataType::LargeBinary => each(rows, |row| array.as_binary::<i64>().value_length(row) as usize),
        DataType::Utf8View => array.as_string_view().lengths().map(u64::from).collect(),
        DataType::BinaryView => array.as_binary_view().lengths().map(u64::from).collect(),
        DataType::List(_) => {
            let lists: &ListArray = array.as_list();
            let item = average(lists.values().as_ref());
            each(rows, |row| lists.value_length(row) as usize * item + 4)
        }
        DataType::LargeList(_) => {
            let lists = array.as_list::<i64>();
            let item = average(lists.values().as_ref());
            each(rows, |row| lists.value_length(row) as usize * item + 8)
        }
        DataType::Map(..) => {
            let maps = array.as_map();
            let item = average(maps.entries());
            each(rows, |row| maps.value_length(row) as usize * item + 4)
        }
        DataType::Dictionary(key, _) if **key == DataType::Int32 => {
            let words = array.as_dictionary::<Int32Type>();
            let bytes = row_bytes(words.values().as_ref());
            words.keys().iter().map(|key| key.map_or(0, |key| bytes[key as usize])).collect()
        }
        DataType::Struct(_) => {
            let mut all = vec![0; rows.len()];
            for column in array.as_struct().columns() {
                all.iter_mut().zip(row_bytes(column.as_ref())).for_each(|(sum, bytes)| *sum += bytes);
            }
            all
        }
        _ => vec![average(array) as u64; rows.len()],
    }
}

fn each(rows: Range<usize>, bytes: impl Fn(usize) -> usize) -> Vec<u64> {
    rows.map(|row| bytes(row) as u64).collect()
}

/// Bytes of the largest row of a batch, in columns whose values have no fixed size.
pub(super) fn largest_row(batch: &RecordBatch) -> u64 {
    let mut all = vec![0; batch.num_rows()];
    for column in batch.columns() {
        if has_fixed_size(column.data_type()) {
            continue;
        }
        all.iter_mut().zip(row_bytes(column.as_ref())).for_each(|(sum, bytes)| *sum += bytes);
    }
    all.into_iter().max().unwrap_or_default()
}

fn has_fixed_size(data_type: &DataType) -> bool {
    data_type.is_primitive() || matches!(data_type, DataType::Boolean | DataType::Null)
}

/// Bytes of an item, on average.
fn average(array: &dyn Array) -> usize {
    match array.data_type().primitive_width() {
        Some(width) => width,
        None => array.get_array_memory_size().checked_div(array.len()).unwrap_or_default() + 1,
    }
}

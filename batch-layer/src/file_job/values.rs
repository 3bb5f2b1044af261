//! The types of columns, and values of a recipe as values of these types.

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use serde::{Deserialize, Serialize};

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ColumnType {
    Text,
    Integer,
    Float,
    Boolean,
    Date,
    Timestamp,
}

impl ColumnType {
    /// The type in the table; times are in UTC, in microseconds.
    pub(crate) fn arrow(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Integer => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Boolean => DataType::Boolean,
            Self::Date => DataType::Date32,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        }
    }

    /// Whether it is a date or a time.
    pub(crate) fn is_time(self) -> bool {
        matches!(self, Self::Date | Self::Timestamp)
    }
}

/// Whether a type has texts.
pub(crate) fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// The name of a type in messages and reports.
pub(crate) fn type_name(data_type: &DataType) -> String {
    match data_type {
        text if is_text(text) => "text".to_owned(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "float".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        integer if integer.is_integer() => "integer".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

/// A bound of a recipe as a value of a column's type.
///
/// # Errors
/// When it is not such a value.
pub(crate) fn bound(written: &toml::Value, data_type: &DataType) -> Result<ScalarValue, String> {
    let is_float = data_type.is_floating() || data_type.is_decimal();
    let value = match written {
        toml::Value::Integer(number) if data_type.is_integer() || is_float => {
            ScalarValue::Int64(Some(*number))
        }
        // A bound such as 0.5 of integers is compared as a float.
        toml::Value::Float(number) if data_type.is_integer() || is_float => {
            return Ok(ScalarValue::Float64(Some(*number)));
        }
        toml::Value::Datetime(time) if data_type.is_temporal() => ScalarValue::Utf8(Some(time.to_string())),
        toml::Value::String(text) if data_type.is_temporal() => ScalarValue::Utf8(Some(text.clone())),
        _ if data_type.is_numeric() || data_type.is_temporal() => {
            return Err(format!("{written} is not a value of a column of type {}", type_name(data_type)));
        }
        _ => {
            return Err(format!(
                "a column of type {} has no bounds; give it a type, such as type = \"float\"",
                type_name(data_type)
            ));
        }
    };
    match value.cast_to(data_type) {
        Ok(value) if !value.is_null() => Ok(value),
        _ => Err(format!("{written} is not a value of a column of type {}", type_name(data_type))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_has_the_type_of_its_column() {
        let day = toml::Value::String("2026-01-31".to_owned());
        assert_eq!(bound(&day, &DataType::Date32), Ok(ScalarValue::Date32(Some(20_484))));
        assert_eq!(bound(&toml::Value::Integer(2), &DataType::Float64), Ok(ScalarValue::Float64(Some(2.0))));
        assert!(bound(&day, &DataType::Int64).is_err());
        assert!(bound(&toml::Value::Integer(2), &DataType::Utf8).unwrap_err().contains("type ="));
        assert!(bound(&toml::Value::String("soon".to_owned()), &DataType::Date32).is_err());
    }
}

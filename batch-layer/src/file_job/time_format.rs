//! Reads dates and times of a format of a recipe, as a function of DataFusion's expressions. A text that is not of the
//! format has no value.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Date32Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use chrono::format::{Item, Parsed, StrftimeItems};
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, Expr, Volatility, create_udf};

use super::values::ColumnType;

/// Days of 1970-01-01 in chrono's calendar.
const EPOCH_DAYS: i32 = 719_163;

/// The values of a text as dates or timestamps of a format.
pub(crate) fn parsed(text: Expr, format: &str, kind: ColumnType) -> Expr {
    let name = format!("parsed_{kind:?}_{format}");
    let format = format.to_owned();
    let function = create_udf(
        &name,
        vec![DataType::Utf8],
        kind.arrow(),
        Volatility::Immutable,
        Arc::new(move |arguments| apply(arguments, &format, kind)),
    );
    function.call(vec![text])
}

/// Checks that a format is one of chrono's.
///
/// # Errors
/// When it is not.
pub(crate) fn check_format(format: &str) -> Result<(), String> {
    let is_wrong = StrftimeItems::new(format).any(|item| matches!(item, Item::Error));
    if is_wrong || !format.contains('%') {
        return Err(format!("{format:?} is not a format; write for example format = \"%d/%m/%Y %H:%M:%S\""));
    }
    Ok(())
}

fn apply(
    arguments: &[ColumnarValue],
    format: &str,
    kind: ColumnType,
) -> Result<ColumnarValue, DataFusionError> {
    let arrays = ColumnarValue::values_to_arrays(arguments)?;
    let [texts] = arrays.as_slice() else {
        return Err(DataFusionError::Internal("one argument is expected".to_owned()));
    };
    let texts: &StringArray = texts.as_string();
    let times = texts.iter().map(|text| time(text?, format));
    let array: ArrayRef = match kind {
        ColumnType::Date => {
            let days = times.map(|time| Some(chrono::Datelike::num_days_from_ce(&time?.date()) - EPOCH_DAYS));
            Arc::new(days.collect::<Date32Array>())
        }
        _ => {
            let micros = times.map(|time| Some(time?.and_utc().timestamp_micros()));
            Arc::new(micros.collect::<TimestampMicrosecondArray>())
        }
    };
    Ok(ColumnarValue::Array(array))
}

/// The time of a text; midnight where the format has no hour, and in UTC where the format has a zone.
fn time(text: &str, format: &str) -> Option<NaiveDateTime> {
    if let Ok(zoned) = DateTime::parse_from_str(text, format) {
        return Some(zoned.naive_utc());
    }
    let mut parsed = Parsed::new();
    chrono::format::parse(&mut parsed, text, StrftimeItems::new(format)).ok()?;
    // Seconds since 1970, as `%s` has them, are date and time together.
    if parsed.timestamp().is_some() {
        return parsed.to_naive_datetime_with_offset(0).ok();
    }
    let date: NaiveDate = parsed.to_naive_date().ok()?;
    match parsed.hour_mod_12() {
        None => Some(date.and_time(NaiveTime::MIN)),
        Some(_) => Some(date.and_time(parsed.to_naive_time().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_the_format_has_a_time() {
        for (text, format, expected) in [
            ("31/01/2026", "%d/%m/%Y", Some("2026-01-31T00:00:00")),
            ("31.1.2026 7:05", "%d.%m.%Y %H:%M", Some("2026-01-31T07:05:00")),
            ("2026-01-31 12:00:00 +0200", "%Y-%m-%d %H:%M:%S %z", Some("2026-01-31T10:00:00")),
            ("86400", "%s", Some("1970-01-02T00:00:00")),
            ("31/02/2026", "%d/%m/%Y", None),
            ("31/01/2026 x", "%d/%m/%Y", None),
            ("", "%d/%m/%Y", None),
        ] {
            let found = time(text, format).map(|time| time.format("%Y-%m-%dT%H:%M:%S").to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_wrong_format_is_rejected() {
        check_format("%Y-%m-%d").unwrap();
        assert!(check_format("%Q").is_err() && check_format("day").is_err());
    }
}

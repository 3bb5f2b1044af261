//! Statistics of a file as Delta keeps them: rows, smallest and largest values, null counts. Must not know which
//! columns matter to whom.
//!
//! Format: <https://github.com/delta-io/delta/blob/master/PROTOCOL.md#per-file-statistics>

use arrow::datatypes::{DataType, Schema, TimeUnit};
use chrono::{DateTime, SecondsFormat, Timelike, Utc};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Longer texts get no bounds: the log must stay small, and a cut bound would be wrong for ordering files.
const LONGEST_TEXT: usize = 256;

/// Parsed statistics of a file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FileStats {
    /// Rows in the file.
    pub(crate) num_records: u64,
    /// A lower bound per column; exact but for times, which are cut to milliseconds.
    #[serde(default)]
    pub(crate) min_values: Map<String, Value>,
    /// An upper bound per column.
    #[serde(default)]
    pub(crate) max_values: Map<String, Value>,
    /// Nulls per column.
    #[serde(default)]
    pub(crate) null_count: Map<String, Value>,
}

impl FileStats {
    /// Reads what [`of_parquet`] gave or another engine wrote; `None` where that does not even say how many rows there
    /// are, which statistics in Delta may leave out.
    pub(crate) fn parse(json: Option<&str>) -> Option<Self> {
        serde_json::from_str(json?).ok()
    }

    /// The form in a log entry.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("maps of JSON values are JSON")
    }

    /// The bounds of a text column; `None` when unknown.
    pub(crate) fn text_bounds(&self, column: &str) -> Option<(&str, &str)> {
        Some((self.min_values.get(column)?.as_str()?, self.max_values.get(column)?.as_str()?))
    }

    /// The bounds of a time column in µs; `None` when unknown.
    pub(crate) fn time_bounds(&self, column: &str) -> Option<(i64, i64)> {
        let micros = |value: &Value| {
            DateTime::parse_from_rfc3339(value.as_str()?).ok().map(|time| time.timestamp_micros())
        };
        Some((micros(self.min_values.get(column)?)?, micros(self.max_values.get(column)?)?))
    }

    /// Whether a column is known to hold nothing but nulls.
    pub(crate) fn is_all_null(&self, column: &str) -> bool {
        self.null_count.get(column).and_then(Value::as_u64) == Some(self.num_records)
    }

    /// The bounds of an integer column; `None` when unknown.
    pub(crate) fn integer_bounds(&self, column: &str) -> Option<(i64, i64)> {
        Some((self.min_values.get(column)?.as_i64()?, self.max_values.get(column)?.as_i64()?))
    }
}

/// The statistics of a file, from what its footer says. Nested columns get none.
pub(crate) fn of_parquet(metadata: &ParquetMetaData, schema: &Schema) -> FileStats {
    let leaves = metadata.file_metadata().schema_descr().columns().to_vec();
    let mut stats = FileStats {
        num_records: u64::try_from(metadata.file_metadata().num_rows()).unwrap_or_default(),
        ..FileStats::default()
    };
    for (index, leaf) in leaves.iter().enumerate() {
        let [name] = leaf.path().parts() else { continue };
        let Ok(field) = schema.field_with_name(name) else { continue };
        let mut bounds: Option<(Bound, Bound)> = None;
        let (mut nulls, mut counted, mut bounded) = (0, true, true);
        for group in metadata.row_groups() {
            let Some(found) = group.column(index).statistics() else {
                (counted, bounded) = (false, false);
                break;
            };
            match found.null_count_opt() {
                Some(count) => nulls += count,
                None => counted = false,
            }
            let group_rows = u64::try_from(group.num_rows()).unwrap_or_default();
            if found.null_count_opt() == Some(group_rows) {
                continue;
            }
            match (Bound::of(found), &mut bounds) {
                (Some((min, max)), None) => bounds = Some((min, max)),
                (Some((min, max)), Some(bounds)) => {
                    if min.is_below(&bounds.0) {
                        bounds.0 = min;
                    }
                    if bounds.1.is_below(&max) {
                        bounds.1 = max;
                    }
                }
                (None, _) => bounded = false,
            }
        }
        if counted {
            stats.null_count.insert(name.clone(), nulls.into());
        }
        if let Some((min, max)) = bounds.filter(|_| bounded)
            && let (Some(min), Some(max)) =
                (min.to_json(field.data_type(), Side::Low), max.to_json(field.data_type(), Side::High))
        {
            stats.min_values.insert(name.clone(), min);
            stats.max_values.insert(name.clone(), max);
        }
    }
    stats
}

enum Bound {
    Whole(i64),
    Float(f64),
    Text(String),
}

#[derive(Clone, Copy)]
enum Side {
    Low,
    High,
}

impl Bound {
    fn of(statistics: &Statistics) -> Option<(Self, Self)> {
        Some(match statistics {
            Statistics::Int32(found) => {
                (Self::Whole((*found.min_opt()?).into()), Self::Whole((*found.max_opt()?).into()))
            }
            Statistics::Int64(found) => (Self::Whole(*found.min_opt()?), Self::Whole(*found.max_opt()?)),
            Statistics::Float(found) => {
                (Self::Float((*found.min_opt()?).into()), Self::Float((*found.max_opt()?).into()))
            }
            Statistics::Double(found) => (Self::Float(*found.min_opt()?), Self::Float(*found.max_opt()?)),
            Statistics::ByteArray(found) if found.min_is_exact() && found.max_is_exact() => {
                let text = |bytes: &[u8]| {
                    (bytes.len() <= LONGEST_TEXT)
                        .then(|| std::str::from_utf8(bytes).ok().map(str::to_owned))?
                };
                (Self::Text(text(found.min_opt()?.data())?), Self::Text(text(found.max_opt()?.data())?))
            }
            _ => return None,
        })
    }

    fn is_below(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a < b,
            (Self::Float(a), Self::Float(b)) => a < b,
            (Self::Text(a), Self::Text(b)) => a < b,
            _ => false,
        }
    }

    fn to_json(&self, data_type: &DataType, side: Side) -> Option<Value> {
        match (self, data_type) {
            (Self::Whole(micros), DataType::Timestamp(TimeUnit::Microsecond, _)) => {
                let time = DateTime::<Utc>::from_timestamp_micros(*micros)?;
                let cut = time.with_nanosecond(time.nanosecond() / 1_000_000 * 1_000_000)?;
                let time = match side {
                    Side::High if cut < time => cut.checked_add_signed(chrono::TimeDelta::milliseconds(1))?,
                    _ => cut,
                };
                // Beyond the year 9999 the text form is not one that every engine reads.
                let text = time.to_rfc3339_opts(SecondsFormat::Millis, true);
                (text.len() == "2026-01-31T12:00:00.000Z".len()).then_some(Value::String(text))
            }
            (Self::Whole(days), DataType::Date32) => {
                let date = DateTime::<Utc>::from_timestamp(days.checked_mul(86_400)?, 0)?.date_naive();
                Some(Value::String(date.to_string()))
            }
            (Self::Whole(_), DataType::Timestamp(..) | DataType::Decimal128(..)) => None,
            (Self::Whole(whole), _) => Some((*whole).into()),
            (Self::Float(float), _) => serde_json::Number::from_f64(*float).map(Value::Number),
            (Self::Text(text), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => {
                Some(Value::String(text.clone()))
            }
            (Self::Text(text), DataType::Dictionary(_, value)) => match value.as_ref() {
                DataType::Utf8 | DataType::LargeUtf8 => Some(Value::String(text.clone())),
                _ => None,
            },
            (Self::Text(_), _) => None,
        }
    }
}

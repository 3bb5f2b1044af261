//! A mapping applied to the header of one file: column names become column indices. It must not know any row.

use std::path::Path;
use std::sync::Arc;

use arrow::array::StringArray;
use csv::ByteRecord;

use crate::csv_source::device_from_file_name;
use crate::error::DatasetError;
use crate::mapping::time::{Parts, TextFormat, TimeRule, Zone};
use crate::mapping::{DeviceRule, Mapping, Missing, Origin};

/// The columns to read from each row.
pub(super) struct Plan {
    /// The number of columns of the file.
    pub(super) columns: usize,
    /// The names of all columns.
    pub(super) names: Vec<String>,
    pub(super) decimal_mark: u8,
    pub(super) missing: Missing,
    pub(super) time: TimePlan,
    pub(super) device: DevicePlan,
    pub(super) tags: Vec<(String, TagValue)>,
    pub(super) metrics: Vec<MetricPlan>,
    pub(super) metric_names: Arc<StringArray>,
    pub(super) units: Arc<StringArray>,
}

pub(super) enum TimePlan {
    Text {
        columns: Vec<usize>,
        format: TextFormat,
    },
    Parts {
        /// Year, month, day.
        date: [usize; 3],
        /// Hour, minute, second; each is 0 without a column.
        time: [Option<usize>; 3],
        zone: Zone,
    },
}

pub(super) enum DevicePlan {
    Constant(String),
    Column { column: usize, prefix: String },
}

pub(super) enum TagValue {
    Constant(String),
    Column(usize),
}

pub(super) struct MetricPlan {
    pub(super) column: usize,
    pub(super) scale: f64,
    pub(super) offset: f64,
    /// The index of its unit in [`Plan::units`].
    pub(super) unit: Option<i32>,
}

impl Plan {
    pub(super) fn new(mapping: &Mapping, header: &ByteRecord, path: &Path) -> Result<Self, DatasetError> {
        let header = Header { mapping, path, names: header };
        let mut units = Vec::<&str>::new();
        let mut metrics = Vec::new();
        for (index, metric) in mapping.metrics.iter().enumerate() {
            let unit = metric.unit.as_deref().map(|unit| {
                let index = units.iter().position(|other| *other == unit);
                index.unwrap_or_else(|| {
                    units.push(unit);
                    units.len() - 1
                }) as i32
            });
            let column = header.find(&format!("metric[{index}].column"), &metric.column)?;
            metrics.push(MetricPlan { column, scale: metric.scale, offset: metric.offset, unit });
        }
        Ok(Self {
            columns: header.names.len(),
            names: header.names.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect(),
            decimal_mark: mapping.decimal_mark,
            missing: mapping.missing.clone(),
            time: header.time()?,
            device: header.device()?,
            tags: header.tags()?,
            metrics,
            metric_names: Arc::new(StringArray::from_iter_values(
                mapping.metrics.iter().map(|m| m.name.as_str()),
            )),
            units: Arc::new(StringArray::from(units)),
        })
    }
}

struct Header<'a> {
    mapping: &'a Mapping,
    path: &'a Path,
    names: &'a ByteRecord,
}

impl Header<'_> {
    /// The index of the column that the mapping names under `key`.
    fn find(&self, key: &str, column: &str) -> Result<usize, DatasetError> {
        let mut indices =
            self.names.iter().enumerate().filter(|(_, name)| name.trim_ascii() == column.as_bytes());
        let problem = match (indices.next(), indices.next()) {
            (Some((index, _)), None) => return Ok(index),
            (Some(_), Some(_)) => {
                let file = self.path.display();
                format!("`{column}` is twice in the header of {file}; rename one of the two there")
            }
            (None, _) => {
                let names: Vec<_> = self.names.iter().map(String::from_utf8_lossy).collect();
                let (file, names) = (self.path.display(), names.join(", "));
                format!("{file} has no column `{column}`; write one of: {names}")
            }
        };
        Err(DatasetError::Mapping { path: self.mapping.source.clone(), key: key.to_owned(), problem })
    }

    /// The index of the column of a part of the time.
    fn find_part(&self, part: &str, column: &str) -> Result<usize, DatasetError> {
        self.find(&format!("time.parts.{part}"), column)
    }

    /// As [`Self::find_part`], for a part that the mapping may leave out.
    fn find_optional_part(&self, part: &str, column: Option<&String>) -> Result<Option<usize>, DatasetError> {
        column.map(|column| self.find_part(part, column)).transpose()
    }

    fn time(&self) -> Result<TimePlan, DatasetError> {
        match &self.mapping.time {
            TimeRule::Text { columns, format } => {
                let columns: Result<_, _> =
                    columns.iter().map(|column| self.find("time.columns", column)).collect();
                Ok(TimePlan::Text { columns: columns?, format: format.clone() })
            }
            TimeRule::Parts { parts: Parts { year, month, day, hour, minute, second }, zone } => {
                let date = [
                    self.find_part("year", year)?,
                    self.find_part("month", month)?,
                    self.find_part("day", day)?,
                ];
                let time = [
                    self.find_optional_part("hour", hour.as_ref())?,
                    self.find_optional_part("minute", minute.as_ref())?,
                    self.find_optional_part("second", second.as_ref())?,
                ];
                Ok(TimePlan::Parts { date, time, zone: *zone })
            }
        }
    }

    fn device(&self) -> Result<DevicePlan, DatasetError> {
        Ok(match &self.mapping.device {
            DeviceRule::Constant(device) => DevicePlan::Constant(device.clone()),
            DeviceRule::FileName => DevicePlan::Constant(device_from_file_name(self.path)),
            DeviceRule::Column { column, prefix } => {
                DevicePlan::Column { column: self.find("device.column", column)?, prefix: prefix.clone() }
            }
        })
    }

    fn tags(&self) -> Result<Vec<(String, TagValue)>, DatasetError> {
        let mut tags = Vec::new();
        for (key, origin) in &self.mapping.tags {
            let value = match origin {
                Origin::Constant(value) => TagValue::Constant(value.clone()),
                Origin::Column(column) => TagValue::Column(self.find(&format!("tags.{key}.column"), column)?),
            };
            tags.push((key.clone(), value));
        }
        Ok(tags)
    }
}

//! What a scan needs to know about a file of readings besides its statistics, stored as tags of its `Add` action. Must not
//! know how scans use it.
//!
//! Stability contract: the tags `wye.offsets`, `wye.devices`, `wye.order` and `wye.file` are in the logs of all existing
//! tables, and `wye.arrival`, `wye.times` and `wye.late` of newer ones. A file without them (of another engine), or with those of another file, is
//! filtered, sorted and read for them by each scan.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use serde::{Deserialize, Serialize};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::TextColumn;
use wye_domain::time::{Micros, Span};
use wye_metrics::confidence::Arrival;

use crate::columns::{DEVICE_ID, EVENT_TIME, INGEST_TIME, KAFKA_OFFSET, KAFKA_PARTITION, READING_ORDER};
use crate::delta::{DataFile, order_tag};
use crate::event_times::{EventTimes, OF_FILE};

const OFFSETS: &str = "wye.offsets";
const DEVICES: &str = "wye.devices";
const ARRIVAL: &str = "wye.arrival";
const TIMES: &str = "wye.times";
const LATE: &str = "wye.late";

/// A reading that arrives this long after its event time is late.
const LATE_AFTER: Span = Span::from_mins(1);

/// About how many devices are sampled per file.
const SAMPLES: usize = 8;

/// The smallest and the largest offset of a Kafka partition in a file. Stored as a pair of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OffsetSpan(pub(crate) Offset, pub(crate) Offset);

/// The tags of a file of readings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FileTags {
    /// Which offsets of which Kafka partition are in the file.
    pub(crate) offsets: BTreeMap<KafkaPartition, OffsetSpan>,
    /// The devices of evenly spaced rows of the file, in order: each represents the same share of the rows.
    pub(crate) devices: Vec<String>,
    /// When the rows have arrived; `None` where that was not stored.
    pub(crate) arrival: Option<Arrival>,
    /// When they were measured; `None` where that was not stored.
    pub(crate) times: Option<EventTimes>,
    /// Whether all rows are late ([`is_late`]); `None` without rows, and where that was not stored.
    pub(crate) late: Option<bool>,
}

impl FileTags {
    /// Adds the file's next rows, which have the columns of [`crate::columns::stored_schema`].
    pub(crate) fn add(&mut self, readings: &RecordBatch) {
        let kafka_partitions = readings
            .column_by_name(KAFKA_PARTITION)
            .and_then(|column| column.as_primitive_opt::<Int32Type>());
        let offsets =
            readings.column_by_name(KAFKA_OFFSET).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let (Some(kafka_partitions), Some(offsets)) = (kafka_partitions, offsets) else { return };
        for (kafka_partition, offset) in kafka_partitions.values().iter().zip(offsets.values()) {
            let (kafka_partition, offset) = (KafkaPartition(*kafka_partition), Offset(*offset));
            let span = self.offsets.entry(kafka_partition).or_insert(OffsetSpan(offset, offset));
            *span = OffsetSpan(span.0.min(offset), span.1.max(offset));
        }
        if let Some(arrived) = arrival_of(readings) {
            self.arrival.get_or_insert_default().merge(&arrived);
        }
        if let Some(late) = late_rows(readings) {
            let all = late.iter().all(|late| *late);
            self.late = Some(self.late.unwrap_or(true) && all);
        }
        if let Some(times) = times_of(readings, EVENT_TIME) {
            self.times.get_or_insert_default().add(times, OF_FILE);
        }
        let Ok(devices) = TextColumn::of(readings, DEVICE_ID) else { return };
        let step = readings.num_rows().div_ceil(SAMPLES).max(1);
        let sampled = (0..readings.num_rows()).step_by(step).filter_map(|row| devices.text(row));
        self.devices.extend(sampled.map(str::to_owned));
    }

    /// The tags of a stored file; `None` where it has none.
    pub(crate) fn of(file: &DataFile) -> Option<Self> {
        Some(Self {
            offsets: serde_json::from_str(file.tag(OFFSETS)?).ok()?,
            devices: serde_json::from_str(file.tag(DEVICES)?).ok()?,
            arrival: file.tag(ARRIVAL).and_then(|arrival| serde_json::from_str(arrival).ok()),
            times: file.tag(TIMES).and_then(|times| serde_json::from_str(times).ok()),
            late: file.tag(LATE).map(|late| late == "true"),
        })
    }

    /// The tags as they are stored in the log.
    pub(crate) fn to_delta(&self) -> serde_json::Result<HashMap<String, Option<String>>> {
        let step = self.devices.len().div_ceil(SAMPLES).max(1);
        let devices: Vec<&String> = self.devices.iter().step_by(step).collect();
        let mut tags = HashMap::from([
            order_tag(&READING_ORDER),
            (OFFSETS.to_owned(), Some(serde_json::to_string(&self.offsets)?)),
            (DEVICES.to_owned(), Some(serde_json::to_string(&devices)?)),
        ]);
        if let Some(arrival) = &self.arrival {
            tags.insert(ARRIVAL.to_owned(), Some(serde_json::to_string(arrival)?));
        }
        if let Some(times) = &self.times {
            tags.insert(TIMES.to_owned(), Some(serde_json::to_string(times)?));
        }
        if let Some(late) = self.late {
            tags.insert(LATE.to_owned(), Some(late.to_string()));
        }
        Ok(tags)
    }
}

/// When rows have arrived; `None` where they lack the event time or the ingest time.
pub(crate) fn arrival_of(readings: &RecordBatch) -> Option<Arrival> {
    let (event_time, ingest_time) = times_of(readings, EVENT_TIME).zip(times_of(readings, INGEST_TIME))?;
    let mut arrival = Arrival::default();
    for (event_time, ingest_time) in event_time.iter().zip(ingest_time) {
        arrival.add(Micros(*event_time), Micros(*ingest_time));
    }
    Some(arrival)
}

/// A column of times in microseconds; `None` where there is none of this name.
pub(crate) fn times_of<'a>(readings: &'a RecordBatch, name: &str) -> Option<&'a [i64]> {
    let column = readings.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
    Some(column.values())
}

/// By row: whether it is late; `None` where the rows lack a time.
pub(crate) fn late_rows(readings: &RecordBatch) -> Option<Vec<bool>> {
    let (event_time, ingest_time) = times_of(readings, EVENT_TIME).zip(times_of(readings, INGEST_TIME))?;
    let rows = event_time.iter().zip(ingest_time);
    Some(rows.map(|(event_time, ingest_time)| is_late(Micros(*event_time), Micros(*ingest_time))).collect())
}

/// Whether a reading has arrived late.
fn is_late(event_time: Micros, ingest_time: Micros) -> bool {
    ingest_time - event_time > LATE_AFTER
}

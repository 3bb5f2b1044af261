//! What a scan must know of a file of readings beyond its statistics, kept as tags of its `Add` action. Must not know
//! how scans use it.
//!
//! Stability contract: the tags `wye.offsets`, `wye.devices`, `wye.order` and `wye.file` are in the log of every table
//! ever written. A file without them (written by another engine), or with those of another file, is scanned with all
//! filters and sorted on the way.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use serde::{Deserialize, Serialize};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::TextColumn;

use crate::columns::READING_ORDER;
use crate::delta::{DataFile, order_tag};

const OFFSETS: &str = "wye.offsets";
const DEVICES: &str = "wye.devices";

/// About how many devices are noted per file.
const SAMPLES: usize = 8;

/// The smallest and the largest offset of a Kafka partition in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OffsetSpan(pub(crate) Offset, pub(crate) Offset);

/// What is noted of a file of readings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileTags {
    /// Which offsets of which Kafka partition are in the file.
    pub(crate) offsets: BTreeMap<KafkaPartition, OffsetSpan>,
    /// Devices at even distances through the file, in order: each stands for the same share of its rows.
    pub(crate) devices: Vec<String>,
}

impl FileTags {
    /// Takes note of the file's next rows, which have the columns of [`crate::columns::stored_schema`].
    pub(crate) fn add(&mut self, readings: &RecordBatch) {
        let kafka_partition =
            readings.column_by_name("kafka_partition").map(|c| c.as_primitive::<Int32Type>());
        let kafka_offset = readings.column_by_name("kafka_offset").map(|c| c.as_primitive::<Int64Type>());
        let (Some(kafka_partition), Some(kafka_offset)) = (kafka_partition, kafka_offset) else { return };
        for (kafka_partition, offset) in kafka_partition.values().iter().zip(kafka_offset.values()) {
            let (kafka_partition, offset) = (KafkaPartition(*kafka_partition), Offset(*offset));
            let span = self.offsets.entry(kafka_partition).or_insert(OffsetSpan(offset, offset));
            *span = OffsetSpan(span.0.min(offset), span.1.max(offset));
        }
        let Ok(devices) = TextColumn::of(readings, "device_id") else { return };
        let step = readings.num_rows().div_ceil(SAMPLES).max(1);
        let sampled = (0..readings.num_rows()).step_by(step).filter_map(|row| devices.text(row));
        self.devices.extend(sampled.map(str::to_owned));
    }

    /// The tags of a stored file; `None` when it was written without.
    pub(crate) fn of(file: &DataFile) -> Option<Self> {
        Some(Self {
            offsets: serde_json::from_str(file.tag(OFFSETS)?).ok()?,
            devices: serde_json::from_str(file.tag(DEVICES)?).ok()?,
        })
    }

    pub(crate) fn to_delta(&self) -> HashMap<String, Option<String>> {
        let step = self.devices.len().div_ceil(SAMPLES).max(1);
        let devices: Vec<&String> = self.devices.iter().step_by(step).collect();
        let json =
            |value: serde_json::Result<String>| Some(value.expect("maps and lists of plain values are JSON"));
        HashMap::from([
            order_tag(&READING_ORDER),
            (OFFSETS.to_owned(), json(serde_json::to_string(&self.offsets))),
            (DEVICES.to_owned(), json(serde_json::to_string(&devices))),
        ])
    }
}

//! Records of the realtime-views topic: the beginning of an epoch, and flushes of changed rows.
//!
//! A record is `WYR\x01`, the length of a JSON header (u32, little endian), the header, and for rows an Arrow IPC
//! stream with the columns `series` (see [`crate::series::SeriesKey::encode`]), `window_start` and those of
//! [`crate::summary_columns`]. A row is an absolute upsert: it holds the summary of all readings of its epoch below
//! `through` for its series and window.
//!
//! What the records of a Kafka partition mean, in their order:
//!
//! - A record of a generation older than the newest one seen is ignored ([`crate::epoch::Fence`]).
//! - `Begin` with `reset`: this epoch and all later ones are void, and their rebuild begins here. The flushes that follow
//!   write their rows again.
//! - `Begin` without `reset`: a new epoch starts; or, if the epoch has begun before, a new owner resumes it, and its rows
//!   stay.
//! - `Rows`: all readings of the epoch below `through` are in the rows of this flush and of those before it, once its last
//!   record, which is `complete`, is written. Rows of an incomplete flush stay: the next owner's flushes replace them.
//! - An epoch begins where all rows of the one before it end. One that begins earlier was rebuilt at a newer horizon:
//!   the old rows count for a reader, and the new epoch does not, until it has the batch view of that horizon.
//! - A record that does not decode is skipped. It may have held rows, the beginning of an epoch, or the reset of any
//!   earlier epoch, so an answer is not complete until the next reset. A new owner rebuilds from the horizon.
//!
//! Stability contract: a change of these bytes needs a new digit in the prefix.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema, SchemaRef, TimestampMicrosecondType};
use serde::{Deserialize, Serialize};

use crate::place::{Generation, Offset};
use crate::reading::{TextBuilder, TextColumn, text_type, time_type};
use crate::summary::Summary;
use crate::summary_columns::{SummaryColumns, SummaryColumnsBuilder, schema_fields};
use crate::time::Micros;
use crate::{DomainError, arrow_stream, batch, json};

const PREFIX: &[u8; 4] = b"WYR\x01";

/// What a record says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Header {
    /// A new owner: records of older generations after this one are ignored.
    Claim {
        /// The owner that writes.
        generation: Generation,
    },
    /// The first record of an epoch by a generation.
    Begin {
        /// The owner that writes.
        generation: Generation,
        /// The epoch's first readings offset.
        epoch: Offset,
        /// The fingerprint of the metric definitions in force.
        definitions: u64,
        /// Whether all earlier records of this and later epochs are void: a rebuild begins.
        reset: bool,
    },
    /// Changed rows of an epoch.
    Rows {
        /// The owner that writes.
        generation: Generation,
        /// The epoch's first readings offset.
        epoch: Offset,
        /// All readings of the epoch below this offset are in the rows.
        through: Offset,
        /// Whether this is the last record of a flush: a checkpoint.
        complete: bool,
        /// The newest event time seen by the owner; `None` before its first reading. Stored as the smallest number then.
        #[serde(with = "smallest_where_none")]
        newest_event_time: Option<Micros>,
    },
}

impl Header {
    /// The owner that writes.
    pub fn generation(&self) -> Generation {
        match self {
            Self::Claim { generation } | Self::Begin { generation, .. } | Self::Rows { generation, .. } => {
                *generation
            }
        }
    }
}

/// A decoded record.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it says.
    pub header: Header,
    /// The rows, if any.
    pub rows: Option<RecordBatch>,
}

fn schema() -> SchemaRef {
    let mut fields =
        vec![Field::new("series", text_type(), false), Field::new("window_start", time_type(), false)];
    fields.extend(schema_fields());
    Arc::new(Schema::new(fields))
}

/// Collects rows into a batch.
#[derive(Debug, Default)]
pub struct RowsBuilder {
    series: TextBuilder,
    window_start: Vec<i64>,
    summaries: SummaryColumnsBuilder,
}

impl RowsBuilder {
    /// Appends a row: the stored form of its series, the window start, the summary.
    pub fn append(&mut self, series: &str, window_start: Micros, summary: &Summary) {
        self.series.append(Some(series));
        self.window_start.push(window_start.0);
        self.summaries.append(summary);
    }

    /// How many rows were appended.
    pub fn len(&self) -> usize {
        self.window_start.len()
    }

    /// Whether none was appended.
    pub fn is_empty(&self) -> bool {
        self.window_start.is_empty()
    }

    /// The rows; the builder is empty again.
    pub fn finish(&mut self) -> RecordBatch {
        let windows =
            TimestampMicrosecondArray::from(std::mem::take(&mut self.window_start)).with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![self.series.finish(), Arc::new(windows)];
        columns.extend(self.summaries.finish());
        batch::of_columns(schema(), columns)
    }
}

/// Writes a record.
pub fn encode(header: &Header, rows: Option<&RecordBatch>) -> Vec<u8> {
    let header = json::to_vec(header);
    let mut bytes =
        Vec::with_capacity(header.len() + 64 + rows.map_or(0, RecordBatch::get_array_memory_size));
    bytes.extend_from_slice(PREFIX);
    // A header has a few numbers only.
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&header);
    if let Some(rows) = rows {
        arrow_stream::write(&mut bytes, &rows.schema(), std::slice::from_ref(rows));
    }
    bytes
}

/// Reads a record.
///
/// # Errors
/// [`DomainError::Decode`] when the bytes are something else.
pub fn decode(bytes: &[u8]) -> Result<Record, DomainError> {
    let rest = bytes.strip_prefix(PREFIX).ok_or_else(|| corrupt("unknown prefix"))?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("it is cut off"))?;
    let length = u32::from_le_bytes(*length) as usize;
    let (header, rest) = rest.split_at_checked(length).ok_or_else(|| corrupt("it is cut off"))?;
    let header = serde_json::from_slice(header).map_err(|error| corrupt(error.to_string()))?;
    let rows = if rest.is_empty() {
        None
    } else {
        let batches = arrow_stream::read(rest).map_err(corrupt)?;
        Some(batches.into_iter().next().ok_or_else(|| corrupt("it has no batch"))?)
    };
    Ok(Record { header, rows })
}

fn corrupt(reason: impl Into<String>) -> DomainError {
    DomainError::Decode { what: "realtime record", reason: reason.into() }
}

/// Typed access to a batch of rows.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Stored forms of series.
    pub series: TextColumn<'a>,
    window_start: &'a [i64],
    /// The summaries.
    pub summaries: SummaryColumns<'a>,
}

impl<'a> Rows<'a> {
    /// Resolves the columns by name.
    ///
    /// # Errors
    /// [`DomainError::Shape`] naming the first column that is absent or of another type.
    pub fn of(batch: &'a RecordBatch) -> Result<Self, DomainError> {
        let windows = batch
            .column_by_name("window_start")
            .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
            .ok_or(DomainError::Shape { column: "window_start" })?;
        Ok(Self {
            series: TextColumn::of(batch, "series")?,
            window_start: windows.values(),
            summaries: SummaryColumns::of(batch)?,
        })
    }

    /// The window start of a row.
    #[inline]
    #[must_use]
    pub fn window_start(&self, row: usize) -> Micros {
        Micros(self.window_start[row])
    }
}

/// The stored form of a time that may be absent: plain microseconds, the smallest number where absent.
mod smallest_where_none {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::time::Micros;

    pub(super) fn serialize<S: Serializer>(time: &Option<Micros>, serializer: S) -> Result<S::Ok, S::Error> {
        time.unwrap_or(Micros::MIN).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Micros>, D::Error> {
        Ok(Some(Micros::deserialize(deserializer)?).filter(|time| *time > Micros::MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_header() -> Header {
        Header::Rows {
            generation: Generation(Offset(3)),
            epoch: Offset(7),
            through: Offset(9),
            complete: true,
            newest_event_time: Some(Micros(-1)),
        }
    }

    #[test]
    fn records_come_back() {
        let begin = Header::Begin {
            generation: Generation(Offset(3)),
            epoch: Offset(7),
            definitions: u64::MAX,
            reset: true,
        };
        assert_eq!(decode(&encode(&begin, None)).unwrap().header, begin);
        let header = rows_header();
        let mut builder = RowsBuilder::default();
        let mut summary = Summary::EMPTY;
        summary.add(2.5, Micros(10));
        builder.append("s", Micros(-60), &summary);
        let record = decode(&encode(&header, Some(&builder.finish()))).unwrap();
        assert_eq!(record.header, header);
        let batch = record.rows.unwrap();
        let rows = Rows::of(&batch).unwrap();
        assert_eq!((rows.series.text(0), rows.window_start(0)), (Some("s"), Micros(-60)));
        assert_eq!(rows.summaries.summary(0).unwrap(), summary);
    }

    #[test]
    fn damaged_records_are_refused_or_read_without_a_panic() {
        let header = rows_header();
        let mut builder = RowsBuilder::default();
        let mut summary = Summary::EMPTY;
        summary.add(2.5, Micros(10));
        builder.append("s", Micros(-60), &summary);
        let record = encode(&header, Some(&builder.finish()));
        for at in 0..record.len() {
            for byte in [0, 1, 0x40, 0x7f, 0x80, 0xff] {
                let mut damaged = record.clone();
                damaged[at] = byte;
                let Ok(Record { rows: Some(batch), .. }) = decode(&damaged) else { continue };
                let Ok(rows) = Rows::of(&batch) else { continue };
                for row in 0..batch.num_rows() {
                    let _ = rows.summaries.summary(row);
                }
            }
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        for bytes in [&b""[..], b"WYR\x02....", b"WYR\x01\xff\xff\xff\xff", b"WYR\x01\x02\0\0\0{}"] {
            assert!(decode(bytes).is_err());
        }
    }
}

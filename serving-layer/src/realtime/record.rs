//! A record of the realtime-views topic with its series resolved.

use arrow::array::RecordBatch;
use wye_domain::DomainError;
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::series::SeriesId;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;

use crate::directory::Directory;

/// A decoded record.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is about.
    pub header: Header,
    /// Its rows of series that a definition in force makes.
    pub rows: Vec<RealtimeRow>,
}

/// A row of a record with its series resolved.
#[derive(Clone, Debug)]
pub struct RealtimeRow {
    /// Which series.
    pub series: SeriesId,
    /// Where the window starts.
    pub window_start: Micros,
    /// The summary of the epoch's readings.
    pub summary: Summary,
}

impl Record {
    /// Decodes a record; series that are new get a number in the directory.
    ///
    /// # Errors
    /// [`DomainError`] when the bytes are not such a record.
    pub fn decode(payload: &[u8], directory: &Directory) -> Result<Self, DomainError> {
        let record = realtime_row::decode(payload)?;
        let rows = match &record.rows {
            Some(batch) => resolve(batch, directory)?,
            None => Vec::new(),
        };
        Ok(Self { header: record.header, rows })
    }
}

/// The rows whose series a definition in force makes.
fn resolve(batch: &RecordBatch, directory: &Directory) -> Result<Vec<RealtimeRow>, DomainError> {
    let rows = Rows::of(batch)?;
    let ids: Vec<Option<SeriesId>> = directory.resolve(rows.series.words().iter().flatten());
    let mut resolved = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let Some(series) = rows.series.code(row).and_then(|code| ids.get(code).copied().flatten()) else {
            continue;
        };
        let (window_start, summary) = (rows.window_start(row), rows.summaries.summary(row)?);
        resolved.push(RealtimeRow { series, window_start, summary });
    }
    Ok(resolved)
}

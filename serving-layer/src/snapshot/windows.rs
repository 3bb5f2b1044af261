//! The oldest and the newest window of each series in the rows of a batch view, in two passes: [`WindowBounds`] finds
//! where they are, [`SeriesWindows`] keeps the newest rows. Pure.

use arrow::array::RecordBatch;
use wye_domain::DomainError;
use wye_domain::reading::TextColumn;
use wye_domain::series::SeriesId;
use wye_domain::summary_columns::SummaryColumn;
use wye_domain::time::Micros;
use wye_metrics::merge::BatchRow;
use wye_metrics::view_rows::ViewColumn;
use wye_metrics::view_rows::reader::{ViewRows, count, window_start};

use crate::directory::Directory;
use crate::view_runs::runs;

/// Where the first and the last window with readings of each series start.
#[derive(Debug, Default)]
pub(super) struct WindowBounds {
    by_series: Vec<Option<(Micros, Micros)>>,
}

impl WindowBounds {
    /// The columns that are read.
    pub(super) const COLUMNS: [&str; 3] =
        [ViewColumn::Series.name(), ViewColumn::WindowStart.name(), SummaryColumn::Count.name()];

    /// Adds rows.
    pub(super) fn add(&mut self, batch: &RecordBatch, directory: &Directory) -> Result<(), DomainError> {
        let (series, starts) =
            (TextColumn::of(batch, ViewColumn::Series.name())?, window_start(batch)?.values());
        let counts = count(batch)?.values();
        for (range, id) in runs(&series, batch.num_rows(), directory) {
            let Some(id) = id else { continue };
            let known = slot(&mut self.by_series, id);
            for row in range.filter(|row| counts[*row] > 0) {
                let start = Micros(starts[row]);
                let (oldest, newest) = known.get_or_insert((start, start));
                *oldest = start.min(*oldest);
                *newest = start.max(*newest);
            }
        }
        Ok(())
    }

    /// The first of the newest windows of all series; `None` without readings.
    pub(super) fn first_newest(&self) -> Option<Micros> {
        self.by_series.iter().flatten().map(|(_, newest)| *newest).min()
    }

    fn of(&self, series: SeriesId) -> Option<(Micros, Micros)> {
        *self.by_series.get(series.0 as usize)?
    }
}

/// The first and the last window with readings of each series.
#[derive(Debug, Default)]
pub(super) struct SeriesWindows {
    bounds: WindowBounds,
    /// By series number.
    newest: Vec<Option<Box<BatchRow>>>,
}

impl SeriesWindows {
    /// Without the newest rows.
    pub(super) fn new(bounds: WindowBounds) -> Self {
        Self { bounds, newest: Vec::new() }
    }

    /// Keeps the newest rows among these.
    pub(super) fn add(&mut self, batch: &RecordBatch, directory: &Directory) -> Result<(), DomainError> {
        let columns = ViewRows::of(batch)?;
        for (range, id) in runs(&columns.series, batch.num_rows(), directory) {
            let Some((id, (_, newest))) = id.and_then(|id| Some((id, self.bounds.of(id)?))) else { continue };
            for row in range.filter(|row| columns.window_start(*row) == newest) {
                *slot(&mut self.newest, id) = Some(Box::new(columns.row(row)?));
            }
        }
        Ok(())
    }

    /// The newest row of a series that has readings.
    pub(super) fn newest(&self, series: SeriesId) -> Option<&BatchRow> {
        self.newest.get(series.0 as usize)?.as_deref()
    }

    /// The start of the oldest window of a series that has readings.
    pub(super) fn oldest(&self, series: SeriesId) -> Option<Micros> {
        self.bounds.of(series).map(|(oldest, _)| oldest)
    }
}

/// The entry of a series in a list by series number, which grows as needed.
fn slot<T>(list: &mut Vec<Option<T>>, series: SeriesId) -> &mut Option<T> {
    let at = series.0 as usize;
    if at >= list.len() {
        list.resize_with(at + 1, || None);
    }
    &mut list[at]
}

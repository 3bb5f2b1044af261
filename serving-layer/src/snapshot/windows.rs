//! The oldest and the newest window of each series in the rows of a batch view, in two passes: [`WindowBounds`] finds
//! where they are, [`SeriesWindows`] keeps the newest rows. Pure.
//!
//! A row may have conflicts and no reading. It is no window of a series by itself, but it counts as soon as realtime views
//! have a reading in its window. So those after the newest window are kept too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use wye_domain::DomainError;
use wye_domain::reading::TextColumn;
use wye_domain::series::SeriesId;
use wye_domain::summary_columns::SummaryColumn;
use wye_domain::time::{Micros, Window};
use wye_metrics::merge::BatchRow;
use wye_metrics::view_rows::ViewColumn;
use wye_metrics::view_rows::reader::{ViewRows, count, window_start};

use crate::directory::Directory;
use crate::view_runs::runs;

/// Where the first and the last window with readings of each series start.
#[derive(Clone, Debug, Default)]
pub(super) struct WindowBounds {
    by_series: Vec<Option<(Micros, Micros)>>,
    /// The series that rows were added of.
    added: BTreeSet<SeriesId>,
    /// The rows without readings that come after the last window with readings, as far as rows were added.
    without_readings: BTreeMap<SeriesId, BTreeSet<Micros>>,
    /// The bounds before rows were added.
    before: Vec<Option<(Micros, Micros)>>,
    /// Those of them that have readings in the rows that were added.
    confirmed: BTreeSet<(SeriesId, Micros)>,
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
            self.added.insert(id);
            let known = slot(&mut self.by_series, id);
            for row in range {
                let start = Micros(starts[row]);
                if counts[row] > 0 {
                    if of(&self.before, id).is_some_and(|(first, last)| start == first || start == last) {
                        self.confirmed.insert((id, start));
                    }
                    let (oldest, newest) = known.get_or_insert((start, start));
                    *oldest = start.min(*oldest);
                    *newest = start.max(*newest);
                } else if known.is_none_or(|(_, newest)| start > newest) {
                    self.without_readings.entry(id).or_default().insert(start);
                }
            }
            if let (Some((_, newest)), Some(later)) = (known, self.without_readings.get_mut(&id)) {
                later.retain(|start| *start > *newest);
            }
        }
        Ok(())
    }

    /// The first of the windows that are kept of the series that rows were added of; `None` without any.
    pub(super) fn first_kept(&self) -> Option<Micros> {
        let newest = self.added.iter().filter_map(|id| Some(self.of(*id)?.1));
        let later = self.added.iter().filter_map(|id| self.without_readings.get(id)?.first().copied());
        newest.chain(later).min()
    }

    fn is_kept(&self, series: SeriesId, start: Micros) -> bool {
        let is_newest = self.of(series).is_some_and(|(_, newest)| start == newest);
        is_newest || self.without_readings.get(&series).is_some_and(|starts| starts.contains(&start))
    }

    /// Whether a window that was the first or the last one of a series has no reading any more, where the rows that were added
    /// replace all rows in some stretches of time.
    pub(super) fn is_lost(&self, replaced: &[Window]) -> bool {
        let is_replaced = |start: Micros| replaced.iter().any(|cell| (cell.start..cell.end).contains(&start));
        let each =
            (0..).zip(&self.before).filter_map(|(number, bounds)| Some((SeriesId(number), (*bounds)?)));
        let mut starts = each.flat_map(|(series, (first, last))| [(series, first), (series, last)]);
        starts.any(|key| is_replaced(key.1) && !self.confirmed.contains(&key))
    }

    fn of(&self, series: SeriesId) -> Option<(Micros, Micros)> {
        of(&self.by_series, series)
    }
}

fn of(bounds: &[Option<(Micros, Micros)>], series: SeriesId) -> Option<(Micros, Micros)> {
    *bounds.get(series.0 as usize)?
}

/// The first and the last window with readings of each series.
#[derive(Clone, Debug, Default)]
pub(super) struct SeriesWindows {
    bounds: WindowBounds,
    /// By series number.
    newest: Vec<Option<Arc<BatchRow>>>,
    /// Rows after it without readings.
    later: BTreeMap<(SeriesId, Micros), Arc<BatchRow>>,
}

impl SeriesWindows {
    /// The bounds of its windows, to which rows of a newer view are to be added.
    pub(super) fn bounds(&self) -> WindowBounds {
        let before = self.bounds.by_series.clone();
        WindowBounds {
            by_series: self.bounds.by_series.clone(),
            without_readings: self.bounds.without_readings.clone(),
            before,
            ..WindowBounds::default()
        }
    }

    /// With new bounds, and the newest rows that are still the newest within them. The newest rows among those that were
    /// added to the bounds are to be added.
    pub(super) fn within(mut self, bounds: WindowBounds) -> Self {
        self.later.retain(|(series, start), _| {
            bounds.without_readings.get(series).is_some_and(|starts| starts.contains(start))
        });
        Self { bounds, ..self }
    }

    /// Keeps the newest rows among these.
    pub(super) fn add(&mut self, batch: &RecordBatch, directory: &Directory) -> Result<(), DomainError> {
        let columns = ViewRows::of(batch)?;
        for (range, id) in runs(&columns.series, batch.num_rows(), directory) {
            let Some(id) = id else { continue };
            for row in range {
                let start = columns.window_start(row);
                if !self.bounds.is_kept(id, start) {
                    continue;
                }
                let row = columns.row(row)?;
                if row.summary.count > 0 {
                    *slot(&mut self.newest, id) = Some(Arc::new(row));
                } else {
                    self.later.insert((id, start), Arc::new(row));
                }
            }
        }
        Ok(())
    }

    /// The newest row of a series that has readings.
    pub(super) fn newest(&self, series: SeriesId) -> Option<&BatchRow> {
        self.newest.get(series.0 as usize)?.as_deref()
    }

    /// The row of a window that is not older than the newest one with readings.
    pub(super) fn row_from_newest_on(&self, series: SeriesId, window: Micros) -> Option<&BatchRow> {
        let newest = self.newest(series).filter(|row| row.window_start == window);
        newest.or_else(|| self.later.get(&(series, window)).map(AsRef::as_ref))
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

//! The operator of one Kafka partition: readings in, changed rows out. No clock, no I/O.
//!
//! It holds the windows of the open epoch and the duplicate window. A flush writes the windows that changed. No reading is
//! dropped for lateness: a late reading changes the window that it belongs to.

use std::ops::AddAssign;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use datafusion::error::DataFusionError;
use wye_domain::DomainError;
use wye_domain::assemble::{Placed, PlacedColumns};
use wye_domain::identity::{Identity, Novelty, word_hash};
use wye_domain::place::Offset;
use wye_domain::reading::TextColumn;
use wye_domain::realtime_row::RowsBuilder;
use wye_domain::time::Micros;
use wye_metrics::failures::Failures;
use wye_metrics::fold::Fold;
use wye_metrics::plan::MetricPlans;
use wye_metrics::window_table::WindowTable;

use super::duplicates::DuplicateWindow;
use crate::takeover::StoredRow;

/// How many readings there were, and how many of them had come before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All readings.
    pub readings: u64,
    /// Readings that came before with the same value.
    pub duplicates: u64,
    /// Readings that came before with another value.
    pub conflicts: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.readings += other.readings;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
    }
}

/// The windows of the open epoch, and the duplicate window.
#[derive(Debug)]
pub(super) struct Operator {
    fold: Fold,
    /// The stored form of each series, by id.
    stored: Vec<String>,
    duplicates: DuplicateWindow,
    newest_event_time: Option<Micros>,
}

impl Operator {
    /// An operator with an empty epoch.
    pub(super) fn new(plans: Arc<MetricPlans>, duplicates: DuplicateWindow) -> Self {
        Self { fold: Fold::new(plans), stored: Vec::new(), duplicates, newest_event_time: None }
    }

    /// Takes in readings of the open epoch, in log order.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub(super) fn on_batch(&mut self, placed: &Placed) -> Result<Counts, DataFusionError> {
        let columns = PlacedColumns::of(&placed.batch).map_err(external)?;
        let (novelty, counts) = self.novelty(&columns);
        self.fold.add_at(&placed.batch, columns.kafka_offset, |row| Some(novelty[row]))?;
        Ok(counts)
    }

    /// Remembers readings below the position in the duplicate window, and nothing else.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub(super) fn remember(&mut self, placed: &Placed) -> Result<(), DataFusionError> {
        self.novelty(&PlacedColumns::of(&placed.batch).map_err(external)?);
        Ok(())
    }

    /// Compares each reading of a batch with those before it.
    fn novelty(&mut self, placed: &PlacedColumns<'_>) -> (Vec<Novelty>, Counts) {
        let columns = &placed.readings;
        let (device_hash, metric_hash) = (word_hashes(&columns.device_id), word_hashes(&columns.metric));
        if let (Some(ingest_time), Some(offset)) = (placed.ingest_time.last(), placed.kafka_offset.last()) {
            self.duplicates.advance(Micros(*ingest_time), Offset(*offset));
        }
        let rows = columns.value.len();
        let mut counts = Counts { readings: rows as u64, ..Counts::default() };
        let mut novelties = Vec::with_capacity(rows);
        let sequences = (columns.sequence.null_count() < rows).then_some(columns.sequence);
        for row in 0..rows {
            let sequence =
                sequences.filter(|sequence| !sequence.is_null(row)).map(|sequence| sequence.value(row));
            let identity = Identity {
                device_hash: device_hash[columns.device_id.code(row).unwrap_or_default()],
                metric_hash: metric_hash[columns.metric.code(row).unwrap_or_default()],
                event_time: Micros(columns.event_time[row]),
                sequence,
            };
            let novelty = self.duplicates.observe(identity.fingerprint(), columns.value[row]);
            counts.duplicates += u64::from(novelty == Novelty::Duplicate);
            counts.conflicts += u64::from(novelty == Novelty::Conflict);
            novelties.push(novelty);
        }
        let newest = columns.event_time.iter().max();
        self.newest_event_time = self.newest_event_time.max(newest.copied().map(Micros));
        (novelties, counts)
    }

    /// Emits the rows that changed since the last flush, in batches of at most `rows`.
    pub(super) fn flush(&mut self, rows: usize, mut emit: impl FnMut(RecordBatch)) {
        let Self { fold, stored, .. } = self;
        let encoded = stored.len();
        stored.extend(fold.series.keys().iter().skip(encoded).map(|key| key.encode()));
        let mut builder = RowsBuilder::default();
        fold.windows.take_changed(|entry| {
            builder.append(&stored[entry.series.0 as usize], entry.window_start, &entry.summary);
            if builder.len() >= rows {
                emit(builder.finish());
            }
        });
        if !builder.is_empty() {
            emit(builder.finish());
        }
    }

    /// Puts back a row of the open epoch.
    pub(super) fn restore(&mut self, row: StoredRow) {
        let StoredRow { series, window_start, summary, through } = row;
        let series = self.fold.series.id(series);
        self.fold.windows.restore(series, window_start, summary, through);
    }

    /// Starts an epoch: drops the windows of the last one, which must have been flushed.
    pub(super) fn start_epoch(&mut self) {
        self.fold.windows = WindowTable::default();
    }

    /// How many windows the open epoch has.
    pub(super) fn windows(&self) -> usize {
        self.fold.windows.len()
    }

    /// How many of them changed since the last flush.
    pub(super) fn changed(&self) -> usize {
        self.fold.windows.changed_len()
    }

    /// Whether summaries carry sketches, so that rows are large.
    pub(super) fn has_sketches(&self) -> bool {
        self.fold.plans().plans().iter().any(|plan| plan.needs().any())
    }

    /// Readings that definitions could not compute since the last call.
    pub(super) fn take_failures(&mut self) -> Failures {
        std::mem::take(&mut self.fold.failures)
    }

    /// The fingerprint of the definitions that are computed.
    pub(super) fn definitions(&self) -> u64 {
        self.fold.plans().fingerprint()
    }

    /// The newest event time; `None` before the first reading.
    pub(super) fn newest_event_time(&self) -> Option<Micros> {
        self.newest_event_time
    }

    /// How many identities are remembered to detect duplicates.
    pub(super) fn remembered(&self) -> usize {
        self.duplicates.len()
    }

    /// The duplicate window.
    pub(super) fn duplicates(&mut self) -> &mut DuplicateWindow {
        &mut self.duplicates
    }
}

/// The hash of each word of a column, by its code.
fn word_hashes(column: &TextColumn<'_>) -> Vec<u64> {
    column.words().iter().map(|word| word_hash(word.unwrap_or_default())).collect()
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

//! The operator of one Kafka partition: readings in, changed rows out. No clock, no I/O.
//!
//! It holds the windows of the open epoch and the duplicate window. A flush touches what changed. Nothing is dropped
//! for lateness: a late reading changes the window that it belongs to.

use std::ops::AddAssign;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion::error::DataFusionError;
use wye_domain::assemble::Placed;
use wye_domain::identity::{Novelty, fingerprint, word_hash};
use wye_domain::reading::{ReadingColumns, TextColumn};
use wye_domain::realtime_row::RowsBuilder;
use wye_domain::series::{SeriesKey, SeriesTable};
use wye_domain::summary::Summary;
use wye_domain::{DomainError, identity};
use wye_metrics::failures::Failures;
use wye_metrics::plan::MetricPlans;
use wye_metrics::window_table::WindowTable;

use crate::duplicates::DuplicateWindow;

/// What a batch of readings was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All readings.
    pub readings: u64,
    /// Seen before with the same value.
    pub duplicates: u64,
    /// Seen before with another value.
    pub conflicts: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.readings += other.readings;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
    }
}

/// See the module.
#[derive(Debug)]
pub struct Operator {
    plans: Arc<MetricPlans>,
    series: SeriesTable,
    /// The stored form of each series, by id.
    stored: Vec<String>,
    windows: WindowTable,
    duplicates: DuplicateWindow,
    newest_event_time: i64,
    /// Since they were last taken.
    failures: Failures,
}

impl Operator {
    /// An operator with an empty epoch.
    pub fn new(plans: Arc<MetricPlans>, duplicates: DuplicateWindow) -> Self {
        Self {
            plans,
            series: SeriesTable::default(),
            stored: Vec::new(),
            windows: WindowTable::default(),
            duplicates,
            newest_event_time: i64::MIN,
            failures: Failures::default(),
        }
    }

    /// Takes in readings of the open epoch, in log order.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn on_batch(&mut self, placed: &Placed) -> Result<Counts, DataFusionError> {
        let batch = &placed.batch;
        let (novelty, counts) = self.novelty(batch).map_err(external)?;
        let offsets = batch
            .column_by_name("kafka_offset")
            .and_then(|column| column.as_primitive_opt::<Int64Type>())
            .ok_or_else(|| DataFusionError::Internal("placed readings have no kafka_offset".to_owned()))?
            .values();
        let plans = Arc::clone(&self.plans);
        let contributions = plans.contributions(batch, &mut self.series)?;
        for (plan, contributions) in plans.plans().iter().zip(contributions) {
            let definition = &plan.definition().name;
            self.failures
                .add(definition, &contributions.failed, batch, |row| novelty[row] == Novelty::First)
                .map_err(external)?;
            let step = contributions.step().map_err(external)?;
            let windows = &mut self.windows;
            contributions.for_each(|c| {
                let novelty = novelty[c.row];
                if novelty == Novelty::Duplicate {
                    return;
                }
                let slot = windows.entry(c.series, c.window_start);
                if windows.get(slot).through > offsets[c.row] {
                    return;
                }
                step.add(&c, novelty, &mut windows.change(slot).summary);
            });
        }
        Ok(counts)
    }

    /// Remembers readings from before the position for the duplicate window, and nothing else.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn remember(&mut self, placed: &Placed) -> Result<(), DomainError> {
        self.novelty(&placed.batch).map(|_| ())
    }

    fn novelty(&mut self, batch: &RecordBatch) -> Result<(Vec<Novelty>, Counts), DomainError> {
        let columns = ReadingColumns::of(batch)?;
        let hashes = |column: &TextColumn<'_>| -> Vec<u64> {
            column.words().iter().map(|word| word_hash(word.unwrap_or_default())).collect()
        };
        let (device_hash, metric_hash) = (hashes(&columns.device_id), hashes(&columns.metric));
        let rows = batch.num_rows();
        let places =
            |name: &'static str| batch.column_by_name(name).ok_or(DomainError::Shape { column: name });
        let ingest_time = places("ingest_time")?
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or(DomainError::Shape { column: "ingest_time" })?;
        let offsets = places("kafka_offset")?
            .as_primitive_opt::<Int64Type>()
            .ok_or(DomainError::Shape { column: "kafka_offset" })?;
        if rows > 0 {
            self.duplicates.advance(ingest_time.value(rows - 1), offsets.value(rows - 1));
        }
        let mut counts = Counts { readings: rows as u64, ..Counts::default() };
        let mut novelties = Vec::with_capacity(rows);
        let sequences = (columns.sequence.null_count() < rows).then_some(columns.sequence);
        for row in 0..rows {
            let sequence =
                sequences.filter(|sequence| !sequence.is_null(row)).map(|sequence| sequence.value(row));
            let code = |column: &TextColumn<'_>| column.code(row).unwrap_or_default();
            let print: identity::Fingerprint = fingerprint(
                device_hash[code(&columns.device_id)],
                metric_hash[code(&columns.metric)],
                columns.event_time[row],
                sequence,
            );
            let novelty = self.duplicates.observe(print, columns.value[row]);
            counts.duplicates += u64::from(novelty == Novelty::Duplicate);
            counts.conflicts += u64::from(novelty == Novelty::Conflict);
            novelties.push(novelty);
        }
        if let Some(newest) = columns.event_time.iter().max() {
            self.newest_event_time = self.newest_event_time.max(*newest);
        }
        Ok((novelties, counts))
    }

    /// Hands out the changed rows in batches of at most `rows`, each once.
    pub fn flush(&mut self, rows: usize, mut emit: impl FnMut(RecordBatch)) {
        let Self { windows, series, stored, .. } = self;
        let known = stored.len();
        stored.extend(series.keys().iter().skip(known).map(|key| key.encode()));
        let mut builder = RowsBuilder::default();
        windows.take_changed(|entry| {
            builder.append(&stored[entry.series.0 as usize], entry.window_start, &entry.summary);
            if builder.len() >= rows {
                emit(builder.finish());
            }
        });
        if !builder.is_empty() {
            emit(builder.finish());
        }
    }

    /// Puts back a row of the open epoch, which holds all readings below `through`.
    pub fn restore(&mut self, series: SeriesKey, window_start: i64, summary: Summary, through: i64) {
        let id = self.series.id(series);
        let slot = self.windows.entry(id, window_start);
        let entry = self.windows.restore(slot);
        entry.summary = summary;
        entry.through = through;
    }

    /// Starts an epoch: the windows of the last one, flushed before, are dropped.
    pub fn start_epoch(&mut self) {
        self.windows = WindowTable::default();
    }

    /// How many windows the open epoch has.
    pub fn windows(&self) -> usize {
        self.windows.len()
    }

    /// How many of them changed since the last flush.
    pub fn changed(&self) -> usize {
        self.windows.changed_len()
    }

    /// Whether summaries carry sketches, so that rows are large.
    pub fn has_sketches(&self) -> bool {
        self.plans.plans().iter().any(|plan| plan.needs().any())
    }

    /// What definitions could not compute since this was last asked.
    pub fn take_failures(&mut self) -> Failures {
        std::mem::take(&mut self.failures)
    }

    /// The fingerprint of the definitions that are computed.
    pub fn definitions(&self) -> u64 {
        self.plans.fingerprint()
    }

    /// The newest event time seen, in µs; `i64::MIN` before the first reading.
    pub fn newest_event_time(&self) -> i64 {
        self.newest_event_time
    }

    /// How many identities are remembered for the detection of duplicates.
    pub fn remembered(&self) -> usize {
        self.duplicates.len()
    }

    /// The duplicate window.
    pub fn duplicates(&mut self) -> &mut DuplicateWindow {
        &mut self.duplicates
    }
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

//! From marked readings to summaries: what the speed layer does for an epoch, done for everything below the horizon.
//!
//! Each plan partition folds on its own. A series whose group spans plan partitions is brought together at the end by
//! merging summaries (**AGG-1**); with groups that name the device there is none. No clock, no I/O.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{TimestampMicrosecondType, UInt8Type};
use datafusion::error::{DataFusionError, Result};
use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::identity::Novelty;
use wye_domain::reading::ReadingColumns;
use wye_domain::series::{SeriesId, SeriesKey, SeriesTable};
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::contribution::{Contribution, Step};
use wye_metrics::failures::Failures;
use wye_metrics::plan::MetricPlans;
use wye_metrics::window_table::{Entry, WindowTable};

use crate::dedup::{FIRST, NOVELTY, novelty};

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Readings, copies included.
    pub readings: u64,
    /// Copies with the same value.
    pub duplicates: u64,
    /// Copies with another value.
    pub conflicts: u64,
    /// The newest ingest time in µs.
    pub as_of: Option<i64>,
    /// How late the first of each identity came.
    pub lateness: LatenessHistogram,
    /// What definitions cannot compute.
    pub failures: Failures,
}

impl Tally {
    /// Takes in another tally.
    pub fn merge(&mut self, other: &Self) {
        self.readings += other.readings;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.as_of = self.as_of.max(other.as_of);
        self.lateness.merge(&other.lateness);
        self.failures.merge(&other.failures);
    }
}

/// The summaries of one plan partition in the making.
#[derive(Debug)]
pub struct Fold {
    plans: Arc<MetricPlans>,
    series: SeriesTable,
    windows: WindowTable,
    tally: Tally,
    /// By series id: whether another fold has taken it over.
    given_away: Vec<bool>,
}

/// The summaries of one plan partition.
#[derive(Debug)]
pub struct Folded {
    /// The series that `entries` name by id.
    pub series: SeriesTable,
    /// A summary for each series and window, in no order.
    pub entries: Vec<Entry>,
    given_away: Vec<bool>,
}

impl Fold {
    /// With nothing in it.
    pub fn new(plans: Arc<MetricPlans>) -> Self {
        Self {
            plans,
            series: SeriesTable::default(),
            windows: WindowTable::default(),
            tally: Tally::default(),
            given_away: Vec::new(),
        }
    }

    /// Takes in readings that [`crate::dedup::DedupExec`] has marked.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let novelty = batch.column_by_name(NOVELTY).and_then(|column| column.as_primitive_opt::<UInt8Type>());
        let novelty = novelty.ok_or_else(|| shape(NOVELTY))?.values();
        self.count(batch, novelty)?;
        let plans = Arc::clone(&self.plans);
        let contributions = plans.contributions(batch, &mut self.series)?;
        for (plan, contributions) in plans.plans().iter().zip(contributions) {
            let definition = &plan.definition().name;
            let failures = &mut self.tally.failures;
            failures
                .add(definition, &contributions.failed, batch, |row| novelty[row] == FIRST)
                .map_err(external)?;
            let step = contributions.step().map_err(external)?;
            let windows = &mut self.windows;
            contributions.for_each(|c| add(windows, &step, &c, novelty[c.row]));
        }
        Ok(())
    }

    fn count(&mut self, batch: &RecordBatch, novelty: &[u8]) -> Result<()> {
        let columns = ReadingColumns::of(batch).map_err(external)?;
        let ingest_time = batch
            .column_by_name("ingest_time")
            .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
            .ok_or_else(|| shape("ingest_time"))?
            .values();
        let tally = &mut self.tally;
        tally.as_of = tally.as_of.max(ingest_time.iter().copied().max());
        for ((novelty, ingest_time), event_time) in novelty.iter().zip(ingest_time).zip(columns.event_time) {
            match crate::dedup::novelty(*novelty) {
                Some(Novelty::First) => tally.lateness.add(ingest_time.saturating_sub(*event_time)),
                Some(Novelty::Duplicate) => tally.duplicates += 1,
                Some(Novelty::Conflict) => tally.conflicts += 1,
                None => continue,
            }
            tally.readings += 1;
        }
        Ok(())
    }
}

/// The entry's summary is set without keeping a list of what changed: everything is written at the end.
#[inline]
fn add(windows: &mut WindowTable, step: &Step<'_>, c: &Contribution, code: u8) {
    match novelty(code) {
        None | Some(Novelty::Duplicate) => {}
        Some(novelty) => {
            let slot = windows.entry(c.series, c.window_start);
            step.add(c, novelty, &mut windows.restore(slot).summary);
        }
    }
}

/// Brings the folds of all plan partitions together: each series is in one of the results only.
pub fn combine(mut folds: Vec<Fold>) -> (Vec<Folded>, Tally) {
    let mut tally = Tally::default();
    let mut owners: HashMap<Arc<SeriesKey>, (usize, SeriesId), foldhash::fast::RandomState> =
        HashMap::default();
    for later in 0..folds.len() {
        tally.merge(&folds[later].tally);
        let (before, from_here) = folds.split_at_mut(later);
        let fold = &mut from_here[0];
        let mut moves: HashMap<SeriesId, (usize, SeriesId)> = HashMap::new();
        for (id, key) in (0u32..).map(SeriesId).zip(fold.series.keys()) {
            match owners.get(key) {
                Some(owner) => {
                    moves.insert(id, *owner);
                }
                None => {
                    owners.insert(Arc::clone(key), (later, id));
                }
            }
        }
        if moves.is_empty() {
            continue;
        }
        for entry in fold.windows.entries() {
            let Some((owner, series)) = moves.get(&entry.series) else { continue };
            let windows = &mut before[*owner].windows;
            let slot = windows.entry(*series, entry.window_start);
            windows.restore(slot).summary.merge(&entry.summary);
        }
        fold.given_away = vec![false; fold.series.len()];
        for series in moves.keys() {
            fold.given_away[series.0 as usize] = true;
        }
    }
    let folded = folds.into_iter().map(|mut fold| {
        let entries = fold.windows.take_entries();
        Folded { series: fold.series, entries, given_away: fold.given_away }
    });
    (folded.collect(), tally)
}

impl Folded {
    /// The places in `entries` of all that is to be stored, by series (in the order of their stored forms) and
    /// window start. `stored` are the stored forms by id.
    pub fn order(&self, stored: &[String]) -> Vec<u32> {
        let kept = |entry: &Entry| {
            let given_away = self.given_away.get(entry.series.0 as usize).copied().unwrap_or(false);
            !given_away && (entry.summary.count > 0 || entry.summary.conflicts > 0)
        };
        let mut by_name: Vec<u32> = (0..self.series.len() as u32).collect();
        by_name.sort_unstable_by_key(|series| stored[*series as usize].as_str());
        let mut counts = vec![0u32; self.series.len()];
        for entry in self.entries.iter().filter(|entry| kept(entry)) {
            counts[entry.series.0 as usize] += 1;
        }
        let mut next = vec![0u32; self.series.len()];
        let mut ends = Vec::with_capacity(by_name.len());
        let mut end = 0;
        for series in by_name {
            next[series as usize] = end;
            end += counts[series as usize];
            ends.push(end as usize);
        }
        let mut order = vec![0u32; end as usize];
        for (slot, entry) in (0u32..).zip(&self.entries) {
            if kept(entry) {
                let place = &mut next[entry.series.0 as usize];
                order[*place as usize] = slot;
                *place += 1;
            }
        }
        let mut start = 0;
        for end in ends {
            // Readings come in the order of their event times, so windows mostly are in order already.
            let slots = &mut order[start..end];
            let window = |slot: &u32| self.entries[*slot as usize].window_start;
            if !slots.is_sorted_by_key(window) {
                slots.sort_unstable_by_key(window);
            }
            start = end;
        }
        order
    }
}

fn shape(column: &'static str) -> DataFusionError {
    external(DomainError::Shape { column })
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}

#[cfg(test)]
mod tests;

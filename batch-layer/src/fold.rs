//! From marked readings to summaries: what the speed layer does for an epoch, done for everything below the horizon.
//!
//! Each plan partition is folded on its own. Where the group of a series spans plan partitions, its summaries are merged
//! at the end (**AGG-1**); where the device is part of the group, it does not. No clock, no I/O.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt8Array};
use datafusion::error::{DataFusionError, Result};
use hashbrown::HashMap;
use wye_domain::DomainError;
use wye_domain::assemble::PlacedColumns;
use wye_domain::identity::Novelty;
use wye_domain::reading::column;
use wye_domain::series::{SeriesId, SeriesKey, SeriesTable};
use wye_domain::time::Micros;
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::failures::Failures;
use wye_metrics::fold;
use wye_metrics::plan::MetricPlans;
use wye_metrics::window_table::Entry;

use crate::dedup::{NOVELTY, novelty};

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Readings, with duplicates and conflicts.
    pub readings: u64,
    /// Later readings of an identity with the same value.
    pub duplicates: u64,
    /// Later readings of an identity with another value.
    pub conflicts: u64,
    /// The newest ingest time; `None` without readings.
    pub as_of: Option<Micros>,
    /// How late the first reading of each identity came.
    pub lateness: LatenessHistogram,
    /// What definitions cannot compute.
    pub failures: Failures,
}

impl Tally {
    /// Counts readings by the codes of their novelty.
    fn add(&mut self, batch: &RecordBatch, codes: &[u8]) -> std::result::Result<(), DomainError> {
        let PlacedColumns { readings, ingest_time, .. } = PlacedColumns::of(batch)?;
        self.as_of = self.as_of.max(ingest_time.iter().copied().max().map(Micros));
        for ((code, ingest_time), event_time) in codes.iter().zip(ingest_time).zip(readings.event_time) {
            match novelty(*code) {
                Some(Novelty::First) => self.lateness.add(Micros(*ingest_time) - Micros(*event_time)),
                Some(Novelty::Duplicate) => self.duplicates += 1,
                Some(Novelty::Conflict) => self.conflicts += 1,
                None => continue,
            }
            self.readings += 1;
        }
        Ok(())
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: &Self) {
        self.readings += other.readings;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.as_of = self.as_of.max(other.as_of);
        self.lateness.merge(&other.lateness);
        self.failures.merge(&other.failures);
    }
}

/// The summaries of one plan partition while it is read.
#[derive(Debug)]
pub struct Fold {
    summaries: fold::Fold,
    /// Without failures, which `summaries` has.
    tally: Tally,
    /// By series id: whether its summaries were merged into those of another fold. Empty where none were.
    merged_elsewhere: Vec<bool>,
}

/// The summaries of one plan partition.
#[derive(Debug)]
pub struct Folded {
    /// The series that `entries` name by id.
    pub series: SeriesTable,
    /// A summary for each series and window, in no order.
    pub entries: Vec<Entry>,
    /// By series id: whether its summaries were merged into those of another fold. Empty where none were.
    merged_elsewhere: Vec<bool>,
}

impl Fold {
    /// With nothing in it.
    pub fn new(plans: Arc<MetricPlans>) -> Self {
        Self { summaries: fold::Fold::new(plans), tally: Tally::default(), merged_elsewhere: Vec::new() }
    }

    /// Adds readings that [`crate::dedup::DedupExec`] has marked.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let codes = column::<UInt8Array>(batch, NOVELTY).map_err(external)?.values();
        self.tally.add(batch, codes).map_err(external)?;
        self.summaries.add(batch, |row| novelty(codes[row]))
    }
}

/// Merges the folds of all plan partitions: each series is in one of the results only.
pub fn combine(mut folds: Vec<Fold>) -> (Vec<Folded>, Tally) {
    let mut tally = Tally::default();
    let mut owners: HashMap<Arc<SeriesKey>, (usize, SeriesId), foldhash::fast::RandomState> =
        HashMap::default();
    for later in 0..folds.len() {
        tally.merge(&folds[later].tally);
        tally.failures.merge(&folds[later].summaries.failures);
        let (before, from_here) = folds.split_at_mut(later);
        let fold = &mut from_here[0];
        let mut moves: HashMap<SeriesId, (usize, SeriesId)> = HashMap::new();
        for (id, key) in (0u32..).map(SeriesId).zip(fold.summaries.series.keys()) {
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
        for entry in fold.summaries.windows.entries() {
            let Some((owner, series)) = moves.get(&entry.series) else { continue };
            let windows = &mut before[*owner].summaries.windows;
            let slot = windows.entry(*series, entry.window_start);
            windows.change_unmarked(slot).merge(&entry.summary);
        }
        fold.merged_elsewhere = vec![false; fold.summaries.series.len()];
        for series in moves.keys() {
            fold.merged_elsewhere[series.0 as usize] = true;
        }
    }
    let folded = folds.into_iter().map(|fold| {
        let Fold { summaries: fold::Fold { series, mut windows, .. }, merged_elsewhere, .. } = fold;
        Folded { series, entries: windows.take_entries(), merged_elsewhere }
    });
    (folded.collect(), tally)
}

impl Folded {
    /// The places in `entries` of all that is to be stored, by series (in the order of their stored forms) and
    /// window start. `stored` are the stored forms by id.
    pub fn order(&self, stored: &[String]) -> Vec<u32> {
        let mut by_name: Vec<u32> = (0..self.series.len() as u32).collect();
        by_name.sort_unstable_by_key(|series| stored[*series as usize].as_str());
        let mut counts = vec![0u32; self.series.len()];
        for entry in self.entries.iter().filter(|entry| self.is_stored(entry)) {
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
            if self.is_stored(entry) {
                let place = &mut next[entry.series.0 as usize];
                order[*place as usize] = slot;
                *place += 1;
            }
        }
        let mut start = 0;
        for end in ends {
            // Readings come in the order of their event times, so windows mostly are in order already.
            let slots = &mut order[start..end];
            if !slots.is_sorted_by_key(|slot| self.window_start(*slot)) {
                slots.sort_unstable_by_key(|slot| self.window_start(*slot));
            }
            start = end;
        }
        order
    }

    /// Whether a window is a row of the views. One with duplicates only is not.
    fn is_stored(&self, entry: &Entry) -> bool {
        let is_elsewhere = self.merged_elsewhere.get(entry.series.0 as usize).copied().unwrap_or(false);
        !is_elsewhere && (entry.summary.count > 0 || entry.summary.conflicts > 0)
    }

    fn window_start(&self, slot: u32) -> Micros {
        self.entries[slot as usize].window_start
    }
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}

#[cfg(test)]
mod tests;

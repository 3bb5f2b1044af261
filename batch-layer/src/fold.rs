//! From marked readings to summaries: what the speed layer does for an epoch, done for everything below the horizon.
//!
//! The readings of a cell come in the order of their devices, maybe in several pieces. Each is added to the summary of its
//! window, so the result does not depend on how a cell is divided into pieces, to the last bit. The series of a definition
//! whose group names the device are in one piece only, so their summaries can be taken out at its end. No clock, no I/O.

use std::sync::Arc;

use arrow::array::{RecordBatch, UInt8Array};
use datafusion::error::{DataFusionError, Result};
use hashbrown::HashSet;
use wye_domain::DomainError;
use wye_domain::identity::Novelty;
use wye_domain::reading::column;
use wye_domain::series::SeriesTable;
use wye_domain::time::Micros;
use wye_metrics::amendment::{Amended, Amending};
use wye_metrics::failures::Failures;
use wye_metrics::fold;
use wye_metrics::plan::MetricPlans;
use wye_metrics::window_table::Entry;

use crate::dedup::{DROPPED, NOVELTY, REPEATED, novelty};

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// Readings, with duplicates and conflicts.
    pub readings: u64,
    /// Later readings of an identity with the same value.
    pub duplicates: u64,
    /// Later readings of an identity with another value.
    pub conflicts: u64,
    /// Readings that amendments leave out.
    pub dropped: u64,
    /// What definitions cannot compute.
    pub failures: Failures,
}

impl Tally {
    /// Counts readings by the codes of their novelty.
    fn add(&mut self, codes: &[u8]) {
        for code in codes {
            match novelty(*code) {
                Some(Novelty::First) => {}
                Some(Novelty::Duplicate) => self.duplicates += 1,
                Some(Novelty::Conflict) => self.conflicts += 1,
                None if *code == DROPPED => self.dropped += 1,
                None => continue,
            }
            self.readings += 1;
        }
    }

    /// Adds another tally.
    pub fn merge(&mut self, other: &Self) {
        self.readings += other.readings;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.dropped += other.dropped;
        self.failures.merge(&other.failures);
    }
}

/// The summaries of a cell while it is read.
#[derive(Debug)]
pub struct Fold {
    summaries: fold::Fold,
    /// Without failures, which `summaries` has.
    tally: Tally,
}

/// Summaries that are complete.
#[derive(Debug)]
pub struct Folded {
    /// The series that `entries` name by id.
    pub series: SeriesTable,
    /// A summary for each series and window, in no order.
    pub entries: Vec<Entry>,
}

impl Fold {
    /// With nothing in it.
    pub fn new(plans: Arc<MetricPlans>) -> Self {
        Self { summaries: fold::Fold::new(plans), tally: Tally::default() }
    }

    /// Adds readings that [`crate::dedup::Deduplicator`] has marked.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let codes = column::<UInt8Array>(batch, NOVELTY).map_err(external)?.values();
        self.tally.add(codes);
        self.summaries.add(batch, |row| novelty(codes[row]))
    }

    /// Applies amendments to readings that [`crate::dedup::Deduplicator`] has marked. Those that are left out are marked so.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn amend(&mut self, marked: RecordBatch, amending: &Amending) -> Result<RecordBatch> {
        if amending.is_empty() {
            return Ok(marked);
        }
        let before = marked.clone();
        let Amended { batch, dropped, failed } = amending.apply(marked)?;
        let codes = column::<UInt8Array>(&batch, NOVELTY).map_err(external)?.values().clone();
        for (amendment, rows) in failed {
            let name = format!("amendment {amendment}");
            let is_first = |row: usize| novelty(codes[row]) == Some(Novelty::First);
            self.tally.failures.add(&name, &rows, &before, is_first).map_err(external)?;
        }
        let Some(dropped) = dropped else { return Ok(batch) };
        let codes = codes.iter().zip(dropped);
        let codes = codes.map(|(code, dropped)| if dropped && *code != REPEATED { DROPPED } else { *code });
        let at = batch.schema().index_of(NOVELTY)?;
        let (schema, mut columns) = (batch.schema(), batch.columns().to_vec());
        columns[at] = Arc::new(UInt8Array::from_iter_values(codes));
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    /// Takes out the summaries of series that no other device adds to, after the last reading of a device.
    pub fn take_complete(&mut self) -> Folded {
        let plans = Arc::clone(self.summaries.plans());
        let by_device = plans.plans().iter().filter(|plan| plan.is_by_device());
        let by_device: HashSet<&str> = by_device.map(|plan| plan.definition().name.as_str()).collect();
        let series = std::mem::take(&mut self.summaries.series);
        let is_own: Vec<bool> =
            series.keys().iter().map(|key| by_device.contains(&*key.definition)).collect();
        let entries = self.summaries.windows.take_entries().into_iter();
        let (own, shared): (Vec<Entry>, Vec<Entry>) =
            entries.partition(|entry| is_own[entry.series.0 as usize]);
        for entry in shared {
            let key = (*series.keys()[entry.series.0 as usize]).clone();
            let id = self.summaries.series.id(key);
            let slot = self.summaries.windows.entry(id, entry.window_start);
            *self.summaries.windows.change_unmarked(slot) = entry.summary;
        }
        Folded { series, entries: own }
    }

    /// Ends the cell: the summaries that were not taken out, and what was read.
    pub fn finish(self) -> (Folded, Tally) {
        let Self { summaries, mut tally } = self;
        let fold::Fold { series, mut windows, failures, .. } = summaries;
        tally.failures.merge(&failures);
        (Folded { series, entries: windows.take_entries() }, tally)
    }
}

impl Folded {
    /// The places in `entries` of all that is to be stored, by series (in the order of their stored forms) and
    /// window start. `stored` are the stored forms by id.
    pub fn order(&self, stored: &[String]) -> Vec<u32> {
        let mut by_name: Vec<u32> = (0..self.series.len() as u32).collect();
        by_name.sort_unstable_by_key(|series| stored[*series as usize].as_str());
        let mut counts = vec![0u32; self.series.len()];
        for entry in self.entries.iter().filter(|entry| is_stored(entry)) {
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
            if is_stored(entry) {
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

    fn window_start(&self, slot: u32) -> Micros {
        self.entries[slot as usize].window_start
    }
}

/// Whether a window is a row of the views. One with duplicates only is not.
fn is_stored(entry: &Entry) -> bool {
    entry.summary.count > 0 || entry.summary.conflicts > 0
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}

#[cfg(test)]
mod tests;

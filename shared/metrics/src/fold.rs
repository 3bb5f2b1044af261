//! Folds batches of readings into summaries of series and windows. The speed layer does it for an epoch, the batch layer for
//! a run. Must not know how duplicates are found. No clock, no I/O.

use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::error::{DataFusionError, Result};
use wye_domain::DomainError;
use wye_domain::identity::Novelty;
use wye_domain::place::Offset;
use wye_domain::series::SeriesTable;
use wye_domain::summary::Summary;

use crate::contribution::Contribution;
use crate::failures::Failures;
use crate::plan::MetricPlans;
use crate::window_table::WindowTable;

/// Summaries that readings are added to.
#[derive(Debug)]
pub struct Fold {
    plans: Arc<MetricPlans>,
    /// The series that the windows name by id.
    pub series: SeriesTable,
    /// A summary for each series and window.
    pub windows: WindowTable,
    /// The readings that definitions could not compute.
    pub failures: Failures,
}

impl Fold {
    /// A fold without readings.
    #[must_use]
    pub fn new(plans: Arc<MetricPlans>) -> Self {
        Self {
            plans,
            series: SeriesTable::default(),
            windows: WindowTable::default(),
            failures: Failures::default(),
        }
    }

    /// What is computed.
    #[must_use]
    pub fn plans(&self) -> &Arc<MetricPlans> {
        &self.plans
    }

    /// Adds a batch that has the columns of a reading and `ingest_time`. `novelty` says what each row is; rows without one
    /// are left out. No window is marked as changed.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn add(&mut self, batch: &RecordBatch, novelty: impl Fn(usize) -> Option<Novelty>) -> Result<()> {
        self.add_to(batch, novelty, |windows, c| {
            let slot = windows.entry(c.series, c.window_start);
            Some(windows.change_unmarked(slot))
        })
    }

    /// The same for rows with these offsets in the log, by row. Rows that a restored summary holds already are left out, and
    /// changed windows are marked.
    ///
    /// # Errors
    /// When the batch lacks a column.
    pub fn add_at(
        &mut self,
        batch: &RecordBatch,
        offsets: &[i64],
        novelty: impl Fn(usize) -> Option<Novelty>,
    ) -> Result<()> {
        self.add_to(batch, novelty, |windows, c| {
            let slot = windows.entry(c.series, c.window_start);
            if windows.holds(slot, Offset(offsets[c.row])) {
                return None;
            }
            Some(windows.change(slot))
        })
    }

    /// Adds the rows that count to the summaries that `summary_of` finds.
    fn add_to(
        &mut self,
        batch: &RecordBatch,
        novelty: impl Fn(usize) -> Option<Novelty>,
        summary_of: impl for<'w> Fn(&'w mut WindowTable, &Contribution) -> Option<&'w mut Summary>,
    ) -> Result<()> {
        let contributions = self.plans.contributions(batch, &mut self.series)?;
        for (plan, contributions) in self.plans.plans().iter().zip(contributions) {
            let (name, failed) = (&plan.definition().name, &contributions.failed);
            self.failures
                .add(name, failed, batch, |row| novelty(row) == Some(Novelty::First))
                .map_err(external)?;
            let step = contributions.step().map_err(external)?;
            let windows = &mut self.windows;
            contributions.for_each(|c| match novelty(c.row) {
                None | Some(Novelty::Duplicate) => {}
                Some(novelty) => {
                    if let Some(summary) = summary_of(windows, &c) {
                        step.add(&c, novelty, summary);
                    }
                }
            });
        }
        Ok(())
    }
}

fn external(error: DomainError) -> DataFusionError {
    DataFusionError::External(error.into())
}

#[cfg(test)]
mod tests {
    use arrow::array::TimestampMicrosecondArray;
    use wye_domain::reading::{Reading, ReadingBatchBuilder};
    use wye_domain::series::SeriesKey;
    use wye_domain::time::{Micros, Span};

    use super::*;
    use crate::definition::{Definition, MetricConfig};
    use crate::plan::expectations::with_ingest_time;

    /// Readings of device `d` with these tags, one a second, each with its row as value.
    fn batch(tags: &[Option<&str>]) -> RecordBatch {
        let mut builder = ReadingBatchBuilder::default();
        for (row, tags) in (0u8..).zip(tags) {
            builder.append(&Reading {
                device_id: "d",
                metric: "t",
                value: f64::from(row),
                event_time: Micros::EPOCH + Span::from_secs(i64::from(row)),
                sequence: None,
                unit: None,
                tags: *tags,
            });
        }
        let ingest_time = TimestampMicrosecondArray::from(vec![0; tags.len()]).with_timezone("UTC");
        with_ingest_time(&builder.finish(), Arc::new(ingest_time)).unwrap()
    }

    fn fold(value: &str) -> Fold {
        let config = MetricConfig { name: "m".into(), value: Some(value.into()), ..MetricConfig::default() };
        let definition = Definition::check(&config).unwrap();
        Fold::new(Arc::new(MetricPlans::new(vec![definition], Arc::default()).unwrap()))
    }

    fn summaries(fold: &Fold) -> Vec<(u64, f64, u64)> {
        let entries = fold.windows.entries().iter();
        entries
            .map(|entry| (entry.summary.count, entry.summary.sum.value(), entry.summary.conflicts))
            .collect()
    }

    #[test]
    fn each_row_counts_by_its_novelty_and_nothing_is_marked() {
        let mut fold = fold("value");
        let novelty = [Some(Novelty::First), Some(Novelty::Duplicate), Some(Novelty::Conflict), None];
        fold.add(&batch(&[None; 4]), |row| novelty[row]).unwrap();
        fold.add(&batch(&[None; 70]), |row| (row >= 58).then_some(Novelty::First)).unwrap();
        let second: f64 = (60..70).map(f64::from).sum();
        assert_eq!(summaries(&fold), [(3, 58.0 + 59.0, 1), (10, second, 0)]);
        assert_eq!(fold.windows.changed_len(), 0);
    }

    #[test]
    fn what_a_restored_summary_holds_is_left_out_and_changes_are_marked() {
        let mut fold = fold("value");
        let group = Box::new([Some("d".into())]);
        let id = fold.series.id(SeriesKey { definition: "m".into(), metric: "m".into(), group });
        let mut before = Summary::EMPTY;
        before.add(1.0, Micros::EPOCH);
        fold.windows.restore(id, Micros::EPOCH, before, Offset(12));
        let offsets: Vec<i64> = (10..80).collect();
        fold.add_at(&batch(&[None; 70]), &offsets, |_| Some(Novelty::First)).unwrap();
        let (first, second) = ((2..60).map(f64::from).sum::<f64>(), (60..70).map(f64::from).sum());
        assert_eq!(summaries(&fold), [(1 + 58, 1.0 + first, 0), (10, second, 0)]);
        assert_eq!(fold.windows.changed_len(), 2);
        fold.windows.take_changed(|_| {});
        fold.add_at(&batch(&[None; 2]), &[10, 11], |_| Some(Novelty::First)).unwrap();
        assert_eq!(fold.windows.changed_len(), 0);
    }

    #[test]
    fn readings_that_cannot_be_computed_are_kept_as_failures_once() {
        let mut fold = fold("CAST(level AS DOUBLE)");
        let (good, bad) = (Some(r#"{"level":"5"}"#), Some(r#"{"level":"high"}"#));
        let novelty = [Novelty::First, Novelty::First, Novelty::Duplicate];
        fold.add(&batch(&[good, bad, bad]), |row| Some(novelty[row])).unwrap();
        assert_eq!(summaries(&fold), [(1, 5.0, 0)]);
        assert_eq!(fold.failures.of("m").unwrap().readings, 1);
    }
}

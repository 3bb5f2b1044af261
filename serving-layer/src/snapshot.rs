//! One batch view as it is served: its files, its horizon, and the newest window of each series.
//!
//! The newest windows are read once, when the view is loaded: first where they are, from three columns, then these
//! rows. This file does not know realtime views.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use futures::TryStreamExt;
use hashbrown::HashMap;
use tracing::warn;
use wye_domain::DomainError;
use wye_domain::reading::TextColumn;
use wye_domain::series::SeriesId;
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::failures::Failures;
use wye_tables::views::ViewSnapshot;

use crate::ServingError;
use crate::directory::Directory;
use crate::view_runs::runs;
use wye_metrics::merge::BatchRow;
use wye_metrics::view_rows::reader::{ROW_COLUMNS, ViewRows, count, window_start};

/// What a batch run says of itself that the merge needs.
#[derive(Clone, Debug, Default)]
pub struct RunFacts {
    /// The fingerprint of the definitions that its rows were made with; `None` where nobody says.
    pub definitions: Option<u64>,
    /// Everything that was ingested before this time (µs) is in the view.
    pub as_of: i64,
    /// How late readings came.
    pub lateness: Arc<LatenessHistogram>,
    /// The readings that definitions could not compute.
    pub failures: Arc<Failures>,
}

/// See the module.
#[derive(Debug)]
pub struct BatchSnapshot {
    view: ViewSnapshot,
    facts: RunFacts,
    usable: bool,
    windows: SeriesWindows,
}

/// The first and the last window with readings of each series, by series number.
#[derive(Debug, Default)]
struct SeriesWindows {
    /// Window starts in µs.
    oldest: Vec<Option<i64>>,
    newest: Vec<Option<Box<BatchRow>>>,
}

impl BatchSnapshot {
    /// Reads what is needed of a view. This is computation: call it where computing is allowed.
    ///
    /// # Errors
    /// [`ServingError::Tables`], [`ServingError::Run`] or [`ServingError::View`] when its files cannot be read.
    pub async fn load(
        view: ViewSnapshot,
        directory: &Directory,
        context: &Arc<TaskContext>,
    ) -> Result<Self, ServingError> {
        let facts = RunFacts::of(&view);
        let usable = facts.definitions == Some(directory.plans().fingerprint());
        let windows =
            if usable { series_windows(&view, directory, context).await? } else { SeriesWindows::default() };
        if !usable {
            warn!(
                version = view.version(),
                "the batch view was made with other metric definitions; its numbers are left out until the next run"
            );
        }
        Ok(Self { view, facts, usable, windows })
    }

    /// The version of the batch views table.
    pub fn version(&self) -> u64 {
        self.view.version()
    }

    /// Per Kafka partition the offset below which readings are in the view.
    pub fn horizon(&self) -> &BTreeMap<i32, i64> {
        &self.view.horizon
    }

    /// What the run says of itself.
    pub fn facts(&self) -> &RunFacts {
        &self.facts
    }

    /// Whether its rows were made with the definitions in force.
    pub fn usable(&self) -> bool {
        self.usable
    }

    /// The newest row of a series that has readings.
    pub fn newest(&self, series: SeriesId) -> Option<&BatchRow> {
        self.windows.newest.get(series.0 as usize)?.as_deref()
    }

    /// The start (µs) of the oldest window of a series that has readings.
    pub fn oldest(&self, series: SeriesId) -> Option<i64> {
        *self.windows.oldest.get(series.0 as usize)?
    }

    /// A plan over its rows, one plan partition a file; `None` where there is no row, or none that may be used.
    ///
    /// # Errors
    /// When a filter cannot be evaluated over the view's columns.
    pub fn scan(
        &self,
        columns: &[&str],
        filters: &[Expr],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>, ServingError> {
        if !self.usable || self.view.rows() == 0 {
            return Ok(None);
        }
        Ok(Some(self.view.scan(columns, filters)?))
    }
}

impl RunFacts {
    fn of(view: &ViewSnapshot) -> Self {
        let Some(run) = &view.run else { return Self::default() };
        Self {
            definitions: run.definitions.parse().ok(),
            as_of: run.as_of,
            lateness: Arc::new(run.lateness.clone()),
            failures: Arc::new(run.failures.clone()),
        }
    }
}

/// A time as the type of the view's time columns.
pub(crate) fn time_literal(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
}

async fn series_windows(
    view: &ViewSnapshot,
    directory: &Directory,
    context: &Arc<TaskContext>,
) -> Result<SeriesWindows, ServingError> {
    let mut found = SeriesWindows::default();
    if view.rows() == 0 {
        return Ok(found);
    }
    let mut windows: HashMap<SeriesId, i64> = HashMap::new();
    let plan = view.scan(&["series", "window_start", "count"], &[])?;
    for_each_batch(&plan, context, |batch| {
        let (series, starts) = (TextColumn::of(batch, "series")?, window_start(batch)?.values());
        let counts = count(batch)?.values();
        for (range, id) in runs(&series, batch.num_rows(), directory) {
            let Some(id) = id else { continue };
            let filled = range.filter(|row| counts[*row] > 0).map(|row| starts[row]);
            let bounds = filled.fold(None, |bounds, start| match bounds {
                None => Some((start, start)),
                Some((oldest, newest)) => Some((start.min(oldest), start.max(newest))),
            });
            let Some((oldest, newest)) = bounds else { continue };
            let known = windows.entry(id).or_insert(newest);
            *known = newest.max(*known);
            let known = place(&mut found.oldest, id).get_or_insert(oldest);
            *known = oldest.min(*known);
        }
        Ok(())
    })
    .await?;
    let Some(oldest) = windows.values().min().copied() else { return Ok(found) };
    let plan = view.scan(&ROW_COLUMNS, &[col("window_start").gt_eq(time_literal(oldest))])?;
    for_each_batch(&plan, context, |batch| {
        let columns = ViewRows::of(batch)?;
        for (range, id) in runs(&columns.series, batch.num_rows(), directory) {
            let Some((id, newest)) = id.and_then(|id| Some((id, *windows.get(&id)?))) else { continue };
            for row in range.filter(|row| columns.window_start.value(*row) == newest) {
                *place(&mut found.newest, id) = Some(Box::new(columns.row(row)?));
            }
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

/// The place of a series in a list by series number, which grows as needed.
fn place<T>(list: &mut Vec<Option<T>>, series: SeriesId) -> &mut Option<T> {
    let at = series.0 as usize;
    if at >= list.len() {
        list.resize_with(at + 1, || None);
    }
    &mut list[at]
}

/// Runs a plan, plan partition by plan partition.
async fn for_each_batch(
    plan: &Arc<dyn ExecutionPlan>,
    context: &Arc<TaskContext>,
    mut on: impl FnMut(&RecordBatch) -> Result<(), DomainError>,
) -> Result<(), ServingError> {
    let failed = |source| ServingError::Run { source: Box::new(source) };
    for plan_partition in 0..plan.properties().output_partitioning().partition_count() {
        let mut stream = plan.execute(plan_partition, Arc::clone(context)).map_err(failed)?;
        while let Some(batch) = stream.try_next().await.map_err(failed)? {
            on(&batch)?;
        }
    }
    Ok(())
}

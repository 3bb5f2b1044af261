//! The tables that a query sees, over one capture: those that SQL always has, and a view for each metric and each rollup.

mod system_tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::TableType;
use wye_domain::time::{Micros, Span, WindowSize};
use wye_metrics::definition::{Aggregate, Definition};
use wye_metrics::sql_tables::SqlTable;

use super::Sources;
use super::columns::{Column, MergedColumns, SeriesAnswer};
use super::messages::external;
use super::names::same_but_case;
use super::table::{Layers, MergedTable, TableSpec};
use crate::directory::Directory;
use crate::hub::{Capture, Current};

/// How many batch runs `batch_runs` shows.
const RUNS: usize = 1_000;
/// How long the textbook rule trusts a window of the batch view, from the window's start on.
const CLASSIC_AGE: Span = Span::from_hours(1);

/// The tables over one capture.
#[derive(Debug)]
pub(super) struct CaptureSchema {
    pub(super) directory: Arc<Directory>,
    pub(super) sources: Sources,
    pub(super) capture: Arc<Capture>,
    /// The newest window of each series; empty where the query does not ask for it.
    pub(super) current: Vec<Current>,
    pub(super) now: Micros,
}

/// A view of one metric.
struct View {
    /// By its index in the plans.
    definition: usize,
    /// One metric of a family.
    metric: Option<Arc<str>>,
    /// A rollup.
    step: Option<WindowSize>,
}

/// A table by its name.
enum Found {
    Always(SqlTable),
    View(View),
}

#[async_trait]
impl SchemaProvider for CaptureSchema {
    fn table_names(&self) -> Vec<String> {
        let views = self.views().into_keys().filter(|name| SqlTable::parse(name).is_none());
        SqlTable::ALL.into_iter().map(|table| table.name().to_owned()).chain(views).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = match self.find(name) {
            None => return Ok(None),
            Some(Found::View(view)) => return Ok(Some(self.merged(self.spec(view)))),
            Some(Found::Always(table)) => table,
        };
        Ok(Some(match table {
            SqlTable::Readings => {
                let snapshot = self.sources.readings.snapshot().await.map_err(external)?;
                snapshot.provider().await.map_err(external)?
            }
            SqlTable::DeadLetters => self.sources.dead_letters.provider().await.map_err(external)?,
            SqlTable::BatchRuns => {
                let runs = self.sources.views.history(RUNS).await.map_err(external)?;
                in_memory(system_tables::batch_runs(&runs)?)?
            }
            SqlTable::Amendments => {
                let all = self.sources.amendments.all().await.map_err(external)?;
                in_memory(system_tables::amendments(&all)?)?
            }
            SqlTable::Restatements => self.sources.restatements.provider().await.map_err(external)?,
            SqlTable::Coverage => in_memory(system_tables::coverage(&self.capture.coverage)?)?,
            SqlTable::RealtimeMetrics => self.all_series(Layers::Realtime),
            SqlTable::BatchMetrics => self.all_series(Layers::Batch),
            SqlTable::UnifiedSeries => self.all_series(Layers::Both),
            SqlTable::UnifiedMetrics => in_memory(self.newest()?)?,
            SqlTable::UnifiedMetricsClassic => in_memory(self.classic()?)?,
        }))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        SqlTable::parse(name).is_some() || self.views().contains_key(name)
    }
}

impl CaptureSchema {
    /// The names of all tables.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.table_names().into_iter().collect()
    }

    /// The table of a name, or the only one whose name differs from it in nothing but case.
    fn find(&self, name: &str) -> Option<Found> {
        let mut views = self.views();
        if let Some(found) = found(name, &mut views) {
            return Some(found);
        }
        match same_but_case(name, self.names().iter().map(String::as_str)).as_slice() {
            [only] => found(only, &mut views),
            _ => None,
        }
    }

    /// All views by name. The name of a definition wins over the same name in a family.
    fn views(&self) -> BTreeMap<String, View> {
        let plans = self.directory.plans().plans().iter().map(|plan| plan.definition()).enumerate();
        let (families, named): (Vec<_>, Vec<_>) = plans.partition(|(_, definition)| definition.is_family());
        let of_families = families.into_iter().flat_map(|(index, definition)| {
            let metrics = self.directory.metrics(index).into_iter();
            metrics.flat_map(move |metric| views_of(index, definition, Some(metric)))
        });
        let mut views = BTreeMap::new();
        let named = named.into_iter().flat_map(|(index, definition)| views_of(index, definition, None));
        for (name, view) in named.chain(of_families) {
            views.entry(name).or_insert(view);
        }
        views
    }

    fn merged(&self, spec: TableSpec) -> Arc<dyn TableProvider> {
        Arc::new(MergedTable::new(Arc::clone(&self.directory), Arc::clone(&self.capture), self.now, spec))
    }

    fn dimensions(&self) -> impl Iterator<Item = Column> + use<> {
        (0..self.directory.dimensions().len()).map(Column::Dimension)
    }

    fn all_series(&self, layers: Layers) -> Arc<dyn TableProvider> {
        let mut columns = vec![Column::MetricKey, Column::Definition, Column::Metric];
        columns.extend(self.dimensions());
        columns.extend([Column::WindowStart, Column::WindowEnd]);
        for aggregate in Aggregate::ALL {
            columns.push(Column::Aggregate(aggregate));
            if aggregate == Aggregate::Last {
                columns.extend([Column::FirstTime, Column::LastTime]);
            }
        }
        columns.extend(Column::CONFIDENCE);
        self.merged(TableSpec { layers, columns, definition: None, metric: None, step: None })
    }

    fn spec(&self, view: View) -> TableSpec {
        let definition = self.directory.definition(view.definition);
        let mut columns = vec![Column::MetricKey, Column::Metric];
        columns.extend(definition.dimension_names().iter().filter_map(|name| {
            self.directory.dimensions().iter().position(|known| known == name).map(Column::Dimension)
        }));
        columns.extend([Column::WindowStart, Column::WindowEnd]);
        columns.extend(definition.aggregates.iter().map(|aggregate| Column::Aggregate(*aggregate)));
        columns.extend(Column::CONFIDENCE);
        TableSpec {
            layers: Layers::Both,
            columns,
            definition: Some(view.definition),
            metric: view.metric,
            step: view.step,
        }
    }

    fn newest(&self) -> Result<RecordBatch> {
        let mut columns = vec![Column::MetricKey, Column::Definition, Column::Metric];
        columns.extend(self.dimensions());
        columns.extend([Column::CurrentValue, Column::Source, Column::ConfidenceScore, Column::DataPoints]);
        columns.extend([Column::LastUpdated, Column::WindowStart, Column::WindowEnd, Column::State]);
        columns.extend([Column::Completeness, Column::Validity, Column::Expected, Column::ExpectedSource]);
        let answers: Vec<SeriesAnswer> =
            self.current.iter().map(|current| (Arc::clone(&current.info), current.answer.clone())).collect();
        MergedColumns::new(Arc::clone(&self.directory), columns).of_answers(&answers)
    }

    fn classic(&self) -> Result<RecordBatch> {
        let columns =
            vec![Column::MetricKey, Column::CurrentValue, Column::ConfidenceScore, Column::LastUpdated];
        let trusted_from = self.now - CLASSIC_AGE;
        let answers: Vec<SeriesAnswer> =
            self.current.iter().filter_map(|current| classic_answer(current, trusted_from)).collect();
        MergedColumns::new(Arc::clone(&self.directory), columns).of_answers(&answers)
    }
}

fn found(name: &str, views: &mut BTreeMap<String, View>) -> Option<Found> {
    match SqlTable::parse(name) {
        Some(table) => Some(Found::Always(table)),
        None => views.remove(name).map(Found::View),
    }
}

/// The views of a definition, or of one metric of a family: one with its own windows, and one for each rollup.
fn views_of(
    index: usize,
    definition: &Definition,
    metric: Option<Arc<str>>,
) -> impl Iterator<Item = (String, View)> {
    let name = metric.as_deref().unwrap_or(&definition.name).to_owned();
    let rollups = definition.rollups.iter().map(|step| (format!("{name}_{step}"), Some(*step)));
    let names: Vec<_> = std::iter::once((name.clone(), None)).chain(rollups).collect();
    names
        .into_iter()
        .map(move |(name, step)| (name, View { definition: index, metric: metric.clone(), step }))
}

/// The newest window of the batch view where it starts at `trusted_from` or later, else that of the realtime views.
fn classic_answer(current: &Current, trusted_from: Micros) -> Option<SeriesAnswer> {
    let trusted = current.batch.as_ref().filter(|answer| answer.window_start >= trusted_from);
    let answer = trusted.or(current.realtime.as_ref())?;
    Some((Arc::clone(&current.info), answer.clone()))
}

fn in_memory(batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

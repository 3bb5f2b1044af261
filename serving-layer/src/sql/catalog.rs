//! The names that SQL knows, over one capture: fixed tables first, then one view per metric and per rollup.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::TableType;
use wye_domain::time::{SECOND, WindowSize};
use wye_metrics::definition::{Aggregate, Definition};
use wye_tables::TablesError;
use wye_tables::views::CommittedRun;

use super::Sources;
use super::columns::{Builder, Column};
use super::names::same_but_case;
use super::table::{Layers, MergedTable, TableSpec};
use crate::coverage::{Coverage, PartitionCoverage, Reason};
use crate::directory::{Directory, SeriesInfo};
use crate::hub::{Capture, Current};
use wye_metrics::merge::Answer;

/// How many batch runs `batch_runs` shows.
const RUNS: usize = 1_000;
/// How long the textbook rule trusts a batch bucket, in µs.
const CLASSIC_AGE: i64 = 3_600 * SECOND;

/// The fixed tables.
pub(super) const TABLES: [&str; 9] = [
    "readings",
    "realtime_metrics",
    "batch_metrics",
    "unified_series",
    UNIFIED_METRICS,
    UNIFIED_METRICS_CLASSIC,
    "dead_letters",
    "batch_runs",
    "coverage",
];
/// One row per series: the newest window of the exact merge.
pub(super) const UNIFIED_METRICS: &str = "unified_metrics";
/// One row per series by the textbook rule.
pub(super) const UNIFIED_METRICS_CLASSIC: &str = "unified_metrics_classic";

/// See the module.
#[derive(Debug)]
pub(super) struct CaptureSchema {
    pub(super) directory: Arc<Directory>,
    pub(super) sources: Sources,
    pub(super) capture: Arc<Capture>,
    /// The newest window of each series, where the query asks for it.
    pub(super) current: Vec<Current>,
    pub(super) now: i64,
}

/// A view of one metric.
struct View {
    definition: usize,
    /// Of a family.
    metric: Option<Arc<str>>,
    step: Option<WindowSize>,
}

#[async_trait]
impl SchemaProvider for CaptureSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names: Vec<String> = TABLES.map(str::to_owned).to_vec();
        names.extend(self.views().into_keys().filter(|name| !TABLES.contains(&name.as_str())));
        names
    }

    /// A name that differs from that of only one table in nothing but case is that table's.
    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let mut views = self.views();
        let name = match TABLES.contains(&name) || views.contains_key(name) {
            true => name.to_owned(),
            false => match same_but_case(name, self.names().iter()).as_slice() {
                [only] => (*only).to_owned(),
                _ => return Ok(None),
            },
        };
        Ok(Some(match name.as_str() {
            "readings" => {
                let snapshot = self.sources.readings.snapshot().await.map_err(external)?;
                snapshot.provider().await.map_err(external)?
            }
            "dead_letters" => self.sources.dead_letters.provider().await.map_err(external)?,
            "batch_runs" => memory(runs(&self.sources.views.history(RUNS).await.map_err(external)?)?)?,
            "coverage" => memory(coverage(&self.capture.coverage)?)?,
            "realtime_metrics" => self.wide(Layers::Realtime),
            "batch_metrics" => self.wide(Layers::Batch),
            "unified_series" => self.wide(Layers::Both),
            UNIFIED_METRICS => memory(self.newest())?,
            UNIFIED_METRICS_CLASSIC => memory(self.classic()?)?,
            name => match views.remove(name) {
                Some(view) => self.merged(self.spec(&view)),
                None => return Ok(None),
            },
        }))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        TABLES.contains(&name) || self.views().contains_key(name)
    }
}

impl CaptureSchema {
    /// The names of all tables.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.views().into_keys().chain(TABLES.map(str::to_owned)).collect()
    }

    /// All views by name; a definition's name wins over a name of the family.
    fn views(&self) -> BTreeMap<String, View> {
        let mut views = BTreeMap::new();
        let mut add = |name: &str, place: usize, definition: &Definition, metric: Option<&Arc<str>>| {
            let steps = definition.rollups.iter().map(|step| (format!("{name}_{step}"), Some(*step)));
            for (name, step) in std::iter::once((name.to_owned(), None)).chain(steps) {
                views.entry(name).or_insert_with(|| View {
                    definition: place,
                    metric: metric.cloned(),
                    step,
                });
            }
        };
        let plans = self.directory.plans().plans().iter().enumerate();
        let (families, named): (Vec<_>, Vec<_>) = plans.partition(|(_, plan)| plan.definition().is_family());
        for (place, plan) in named {
            add(&plan.definition().name, place, plan.definition(), None);
        }
        for (place, plan) in families {
            for metric in self.directory.metrics(place) {
                add(&metric, place, plan.definition(), Some(&metric));
            }
        }
        views
    }

    fn merged(&self, spec: TableSpec) -> Arc<dyn TableProvider> {
        Arc::new(MergedTable::new(Arc::clone(&self.directory), Arc::clone(&self.capture), self.now, spec))
    }

    fn wide(&self, layers: Layers) -> Arc<dyn TableProvider> {
        let mut columns = vec![Column::MetricKey, Column::Definition, Column::Metric];
        columns.extend((0..self.directory.dimensions().len()).map(Column::Dimension));
        columns.extend([Column::WindowStart, Column::WindowEnd]);
        for aggregate in Aggregate::ALL {
            columns.push(Column::Aggregate(aggregate));
            if aggregate == Aggregate::Last {
                columns.extend([Column::FirstTime, Column::LastTime]);
            }
        }
        columns.extend(TRUST);
        self.merged(TableSpec { layers, columns, definition: None, metric: None, step: None })
    }

    fn spec(&self, view: &View) -> TableSpec {
        let definition = self.directory.definition(view.definition);
        let mut columns = vec![Column::MetricKey, Column::Metric];
        columns.extend(definition.dimension_names().iter().filter_map(|name| {
            self.directory.dimensions().iter().position(|known| known == name).map(Column::Dimension)
        }));
        columns.extend([Column::WindowStart, Column::WindowEnd]);
        columns.extend(definition.aggregates.iter().map(|aggregate| Column::Aggregate(*aggregate)));
        columns.extend(TRUST);
        TableSpec {
            layers: Layers::Both,
            columns,
            definition: Some(view.definition),
            metric: view.metric.clone(),
            step: view.step,
        }
    }

    fn newest(&self) -> RecordBatch {
        let mut columns = vec![Column::MetricKey, Column::Definition, Column::Metric];
        columns.extend((0..self.directory.dimensions().len()).map(Column::Dimension));
        columns.extend([Column::CurrentValue, Column::Source, Column::ConfidenceScore, Column::DataPoints]);
        columns.extend([Column::LastUpdated, Column::WindowStart, Column::WindowEnd, Column::State]);
        columns.extend([Column::Completeness, Column::Validity, Column::Expected, Column::ExpectedSource]);
        let answers: Vec<(Arc<SeriesInfo>, Answer)> =
            self.current.iter().map(|current| (Arc::clone(&current.info), current.answer.clone())).collect();
        Builder::new(Arc::clone(&self.directory), columns).answers(&answers)
    }

    /// The latest batch bucket where it starts within the last hour, else the realtime value.
    fn classic(&self) -> Result<RecordBatch> {
        let columns =
            vec![Column::MetricKey, Column::CurrentValue, Column::ConfidenceScore, Column::LastUpdated];
        let recent = |answer: &&Answer| answer.window_start >= self.now.saturating_sub(CLASSIC_AGE);
        let chosen = |current: &Current| -> Option<(Arc<SeriesInfo>, Answer)> {
            let answer = current.batch.as_ref().filter(recent).or(current.realtime.as_ref())?;
            Some((Arc::clone(&current.info), answer.clone()))
        };
        let answers: Vec<_> = self.current.iter().filter_map(chosen).collect();
        Ok(Builder::new(Arc::clone(&self.directory), columns).answers(&answers))
    }
}

/// How far a row can be trusted.
const TRUST: [Column; 7] = [
    Column::Source,
    Column::ConfidenceScore,
    Column::Completeness,
    Column::Validity,
    Column::Expected,
    Column::ExpectedSource,
    Column::State,
];

fn runs(runs: &[CommittedRun]) -> Result<RecordBatch> {
    fn times(runs: &[CommittedRun], value: impl Fn(&CommittedRun) -> i64) -> ArrayRef {
        let values = runs.iter().map(value);
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    }
    fn counts(runs: &[CommittedRun], value: impl Fn(&CommittedRun) -> u64) -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(runs.iter().map(value)))
    }
    fn texts(runs: &[CommittedRun], value: impl Fn(&CommittedRun) -> String) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(runs.iter().map(value)))
    }
    let durations = runs.iter().map(|run| (run.run.finished_at - run.run.started_at) / 1_000);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("run_id", texts(runs, |run| run.run.run_id.clone())),
        ("version", counts(runs, |run| run.version)),
        ("started_at", times(runs, |run| run.run.started_at)),
        ("finished_at", times(runs, |run| run.run.finished_at)),
        ("committed_at", times(runs, |run| run.committed)),
        ("duration_ms", Arc::new(Int64Array::from_iter_values(durations))),
        ("readings", counts(runs, |run| run.run.readings)),
        ("duplicates", counts(runs, |run| run.run.duplicates)),
        ("conflicts", counts(runs, |run| run.run.conflicts)),
        ("windows", counts(runs, |run| run.run.windows)),
        ("series", counts(runs, |run| run.run.series)),
        (
            "horizon",
            texts(runs, |run| serde_json::to_string(&run.horizon).expect("numbers by number are JSON")),
        ),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// What the query's answer covers of the log: a row for each Kafka partition.
fn coverage(coverage: &Coverage) -> Result<RecordBatch> {
    fn offsets(coverage: &Coverage, value: impl Fn(&PartitionCoverage) -> Option<i64>) -> ArrayRef {
        Arc::new(coverage.kafka_partitions.iter().map(value).collect::<Int64Array>())
    }
    let rows = &coverage.kafka_partitions;
    let numbers = Int32Array::from_iter_values(rows.iter().map(|row| row.kafka_partition));
    let since: TimestampMicrosecondArray = rows.iter().map(|row| row.lacking_since).collect();
    let seconds = rows.iter().map(|row| {
        row.lacking_since.map_or(0.0, |since| (coverage.now - since).max(0) as f64 / SECOND as f64)
    });
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("kafka_partition", Arc::new(numbers)),
        ("horizon", offsets(coverage, |row| row.horizon)),
        ("covered", offsets(coverage, |row| Some(row.covered))),
        ("log_end", offsets(coverage, |row| row.log_end)),
        ("lacking", offsets(coverage, PartitionCoverage::lacking)),
        ("lacking_since", Arc::new(since.with_timezone("UTC"))),
        ("lacking_seconds", Arc::new(Float64Array::from_iter_values(seconds))),
        ("generation", offsets(coverage, |row| row.generation)),
        ("complete", Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.reason.is_none()))))),
        ("reason", Arc::new(rows.iter().map(|row| row.reason.map(Reason::name)).collect::<StringArray>())),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )?)
}

fn memory(batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

fn external(error: TablesError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

//! The views of one run, for reading. Must not know what the columns mean.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::DFSchema;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use wye_domain::horizon::Horizon;

use super::{HORIZON, TABLE, ViewVersion};
use crate::columns::{VIEW_ORDER, dictionary_text};
use crate::delta::hold::Hold;
use crate::delta::{DataFile, DeltaLog, LogSnapshot};
use crate::error::TablesError;
use crate::parquet_plan::{FilePlan, ordering, partitioned_file, project};
use crate::run_record::RunRecord;

/// The views of one run.
#[derive(Clone, Debug)]
pub struct ViewSnapshot {
    /// For each Kafka partition the offset below which readings are in the views.
    pub horizon: Horizon,
    /// What the run recorded of itself; `None` when its log entry is deleted.
    pub run: Option<RunRecord>,
    log: DeltaLog,
    snapshot: LogSnapshot,
    version: ViewVersion,
    /// Cleaning keeps the version's files while any clone of this exists.
    _hold: Arc<Hold>,
}

impl ViewSnapshot {
    pub(super) fn new(
        log: DeltaLog,
        snapshot: LogSnapshot,
        version: ViewVersion,
        run: Option<RunRecord>,
        hold: Arc<Hold>,
    ) -> Self {
        Self { horizon: HORIZON.read(&snapshot), run, log, snapshot, version, _hold: hold }
    }

    /// The version of the views.
    pub fn version(&self) -> ViewVersion {
        self.version
    }

    #[cfg(test)]
    pub(super) fn root(&self) -> &crate::store::TableRoot {
        self.log.root()
    }

    /// The columns, text as dictionaries.
    pub fn schema(&self) -> SchemaRef {
        dictionary_text(&self.snapshot.schema)
    }

    /// How many rows the views have.
    pub fn rows(&self) -> u64 {
        self.snapshot.files.iter().map(|file| file.stats.num_records).sum()
    }

    /// How many bytes the files have.
    pub fn bytes(&self) -> u64 {
        self.snapshot.files.iter().map(|file| u64::try_from(file.add.size).unwrap_or_default()).sum()
    }

    /// Exactly these views as an SQL table, skipping files and row groups by their statistics.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when the table cannot be planned.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.snapshot.delta_table(&self.log);
        table.table_provider().await.map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    /// A plan over exactly these views: one plan partition per file, rows in the order of series and window
    /// ([`VIEW_ORDER`]), text as dictionaries.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a column does not exist or a filter cannot be evaluated over [`ViewSnapshot::schema`].
    pub fn scan(&self, columns: &[&str], filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let schema = self.schema();
        let failed = |source| TablesError::Scan { table: TABLE, source };
        let filter = match filters.iter().cloned().reduce(Expr::and) {
            Some(all) => {
                let columns = DFSchema::try_from(Arc::clone(&schema)).map_err(failed)?;
                Some(SessionContext::new().create_physical_expr(all, &columns).map_err(failed)?)
            }
            None => None,
        };
        let order: Vec<&str> = if VIEW_ORDER.iter().all(|name| schema.index_of(name).is_ok()) {
            VIEW_ORDER.into()
        } else {
            vec![]
        };
        let is_sorted = |file: &&DataFile| order.is_empty() || file.is_sorted_by(&order);
        let (sorted, unsorted): (Vec<&DataFile>, Vec<&DataFile>) =
            self.snapshot.files.iter().partition(is_sorted);
        let plan = |files: &[&DataFile], columns: &[&str]| -> Result<Arc<dyn ExecutionPlan>, TablesError> {
            let group = |file: &&DataFile| Ok(vec![partitioned_file(self.log.root(), TABLE, file, &schema)?]);
            let plan = FilePlan {
                root: self.log.root(),
                file_schema: Arc::clone(&schema),
                groups: files.iter().map(group).collect::<Result<_, TablesError>>()?,
                sorted_by: &[],
                filter: filter.clone(),
                columns,
                batch_size: None,
            };
            plan.build().map_err(failed)
        };
        if unsorted.is_empty() {
            return plan(&sorted, columns);
        }
        let mut wider = columns.to_vec();
        wider.extend(order.iter().filter(|name| !columns.contains(name)));
        let resorted = sort_each(plan(&unsorted, &wider)?, &order).and_then(|plan| project(plan, columns));
        let resorted = resorted.map_err(failed)?;
        if sorted.is_empty() {
            return Ok(resorted);
        }
        UnionExec::try_new(vec![plan(&sorted, columns)?, resorted]).map_err(failed)
    }
}

/// Sorts every plan partition for itself.
fn sort_each(
    plan: Arc<dyn ExecutionPlan>,
    order: &[&str],
) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
    let order = ordering(&plan.schema(), order)?.expect("the order has columns");
    Ok(Arc::new(SortExec::new(order, plan).with_preserve_partitioning(true)))
}

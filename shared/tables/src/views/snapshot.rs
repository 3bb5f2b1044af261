//! Reads the views of one run. Must not know what the columns mean.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{DFSchema, Result};
use datafusion::datasource::physical_plan::FileGroup;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;
use wye_domain::horizon::Horizon;
use wye_domain::time::Window;

use super::cells::{self, Group};
use super::{HORIZON, TABLE, ViewVersion};
use crate::columns::{VIEW_ORDER, dictionary_text};
use crate::delta::hold::Hold;
use crate::delta::{DataFile, DeltaLog, LogSnapshot};
use crate::error::TablesError;
use crate::parquet_plan::{FilePlan, partitioned_file, project, sorted_each};
use crate::run_record::RunRecord;

/// The views of one run.
#[derive(Clone, Debug)]
pub struct ViewSnapshot {
    /// The horizon: readings below it are in the views.
    pub horizon: Horizon,
    /// The record of the run; `None` when its log entry is deleted.
    pub run: Option<RunRecord>,
    log: DeltaLog,
    snapshot: LogSnapshot,
    version: ViewVersion,
    /// The files of each plan partition.
    groups: Arc<OnceLock<Vec<Group>>>,
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
        let groups = Arc::default();
        Self { horizon: HORIZON.read(&snapshot), run, log, snapshot, version, groups, _hold: hold }
    }

    /// The version of the views.
    pub fn version(&self) -> ViewVersion {
        self.version
    }

    #[cfg(test)]
    pub(super) fn root(&self) -> &crate::store::TableRoot {
        self.log.root()
    }

    pub(super) fn data_files(&self) -> impl Iterator<Item = &DataFile> {
        self.snapshot.files.iter()
    }

    /// The same version, of which scans read only the files that an older version lacks, and the cells of the files that only the
    /// older one has; `None` where it lacks none or all, or where such a file does not say its cell.
    pub fn only_new(&self, before: &Self) -> Option<(Self, Vec<Window>)> {
        let known: HashSet<&str> = before.data_files().map(|file| file.add.path.as_str()).collect();
        let is_new = |file: &&DataFile| !known.contains(file.add.path.as_str());
        let new: Vec<DataFile> = self.data_files().filter(is_new).cloned().collect();
        let has_both = !new.is_empty() && new.len() < self.snapshot.files.len();
        let kept: HashSet<&str> = self.data_files().map(|file| file.add.path.as_str()).collect();
        let gone = before.data_files().filter(|file| !kept.contains(file.add.path.as_str()));
        let cells = gone.map(|file| Some(cells::of_file(file)?.window())).collect::<Option<_>>()?;
        has_both.then(|| (self.of_files(&new), cells))
    }

    /// The same version, of which scans read only the files that may have windows that start in a stretch of time.
    #[must_use]
    pub fn overlapping(&self, stretch: Window) -> Self {
        let is_outside = |cell: Window| cell.end <= stretch.start || stretch.end <= cell.start;
        let may_have =
            |file: &&DataFile| !cells::of_file(file).is_some_and(|record| is_outside(record.window()));
        self.of_files(&self.data_files().filter(may_have).cloned().collect::<Vec<_>>())
    }

    /// The same version, of which scans read only some files.
    fn of_files(&self, files: &[DataFile]) -> Self {
        Self { groups: Arc::new(OnceLock::from(cells::groups(files))), ..self.clone() }
    }

    /// The columns, with text in dictionaries.
    pub fn schema(&self) -> SchemaRef {
        dictionary_text(&self.snapshot.schema)
    }

    /// How many rows the views have.
    pub fn rows(&self) -> u64 {
        self.snapshot.rows()
    }

    /// How many bytes the files have.
    pub fn bytes(&self) -> u64 {
        self.snapshot.bytes()
    }

    /// Exactly these views as an SQL table, skipping files and row groups by their statistics.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when the table cannot be planned.
    pub async fn provider(&self) -> Result<Arc<dyn TableProvider>, TablesError> {
        let table = self.snapshot.delta_table(&self.log);
        table.table_provider().await.map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    /// A plan over exactly these views, text in dictionaries. Each cell is in one plan partition. Its files follow each
    /// other, and the rows of a file are in the order of series and window ([`VIEW_ORDER`]). A series and window of a cell
    /// is in one file only, and where a series goes on in another file of the cell, that is the next one. Where the cells
    /// are not known ([`ViewSnapshot::cells`]), there is a plan partition for each file.
    ///
    /// # Errors
    /// [`TablesError::Scan`] when a column does not exist or a filter cannot be evaluated over [`ViewSnapshot::schema`].
    pub fn scan(&self, columns: &[&str], filters: &[Expr]) -> Result<Arc<dyn ExecutionPlan>, TablesError> {
        let schema = self.schema();
        let is_ordered = VIEW_ORDER.iter().all(|name| schema.index_of(name).is_ok());
        let (mut sorted, mut unsorted) = (Vec::new(), Vec::new());
        for group in self.groups.get_or_init(|| cells::groups(&self.snapshot.files)) {
            let is_sorted = !is_ordered || group.iter().all(|file| file.is_sorted_by(&VIEW_ORDER));
            let groups = if is_sorted { &mut sorted } else { &mut unsorted };
            let files = group.iter().map(|file| partitioned_file(self.log.root(), TABLE, file, &schema));
            groups.push(FileGroup::new(files.collect::<std::result::Result<_, _>>()?));
        }
        self.plan(sorted, unsorted, columns, filters)
            .map_err(|source| TablesError::Scan { table: TABLE, source })
    }

    fn plan(
        &self,
        sorted: Vec<FileGroup>,
        unsorted: Vec<FileGroup>,
        columns: &[&str],
        filters: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = self.condition(filters)?;
        if unsorted.is_empty() {
            return self.files(sorted, columns, filter);
        }
        let mut wider = columns.to_vec();
        wider.extend(VIEW_ORDER.iter().filter(|name| !columns.contains(name)));
        let resorted = sorted_each(self.files(unsorted, &wider, filter.clone())?, &VIEW_ORDER)?;
        let resorted = project(resorted, columns)?;
        if sorted.is_empty() {
            return Ok(resorted);
        }
        UnionExec::try_new(vec![self.files(sorted, columns, filter)?, resorted])
    }

    /// All filters as one expression over the columns of the views.
    fn condition(&self, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(all) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let columns = DFSchema::try_from(self.schema())?;
        SessionContext::new().create_physical_expr(all, &columns).map(Some)
    }

    /// Files as they are, one plan partition for each group.
    fn files(
        &self,
        groups: Vec<FileGroup>,
        columns: &[&str],
        filter: Option<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let plan = FilePlan {
            root: self.log.root(),
            file_schema: self.schema(),
            groups,
            sorted_by: &[],
            filter,
            columns,
            batch_size: None,
        };
        plan.build()
    }
}

//! From the text of a statement to the stream of its rows, over one capture of both layers. Must not know slots, threads
//! and time limits of queries.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList};
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionConfig;
use wye_metrics::sql_tables::SqlTable;
use wye_runtime::clock::Clock;
use wye_tables::store::TableRoot;

use super::catalog::CaptureSchema;
use super::engine::EngineParts;
use super::limits::{Limits, RESERVED_PERCENT};
use super::{Sources, guard, names, statement};
use crate::ServingError;
use crate::coverage::Coverage;
use crate::hub::Hub;

/// The catalog and schema that all tables are in.
pub(super) const CATALOG: &str = "wye";
pub(super) const SCHEMA: &str = "public";

/// Plans statements.
pub(super) struct Planner {
    hub: Arc<Hub>,
    sources: Sources,
    clock: Arc<dyn Clock>,
    /// The session of each query, without tables.
    session: SessionState,
}

impl Planner {
    /// A planner over a hub and the tables below `root`.
    ///
    /// # Errors
    /// [`ServingError::Prepare`] or [`ServingError::SpillFolder`] when sessions cannot be set up.
    pub(super) fn new(parts: &EngineParts, root: &TableRoot, limits: &Limits) -> Result<Self, ServingError> {
        let disk = match &limits.spill_folder {
            Some(folder) => DiskManagerMode::Directories(vec![empty_folder(folder)?]),
            None => DiskManagerMode::Disabled,
        };
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(limits.memory / 100 * RESERVED_PERCENT)))
            .with_disk_manager_builder(
                DiskManagerBuilder::default().with_mode(disk).with_max_temp_directory_size(limits.spill),
            )
            .build_arc()
            .map_err(prepare_failed)?;
        root.register(&environment)?;
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(limits.threads.max(1));
        config.options_mut().sql_parser.collect_spans = true;
        let session = SessionStateBuilder::new().with_config(config).with_runtime_env(environment);
        let session = guard::install(session.with_default_features()).build();
        Ok(Self {
            hub: Arc::clone(&parts.hub),
            sources: parts.sources.clone(),
            clock: Arc::clone(&parts.clock),
            session,
        })
    }

    /// A context for plans that are made without a statement.
    pub(super) fn task_context(&self) -> Arc<TaskContext> {
        self.session.task_ctx()
    }

    /// Plans a statement, and starts to execute it. Returns its rows with what they cover of the log.
    ///
    /// # Errors
    /// [`ServingError::Query`] when the statement is wrong or does not only read, other errors when planning fails.
    pub(super) async fn start(
        &self,
        sql: &str,
    ) -> Result<(SendableRecordBatchStream, Arc<Coverage>), ServingError> {
        statement::check_size(sql)?;
        let dialect = self.session.config().options().sql_parser.dialect;
        let statement = self.session.sql_to_statement(sql, &dialect).map_err(ServingError::of_query)?;
        statement::check_kind(&statement, sql)?;
        let tables = self.session.resolve_table_references(&statement).map_err(ServingError::of_query)?;
        let schema = self.capture(&tables);
        let coverage = Arc::clone(&schema.capture.coverage);
        names::check_tables(&tables, &schema, &self.session)?;
        let session = self.session_over(schema)?;
        let plan = names::plan(&session, statement).await?;
        check_reads(&plan)?;
        Ok((execute(session, &plan).await.map_err(ServingError::of_query)?, coverage))
    }

    /// The tables as they are now, with what the tables of a statement need.
    fn capture(&self, tables: &[TableReference]) -> Arc<CaptureSchema> {
        let newest_windows = [SqlTable::UnifiedMetrics, SqlTable::UnifiedMetricsClassic];
        let needs_current = tables.iter().any(|table| {
            newest_windows.iter().any(|wanted| table.table().eq_ignore_ascii_case(wanted.name()))
        });
        let now = self.clock.now();
        let (capture, current) = match needs_current {
            true => self.hub.capture_with_current(now),
            false => (self.hub.capture(now), Vec::new()),
        };
        Arc::new(CaptureSchema {
            directory: Arc::clone(self.hub.directory()),
            sources: self.sources.clone(),
            capture: Arc::new(capture),
            current,
            now,
        })
    }

    fn session_over(&self, schema: Arc<CaptureSchema>) -> Result<SessionState, ServingError> {
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(SCHEMA, schema).map_err(prepare_failed)?;
        let mut session = SessionStateBuilder::new_from_existing(self.session.clone())
            .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()))
            .build();
        // The time of `now()`, and names for expressions of this query alone.
        session.mark_start_execution();
        session.catalog_list().register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        Ok(session)
    }
}

/// A second check, after [`statement::check_kind`], in case a plan does something that its statement does not show.
fn check_reads(plan: &LogicalPlan) -> Result<(), ServingError> {
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(plan).map_err(|error| ServingError::Query {
        message: format!(
            "SQL here only reads. Supported are SELECT, WITH, EXPLAIN, SHOW and DESCRIBE: {}",
            error.message()
        ),
    })
}

async fn execute(
    session: SessionState,
    plan: &LogicalPlan,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let plan = session.optimize(plan)?;
    let session = guard::fit_batches(session, &plan)?;
    let planner = Arc::clone(session.query_planner());
    let plan = planner.create_physical_plan(&plan, &session).await?;
    execute_stream(plan, session.task_ctx())
}

fn prepare_failed(source: DataFusionError) -> ServingError {
    ServingError::Prepare { source: Box::new(source) }
}

/// Creates a folder, or removes what an earlier process left in it.
fn empty_folder(folder: &Path) -> Result<PathBuf, ServingError> {
    let emptied = match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir_all(folder),
    };
    emptied.map_err(|source| ServingError::SpillFolder { folder: folder.to_owned(), source })?;
    Ok(folder.to_owned())
}

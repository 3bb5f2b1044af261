//! SQL over one capture of both layers: read only, bounded in memory and time, streamed.
//!
//! A query names its tables first; then one [`Capture`](crate::hub::Capture) is taken for all of them, so that two tables in one query always
//! show the same moment. This file does not know HTTP.

mod catalog;
pub(crate) mod columns;
mod merged;
mod runtime;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use wye_runtime::clock::now_micros;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use crate::ServingError;
use crate::coverage::Coverage;
use crate::hub::Hub;
use catalog::{CaptureSchema, UNIFIED_METRICS, UNIFIED_METRICS_CLASSIC};
pub use runtime::QueryRuntime;

/// The catalog and schema that all tables are in.
const CATALOG: &str = "wye";
const SCHEMA: &str = "public";
/// How many queries run at a time; more wait.
const QUERIES: usize = 8;
/// Batches that wait for the reader of an answer.
const AHEAD: usize = 4;

/// The tables that are read as they are.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The master dataset.
    pub readings: Readings,
    /// What was refused.
    pub dead_letters: DeadLetters,
    /// The batch views.
    pub views: BatchViews,
}

/// What queries may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all queries together.
    pub memory: usize,
    /// Time of one query.
    pub time: Duration,
    /// Threads.
    pub threads: usize,
}

/// Answers SQL. Cheap to clone.
#[derive(Clone)]
pub struct SqlEngine {
    hub: Arc<Hub>,
    sources: Sources,
    base: Arc<SessionState>,
    runtime: QueryRuntime,
    time: Duration,
    permits: Arc<Semaphore>,
}

/// The answer to a query, as it comes.
#[derive(Debug)]
pub struct Rows {
    /// Its columns.
    pub schema: SchemaRef,
    /// What it covers of the log.
    pub coverage: Arc<Coverage>,
    /// Its rows; an error is the last item. Dropping this stops the query.
    pub batches: mpsc::Receiver<Result<RecordBatch, ServingError>>,
}

impl SqlEngine {
    /// Prepares queries over a hub and the tables below `root`.
    ///
    /// # Errors
    /// [`ServingError::Prepare`] or [`ServingError::Thread`] when the engine cannot be set up.
    pub fn new(
        hub: Arc<Hub>,
        sources: Sources,
        root: &TableRoot,
        limits: Limits,
    ) -> Result<Self, ServingError> {
        let prepare = |source| ServingError::Prepare { source: Box::new(source) };
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(limits.memory)))
            .build_arc()
            .map_err(prepare)?;
        root.register(&environment)?;
        let config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(limits.threads.max(1));
        let base = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(environment)
            .with_default_features()
            .build();
        let runtime = QueryRuntime::new(limits.threads, base.task_ctx())?;
        let permits = Arc::new(Semaphore::new(QUERIES));
        Ok(Self { hub, sources, base: Arc::new(base), runtime, time: limits.time, permits })
    }

    /// The threads that queries run on.
    pub fn runtime(&self) -> &QueryRuntime {
        &self.runtime
    }

    /// Answers one statement: `SELECT`, `EXPLAIN`, `SHOW` or `DESCRIBE`.
    ///
    /// # Errors
    /// [`ServingError::Query`] when it is wrong or would change something; anything else when it fails.
    pub async fn query(&self, sql: &str) -> Result<Rows, ServingError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| ServingError::Stopping)?;
        let (engine, sql) = (self.clone(), sql.to_owned());
        let deadline = Instant::now() + self.time;
        let too_long = |time: Duration| ServingError::Limit {
            message: format!("the query was stopped after {} s; ask for less", time.as_secs()),
        };
        let planned =
            self.runtime.run(tokio::time::timeout_at(deadline, async move { engine.plan(&sql).await }));
        let (mut stream, coverage) = planned.await?.map_err(|_| too_long(self.time))??;
        let (sender, batches) = mpsc::channel(AHEAD);
        let (schema, time) = (stream.schema(), self.time);
        self.runtime.start(async move {
            let _permit = permit;
            loop {
                let next = tokio::select! {
                    () = sender.closed() => return,
                    next = tokio::time::timeout_at(deadline, stream.next()) => next,
                };
                let item = match next {
                    Ok(Some(item)) => item.map_err(ServingError::of_query),
                    Ok(None) => return,
                    Err(_) => Err(too_long(time)),
                };
                let failed = item.is_err();
                if sender.send(item).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Rows { schema, coverage, batches })
    }

    async fn plan(&self, sql: &str) -> Result<(SendableRecordBatchStream, Arc<Coverage>), ServingError> {
        let failed = ServingError::of_query;
        let dialect = self.base.config().options().sql_parser.dialect;
        let statement = self.base.sql_to_statement(sql, &dialect).map_err(failed)?;
        let tables = self.base.resolve_table_references(&statement).map_err(failed)?;
        let current =
            tables.iter().any(|table| [UNIFIED_METRICS, UNIFIED_METRICS_CLASSIC].contains(&table.table()));
        let (context, coverage) = self.session(current)?;
        let plan = context.state().statement_to_plan(statement).await.map_err(failed)?;
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|error| ServingError::Query {
                message: format!(
                    "only SELECT, EXPLAIN, SHOW and DESCRIBE are answered: {}",
                    error.strip_backtrace()
                ),
            })?;
        let frame = context.execute_logical_plan(plan).await.map_err(failed)?;
        let task_context = Arc::new(frame.task_ctx());
        let plan = frame.create_physical_plan().await.map_err(failed)?;
        Ok((execute_stream(plan, task_context).map_err(failed)?, coverage))
    }

    /// A session over what there is now, and what that covers of the log.
    fn session(&self, with_current: bool) -> Result<(SessionContext, Arc<Coverage>), ServingError> {
        let now = now_micros();
        let (capture, current) = match with_current {
            true => self.hub.capture_with_current(now),
            false => (self.hub.capture(now), Vec::new()),
        };
        let coverage = Arc::clone(&capture.coverage);
        let schema = CaptureSchema {
            directory: Arc::clone(self.hub.directory()),
            sources: self.sources.clone(),
            capture: Arc::new(capture),
            current,
            now,
        };
        let catalog = MemoryCatalogProvider::new();
        catalog
            .register_schema(SCHEMA, Arc::new(schema))
            .map_err(|source| ServingError::Prepare { source: Box::new(source) })?;
        let state = SessionStateBuilder::new_from_existing((*self.base).clone())
            .with_catalog_list(Arc::new(datafusion::catalog::MemoryCatalogProviderList::new()))
            .build();
        state.catalog_list().register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        Ok((SessionContext::new_with_state(state), coverage))
    }
}

//! SQL over one capture of both layers: read only, bounded in memory, disk and time, streamed.
//!
//! A query names its tables first; then one [`Capture`](crate::hub::Capture) is taken for all of them, so that two tables in one query always
//! show the same moment. Each query runs on threads of its own (`threads`): the first moments in one of many short
//! places, what takes longer in one of few long ones (`places`). What a statement may be is in `statement`, what its
//! functions and operators may make in `guard`. This file does not know HTTP.

pub(crate) mod answer;
mod catalog;
pub(crate) mod columns;
mod guard;
mod host;
#[cfg(test)]
mod hostile;
mod limits;
mod merged;
mod messages;
mod names;
mod places;
mod runtime;
mod statement;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod threads;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{oneshot, watch as state};
use wye_runtime::clock::now_micros;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::store::TableRoot;
use wye_tables::views::BatchViews;

use crate::ServingError;
use crate::coverage::Coverage;
use crate::hub::Hub;
pub use answer::Rows;
use answer::{Answer, Sink};
use catalog::{CaptureSchema, UNIFIED_METRICS, UNIFIED_METRICS_CLASSIC};
pub use host::{Host, UnknownHost};
pub use limits::Limits;
use limits::{RESERVED_PERCENT, SHORT};
pub(crate) use messages::translate;
use places::{Kind, Place, Places};
pub use runtime::QueryRuntime;
use threads::QueryThreads;
use watch::QueryWatch;

/// The catalog and schema that all tables are in.
const CATALOG: &str = "wye";
const SCHEMA: &str = "public";

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

/// Answers SQL. Cheap to clone.
#[derive(Clone)]
pub struct SqlEngine {
    hub: Arc<Hub>,
    sources: Sources,
    base: Arc<SessionState>,
    runtime: QueryRuntime,
    limits: Arc<Limits>,
    places: Places,
    host: Arc<dyn Host>,
    watch: Arc<QueryWatch>,
}

/// How far a query has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Working,
    /// More rows than a short answer has: the reader has to take some.
    Full,
}

/// What is known of an answer before its rows.
type Head = (SchemaRef, Arc<Coverage>);

/// A query that has begun.
struct Begun {
    query: Arc<QueryThreads>,
    stage: state::Receiver<Stage>,
    head: oneshot::Receiver<Result<Head, ServingError>>,
    items: answer::Items<arrow::array::RecordBatch>,
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
        host: Arc<dyn Host>,
    ) -> Result<Self, ServingError> {
        let prepare = |source| ServingError::Prepare { source: Box::new(source) };
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
            .map_err(prepare)?;
        root.register(&environment)?;
        let mut config = SessionConfig::new()
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_target_partitions(limits.threads.max(1));
        config.options_mut().sql_parser.collect_spans = true;
        let base = SessionStateBuilder::new().with_config(config).with_runtime_env(environment);
        let base = guard::install(base.with_default_features()).build();
        let runtime = QueryRuntime::new(limits.threads, base.task_ctx())?;
        let limits = Arc::new(limits);
        let watch = QueryWatch::start(Arc::clone(&host), limits.memory, limits.time)?;
        Ok(Self {
            hub,
            sources,
            base: Arc::new(base),
            runtime,
            places: Places::new(Arc::clone(&limits)),
            limits,
            host,
            watch: Arc::new(watch),
        })
    }

    /// The threads that computations other than SQL run on.
    pub fn runtime(&self) -> &QueryRuntime {
        &self.runtime
    }

    /// Answers one statement: `SELECT`, `EXPLAIN`, `SHOW` or `DESCRIBE`. Dropping this future, or the answer, ends the
    /// query.
    ///
    /// # Errors
    /// [`ServingError::Query`] when it is wrong or would change something; [`ServingError::Busy`] when there is no place
    /// for it; anything else when it fails.
    pub async fn query(&self, sql: &str) -> Result<Rows, ServingError> {
        let deadline = Instant::now() + self.limits.time;
        let mut begun = self.begin(sql, self.places.take(Kind::Short).await?, deadline)?;
        let short = tokio::time::timeout(SHORT, begun.stage.changed()).await;
        // The sender of the stage is gone once everything is done.
        if !matches!(short, Ok(Err(_))) {
            if self.places.lengthen(begun.query.place()) {
                begun.query.step_back();
            } else {
                // It begins again once there is a place for a long one: nobody has seen anything of its answer.
                drop(begun);
                begun = self.begin(sql, self.places.take(Kind::Long).await?, deadline)?;
                begun.query.step_back();
            }
        }
        let Begun { query, head, items, .. } = begun;
        let ended = || query.ended().map_or(ServingError::Failed, ServingError::from);
        let head = tokio::select! {
            biased;
            head = head => head.unwrap_or_else(|_| Err(ended())),
            () = query.token.cancelled() => Err(ended()),
        };
        let (schema, coverage) = head?;
        Ok(Rows { schema, coverage, answer: Answer::new(items, query) })
    }

    /// Whether no query is under way.
    #[cfg(test)]
    fn idle(&self) -> bool {
        self.places.idle()
    }

    fn begin(&self, sql: &str, place: Place, deadline: Instant) -> Result<Begun, ServingError> {
        let query = Arc::new(QueryThreads::start(&self.host, place, self.limits.threads, deadline)?);
        self.watch.add(&query);
        let (stage_sender, stage) = state::channel(Stage::Working);
        let (head_sender, head) = oneshot::channel();
        let (sink, items) = answer::channel();
        let (engine, sql) = (self.clone(), sql.to_owned());
        query.spawn(async move {
            match engine.plan(&sql).await {
                Ok((stream, coverage)) => {
                    // Who asked may have left.
                    let _ = head_sender.send(Ok((stream.schema(), coverage)));
                    send_rows(stream, sink, &stage_sender, engine.limits.rows).await;
                }
                Err(error) => {
                    let _ = head_sender.send(Err(error));
                }
            }
        });
        Ok(Begun { query, stage, head, items })
    }

    async fn plan(&self, sql: &str) -> Result<(SendableRecordBatchStream, Arc<Coverage>), ServingError> {
        let failed = ServingError::of_query;
        statement::check_size(sql)?;
        let dialect = self.base.config().options().sql_parser.dialect;
        let statement = self.base.sql_to_statement(sql, &dialect).map_err(failed)?;
        statement::check_kind(&statement, sql)?;
        let tables = self.base.resolve_table_references(&statement).map_err(failed)?;
        let current = tables.iter().any(|table| {
            [UNIFIED_METRICS, UNIFIED_METRICS_CLASSIC]
                .iter()
                .any(|name| table.table().eq_ignore_ascii_case(name))
        });
        let schema = self.schema(current);
        let coverage = Arc::clone(&schema.capture.coverage);
        names::check_tables(&tables, &schema, &self.base)?;
        let state = self.session(schema)?.state();
        let plan = names::plan(&state, statement).await?;
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)
            .map_err(|error| ServingError::Query {
                message: format!(
                    "SQL here only reads; SELECT, WITH, EXPLAIN, SHOW and DESCRIBE are answered: {}",
                    error.message()
                ),
            })?;
        let plan = state.optimize(&plan).map_err(failed)?;
        let state = guard::fit_batches(state, &plan).map_err(failed)?;
        let planner = Arc::clone(state.query_planner());
        let physical = planner.create_physical_plan(&plan, &state).await.map_err(failed)?;
        Ok((execute_stream(physical, state.task_ctx()).map_err(failed)?, coverage))
    }

    /// The tables as they are now.
    fn schema(&self, with_current: bool) -> Arc<CaptureSchema> {
        let now = now_micros();
        let (capture, current) = match with_current {
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

    fn session(&self, schema: Arc<CaptureSchema>) -> Result<SessionContext, ServingError> {
        let catalog = MemoryCatalogProvider::new();
        catalog
            .register_schema(SCHEMA, schema)
            .map_err(|source| ServingError::Prepare { source: Box::new(source) })?;
        let state = SessionStateBuilder::new_from_existing((*self.base).clone())
            .with_catalog_list(Arc::new(datafusion::catalog::MemoryCatalogProviderList::new()))
            .build();
        state.catalog_list().register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        Ok(SessionContext::new_with_state(state))
    }
}

/// Sends rows until there are no more, or more than an answer may have.
async fn send_rows(
    mut stream: SendableRecordBatchStream,
    sink: Sink<arrow::array::RecordBatch>,
    stage: &state::Sender<Stage>,
    most: usize,
) {
    let mut rows = 0_usize;
    while let Some(item) = stream.next().await {
        let mut item = item.map_err(ServingError::of_query);
        if let Ok(batch) = &item {
            rows = rows.saturating_add(batch.num_rows());
            if rows > most {
                let message = format!(
                    "the answer has more than {most} rows ([sql] max_rows); add a condition or a LIMIT"
                );
                item = Err(ServingError::Limit { message });
            }
        }
        if let Err(TrySendError::Full(_)) = sink.items.try_reserve().map(drop) {
            stage.send_replace(Stage::Full);
        }
        if !sink.send(item).await {
            return;
        }
    }
    sink.finish();
}

/// A folder with nothing in it: what an earlier process left is removed.
fn empty_folder(folder: &std::path::Path) -> Result<std::path::PathBuf, ServingError> {
    let failed = |source| ServingError::SpillFolder { folder: folder.to_owned(), source };
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::fs::create_dir_all(folder).map_err(failed)?;
    Ok(folder.to_owned())
}

//! Runs queries: each in a slot and on its own threads, from its start to its last row or its limit. Must not know how a
//! statement is planned.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{oneshot, watch};
use wye_runtime::clock::Clock;
use wye_tables::store::TableRoot;

use super::Sources;
use super::answer::{self, Answer, Items, Rows, Sink};
use super::host::Host;
use super::limits::{Limits, SHORT};
use super::planner::Planner;
use super::runtime::QueryRuntime;
use super::slots::{Slot, SlotKind, Slots};
use super::threads::QueryThreads;
use super::watchdog::Watchdog;
use crate::ServingError;
use crate::coverage::Coverage;
use crate::hub::Hub;

/// What an engine works with.
pub struct EngineParts {
    /// The state behind answers.
    pub hub: Arc<Hub>,
    /// The tables.
    pub sources: Sources,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// The time: which windows are current, and how long a query has run.
    pub clock: Arc<dyn Clock>,
}

/// Answers SQL. Cheap to clone.
#[derive(Clone)]
pub struct SqlEngine {
    planner: Arc<Planner>,
    runtime: QueryRuntime,
    limits: Arc<Limits>,
    slots: Slots,
    host: Arc<dyn Host>,
    clock: Arc<dyn Clock>,
    watchdog: Arc<Watchdog>,
}

/// How far a query has come. The sender is dropped when all of its rows are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Working,
    /// More rows are ready than a short answer has, so the query waits for its reader.
    WaitsForReader,
}

/// What is known of an answer before its rows.
type Head = (SchemaRef, Arc<Coverage>);

/// A query that has started.
struct Started {
    threads: Arc<QueryThreads>,
    progress: watch::Receiver<Progress>,
    head: oneshot::Receiver<Result<Head, ServingError>>,
    items: Items<RecordBatch>,
}

impl SqlEngine {
    /// Prepares queries over a hub and the tables below `root`.
    ///
    /// # Errors
    /// [`ServingError::Prepare`], [`ServingError::SpillFolder`] or [`ServingError::Thread`] when the engine cannot be set
    /// up.
    pub fn new(parts: EngineParts, root: &TableRoot, limits: Limits) -> Result<Self, ServingError> {
        let planner = Planner::new(&parts, root, &limits)?;
        let runtime = QueryRuntime::new(limits.threads, planner.task_context())?;
        let EngineParts { host, clock, .. } = parts;
        let watchdog = Watchdog::start(Arc::clone(&host), Arc::clone(&clock), limits.memory, limits.time)?;
        let limits = Arc::new(limits);
        Ok(Self {
            planner: Arc::new(planner),
            runtime,
            slots: Slots::new(Arc::clone(&limits)),
            limits,
            host,
            clock,
            watchdog: Arc::new(watchdog),
        })
    }

    /// The threads for computations other than SQL queries.
    pub fn runtime(&self) -> &QueryRuntime {
        &self.runtime
    }

    /// Answers one statement: `SELECT`, `EXPLAIN`, `SHOW` or `DESCRIBE`. Dropping this future, or the answer, ends the
    /// query.
    ///
    /// # Errors
    /// [`ServingError::Query`] when the statement is wrong or does not only read, [`ServingError::Busy`] when there is no
    /// slot for it, other errors when it fails.
    pub async fn query(&self, sql: &str) -> Result<Rows, ServingError> {
        let deadline = self.clock.monotonic().saturating_add(self.limits.time);
        let mut started = self.start(sql, self.slots.acquire(SlotKind::Short).await?, deadline)?;
        let short = tokio::time::timeout(SHORT, started.progress.changed()).await;
        let is_ready = matches!(short, Ok(Err(_)));
        if !is_ready && !self.slots.try_make_long(started.threads.slot()) {
            // Nothing of the answer was sent, so the query can start again when there is a long slot.
            drop(started);
            started = self.start(sql, self.slots.acquire(SlotKind::Long).await?, deadline)?;
        }
        let Started { threads, head, items, .. } = started;
        if !is_ready {
            threads.lower_priority();
        }
        let head = tokio::select! {
            biased;
            head = head => head.unwrap_or_else(|_| Err(end_error(&threads))),
            () = threads.ended.cancelled() => Err(end_error(&threads)),
        };
        let (schema, coverage) = head?;
        Ok(Rows { schema, coverage, answer: Answer::new(items, threads) })
    }

    /// Whether no query is running.
    #[cfg(test)]
    pub(super) fn idle(&self) -> bool {
        self.slots.idle()
    }

    fn start(&self, sql: &str, slot: Slot, deadline: Duration) -> Result<Started, ServingError> {
        let threads = Arc::new(QueryThreads::start(&self.host, slot, self.limits.threads, deadline)?);
        self.watchdog.add(&threads);
        let (progress_sender, progress) = watch::channel(Progress::Working);
        let (head_sender, head) = oneshot::channel();
        let (sink, items) = answer::channel();
        let (planner, most_rows, sql) = (Arc::clone(&self.planner), self.limits.rows, sql.to_owned());
        threads.spawn(async move {
            // Where sending the head fails, the client has disconnected.
            match planner.start(&sql).await {
                Ok((rows, coverage)) => {
                    let _ = head_sender.send(Ok((rows.schema(), coverage)));
                    send_rows(rows, sink, &progress_sender, most_rows).await;
                }
                Err(error) => {
                    let _ = head_sender.send(Err(error));
                }
            }
        });
        Ok(Started { threads, progress, head, items })
    }
}

/// The error of a query that has ended without an answer.
fn end_error(threads: &QueryThreads) -> ServingError {
    threads.end_reason().map_or(ServingError::Failed, ServingError::from)
}

/// Sends rows until there are no more, or more than `most_rows`.
async fn send_rows(
    mut rows: SendableRecordBatchStream,
    sink: Sink<RecordBatch>,
    progress: &watch::Sender<Progress>,
    most_rows: usize,
) {
    let mut sent = 0_usize;
    while let Some(batch) = rows.next().await {
        let mut item = batch.map_err(ServingError::of_query);
        if let Ok(batch) = &item {
            sent = sent.saturating_add(batch.num_rows());
            if sent > most_rows {
                let message = format!(
                    "the answer has more than {most_rows} rows ([sql] max_rows); add a condition or a LIMIT"
                );
                item = Err(ServingError::Limit { message });
            }
        }
        if let Err(TrySendError::Full(_)) = sink.items.try_reserve().map(drop) {
            progress.send_replace(Progress::WaitsForReader);
        }
        if !sink.send(item).await {
            return;
        }
    }
    sink.finish();
}

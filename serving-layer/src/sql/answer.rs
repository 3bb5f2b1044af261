//! The answer to a query as a stream: rows, or what is made of them on the query's own threads.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use tokio::sync::mpsc;

use super::threads::QueryThreads;
use crate::ServingError;
use crate::coverage::Coverage;

/// Items that are ready before the reader of an answer takes them.
const AHEAD: usize = 4;

/// The items of an answer. Dropping it ends the query.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    items: Items<T>,
    query: Arc<QueryThreads>,
}

/// The rows of an answer.
#[derive(Debug)]
pub struct Rows {
    /// The columns.
    pub schema: SchemaRef,
    /// What the rows cover of the log.
    pub coverage: Arc<Coverage>,
    /// The rows, batch by batch.
    pub(super) answer: Answer<RecordBatch>,
}

/// The receiving end within the query.
#[derive(Debug)]
pub(crate) struct Items<T> {
    items: mpsc::Receiver<Result<T, ServingError>>,
    /// Whether everything was sent. A task that panics drops its sender too, which must not look like the end.
    complete: Arc<AtomicBool>,
}

/// The sending end within the query.
#[derive(Debug)]
pub(crate) struct Sink<T> {
    pub(super) items: mpsc::Sender<Result<T, ServingError>>,
    complete: Arc<AtomicBool>,
}

impl Rows {
    /// The next rows; `None` after the last. An error ends the answer.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, ServingError>> {
        self.answer.next().await
    }

    /// Replaces the rows by what `work` makes of them, on the threads of the query.
    pub(crate) fn map<T, F>(self, work: impl FnOnce(SchemaRef, Items<RecordBatch>, Sink<T>) -> F) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let Answer { items, query } = self.answer;
        let (sink, mapped) = channel();
        query.spawn(work(self.schema, items, sink));
        Answer { items: mapped, query }
    }
}

impl<T> Answer<T> {
    pub(super) fn new(items: Items<T>, query: Arc<QueryThreads>) -> Self {
        Self { items, query }
    }

    /// The next item; `None` after the last. An error ends the answer.
    pub(crate) async fn next(&mut self) -> Option<Result<T, ServingError>> {
        let item = tokio::select! {
            biased;
            () = self.query.ended.cancelled() => None,
            item = self.items.next() => item,
        };
        match self.query.end_reason() {
            Some(reason) => Some(Err(reason.into())),
            None => item,
        }
    }
}

/// The two ends of an answer.
pub(super) fn channel<T>() -> (Sink<T>, Items<T>) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let complete = Arc::new(AtomicBool::new(false));
    (Sink { items: sender, complete: Arc::clone(&complete) }, Items { items: receiver, complete })
}

impl<T> Items<T> {
    /// The next item; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<T, ServingError>> {
        match self.items.recv().await {
            None if !self.complete.load(Ordering::Acquire) => {
                let panicked = DataFusionError::Internal("a task of the query has panicked".to_owned());
                Some(Err(ServingError::Run { source: Box::new(panicked) }))
            }
            item => item,
        }
    }
}

impl<T> Sink<T> {
    /// Sends an item. Returns whether more items may be sent: none after an error, or once the reader is gone.
    pub(crate) async fn send(&self, item: Result<T, ServingError>) -> bool {
        let more = item.is_ok();
        self.items.send(item).await.is_ok() && more
    }

    /// Ends the answer. Without this, the reader gets an error after the last item.
    pub(crate) fn finish(self) {
        self.complete.store(true, Ordering::Release);
    }
}

//! The answer to a query, as it comes: rows, or what is made of them on the query's own threads.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use tokio::sync::mpsc;

use super::threads::{Ended, QueryThreads};
use crate::ServingError;
use crate::coverage::Coverage;

/// Items that wait for the reader of an answer.
pub(super) const AHEAD: usize = 4;

/// Items of an answer. Dropping it ends the query, whatever it does.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    items: Items<T>,
    query: Arc<QueryThreads>,
}

/// The rows of an answer.
#[derive(Debug)]
pub struct Rows {
    /// Their columns.
    pub schema: SchemaRef,
    /// What they cover of the log.
    pub coverage: Arc<Coverage>,
    /// The rows, batch by batch.
    pub(super) answer: Answer<RecordBatch>,
}

/// The receiving end within the query.
#[derive(Debug)]
pub(crate) struct Items<T> {
    items: mpsc::Receiver<Result<T, ServingError>>,
    /// Set once the sender has sent everything, so that a sender that failed is not taken for the end.
    whole: Arc<AtomicBool>,
}

/// The sending end within the query.
#[derive(Debug)]
pub(crate) struct Sink<T> {
    pub(super) items: mpsc::Sender<Result<T, ServingError>>,
    whole: Arc<AtomicBool>,
}

impl Rows {
    /// The next rows; `None` after the last, an error ends the answer.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, ServingError>> {
        self.answer.next().await
    }

    /// Makes something else of the rows, on the threads of the query.
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

    /// The next item; `None` after the last, an error ends the answer.
    pub(crate) async fn next(&mut self) -> Option<Result<T, ServingError>> {
        let item = tokio::select! {
            biased;
            () = self.query.token.cancelled() => None,
            item = self.items.next() => item,
        };
        match self.query.ended() {
            Some(reason) => Some(Err(reason.into())),
            None => item,
        }
    }
}

/// Two ends of one answer.
pub(super) fn channel<T>() -> (Sink<T>, Items<T>) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let whole = Arc::new(AtomicBool::new(false));
    (Sink { items: sender, whole: Arc::clone(&whole) }, Items { items: receiver, whole })
}

impl<T> Items<T> {
    /// The next item; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<T, ServingError>> {
        match self.items.recv().await {
            None if !self.whole.load(Ordering::Acquire) => {
                let gone = DataFusionError::Internal("a task of the query has ended early".to_owned());
                Some(Err(ServingError::Run { source: Box::new(gone) }))
            }
            item => item,
        }
    }
}

impl<T> Sink<T> {
    /// Hands an item over; whether more may come. An error is the last item.
    pub(crate) async fn send(&self, item: Result<T, ServingError>) -> bool {
        let more = item.is_ok();
        self.items.send(item).await.is_ok() && more
    }

    /// Everything was sent.
    pub(crate) fn finish(self) {
        self.whole.store(true, Ordering::Release);
    }
}

impl From<Ended> for ServingError {
    fn from(reason: Ended) -> Self {
        let message = match reason {
            Ended::Time(time) => {
                format!("the query was ended after {} s ([sql] time); ask for less", time.as_secs_f64())
            }
            Ended::Memory(bytes) => format!(
                "the query needs more memory than the {} MiB that queries may have together ([sql] memory); ask for less, or \
                 for fewer rows at a time",
                bytes >> 20
            ),
        };
        Self::Limit { message }
    }
}

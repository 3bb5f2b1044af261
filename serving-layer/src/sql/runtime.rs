//! Threads of their own for queries, so that computing never delays the threads that answer small requests.

use std::future::Future;
use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::ServingError;

/// See the module. Clones share the threads, which end with the last clone.
#[derive(Clone, Debug)]
pub struct QueryRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Taken out when dropped only.
    runtime: Option<Runtime>,
    context: Arc<TaskContext>,
}

impl QueryRuntime {
    /// Starts `threads` threads; plans without a session of their own run in `context`.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system gives none.
    pub fn new(threads: usize, context: Arc<TaskContext>) -> Result<Self, ServingError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("wye-query")
            .enable_all()
            .build()
            .map_err(|source| ServingError::Thread { source })?;
        Ok(Self { inner: Arc::new(Inner { runtime: Some(runtime), context }) })
    }

    /// The context of plans without a session of their own.
    pub fn task_context(&self) -> Arc<TaskContext> {
        Arc::clone(&self.inner.context)
    }

    /// Starts a task there; it ends with its future, or when the handle's owner aborts it.
    pub fn start<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.inner.runtime.as_ref().expect("the runtime is there until dropped").spawn(task)
    }

    /// Runs something there and waits for it.
    ///
    /// # Errors
    /// [`ServingError::Stopping`] when the threads ended before, [`ServingError::Run`] when it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ServingError> {
        let mut handle = AbortOnDrop(self.start(task));
        (&mut handle.0).await.map_err(|error| match error.is_cancelled() {
            true => ServingError::Stopping,
            false => ServingError::Run { source: Box::new(DataFusionError::ExecutionJoin(Box::new(error))) },
        })
    }
}

/// Nobody waits for the answer any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Waiting for threads is not allowed where the last clone may be dropped.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

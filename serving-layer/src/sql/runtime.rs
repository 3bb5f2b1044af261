//! Threads for computations other than SQL queries, so that computing never delays the threads that answer small requests.

use std::future::Future;
use std::sync::Arc;

use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::ServingError;

/// The threads. Clones share them, and they end with the last clone.
#[derive(Clone, Debug)]
pub struct QueryRuntime {
    threads: Handle,
    context: Arc<TaskContext>,
    _owned: Arc<Owned>,
}

/// The runtime; `None` while it is dropped.
#[derive(Debug)]
struct Owned(Option<Runtime>);

impl QueryRuntime {
    /// Starts `threads` threads. Plans that have no session of their own run in `context`.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system cannot start a thread.
    pub fn new(threads: usize, context: Arc<TaskContext>) -> Result<Self, ServingError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("wye-query")
            .enable_all()
            .build()
            .map_err(|source| ServingError::Thread { source })?;
        let threads = runtime.handle().clone();
        Ok(Self { threads, context, _owned: Arc::new(Owned(Some(runtime))) })
    }

    /// The context of plans that have no session of their own.
    pub fn task_context(&self) -> Arc<TaskContext> {
        Arc::clone(&self.context)
    }

    /// Starts a task. It ends with its future, or when the owner of the handle aborts it.
    pub fn start<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.threads.spawn(task)
    }

    /// Runs a task to its end. It is aborted when the future that this returns is dropped.
    ///
    /// # Errors
    /// [`ServingError::Stopping`] when the threads end before the task, [`ServingError::Run`] when it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ServingError> {
        AbortOnDropHandle::new(self.start(task)).await.map_err(|error| match error.is_cancelled() {
            true => ServingError::Stopping,
            false => ServingError::Run { source: Box::new(DataFusionError::ExecutionJoin(Box::new(error))) },
        })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // The last clone may be dropped on an async thread, where waiting for threads is not allowed.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

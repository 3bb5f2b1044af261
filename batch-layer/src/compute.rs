//! The threads on which a batch run computes: a runtime of its own, so that hours of computing never delay the threads
//! that answer requests. Must not know what is computed.

use std::future::Future;

use datafusion::common::runtime::SpawnedTask;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::BatchError;

/// A runtime for computing.
#[derive(Debug)]
pub struct Compute {
    handle: Handle,
    /// Present until dropped.
    runtime: Option<Runtime>,
    threads: usize,
}

impl Compute {
    /// As many threads as the machine has cores.
    ///
    /// # Errors
    /// [`BatchError::Threads`] when they cannot be started.
    pub fn new() -> Result<Self, BatchError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("wye-batch")
            .enable_all()
            .build()
            .map_err(BatchError::Threads)?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime), threads })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Where to spawn parts of a computation.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs a computation; dropping the returned future cancels it.
    ///
    /// # Errors
    /// [`BatchError::Stopping`] when the threads end first.
    ///
    /// # Panics
    /// When the computation panics.
    pub async fn run<T: Send + 'static>(
        &self,
        computation: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, BatchError> {
        joined(self.spawn(computation)).await
    }

    fn spawn<T: Send + 'static>(
        &self,
        computation: impl Future<Output = T> + Send + 'static,
    ) -> SpawnedTask<T> {
        // A task is spawned on the runtime that was entered.
        let _entered = self.handle.enter();
        SpawnedTask::spawn(computation)
    }
}

/// Waits for a task. If it panics, so does this; if this is dropped, the task is cancelled.
///
/// # Errors
/// [`BatchError::Stopping`] when its runtime ends first.
pub(crate) async fn joined<T: 'static>(task: SpawnedTask<T>) -> Result<T, BatchError> {
    task.join_unwind().await.map_err(|_| BatchError::Stopping)
}

impl Drop for Compute {
    fn drop(&mut self) {
        // A runtime must not be dropped where async code runs. Its threads are no longer waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

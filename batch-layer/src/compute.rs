//! The threads on which a batch run computes: a runtime of its own, so that hours of computing never hold up the
//! threads that answer people. Must not know what is computed.

use std::future::Future;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use crate::error::BatchError;

/// See the module.
#[derive(Debug)]
pub struct Compute {
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
        Ok(Self { runtime: Some(runtime), threads })
    }

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Where to spawn parts of a computation.
    pub fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("the runtime is taken only when this is dropped").handle()
    }

    /// Runs a computation; dropping the returned future ends it.
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
        let mut one = JoinSet::new();
        one.spawn_on(computation, self.handle());
        match one.join_next().await {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(BatchError::Stopping),
            },
            None => Err(BatchError::Stopping),
        }
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        // A runtime may not be dropped where async code runs; nobody waits for these threads any more.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

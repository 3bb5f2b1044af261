//! The threads of one query. A query has its own threads, so that the operating system shares the processors fairly
//! whatever an operator does, and so that everything of a query ends with its threads.
//!
//! Their stacks are large, because plans are walked, printed and dropped by recursion, and only on these threads. A stack
//! takes memory only where it is used.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::slots::Slot;
use crate::ServingError;

/// Bytes of a thread's stack.
const STACK: usize = 512 << 20;

/// Why a query was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndReason {
    /// It has run for so long.
    Timeout(Duration),
    /// All queries together use more memory than this (bytes), and this one uses the most.
    OutOfMemory(usize),
}

/// The threads of one query.
#[derive(Debug)]
pub(super) struct QueryThreads {
    /// `None` once they are stopped.
    runtime: Mutex<Option<Runtime>>,
    slot: Arc<Slot>,
    priority: Arc<Priority>,
    /// When the query is ended, by the monotonic clock.
    pub(super) deadline: Duration,
    /// Bytes on the account before the query began.
    memory_before: usize,
    end_reason: OnceLock<EndReason>,
    /// Cancelled after `end_reason` is set.
    pub(super) ended: CancellationToken,
}

/// The priority of all threads of a query.
#[derive(Debug)]
struct Priority {
    host: Arc<dyn Host>,
    /// The numbers of the threads that have started.
    threads: Mutex<Vec<i32>>,
    is_low: AtomicBool,
}

impl QueryThreads {
    /// Starts `threads` threads. The slot is free again when the last of them has ended.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system cannot start a thread.
    pub(super) fn start(
        host: &Arc<dyn Host>,
        slot: Slot,
        threads: usize,
        deadline: Duration,
    ) -> Result<Self, ServingError> {
        let priority = Arc::new(Priority {
            host: Arc::clone(host),
            threads: Mutex::default(),
            is_low: AtomicBool::new(false),
        });
        let slot = Arc::new(slot);
        let memory_before = on_account(&host.in_use(), slot.account);
        let (shared, held) = (Arc::clone(&priority), Arc::clone(&slot));
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("wye-query")
            .thread_stack_size(STACK)
            .enable_all()
            .on_thread_start(move || shared.add_thread(held.account))
            .build()
            .map_err(|source| ServingError::Thread { source })?;
        Ok(Self {
            runtime: Mutex::new(Some(runtime)),
            slot,
            priority,
            deadline,
            memory_before,
            end_reason: OnceLock::new(),
            ended: CancellationToken::new(),
        })
    }

    /// The slot that the query runs in.
    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// Starts a task on the threads. It ends with its future, or with the query.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            runtime.spawn(task);
        }
    }

    /// Lets all other threads of the process run first from now on.
    pub(super) fn lower_priority(&self) {
        self.priority.lower();
    }

    /// Bytes that the query uses, of those in use on all accounts.
    pub(super) fn memory(&self, in_use: &[usize]) -> usize {
        on_account(in_use, self.slot.account).saturating_sub(self.memory_before)
    }

    /// Ends the query. Each of its tasks stops when it yields next.
    pub(super) fn end(&self, reason: EndReason) {
        // Where there is a reason already, the first one counts.
        let _ = self.end_reason.set(reason);
        self.ended.cancel();
        self.stop();
    }

    /// Why the query was ended; `None` where it was not.
    pub(super) fn end_reason(&self) -> Option<EndReason> {
        self.end_reason.get().copied()
    }

    fn stop(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            self.lower_priority();
            runtime.shutdown_background();
        }
    }
}

impl Drop for QueryThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Priority {
    /// Adds the calling thread.
    fn add_thread(&self, account: usize) {
        let thread = self.host.join(account);
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push(thread);
        if self.is_low.load(Ordering::Acquire) {
            self.host.lower_priority(thread);
        }
    }

    fn lower(&self) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_low.swap(true, Ordering::AcqRel) {
            threads.iter().for_each(|thread| self.host.lower_priority(*thread));
        }
    }
}

fn on_account(in_use: &[usize], account: usize) -> usize {
    in_use.get(account).copied().unwrap_or_default()
}

impl From<EndReason> for ServingError {
    fn from(reason: EndReason) -> Self {
        let message = match reason {
            EndReason::Timeout(time) => format!(
                "the query was ended after {} s ([sql] time); read a shorter range or fewer series",
                time.as_secs_f64()
            ),
            EndReason::OutOfMemory(bytes) => format!(
                "the query needs more memory than the {} MiB that all queries may use together ([sql] memory); read fewer rows, \
                 columns or groups",
                bytes >> 20
            ),
        };
        Self::Limit { message }
    }
}

//! The threads of one query. They are its own, so that the operating system shares the processors fairly whatever an
//! operator does, and so that the query ends as a whole: with its threads.
//!
//! Their stacks are large: a plan is walked, shown and dropped by recursion, and only here. Memory of a stack is used when
//! it is touched.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::places::Place;
use crate::ServingError;

/// Bytes of a thread's stack.
const STACK: usize = 512 << 20;

/// Why a query was ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It took too long.
    Time(Duration),
    /// Queries need more memory than they may have (bytes), and this one has the most.
    Memory(usize),
}

/// See the module.
#[derive(Debug)]
pub(super) struct QueryThreads {
    /// Taken out when they end.
    runtime: Mutex<Option<Runtime>>,
    place: Arc<Place>,
    crew: Arc<Crew>,
    /// When it has to be done.
    pub(super) deadline: Instant,
    /// Bytes on the account before it began.
    before: usize,
    ended: OnceLock<Ended>,
    /// Cancelled once there is a reason in `ended`.
    pub(super) token: CancellationToken,
}

/// The threads by their numbers.
#[derive(Debug)]
struct Crew {
    host: Arc<dyn Host>,
    numbers: Mutex<Vec<i32>>,
    behind: AtomicBool,
}

impl QueryThreads {
    /// Starts `threads` threads. The place is free again when the last of them has ended.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system gives none.
    pub(super) fn start(
        host: &Arc<dyn Host>,
        place: Place,
        threads: usize,
        deadline: Instant,
    ) -> Result<Self, ServingError> {
        let crew = Arc::new(Crew {
            host: Arc::clone(host),
            numbers: Mutex::default(),
            behind: AtomicBool::new(false),
        });
        let place = Arc::new(place);
        let before = host.in_use().get(place.account).copied().unwrap_or_default();
        let (joining, held) = (Arc::clone(&crew), Arc::clone(&place));
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("wye-query")
            .thread_stack_size(STACK)
            .enable_all()
            .on_thread_start(move || joining.join(held.account))
            .build()
            .map_err(|source| ServingError::Thread { source })?;
        Ok(Self {
            runtime: Mutex::new(Some(runtime)),
            place,
            crew,
            deadline,
            before,
            ended: OnceLock::new(),
            token: CancellationToken::new(),
        })
    }

    /// The place that the query has.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Starts a task there; it ends with its future, or with the query.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            runtime.spawn(task);
        }
    }

    /// From now on, all other threads of the process go first.
    pub(super) fn step_back(&self) {
        self.crew.step_back();
    }

    /// Bytes that the query has, of those in use on all accounts.
    pub(super) fn memory(&self, in_use: &[usize]) -> usize {
        in_use.get(self.place.account).copied().unwrap_or_default().saturating_sub(self.before)
    }

    /// Ends the query for a reason; what it does stops at its next pause.
    pub(super) fn end(&self, reason: Ended) {
        // A second reason changes nothing.
        let _ = self.ended.set(reason);
        self.token.cancel();
        self.stop();
    }

    /// The reason why it was ended.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    fn stop(&self) {
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            self.step_back();
            runtime.shutdown_background();
        }
    }
}

impl Drop for QueryThreads {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Crew {
    fn join(&self, account: usize) {
        let number = self.host.join(account);
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.push(number);
        if self.behind.load(Ordering::Acquire) {
            self.host.step_back(number);
        }
    }

    fn step_back(&self) {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.behind.swap(true, Ordering::AcqRel) {
            numbers.iter().for_each(|number| self.host.step_back(*number));
        }
    }
}

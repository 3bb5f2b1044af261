//! Ends queries that run for too long, and the largest query while all together use too much memory.
//!
//! Operators reserve most of their memory in a pool. The watchdog counts what the allocator has given, which includes
//! memory that no operator reserves. It has its own thread, so that it works while all other threads compute.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use tracing::warn;
use wye_runtime::clock::Clock;

use super::host::Host;
use super::threads::{EndReason, QueryThreads};
use crate::ServingError;

/// How often queries are checked.
const INTERVAL: Duration = Duration::from_millis(10);

/// The watchdog; its thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    host: Arc<dyn Host>,
    clock: Arc<dyn Clock>,
    /// Bytes that all queries may use together.
    memory: usize,
    /// The longest time of one query.
    time: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queries: Vec<Weak<QueryThreads>>,
    closed: bool,
}

impl Watchdog {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system cannot start a thread.
    pub(super) fn start(
        host: Arc<dyn Host>,
        clock: Arc<dyn Clock>,
        memory: usize,
        time: Duration,
    ) -> Result<Self, ServingError> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { host, clock, memory, time, state, changed });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("wye-watchdog".to_owned())
            .spawn(move || watched.run())
            .map_err(|source| ServingError::Thread { source })?;
        Ok(Self { shared })
    }

    /// Watches a query until it ends.
    pub(super) fn add(&self, query: &Arc<QueryThreads>) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.queries.push(Arc::downgrade(query));
        self.shared.changed.notify_all();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            state.queries.retain(|query| query.strong_count() > 0);
            if state.queries.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let queries: Vec<Arc<QueryThreads>> = state.queries.iter().filter_map(Weak::upgrade).collect();
            drop(state);
            self.check(&queries);
            drop(queries);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.closed {
                state = self.changed.wait_timeout(state, INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn check(&self, queries: &[Arc<QueryThreads>]) {
        let now = self.clock.monotonic();
        let mut running = Vec::with_capacity(queries.len());
        for query in queries.iter().filter(|query| query.end_reason().is_none()) {
            match query.deadline <= now {
                true => query.end(EndReason::Timeout(self.time)),
                false => running.push(query),
            }
        }
        let in_use = self.host.in_use();
        let memory: Vec<usize> = running.iter().map(|query| query.memory(&in_use)).collect();
        let all: usize = memory.iter().sum();
        if all <= self.memory {
            return;
        }
        let largest = memory.iter().zip(&running).max_by_key(|(bytes, _)| **bytes);
        if let Some((bytes, query)) = largest {
            warn!(
                bytes,
                all,
                memory = self.memory,
                "a query was ended, because all queries together use more memory than they may"
            );
            query.end(EndReason::OutOfMemory(self.memory));
        }
    }
}

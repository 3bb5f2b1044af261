//! Watches the queries under way: ends those that take too long, and the largest when they hold too much memory together.
//!
//! Operators ask the memory pool for most of what they use; this looks at what the allocator gave, and so sees the rest
//! too. It has a thread of its own, so that it looks even while every other thread computes.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tracing::warn;

use super::host::Host;
use super::threads::{Ended, QueryThreads};
use crate::ServingError;

/// How often it looks while there are queries.
const PAUSE: Duration = Duration::from_millis(10);

/// See the module. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct QueryWatch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    host: Arc<dyn Host>,
    /// Bytes that all queries may have.
    memory: usize,
    time: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queries: Vec<Weak<QueryThreads>>,
    closed: bool,
}

impl QueryWatch {
    /// Starts to watch.
    ///
    /// # Errors
    /// [`ServingError::Thread`] when the system gives no thread.
    pub(super) fn start(host: Arc<dyn Host>, memory: usize, time: Duration) -> Result<Self, ServingError> {
        let shared =
            Arc::new(Shared { host, memory, time, state: Mutex::default(), changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("wye-query-watch".to_owned())
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

impl Drop for QueryWatch {
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
            self.look(&queries);
            drop(queries);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.closed {
                state = self.changed.wait_timeout(state, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn look(&self, queries: &[Arc<QueryThreads>]) {
        let now = Instant::now();
        let mut under_way = Vec::with_capacity(queries.len());
        for query in queries.iter().filter(|query| query.ended().is_none()) {
            match query.deadline <= now {
                true => query.end(Ended::Time(self.time)),
                false => under_way.push(query),
            }
        }
        let in_use = self.host.in_use();
        let memory: Vec<usize> = under_way.iter().map(|query| query.memory(&in_use)).collect();
        let all: usize = memory.iter().sum();
        if all <= self.memory {
            return;
        }
        let largest = memory.iter().zip(&under_way).max_by_key(|(bytes, _)| **bytes);
        if let Some((bytes, query)) = largest {
            warn!(
                bytes,
                all,
                memory = self.memory,
                "a query was ended: queries hold more memory than they may"
            );
            query.end(Ended::Memory(self.memory));
        }
    }
}

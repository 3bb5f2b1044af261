//! What queries may use.

use std::path::PathBuf;
use std::time::Duration;

/// A query that runs longer than this needs a long slot, and its threads get a lower priority.
pub(super) const SHORT: Duration = Duration::from_millis(100);
/// How many short queries run at a time.
pub(super) const SHORT_QUERIES: usize = 16;
/// The percentage of the memory that operators may reserve; the rest is for memory that they do not reserve.
pub(super) const RESERVED_PERCENT: usize = 60;

/// The limits of queries.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of memory for all queries together.
    pub memory: usize,
    /// Bytes on disk for all queries together, for what does not fit into memory.
    pub spill: u64,
    /// The folder for that, which is emptied at the start; `None`: nothing is spilled.
    pub spill_folder: Option<PathBuf>,
    /// The longest time of one query, including the time in the queue and the time to send its answer.
    pub time: Duration,
    /// Rows of one answer.
    pub rows: usize,
    /// Threads of one query.
    pub threads: usize,
    /// How many long queries run at a time.
    pub long_queries: usize,
    /// How many queries may wait for a slot; more are rejected.
    pub waiting: usize,
    /// The longest time that a query waits for a slot.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            memory: 1 << 30,
            spill: 10 << 30,
            spill_folder: None,
            time: Duration::from_secs(600),
            rows: 100_000_000,
            threads: threads.min(8),
            long_queries: 4,
            waiting: 64,
            patience: Duration::from_secs(30),
        }
    }
}

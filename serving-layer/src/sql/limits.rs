//! What queries may use.

use std::path::PathBuf;
use std::time::Duration;

/// How long a query counts as short: it needs no place among the long ones, and its threads go first.
pub(super) const SHORT: Duration = Duration::from_millis(100);
/// How many short queries run at a time.
pub(super) const SHORT_QUERIES: usize = 16;
/// The share of the memory that operators may reserve; the rest is for what they do not count.
pub(super) const RESERVED_PERCENT: usize = 60;

/// See the module.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of all queries together.
    pub memory: usize,
    /// Bytes on disk of all queries together, for what does not fit into memory.
    pub spill: u64,
    /// The folder for that; it is emptied at the start. `None`: nothing is spilled.
    pub spill_folder: Option<PathBuf>,
    /// Time of one query, waiting and answering included.
    pub time: Duration,
    /// Rows of one answer.
    pub rows: usize,
    /// Threads of one query.
    pub threads: usize,
    /// How many queries run at a time that take longer than a moment.
    pub long_queries: usize,
    /// How many queries wait for a place; more are refused.
    pub waiting: usize,
    /// How long a query waits for a place.
    pub patience: Duration,
}

impl Limits {
    /// How many queries run at a time, short and long.
    pub(super) fn places(&self) -> usize {
        SHORT_QUERIES + self.long_queries
    }
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

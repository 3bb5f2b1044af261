//! SQL over one capture of both layers: it only reads, memory, disk space and time are limited, and rows are streamed.
//!
//! From the text of a statement to its answer:
//!
//! 1. **It gets threads** (`engine`). A query runs in one of many slots for short queries (`slots`), on its own threads
//!    (`threads`). After 100 ms it needs one of the few slots for long queries, and its threads get a lower priority. A
//!    watchdog ends it at its time limit, or when all queries use too much memory (`watchdog`). The program counts memory
//!    and sets priorities (`host`). The numbers are in `limits`.
//! 2. **It is checked** (`statement`): not too large, not too deep, and it only reads.
//! 3. **It gets its tables** (`planner`). One [`Capture`](crate::hub::Capture) is taken for all tables of the statement,
//!    so that they all show the same moment. `catalog` has them: those that there always are
//!    ([`wye_metrics::sql_tables`]), and the views of the metrics.
//! 4. **It is planned** (`names`): DataFusion plans it. Names without quotes are found in another case too, and for unknown
//!    names similar ones are suggested.
//! 5. **The merged tables are scanned** (`table`): conditions on series and windows are applied to both layers. The operator
//!    in `merged` merges their rows, and `columns` computes the columns of the table. `operator` is what our operators have
//!    in common.
//! 6. **It is guarded** (`guard`): functions and operators that could make or keep too much in one step are limited.
//! 7. **Its rows are sent** (`answer`), and made into bytes on the same threads. Errors of DataFusion become messages for
//!    clients (`messages`).
//!
//! `runtime` has the threads for computations other than SQL queries. Must not know HTTP.

pub(crate) mod answer;
mod catalog;
mod columns;
mod engine;
mod guard;
mod host;
#[cfg(test)]
mod hostile;
mod limits;
mod merged;
mod messages;
mod names;
mod operator;
mod planner;
mod runtime;
mod slots;
mod statement;
pub(crate) mod table;
#[cfg(test)]
mod tests;
mod threads;
mod watchdog;

use wye_tables::amendments::Amendments;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::restatements::Restatements;
use wye_tables::views::BatchViews;

pub use answer::Rows;
pub use engine::{EngineParts, SqlEngine};
pub use host::{Host, UnknownHost};
pub use limits::Limits;
pub(crate) use messages::translate;
pub use runtime::QueryRuntime;

/// The tables that are read as they are.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The master dataset.
    pub readings: Readings,
    /// What was not accepted.
    pub dead_letters: DeadLetters,
    /// The batch views.
    pub views: BatchViews,
    /// Changes to how readings are computed.
    pub amendments: Amendments,
    /// The restatements.
    pub restatements: Restatements,
}

//! Keeps a table in few files: now and then small ones are merged and replaced ones removed. Must not know what is
//! appended.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use wye_domain::ErrorKind;
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::{Cleaned, Compacted, CompactionPolicy, TablesError};

use crate::compute::Compute;
use crate::error::chain;
use crate::telemetry::BatchTelemetry;

/// Appends between two looks for small files.
const APPENDS: u32 = 8;
/// How long a merged file stays for those who still read it.
const KEEP: Duration = Duration::from_secs(3600);
/// How often merged files are removed.
const CLEANING: Duration = Duration::from_secs(900);

/// A table that collects small files.
pub(super) trait Maintained: Clone + Send + Sync + 'static {
    fn compact(&self) -> impl Future<Output = Result<Compacted, TablesError>> + Send;

    /// Removes files that left the table more than `keep` ago.
    fn clean(&self, keep: Duration) -> impl Future<Output = Result<Cleaned, TablesError>> + Send;
}

impl Maintained for Readings {
    async fn compact(&self) -> Result<Compacted, TablesError> {
        self.compact(CompactionPolicy::default()).await
    }

    async fn clean(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.vacuum(keep).await
    }
}

impl Maintained for DeadLetters {
    async fn compact(&self) -> Result<Compacted, TablesError> {
        self.compact().await
    }

    async fn clean(&self, keep: Duration) -> Result<Cleaned, TablesError> {
        self.vacuum(keep).await
    }
}

/// See the module.
pub(super) struct Maintenance<T> {
    table: T,
    compute: Arc<Compute>,
    telemetry: BatchTelemetry,
    state: Mutex<State>,
}

struct State {
    appends: u32,
    cleaned: Instant,
    /// At most one at a time.
    running: JoinSet<()>,
}

impl<T: Maintained> Maintenance<T> {
    pub(super) fn new(table: T, compute: Arc<Compute>, telemetry: BatchTelemetry) -> Self {
        let state = State { appends: 0, cleaned: Instant::now(), running: JoinSet::new() };
        Self { table, compute, telemetry, state: Mutex::new(state) }
    }

    /// Takes note of an append, and starts the maintenance that is due, in the background.
    pub(super) fn after_append(&self) {
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.appends += 1;
        while state.running.try_join_next().is_some() {}
        if state.appends < APPENDS || !state.running.is_empty() {
            return;
        }
        state.appends = 0;
        let cleans = state.cleaned.elapsed() >= CLEANING;
        if cleans {
            state.cleaned = Instant::now();
        }
        let (table, telemetry) = (self.table.clone(), self.telemetry.clone());
        let work = async move {
            compact(&table, &telemetry).await;
            if cleans {
                clean(&table).await;
            }
        };
        state.running.spawn_on(work, self.compute.handle());
    }
}

async fn compact(table: &impl Maintained, telemetry: &BatchTelemetry) {
    match table.compact().await {
        Ok(done) if done.files_before > 0 => {
            telemetry.compacted_files.inc_by(done.files_before as u64);
            info!(before = done.files_before, after = done.files_after, rows = done.rows, "files merged");
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::Conflict => debug!(%error, "another compaction was first"),
        Err(error) => warn!(error = chain(&error), "cannot merge small files; trying again later"),
    }
}

async fn clean(table: &impl Maintained) {
    match table.clean(KEEP).await {
        Ok(cleaned) if cleaned.files > 0 => {
            info!(files = cleaned.files, bytes = cleaned.bytes, "merged files removed");
        }
        Ok(_) => {}
        Err(error) => warn!(error = chain(&error), "cannot remove merged files; trying again later"),
    }
}

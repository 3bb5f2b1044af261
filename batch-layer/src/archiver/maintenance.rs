//! Keeps a table in few files: small ones are merged, and merged ones removed, in the background. Must not know what is
//! appended.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use wye_domain::{ErrorKind, error_chain};
use wye_tables::dead_letters::DeadLetters;
use wye_tables::readings::Readings;
use wye_tables::{Cleaned, Compacted, CompactionPolicy, TablesError};

use crate::compute::Compute;
use crate::layer::Parts;
use crate::telemetry::BatchTelemetry;
use wye_runtime::clock::Clock;

/// After how many appends small files are looked for.
const APPENDS: u32 = 8;
/// How long a merged file is kept for readers that still use it.
const KEEP: Duration = Duration::from_secs(3600);
/// How often merged files are removed.
const CLEANING_INTERVAL: Duration = Duration::from_secs(900);

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

/// The maintenance of one table.
pub(super) struct Maintenance<T> {
    table: T,
    compute: Arc<Compute>,
    telemetry: BatchTelemetry,
    clock: Arc<dyn Clock>,
    /// How many there were since small files were last looked for.
    appends: u32,
    /// When merged files were last removed, on the monotonic clock.
    cleaned: Duration,
    /// At most one task at a time.
    running: JoinSet<()>,
}

impl<T: Maintained> Maintenance<T> {
    pub(super) fn new(table: T, parts: &Parts) -> Self {
        Self {
            table,
            compute: Arc::clone(&parts.compute),
            telemetry: parts.telemetry.clone(),
            clock: Arc::clone(&parts.clock),
            appends: 0,
            cleaned: parts.clock.monotonic(),
            running: JoinSet::new(),
        }
    }

    /// Counts an append, and starts the maintenance that is due.
    pub(super) fn after_append(&mut self) {
        self.appends += 1;
        while self.running.try_join_next().is_some() {}
        if self.appends < APPENDS || !self.running.is_empty() {
            return;
        }
        self.appends = 0;
        let now = self.clock.monotonic();
        let cleaning_is_due = now.saturating_sub(self.cleaned) >= CLEANING_INTERVAL;
        if cleaning_is_due {
            self.cleaned = now;
        }
        let (table, telemetry) = (self.table.clone(), self.telemetry.clone());
        let work = async move {
            compact(&table, &telemetry).await;
            if cleaning_is_due {
                clean(&table).await;
            }
        };
        self.running.spawn_on(work, self.compute.handle());
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
        Err(error) => warn!(error = error_chain(&error), "cannot merge small files; trying again later"),
    }
}

async fn clean(table: &impl Maintained) {
    match table.clean(KEEP).await {
        Ok(cleaned) if cleaned.files > 0 => {
            info!(files = cleaned.files, bytes = cleaned.bytes, "merged files removed");
        }
        Ok(_) => {}
        Err(error) => warn!(error = error_chain(&error), "cannot remove merged files; trying again later"),
    }
}

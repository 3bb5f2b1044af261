//! The state of the data behind one lock, and waiting until it covers something. What the state means is in [`HubState`].
//!
//! The lock is held for microseconds by readers; a query takes a [`Capture`] and works on that.

#[cfg(test)]
mod outage_tests;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;
use wye_domain::place::KafkaPartition;
use wye_domain::position::Position;
use wye_domain::realtime_row::Header;
use wye_domain::time::Micros;
use wye_metrics::merge::Answer;
use wye_tables::views::ViewVersion;

pub use state::{Facts, HubState, Input, Outcome, Starting};

use crate::coverage::Coverage;
use crate::directory::{Directory, SeriesInfo};
use crate::realtime::{Applied, EpochView, RealtimeRow};
use crate::snapshot::BatchSnapshot;

/// How many rows are applied before readers get their turn.
const ROWS_PER_TURN: usize = 2_000;

/// The state of the data, shared by those who change it and those who answer from it.
#[derive(Debug)]
pub struct Hub {
    directory: Arc<Directory>,
    state: RwLock<HubState>,
    /// Wakes those who wait.
    moved: watch::Sender<()>,
}

/// What one answer is made of: one batch view, and the epochs from its horizon on.
#[derive(Clone, Debug)]
pub struct Capture {
    /// The batch view; `None` before the first batch run.
    pub snapshot: Option<Arc<BatchSnapshot>>,
    /// The epochs at and after its horizon.
    pub epochs: Vec<Arc<EpochView>>,
    /// What that covers of the log.
    pub coverage: Arc<Coverage>,
    /// Tells this state from every other of this process.
    pub edition: Edition,
}

/// A state of the data, for caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edition {
    /// The version of the batch view; `None` without one.
    pub version: Option<ViewVersion>,
    /// Changes of the realtime side.
    pub changes: u64,
}

/// The newest window of a series, and what a textbook merge would make of it.
#[derive(Clone, Debug)]
pub struct Current {
    /// The series.
    pub info: Arc<SeriesInfo>,
    /// The newest window of the exact merge.
    pub answer: Answer,
    /// The newest window of the batch view alone.
    pub batch: Option<Answer>,
    /// The newest window of the realtime views alone.
    pub realtime: Option<Answer>,
}

/// Several answers from one state.
#[derive(Clone, Debug)]
pub struct Taken<T> {
    /// The answers.
    pub answers: T,
    /// What they cover of the log.
    pub coverage: Coverage,
    /// The state that they were taken from.
    pub edition: Edition,
}

impl Hub {
    /// An empty hub for a log with so many Kafka partitions of readings.
    pub fn new(directory: Arc<Directory>, kafka_partitions: i32) -> Self {
        let state = RwLock::new(HubState::new(&directory, kafka_partitions));
        Self { directory, state, moved: watch::Sender::new(()) }
    }

    /// The series.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Takes one input in.
    pub fn step(&self, input: Input<'_>) -> Option<Applied> {
        let Outcome { applied, wake, dropped } =
            self.state.write().unwrap_or_else(PoisonError::into_inner).step(input);
        if wake {
            self.moved.send_replace(());
        }
        drop(dropped);
        applied
    }

    /// Takes in the next record of a Kafka partition of the realtime-views topic, in turns with those who read.
    pub fn apply(
        &self,
        kafka_partition: KafkaPartition,
        header: &Header,
        rows: &[RealtimeRow],
    ) -> Option<Applied> {
        let (last, turns) = in_turns(rows);
        // A flush is complete with its last rows, and not before.
        let incomplete = incomplete(header);
        for rows in turns {
            self.step(Input::Record { kafka_partition, header: &incomplete, rows });
        }
        self.step(Input::Record { kafka_partition, header, rows: last })
    }

    /// The state as it is, for reading. It cannot change until what is returned is dropped.
    pub fn read(&self) -> RwLockReadGuard<'_, HubState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an answer is made of, as it is at `now`.
    pub fn capture(&self, now: Micros) -> Capture {
        self.read().capture(now)
    }

    /// The same together with the newest windows of all series, in one step, at `now`.
    pub fn capture_with_current(&self, now: Micros) -> (Capture, Vec<Current>) {
        let infos = self.directory.infos();
        let state = self.read();
        let current = state.current_of_both(&infos, now);
        (state.capture(now), current)
    }

    /// Waits until answers can be used; however long it takes.
    pub async fn until_started(&self) {
        self.until(|state| state.starting().is_none()).await;
    }

    /// Waits until answers hold everything below a position. Returns whether they do within `patience`.
    pub async fn until_covered(&self, position: &Position, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.until(|state| state.covers(position))).await.is_ok()
    }

    /// Waits until this or a later version of the batch views is served. Returns whether it is within `patience`.
    pub async fn until_version(&self, version: ViewVersion, patience: Duration) -> bool {
        let served = self.until(|state| state.version().is_some_and(|served| served >= version));
        tokio::time::timeout(patience, served).await.is_ok()
    }

    async fn until(&self, reached: impl Fn(&HubState) -> bool) {
        let mut moved = self.moved.subscribe();
        while !reached(&self.read()) {
            // The sender lives as long as the hub, so this never fails.
            let _ = moved.changed().await;
        }
    }
}

/// Rows in parts, so that readers get their turn between them; the last part apart.
fn in_turns(rows: &[RealtimeRow]) -> (&[RealtimeRow], std::slice::Chunks<'_, RealtimeRow>) {
    let last = rows.len().saturating_sub(1) / ROWS_PER_TURN * ROWS_PER_TURN;
    (&rows[last..], rows[..last].chunks(ROWS_PER_TURN))
}

/// The header of a part of a record that is not its end.
fn incomplete(header: &Header) -> Header {
    let mut header = header.clone();
    if let Header::Rows { complete, .. } = &mut header {
        *complete = false;
    }
    header
}

//! The report of a batch run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wye_domain::horizon::Horizon;
use wye_domain::place::KafkaPartition;
use wye_metrics::failures::Failures;
use wye_tables::run_record::RunRecord;
use wye_tables::views::ViewVersion;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// There is a new view.
    Committed,
    /// Since the last run there is no new reading, and definitions and amendments are the same: the view stays.
    NothingNew,
}

/// What a run did. As JSON, it is what `wye batch run --json` prints; fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// How it ended.
    pub outcome: Outcome,
    /// Readings below the horizon, with duplicates and conflicts.
    pub readings: u64,
    /// Of these, later ones of an identity with the same value.
    pub duplicates: u64,
    /// Of these, later ones of an identity with another value.
    pub conflicts: u64,
    /// Readings that amendments leave out.
    #[serde(default)]
    pub dropped: u64,
    /// Rows of the view: windows of all series.
    pub windows: u64,
    /// Series in the cells that were computed.
    pub series: u64,
    /// Cells of the view: stretches of time, see [`crate::cells`].
    #[serde(default)]
    pub cells: u64,
    /// By reason: how many of them were computed.
    #[serde(default)]
    pub computed_cells: BTreeMap<String, u64>,
    /// Readings in the cells that were computed.
    #[serde(default)]
    pub readings_read: u64,
    /// Settled numbers that the run has changed; they are in the table `restatements`.
    #[serde(default)]
    pub restated: u64,
    /// By definition, or `amendment ID`: readings below the horizon that it could not compute, with an example.
    #[serde(default)]
    pub failures: Failures,
    /// Why all cells were computed; absent where the run has computed those that have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub everything_because: Option<String>,
    /// The view has the readings below.
    pub horizon: Horizon,
    /// From the start of the run to the commit.
    pub duration_ms: u64,
    /// The version of the table that holds the view; absent when there is none yet.
    pub version: Option<ViewVersion>,
    /// The Kafka partitions whose owner did not answer, so that the run took what was archived.
    #[serde(default)]
    pub unanswered: Vec<KafkaPartition>,
    /// By Kafka partition: how many messages were in the log when the run started and are not in the view.
    #[serde(default)]
    pub not_covered: BTreeMap<KafkaPartition, u64>,
}

impl RunReport {
    /// For a run that leaves a view as it is, from the record of the run that made the view.
    pub(crate) fn of(run: &RunRecord, horizon: Horizon) -> Self {
        Self {
            outcome: Outcome::NothingNew,
            readings: run.readings,
            duplicates: run.duplicates,
            conflicts: run.conflicts,
            dropped: run.dropped,
            windows: run.windows,
            series: run.series,
            cells: run.cells,
            computed_cells: run.computed_cells.clone(),
            readings_read: run.readings_read,
            restated: run.restated,
            failures: run.failures.clone(),
            everything_because: None,
            horizon,
            duration_ms: 0,
            version: None,
            unanswered: Vec::new(),
            not_covered: BTreeMap::new(),
        }
    }
}

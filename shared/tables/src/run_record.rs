//! The record of a batch run: written by the batch layer with the views that it commits, read by the serving layer. Must
//! not know how a run works or how it is shown.
//!
//! Stability contract: the record is stored as JSON in the `commitInfo` of the run's Delta commit. Fields may be added but
//! not removed, and a missing field has its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wye_domain::horizon::Horizon;
use wye_domain::time::Micros;
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::failures::Failures;

use crate::restatements::RestatementFile;
use crate::views::ViewVersion;

/// The record of a batch run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// The ID of the run.
    pub run_id: String,
    /// When the run started.
    pub started_at: Micros,
    /// When the computation was finished, just before the commit.
    pub finished_at: Micros,
    /// Readings below the horizon.
    pub readings: u64,
    /// Readings below the horizon that repeat an earlier one.
    pub duplicates: u64,
    /// Duplicates whose value differs from that of the earlier reading.
    pub conflicts: u64,
    /// Rows of the view: one for each series and window.
    pub windows: u64,
    /// Series in the cells that the run has computed.
    pub series: u64,
    /// Fingerprint of what was computed.
    pub definitions: String,
    /// All readings that were ingested before this time are in the views.
    pub as_of: Micros,
    /// When the first reading was ingested; `None` where that is not known.
    pub first_ingest: Option<Micros>,
    /// How late readings were.
    pub lateness: LatenessHistogram,
    /// Readings that definitions could not compute.
    pub failures: Failures,
    /// Which computation made the view: it changes when the same readings give other rows.
    pub computation: u32,
    /// The ID of the table of readings.
    pub readings_table: String,
    /// Cells of the view.
    pub cells: u64,
    /// By reason: how many of them the run has computed.
    pub computed_cells: BTreeMap<String, u64>,
    /// Readings in the cells that the run has computed.
    pub readings_read: u64,
    /// Readings that amendments leave out.
    pub dropped: u64,
    /// The IDs of the amendments that were applied.
    pub amendments: Vec<String>,
    /// The fingerprint of the registry.
    pub registry: String,
    /// The most memory that the process of the run has had, in bytes; `None` where the system does not say.
    pub peak_memory_bytes: Option<u64>,
    /// The version of the program.
    pub code_version: String,
    /// Settled numbers that the run has changed.
    pub restated: u64,
    /// The file of them; absent without any.
    pub restatements: Option<RestatementFile>,
}

/// A run that was committed.
#[derive(Clone, Debug, PartialEq)]
pub struct CommittedRun {
    /// The version of the table that holds its views.
    pub version: ViewVersion,
    /// When it was committed.
    pub committed: Micros,
    /// The horizon up to which it read.
    pub horizon: Horizon,
    /// Its record.
    pub run: RunRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as it is stored. A change breaks all existing tables.
    const STORED: &str = r#"{"run_id":"r1","started_at":10,"finished_at":20,"readings":5,"duplicates":2,"conflicts":1,"windows":3,"series":2,"definitions":"7","as_of":9,"first_ingest":3,"lateness":LATENESS,"failures":{},"computation":1,"readings_table":"t","cells":4,"computed_cells":{"new_readings":2},"readings_read":3,"dropped":1,"amendments":["a"],"registry":"6","peak_memory_bytes":8,"code_version":"1","restated":0,"restatements":null}"#;

    #[test]
    fn the_stored_form_is_pinned() {
        let lateness = serde_json::to_string(&LatenessHistogram::default()).unwrap();
        let stored = STORED.replace("LATENESS", &lateness);
        let record = RunRecord {
            run_id: "r1".to_owned(),
            started_at: Micros(10),
            finished_at: Micros(20),
            readings: 5,
            duplicates: 2,
            conflicts: 1,
            windows: 3,
            series: 2,
            definitions: "7".to_owned(),
            as_of: Micros(9),
            first_ingest: Some(Micros(3)),
            computation: 1,
            readings_table: "t".to_owned(),
            cells: 4,
            computed_cells: [("new_readings".to_owned(), 2)].into(),
            readings_read: 3,
            dropped: 1,
            amendments: vec!["a".to_owned()],
            registry: "6".to_owned(),
            peak_memory_bytes: Some(8),
            code_version: "1".to_owned(),
            ..RunRecord::default()
        };
        assert_eq!(serde_json::to_string(&record).unwrap(), stored);
        assert_eq!(serde_json::from_str::<RunRecord>(&stored).unwrap(), record);
        assert_eq!(serde_json::from_str::<RunRecord>("{}").unwrap(), RunRecord::default());
    }
}

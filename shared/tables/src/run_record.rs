//! What a batch run records of itself: written by the batch layer with the views that it commits, read by the serving
//! layer. Must not know how a run is made or shown.
//!
//! Stability contract: the record is stored as JSON in the `commitInfo` of the run's Delta commit; fields are only ever
//! added, and a field that is missing has its default.

use serde::{Deserialize, Serialize};
use wye_domain::horizon::Horizon;
use wye_domain::time::Micros;
use wye_metrics::confidence::LatenessHistogram;
use wye_metrics::failures::Failures;

use crate::views::ViewVersion;

/// What a batch run records of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunRecord {
    /// Names the run.
    pub run_id: String,
    /// When the run started.
    pub started_at: Micros,
    /// When everything was computed, just before the commit.
    pub finished_at: Micros,
    /// Readings below the horizon.
    pub readings: u64,
    /// Readings below the horizon that repeat an earlier one.
    pub duplicates: u64,
    /// Duplicates whose value differs from that of the earlier reading.
    pub conflicts: u64,
    /// Rows of the view: one for each series and window.
    pub windows: u64,
    /// Series.
    pub series: u64,
    /// Fingerprint of what was computed.
    pub definitions: String,
    /// Everything that was ingested before this time is in the views.
    pub as_of: Micros,
    /// How late readings have been.
    pub lateness: LatenessHistogram,
    /// Readings that definitions could not compute.
    pub failures: Failures,
    /// When the next window settles; `None` when all windows are settled.
    pub settles_at: Option<Micros>,
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
    /// What it recorded of itself.
    pub run: RunRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as it is stored. Changing it breaks every table there is.
    const STORED: &str = r#"{"run_id":"r1","started_at":10,"finished_at":20,"readings":5,"duplicates":2,"conflicts":1,"windows":3,"series":2,"definitions":"7","as_of":9,"lateness":LATENESS,"failures":{},"settles_at":30}"#;

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
            settles_at: Some(Micros(30)),
            ..RunRecord::default()
        };
        assert_eq!(serde_json::to_string(&record).unwrap(), stored);
        assert_eq!(serde_json::from_str::<RunRecord>(&stored).unwrap(), record);
        assert_eq!(serde_json::from_str::<RunRecord>("{}").unwrap(), RunRecord::default());
    }
}

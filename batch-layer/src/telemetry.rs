//! The instruments of the batch layer.

use prometheus_client::metrics::histogram::Histogram;
use wye_runtime::telemetry::{
    PartitionCounter, PartitionGauge, PlainCounter, PlainGauge, ReasonCounter, Telemetry,
};

/// The instruments; the help texts say what they show.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the help texts say it")]
pub struct BatchTelemetry {
    pub archived: PlainCounter,
    pub archive_commits: PlainCounter,
    pub archive_bytes: PlainCounter,
    pub archive_lag: PartitionGauge,
    pub archive_lost: PartitionCounter,
    pub letters: PlainCounter,
    pub refused: PlainCounter,
    pub compacted_files: PlainCounter,
    pub runs: PlainCounter,
    pub failed_runs: ReasonCounter,
    pub run_seconds: Histogram,
    pub windows: PlainGauge,
    pub readings: PlainGauge,
    pub committed_at: PlainGauge,
    pub horizon: PartitionGauge,
}

impl BatchTelemetry {
    /// Registers all of them.
    pub fn register(telemetry: &Telemetry) -> Self {
        let t = telemetry;
        Self {
            archived: t.register(
                "wye_archive_readings",
                "Readings stored in the master dataset",
                PlainCounter::default(),
            ),
            archive_commits: t.register(
                "wye_archive_commits",
                "Commits to the master dataset",
                PlainCounter::default(),
            ),
            archive_bytes: t.register(
                "wye_archive_bytes",
                "Bytes stored in the master dataset",
                PlainCounter::default(),
            ),
            archive_lag: t.register(
                "wye_archive_lag_messages",
                "Messages of the log that are not archived yet",
                PartitionGauge::default(),
            ),
            archive_lost: t.register(
                "wye_archive_lost_messages",
                "Messages deleted from the log before they were archived",
                PartitionCounter::default(),
            ),
            letters: t.register("wye_archive_dead_letters", "Dead letters archived", PlainCounter::default()),
            refused: t.register(
                "wye_archive_refused_entries",
                "Invalid readings in the log, written to the dead letters",
                PlainCounter::default(),
            ),
            compacted_files: t.register(
                "wye_archive_compacted_files",
                "Small files of the master dataset that were merged into larger ones",
                PlainCounter::default(),
            ),
            runs: t.register("wye_batch_runs", "Batch runs that committed", PlainCounter::default()),
            failed_runs: t.register(
                "wye_batch_failed_runs",
                "Batch runs that failed",
                ReasonCounter::default(),
            ),
            run_seconds: t.seconds("wye_batch_run_seconds", "Duration of batch runs that committed"),
            windows: t.register("wye_batch_view_windows", "Windows in the batch view", PlainGauge::default()),
            readings: t.register(
                "wye_batch_view_readings",
                "Readings below the horizon of the batch view",
                PlainGauge::default(),
            ),
            committed_at: t.register(
                "wye_batch_view_committed_seconds",
                "When the batch view was committed, since 1970",
                PlainGauge::default(),
            ),
            horizon: t.register(
                "wye_batch_horizon_offset",
                "Horizon of the batch view",
                PartitionGauge::default(),
            ),
        }
    }
}

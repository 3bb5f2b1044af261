//! What a run says of itself: the record that is stored with its views, its report, and telemetry.

use std::collections::BTreeMap;

use tracing::{info, warn};
use wye_domain::place::KafkaPartition;
use wye_metrics::view_rows::COMPUTATION;
use wye_runtime::telemetry::KafkaPartitionLabel;
use wye_tables::run_record::RunRecord;
use wye_tables::views::ViewSnapshot;

use super::Execution;
use crate::recompute::Recomputed;
use crate::report::RunReport;
use crate::run::LeftOut;

impl Execution<'_> {
    pub(super) fn run_id(&self) -> String {
        format!("{}-{}", self.started.0, self.runner.parts.process_id)
    }

    /// The record that is stored with the views.
    pub(super) fn record(&self, computed: &Recomputed) -> RunRecord {
        let tally = computed.tally();
        RunRecord {
            run_id: self.run_id(),
            started_at: self.started,
            finished_at: self.runner.clock().now(),
            readings: tally.readings,
            duplicates: tally.duplicates,
            conflicts: tally.conflicts,
            windows: computed.windows(),
            series: computed.series,
            definitions: self.runner.definitions(),
            as_of: computed.as_of.unwrap_or_default(),
            first_ingest: computed.first_ingest,
            lateness: computed.lateness.clone(),
            failures: tally.failures,
            computation: COMPUTATION,
            readings_table: String::new(),
            cells: computed.cells.len() as u64,
            computed_cells: computed.computed_cells.clone(),
            readings_read: computed.readings_read,
            dropped: tally.dropped,
            amendments: self.amending.ids(),
            registry: self.runner.registry(),
            peak_memory_bytes: peak_memory(),
            code_version: env!("CARGO_PKG_VERSION").to_owned(),
            restated: computed.restated,
            restatements: computed.restatements.clone(),
        }
    }

    /// Completes the report, once the run has committed or keeps the view.
    pub(super) fn finish(&mut self, LeftOut { unanswered, messages }: LeftOut) {
        self.report.unanswered = unanswered;
        self.report.not_covered = messages;
        let duration = self.runner.clock().monotonic().saturating_sub(self.begin);
        self.report.duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    }

    /// Counts and logs a commit.
    pub(super) fn measure(&self) {
        let (report, telemetry) = (&self.report, &self.runner.parts.telemetry);
        telemetry.runs.inc();
        telemetry.run_seconds.observe(report.duration_ms as f64 / 1e3);
        telemetry.windows.set(i64::try_from(report.windows).unwrap_or(i64::MAX));
        telemetry.readings.set(i64::try_from(report.readings).unwrap_or(i64::MAX));
        telemetry.committed_at.set(self.runner.clock().now().seconds());
        for (KafkaPartition(kafka_partition), offset) in report.horizon.iter() {
            telemetry.horizon.get_or_create(&KafkaPartitionLabel { kafka_partition }).set(offset.0);
        }
        if !report.not_covered.is_empty() {
            let not_covered = &report.not_covered;
            warn!(
                ?not_covered,
                "messages that were in the log when the run started are left to the next run"
            );
        }
        info!(
            version = report.version.map(|version| version.0),
            readings = report.readings,
            windows = report.windows,
            milliseconds = report.duration_ms,
            "batch view committed"
        );
    }
}

/// The most memory that this process has had so far, in bytes; `None` where the system does not say.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1_024)
}

/// The report of a run that leaves the view as it is.
pub(super) fn report_of(view: Option<&ViewSnapshot>) -> RunReport {
    let run = view.and_then(|view| view.run.clone()).unwrap_or_default();
    let horizon = view.map(|view| view.horizon.clone()).unwrap_or_default();
    // It has computed nothing itself.
    let (computed_cells, version) = (BTreeMap::new(), view.map(ViewSnapshot::version));
    RunReport { version, computed_cells, readings_read: 0, restated: 0, ..RunReport::of(&run, horizon) }
}

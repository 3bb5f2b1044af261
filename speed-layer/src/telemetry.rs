//! The instruments of the speed layer.

use wye_runtime::telemetry::{PartitionCounter, PartitionGauge, PlainCounter, ReasonCounter, Telemetry};

/// See the help texts.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the help texts say it")]
pub struct SpeedTelemetry {
    pub readings: PartitionCounter,
    pub duplicates: PartitionCounter,
    pub conflicts: PartitionCounter,
    pub rejected: ReasonCounter,
    pub misplaced: PartitionCounter,
    pub failed: PlainCounter,
    pub rows: PartitionCounter,
    pub log_lag: PartitionGauge,
    pub watermark: PartitionGauge,
    pub epochs: PartitionCounter,
    pub horizon: PartitionGauge,
    pub remembered: PartitionGauge,
    pub forgotten_early: PartitionCounter,
    pub takeovers: PartitionCounter,
    pub owned: PartitionGauge,
    pub given_up: PartitionCounter,
    pub undecodable: PartitionCounter,
    pub accepted: PlainCounter,
    pub refused: ReasonCounter,
}

impl SpeedTelemetry {
    /// Registers all of them.
    pub fn register(telemetry: &Telemetry) -> Self {
        let own = Self::default();
        telemetry.register("wye_speed_readings", "Readings taken from the log", own.readings.clone());
        telemetry.register(
            "wye_speed_duplicates",
            "Readings seen before with the same value",
            own.duplicates.clone(),
        );
        telemetry.register(
            "wye_speed_conflicts",
            "Readings seen before with another value",
            own.conflicts.clone(),
        );
        telemetry.register(
            "wye_speed_rejected",
            "Entries of the log that are no readings",
            own.rejected.clone(),
        );
        telemetry.register(
            "wye_speed_misplaced_messages",
            "Messages whose key belongs to another Kafka partition: the producer's partitioner is not murmur2",
            own.misplaced.clone(),
        );
        telemetry.register(
            "wye_speed_failed_readings",
            "Readings that a metric definition wants and cannot compute",
            own.failed.clone(),
        );
        telemetry.register("wye_speed_rows", "Rows written to the realtime views", own.rows.clone());
        telemetry.register(
            "wye_speed_log_lag_messages",
            "Messages not yet taken from the log",
            own.log_lag.clone(),
        );
        telemetry.register(
            "wye_speed_newest_event_time_seconds",
            "Newest event time seen",
            own.watermark.clone(),
        );
        telemetry.register("wye_speed_epochs", "Epochs started", own.epochs.clone());
        telemetry.register("wye_speed_horizon_offset", "Newest horizon heard of", own.horizon.clone());
        telemetry.register(
            "wye_speed_remembered_readings",
            "Identities in the duplicate window",
            own.remembered.clone(),
        );
        telemetry.register(
            "wye_speed_forgotten_early",
            "Identities dropped because the duplicate window is full",
            own.forgotten_early.clone(),
        );
        telemetry.register("wye_speed_takeovers", "Kafka partitions taken over", own.takeovers.clone());
        telemetry.register(
            "wye_speed_owned",
            "1 where this process owns the Kafka partition",
            own.owned.clone(),
        );
        telemetry.register(
            "wye_speed_given_up",
            "Kafka partitions given up because their owner was fenced or failed",
            own.given_up.clone(),
        );
        telemetry.register(
            "wye_speed_undecodable_records",
            "Records of the realtime views that did not decode at a takeover",
            own.undecodable.clone(),
        );
        telemetry.register(
            "wye_ingest_accepted_readings",
            "Readings acknowledged by the log",
            own.accepted.clone(),
        );
        telemetry.register("wye_ingest_rejected_readings", "Readings that were refused", own.refused.clone());
        own
    }
}

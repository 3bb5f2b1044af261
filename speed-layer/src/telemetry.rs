//! The instruments of the speed layer. Those of ingest are in `ingest::telemetry`.

use tracing::{debug, warn};
use wye_domain::place::KafkaPartition;
use wye_runtime::telemetry::{
    KafkaPartitionLabel, PartitionCounter, PartitionGauge, PlainCounter, ReasonCounter, ReasonLabel,
    Telemetry,
};

use crate::owner::Owner;

/// The instruments; the help texts say what they count.
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
}

/// The label of a Kafka partition.
pub(crate) fn label(kafka_partition: KafkaPartition) -> KafkaPartitionLabel {
    KafkaPartitionLabel { kafka_partition: kafka_partition.0 }
}

impl SpeedTelemetry {
    /// Registers all of them.
    pub fn register(telemetry: &Telemetry) -> Self {
        let own = Self::default();
        telemetry.register("wye_speed_readings", "Readings taken from the log", own.readings.clone());
        telemetry.register(
            "wye_speed_duplicates",
            "Readings that came before with the same value",
            own.duplicates.clone(),
        );
        telemetry.register(
            "wye_speed_conflicts",
            "Readings that came before with another value",
            own.conflicts.clone(),
        );
        telemetry.register(
            "wye_speed_rejected",
            "Messages and parts of messages of the log that were rejected",
            own.rejected.clone(),
        );
        telemetry.register(
            "wye_speed_misplaced_messages",
            "Messages whose key belongs to another Kafka partition: the producer's partitioner is not murmur2",
            own.misplaced.clone(),
        );
        telemetry.register(
            "wye_speed_failed_readings",
            "Readings that a metric definition selects and cannot compute",
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
            "Newest event time of all readings",
            own.watermark.clone(),
        );
        telemetry.register("wye_speed_epochs", "Epochs started", own.epochs.clone());
        telemetry.register(
            "wye_speed_horizon_offset",
            "Newest horizon in the control topic",
            own.horizon.clone(),
        );
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
        own
    }

    /// Adds what an owner has done since the last call, and shows its state.
    pub(crate) fn observe(&self, kafka_partition: KafkaPartition, owner: &mut Owner) {
        let label = label(kafka_partition);
        let tally = owner.take_tally();
        self.readings.get_or_create(&label).inc_by(tally.counts.readings);
        self.duplicates.get_or_create(&label).inc_by(tally.counts.duplicates);
        self.conflicts.get_or_create(&label).inc_by(tally.counts.conflicts);
        self.rows.get_or_create(&label).inc_by(tally.rows);
        self.epochs.get_or_create(&label).inc_by(tally.epochs);
        for (reason, count) in tally.rejected {
            self.rejected.get_or_create(&ReasonLabel { reason: reason.name() }).inc_by(count);
        }
        if let Some(newest) = owner.newest_event_time() {
            self.watermark.get_or_create(&label).set(newest.seconds());
        }
        if let Some(horizon) = owner.horizon() {
            self.horizon.get_or_create(&label).set(horizon.0);
        }
        self.remembered.get_or_create(&label).set(i64::try_from(owner.remembered()).unwrap_or(i64::MAX));
        for (definition, failure) in tally.failures.iter() {
            self.failed.inc_by(failure.readings);
            let example = &failure.example;
            debug!(
                definition,
                readings = failure.readings,
                message = example.message,
                device_id = example.device_id,
                metric = example.metric,
                "a metric definition cannot compute readings; GET /v1/metrics shows an example after the next batch run"
            );
        }
        if tally.forgotten_early > 0 {
            self.forgotten_early.get_or_create(&label).inc_by(tally.forgotten_early);
            warn!(
                %kafka_partition,
                forgotten = tally.forgotten_early,
                "the duplicate window is full; raise speed.duplicate_entries or run the batch layer more often"
            );
        }
    }
}

//! All telemetry names of the serving layer.

use wye_domain::place::KafkaPartition;
use wye_runtime::telemetry::{
    KafkaPartitionLabel, PartitionGauge, PlainCounter, PlainGauge, RealGauge, ReasonCounter, ReasonLabel,
    Telemetry,
};
use wye_tables::views::ViewVersion;

use crate::coverage::Coverage;

/// The instruments of one serving layer.
#[derive(Clone, Debug)]
pub(crate) struct Instruments {
    lag: PartitionGauge,
    lacking: PartitionGauge,
    skipped: ReasonCounter,
    /// Epochs held of all Kafka partitions.
    epochs: PlainGauge,
    /// Windows held of all epochs.
    windows: PlainGauge,
    /// The served version of the batch views.
    version: PlainGauge,
    /// The newest ingest time (seconds since 1970) that the served batch view has seen.
    pub(crate) as_of: PlainGauge,
    /// How long (s) the oldest record that is not in answers has been in the log.
    lacking_for: RealGauge,
    /// 1 when answers hold everything that the log has, otherwise 0.
    complete: PlainGauge,
    /// SQL queries that were started.
    pub(crate) queries: PlainCounter,
    /// HTTP requests that were answered with an error.
    pub(crate) refused: PlainCounter,
}

impl Instruments {
    pub(crate) fn new(telemetry: &Telemetry) -> Self {
        Self {
            lag: telemetry.register(
                "wye_serving_realtime_lag_records",
                "Records of the realtime-views topic that are not applied yet",
                PartitionGauge::default(),
            ),
            lacking: telemetry.register(
                "wye_serving_lacking_records",
                "Records of the readings topic that are not in answers yet",
                PartitionGauge::default(),
            ),
            lacking_for: telemetry.register(
                "wye_serving_lacking_seconds",
                "How long the oldest record that is not in answers has been in the readings topic",
                RealGauge::default(),
            ),
            skipped: telemetry.register(
                "wye_serving_realtime_skipped_records",
                "Records of the realtime-views topic that do not count, by reason",
                ReasonCounter::default(),
            ),
            epochs: gauge(telemetry, "wye_serving_realtime_epochs", "Epochs held"),
            windows: gauge(telemetry, "wye_serving_realtime_windows", "Windows held of all epochs"),
            version: gauge(telemetry, "wye_serving_batch_version", "Served version of the batch views"),
            as_of: gauge(
                telemetry,
                "wye_serving_batch_as_of_seconds",
                "Newest ingest time in the served batch view",
            ),
            complete: gauge(telemetry, "wye_serving_complete", "1 when answers are complete, else 0"),
            queries: counter(telemetry, "wye_serving_sql_queries", "SQL queries"),
            refused: counter(telemetry, "wye_serving_http_errors", "HTTP requests answered with an error"),
        }
    }

    pub(crate) fn set_lag(&self, kafka_partition: KafkaPartition, records: u64) {
        self.lag.get_or_create(&label(kafka_partition)).set(whole(records));
    }

    pub(crate) fn set_version(&self, version: ViewVersion) {
        self.version.set(whole(version.0));
    }

    pub(crate) fn set_size(&self, epochs: usize, windows: usize) {
        self.epochs.set(whole(epochs as u64));
        self.windows.set(whole(windows as u64));
    }

    pub(crate) fn covered(&self, coverage: &Coverage) {
        self.complete.set(i64::from(coverage.complete()));
        self.lacking_for.set(coverage.lacking_for().as_secs_f64());
        for partition in &coverage.kafka_partitions {
            if let Some(lacking) = partition.lacking() {
                self.lacking.get_or_create(&label(partition.kafka_partition)).set(whole(lacking));
            }
        }
    }

    pub(crate) fn skip(&self, reason: &'static str) {
        self.skipped.get_or_create(&ReasonLabel { reason }).inc();
    }
}

fn label(kafka_partition: KafkaPartition) -> KafkaPartitionLabel {
    KafkaPartitionLabel { kafka_partition: kafka_partition.0 }
}

/// A count as a gauge holds it.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn gauge(telemetry: &Telemetry, name: &str, help: &str) -> PlainGauge {
    telemetry.register(name, help, PlainGauge::default())
}

fn counter(telemetry: &Telemetry, name: &str, help: &str) -> PlainCounter {
    telemetry.register(name, help, PlainCounter::default())
}

//! Telemetry of Wye itself: counters and gauges in the Prometheus text format, logs on standard error.
//!
//! Names are `wye_<what>_<unit>[_total]` in base units; labels are few and bounded, never a device or a series.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// The label of an instrument of one Kafka partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KafkaPartitionLabel {
    /// Its number.
    pub kafka_partition: i32,
}

/// The label of an event that has a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// One of a fixed set.
    pub reason: &'static str,
}

/// Counters by Kafka partition.
pub type PartitionCounter = Family<KafkaPartitionLabel, Counter<u64, AtomicU64>>;
/// Gauges by Kafka partition.
pub type PartitionGauge = Family<KafkaPartitionLabel, Gauge<i64, AtomicI64>>;
/// Counters by reason.
pub type ReasonCounter = Family<ReasonLabel, Counter<u64, AtomicU64>>;
/// A plain counter.
pub type PlainCounter = Counter<u64, AtomicU64>;
/// A plain gauge.
pub type PlainGauge = Gauge<i64, AtomicI64>;
/// A gauge with fractions, such as seconds.
pub type RealGauge = Gauge<f64, AtomicU64>;

/// The registry of all instruments of a process.
#[derive(Clone, Debug, Default)]
pub struct Telemetry {
    registry: Arc<Mutex<Registry>>,
}

impl Telemetry {
    /// Registers an instrument; the library adds `_total` to counters.
    pub fn register<M: prometheus_client::registry::Metric + Clone>(
        &self,
        name: &str,
        help: &str,
        instrument: M,
    ) -> M {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register(name, help, instrument.clone());
        instrument
    }

    /// A histogram of seconds from a millisecond to a minute.
    pub fn seconds(&self, name: &str, help: &str) -> Histogram {
        let buckets = prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 17);
        self.register(name, help, Histogram::new(buckets))
    }

    /// Everything in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)
            .expect("a write to a string cannot fail");
        text
    }
}

/// Starts logging to standard error, at the levels of `WYE_LOG_LEVEL` (such as `info` or `wye_speed=debug`).
pub fn start_logging(default_level: &str) {
    let filter = std::env::var("WYE_LOG_LEVEL").unwrap_or_else(|_| default_level.to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(&filter)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default_level));
    // A second start in one process (tests) has no effect.
    let terminal = std::io::stderr().is_terminal();
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(terminal)
        .with_writer(std::io::stderr)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruments_are_in_the_text() {
        let telemetry = Telemetry::default();
        let counter = telemetry.register("wye_things", "Things", PlainCounter::default());
        counter.inc_by(3);
        assert!(telemetry.render().contains("wye_things_total 3"));
    }
}

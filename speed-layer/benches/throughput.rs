//! How many readings a second the speed layer takes from a full topic, with everything that it does: duplicates, windows,
//! flushes, epochs. Run on demand:
//!
//! ```text
//! cargo bench -p wye-speed --bench throughput -- [json|arrow] [readings] [runs | bootstrap servers]
//! ```
//!
//! Input: 200 machines × 20 sensors, one reading of each a second, one Kafka partition. Without bootstrap servers, each run
//! has an empty embedded broker in this process, and the last line is the median of the runs.

#![expect(clippy::print_stdout, reason = "a benchmark reports on its terminal")]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::place::KafkaPartition;
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::Registry;
use wye_domain::time::{Micros, Span};
use wye_domain::wire::{self, Acceptance};
use wye_log::LogError;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::READINGS;
use wye_metrics::plan::MetricPlans;
use wye_runtime::clock::{Clock, SystemClock};
use wye_runtime::telemetry::KafkaPartitionLabel;
use wye_speed::layer::{self, Parts};
use wye_speed::settings::SpeedSettings;
use wye_speed::telemetry::SpeedTelemetry;

const MACHINES: usize = 200;
const SENSORS: usize = 20;
const ROWS_PER_MESSAGE: usize = 4_000;
const START: Micros = Micros(1_700_000_000_000_000);
/// The only Kafka partition.
const KAFKA_PARTITION: KafkaPartition = KafkaPartition(0);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let form = arguments.first().map_or("arrow", String::as_str);
    let readings: usize =
        arguments.get(1).map_or(Ok(10_000_000), |text| text.parse()).context("readings is a number")?;
    let third = arguments.get(2).map_or("1", String::as_str);
    let Ok(runs) = third.parse::<usize>() else {
        measure(form, readings, third).await?;
        return Ok(());
    };
    let mut rates = Vec::new();
    for _ in 0..runs.max(1) {
        let directory = tempfile::tempdir()?;
        let broker = Broker::start(BrokerConfig::new(directory.path())).await?;
        rates.push(measure(form, readings, broker.bootstrap_servers()).await?);
        broker.stop().await;
    }
    rates.sort_by(f64::total_cmp);
    println!(
        "median of {} runs, with the broker in this process: {:.0} readings/s",
        rates.len(),
        rates[rates.len() / 2]
    );
    Ok(())
}

/// Fills the topic of readings, and returns how many a second the speed layer takes from it.
async fn measure(form: &str, readings: usize, bootstrap: &str) -> Result<f64> {
    let log = Log::new(LogConfig::new(bootstrap, 1))?;
    log.wait_ready(&CancellationToken::new()).await?;
    log.ensure_topics().await?;
    let begin = log.offsets(READINGS, KAFKA_PARTITION).await?.high;
    let clock = Arc::new(SystemClock::default());
    let bytes = fill(&log, form, readings).await?;
    println!(
        "filled: {readings} readings as {form}, {:.1} bytes each, in {:.1?}",
        bytes as f64 / readings as f64,
        clock.monotonic()
    );

    let telemetry = SpeedTelemetry::default();
    let settings = SpeedSettings {
        flush_interval: Duration::from_millis(100),
        epoch_interval: Duration::from_secs(10),
        duplicate_window: Duration::from_secs(86_400),
        duplicate_entries: 20_000_000,
        answer_patience: Duration::from_secs(5),
    };
    let parts = Parts {
        log: log.clone(),
        plans: Arc::new(MetricPlans::new(vec![], Arc::new(Registry::default()))?),
        acceptance: Acceptance::default(),
        telemetry: telemetry.clone(),
        clock: clock.clone(),
        name: "throughput".to_owned(),
    };
    let shutdown = CancellationToken::new();
    let cpu_before = cpu_seconds();
    let started = clock.monotonic();
    let layer = layer::start(settings, parts, shutdown.clone()).await?;
    let taken =
        telemetry.readings.get_or_create_owned(&KafkaPartitionLabel { kafka_partition: KAFKA_PARTITION.0 });
    while taken.get() < readings as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = (clock.monotonic() - started).as_secs_f64();
    let cpu = cpu_seconds() - cpu_before;
    shutdown.cancel();
    layer.join().await;
    let rate = readings as f64 / elapsed;
    println!(
        "speed layer: {readings} readings in {elapsed:.2} s: {rate:.0} readings/s, {:.2} CPU-seconds a million in this process (log started at offset {begin})",
        cpu / (readings as f64 / 1e6),
    );
    Ok(rate)
}

/// Writes the readings, and returns how many bytes their messages have.
async fn fill(log: &Log, form: &str, readings: usize) -> Result<usize> {
    let producer = Producer::new(log, Duration::from_millis(20))?;
    let machines: Vec<String> = (0..MACHINES).map(|i| format!("machine-{i:03}")).collect();
    let sensors: Vec<String> = (0..SENSORS).map(|i| format!("sensor-{i:02}")).collect();
    let mut bytes = 0;
    let mut deliveries = Vec::new();
    let mut builder = ReadingBatchBuilder::default();
    for i in 0..readings {
        let series = i % (MACHINES * SENSORS);
        let second = i / (MACHINES * SENSORS);
        let reading = Reading {
            device_id: &machines[series / SENSORS],
            metric: &sensors[series % SENSORS],
            value: (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as f64 / 1e16,
            event_time: START + Span::from_secs(second as i64),
            sequence: Some(second as i64),
            unit: None,
            tags: None,
        };
        let payload = if form == "json" {
            wire::encode_json(&[reading])
        } else {
            builder.append(&reading);
            if builder.len() < ROWS_PER_MESSAGE && i + 1 < readings {
                continue;
            }
            wire::encode(&[builder.finish()])
        };
        bytes += payload.len();
        let message = Outgoing {
            topic: READINGS,
            kafka_partition: KAFKA_PARTITION,
            key: None,
            payload: &payload,
            headers: &[],
        };
        loop {
            match producer.enqueue(message) {
                Ok(delivery) => break deliveries.push(delivery),
                Err(LogError::QueueFull) => {
                    for delivery in deliveries.drain(..) {
                        delivery.await?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if deliveries.len() >= 200_000 {
            for delivery in deliveries.drain(..) {
                delivery.await?;
            }
        }
    }
    for delivery in deliveries {
        delivery.await?;
    }
    Ok(bytes)
}

/// User and system time of this process so far, from /proc/self/stat in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [11, 12].into_iter().filter_map(|index| fields.get(index)?.parse::<f64>().ok()).sum();
    ticks / 100.0
}

//! The running layer on the embedded broker, or on the Kafka that `WYE_TEST_KAFKA` names: what the realtime-views topic has
//! afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::control::{ControlRecord, ControlView};
use wye_domain::epoch::Fence;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::realtime_row::{self, Header, Record, Rows};
use wye_domain::registry::Registry;
use wye_domain::summary::Summary;
use wye_domain::time::Micros;
use wye_domain::wire::Acceptance;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, DEAD_LETTER, READINGS, REALTIME_VIEWS};
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::MetricPlans;
use wye_runtime::telemetry::ReasonLabel;

use super::*;
use crate::telemetry::{SpeedTelemetry, label};
use wye_runtime::clock::SystemClock;

/// The Kafka partition that has the readings.
const FIRST: KafkaPartition = KafkaPartition(0);
const SECOND: KafkaPartition = KafkaPartition(1);
const PATIENCE: Duration = Duration::from_secs(60);
const SHORT_EPOCHS: Duration = Duration::from_millis(200);
/// Longer than a test runs.
const LONG_EPOCHS: Duration = Duration::from_secs(3_600);

struct Site {
    log: Log,
    producer: Producer,
    _broker: Broker,
    _directory: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        Self::with_partitions(1).await
    }

    async fn with_partitions(kafka_partitions: i32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
        let log = Log::new(LogConfig::new(broker.bootstrap_servers(), kafka_partitions)).unwrap();
        log.wait_ready(&CancellationToken::new()).await.unwrap();
        log.ensure_topics().await.unwrap();
        let producer = Producer::new(&log, Duration::from_millis(1)).unwrap();
        Self { log, producer, _broker: broker, _directory: directory }
    }

    fn parts(&self) -> Parts {
        Parts {
            log: self.log.clone(),
            plans: plans(Registry::default()),
            acceptance: Acceptance::default(),
            telemetry: SpeedTelemetry::default(),
            clock: Arc::new(SystemClock::default()),
            name: "test".to_owned(),
        }
    }

    /// A layer with short epochs.
    async fn start(&self) -> (SpeedLayer, CancellationToken) {
        self.start_with(self.parts(), SHORT_EPOCHS).await
    }

    async fn start_with(&self, parts: Parts, epoch_interval: Duration) -> (SpeedLayer, CancellationToken) {
        let settings = SpeedSettings {
            flush_interval: Duration::from_millis(20),
            epoch_interval,
            duplicate_window: Duration::from_secs(86_400),
            duplicate_entries: 1_000_000,
            answer_patience: Duration::from_secs(3),
        };
        let shutdown = CancellationToken::new();
        (start(settings, parts, shutdown.clone()).await.unwrap(), shutdown)
    }

    async fn control(&self, record: &ControlRecord) -> Offset {
        let payload = record.encode();
        let message =
            Outgoing { topic: CONTROL, kafka_partition: FIRST, key: None, payload: &payload, headers: &[] };
        self.producer.send(message).await.unwrap()
    }

    fn control_view(&self) -> ControlView {
        self.control_view_of(FIRST)
    }

    fn control_view_of(&self, kafka_partition: KafkaPartition) -> ControlView {
        let mut view = ControlView::default();
        read_all(&self.log, (CONTROL, kafka_partition), None, |message| {
            view.apply(message.offset, &ControlRecord::decode(message.payload).unwrap());
        })
        .unwrap();
        view
    }

    /// The first readings offsets of the epochs that began, in the order of the topic.
    fn begun(&self) -> Vec<Offset> {
        let mut begun = Vec::new();
        read_all(&self.log, (REALTIME_VIEWS, FIRST), None, |message| {
            if let Ok(Record { header: Header::Begin { epoch, .. }, .. }) =
                realtime_row::decode(message.payload)
            {
                begun.push(epoch);
            }
        })
        .unwrap();
        begun
    }

    async fn send(&self, payload: &str) {
        let message = Outgoing {
            topic: READINGS,
            kafka_partition: FIRST,
            key: Some(b"d"),
            payload: payload.as_bytes(),
            headers: &[],
        };
        self.producer.send(message).await.unwrap();
    }

    async fn send_values(&self, values: std::ops::Range<i64>) {
        for value in values {
            let time = 1_700_000_000_000i64 + value * 7_000;
            self.send(&format!(r#"{{"device_id":"d","metric":"m","value":{value},"event_time":{time}}}"#))
                .await;
        }
    }

    /// The merged summary of all epochs, as a reader of the topic sees it.
    fn served(&self) -> Summary {
        let mut all = Summary::EMPTY;
        self.rows().values().for_each(|summary| all.merge(summary));
        all
    }

    /// How many readings each series has.
    fn served_by_series(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for ((_, series, _), summary) in self.rows() {
            *counts.entry(series).or_default() += summary.count;
        }
        counts
    }

    /// The rows that count, by epoch, series and window.
    fn rows(&self) -> BTreeMap<(Offset, String, Micros), Summary> {
        let (mut fence, mut epochs) = (Fence::default(), BTreeMap::new());
        read_all(&self.log, (REALTIME_VIEWS, FIRST), None, |message| {
            let Ok(record) = realtime_row::decode(message.payload) else { return };
            if !fence.admit(record.header.generation()) {
                return;
            }
            match record.header {
                Header::Claim { .. } => {}
                Header::Begin { epoch, reset, .. } => {
                    if reset {
                        epochs.split_off(&(epoch, String::new(), Micros::MIN));
                    }
                }
                Header::Rows { epoch, .. } => {
                    let Some(batch) = &record.rows else { return };
                    let rows = Rows::of(batch).unwrap();
                    for row in 0..batch.num_rows() {
                        let summary = rows.summaries.summary(row).unwrap();
                        let series = rows.series.text(row).unwrap().to_owned();
                        epochs.insert((epoch, series, rows.window_start(row)), summary);
                    }
                }
            }
        })
        .unwrap();
        epochs
    }

    /// Waits until so many readings are served.
    async fn wait_for(&self, count: u64) -> Summary {
        until("enough readings are served", async || {
            tokio::task::block_in_place(|| self.served()).count >= count
        })
        .await;
        tokio::task::block_in_place(|| self.served())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_become_rows_once_across_restarts() {
    let site = Site::new().await;
    for part in 0..4 {
        site.send_values(part * 50..part * 50 + 30).await;
        let (layer, shutdown) = site.start().await;
        site.send_values(part * 50 + 20..part * 50 + 50).await;
        let expected = (part as u64 + 1) * 50;
        let summary = site.wait_for(expected).await;
        assert_eq!((summary.count, summary.conflicts), (expected, 0));
        assert_eq!(summary.sum.value(), (0..expected).sum::<u64>() as f64);
        shutdown.cancel();
        layer.join().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_readings_are_counted_and_stop_nothing() {
    let site = Site::new().await;
    let parts = site.parts();
    let (layer, shutdown) = site.start_with(parts.clone(), LONG_EPOCHS).await;
    for bad in ["{", "", r#"{"device_id":"d"}"#, "WYE\u{7}"] {
        site.send(bad).await;
    }
    site.send_values(0..5).await;
    site.wait_for(5).await;
    shutdown.cancel();
    layer.join().await;
    for reason in ["not_json", "empty", "missing_field", "unknown_version"] {
        assert_eq!(parts.telemetry.rejected.get_or_create(&ReasonLabel { reason }).get(), 1, "{reason}");
    }
    // The archiver writes the letters.
    assert_eq!(site.log.offsets(DEAD_LETTER, FIRST).await.unwrap().high, Offset::START);
}

/// The same ownership of so many Kafka partitions.
fn all(count: i32, ownership: Ownership) -> BTreeMap<KafkaPartition, Ownership> {
    KafkaPartition::all(count).map(|kafka_partition| (kafka_partition, ownership)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_second_layer_has_left_the_first_owns_everything_again() {
    let site = Site::with_partitions(3).await;
    let (first, first_shutdown) = site.start().await;
    let first_owns = first.ownerships();
    until("the first owns all", async || first_owns.get() == all(3, Ownership::Owned)).await;
    site.send_values(0..20).await;
    site.wait_for(20).await;

    let (second, second_shutdown) = site.start().await;
    let second_owns = second.ownerships();
    until("the second owns all", async || second_owns.get() == all(3, Ownership::Owned)).await;
    until("the first is fenced", async || first_owns.get() == all(3, Ownership::Elsewhere)).await;
    site.send_values(20..40).await;
    assert_eq!(site.wait_for(40).await.count, 40);
    // While the second one answers, the first asks and does not claim.
    until("the first asks", async || site.control_view().asked.is_some()).await;
    until("the second answers", async || site.control_view().unanswered().is_none()).await;
    assert_eq!(first_owns.get(), all(3, Ownership::Elsewhere));
    assert_eq!(second_owns.get(), all(3, Ownership::Owned));

    second_shutdown.cancel();
    second.join().await;
    site.send_values(40..60).await;
    until("the first owns all again", async || first_owns.get() == all(3, Ownership::Owned)).await;
    let summary = site.wait_for(60).await;
    assert_eq!((summary.count, summary.sum.value()), (60, (0..60).sum::<i64>() as f64));
    assert!(!first_shutdown.is_cancelled());
    first_shutdown.cancel();
    first.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_fails_gives_up_its_kafka_partition_and_no_other() {
    let site = Site::with_partitions(2).await;
    let parts = site.parts();
    let (layer, shutdown) = site.start_with(parts.clone(), LONG_EPOCHS).await;
    let owns = layer.ownerships();
    until("both are owned", async || owns.get() == all(2, Ownership::Owned)).await;
    let (lost, kept) = (site.control_view_of(FIRST).generation, site.control_view_of(SECOND).generation);
    // Another process claims the one and stops.
    site.control(&ControlRecord::Claim { owner: "another".into() }).await;
    until("it is owned again", async || {
        let given_up = parts.telemetry.given_up.get_or_create(&label(FIRST)).get();
        given_up == 1 && owns.get() == all(2, Ownership::Owned)
    })
    .await;
    assert!(site.control_view_of(FIRST).generation > lost);
    assert_eq!(site.control_view_of(SECOND).generation, kept);
    site.send_values(0..10).await;
    assert_eq!(site.wait_for(10).await.count, 10);
    shutdown.cancel();
    layer.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_panics_is_replaced() {
    let site = Site::with_partitions(2).await;
    let parts = site.parts();
    let (layer, shutdown) = site.start_with(parts.clone(), LONG_EPOCHS).await;
    let owns = layer.ownerships();
    until("both are owned", async || owns.get() == all(2, Ownership::Owned)).await;
    site.send_values(0..5).await;
    assert_eq!(site.wait_for(5).await.count, 5);
    layer.shared.next_step_panics.store(true, Ordering::Relaxed);
    until("it is owned again", async || {
        let given_up = KafkaPartition::all(2)
            .map(|kafka_partition| parts.telemetry.given_up.get_or_create(&label(kafka_partition)).get());
        given_up.sum::<u64>() == 1 && owns.get() == all(2, Ownership::Owned)
    })
    .await;
    site.send_values(5..10).await;
    assert_eq!(site.wait_for(10).await.count, 10);
    shutdown.cancel();
    layer.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_cut_is_answered_at_once_by_a_start_behind_what_was_there() {
    let site = Site::new().await;
    let (layer, shutdown) = site.start_with(site.parts(), LONG_EPOCHS).await;
    site.send_values(0..30).await;
    let through = site.log.offsets(READINGS, FIRST).await.unwrap().high;
    let clock = SystemClock::default();
    let request = site.control(&ControlRecord::CutRequest { asked_by: "test".into(), through }).await;
    until("an answer", async || site.control_view().answered == Some(request)).await;
    let elapsed = clock.monotonic();
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
    assert_eq!(site.control_view().first_start_from(Offset(1)), Some(through));
    // It begins there, whether it was there already or not.
    until("the epoch begins", async || site.begun().contains(&through)).await;
    assert_eq!(site.wait_for(30).await.count, 30);
    shutdown.cancel();
    layer.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_pinned_by_a_batch_run_costs_the_open_epoch_and_no_earlier_one() {
    let site = Site::new().await;
    let (layer, shutdown) = site.start_with(site.parts(), LONG_EPOCHS).await;
    site.send_values(0..10).await;
    let through = Offset(10);
    let request = site.control(&ControlRecord::CutRequest { asked_by: "test".into(), through }).await;
    until("an epoch at 10", async || site.control_view().answered == Some(request)).await;
    site.send_values(10..30).await;
    site.wait_for(30).await;
    let pin = ControlRecord::Epoch { generation: None, start: Offset(20), announced_at: None, answers: None };
    site.control(&pin).await;
    until("the pinned epoch begins", async || site.begun().contains(&Offset(20))).await;
    let summary = site.wait_for(30).await;
    assert_eq!((summary.count, summary.sum.value()), (30, (0..30).sum::<i64>() as f64));
    assert_eq!(site.begun(), [0, 10, 10, 20].map(Offset));
    shutdown.cancel();
    layer.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_does_not_decode_costs_a_rebuild_and_blocks_nothing() {
    let site = Site::new().await;
    let (layer, shutdown) = site.start().await;
    site.send_values(0..10).await;
    site.wait_for(10).await;
    shutdown.cancel();
    layer.join().await;
    let payload = b"WYR\x02 from a later version";
    let message =
        Outgoing { topic: REALTIME_VIEWS, kafka_partition: FIRST, key: None, payload, headers: &[] };
    site.producer.send(message).await.unwrap();
    let parts = site.parts();
    let (layer, shutdown) = site.start_with(parts.clone(), SHORT_EPOCHS).await;
    site.send_values(10..20).await;
    let summary = site.wait_for(20).await;
    assert_eq!((summary.count, summary.sum.value()), (20, (0..20).sum::<i64>() as f64));
    assert_eq!(parts.telemetry.undecodable.get_or_create(&label(FIRST)).get(), 1);
    shutdown.cancel();
    layer.join().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_moved_in_the_registry_is_rebuilt_in_its_new_group() {
    let site = Site::new().await;
    for (line, values) in [("north", 0..10), ("south", 10..20)] {
        let parts = Parts { plans: plans(at_line(line)), ..site.parts() };
        let (layer, shutdown) = site.start_with(parts.clone(), SHORT_EPOCHS).await;
        let count = values.end as u64;
        site.send_values(values).await;
        until("all are in the group of the line", async || {
            site.served_by_series()
                == BTreeMap::from([(format!(r#"["by_line","by_line",["{line}"]]"#), count)])
        })
        .await;
        shutdown.cancel();
        layer.join().await;
    }
}

/// The device of [`Site::send_values`], on a line.
fn at_line(line: &str) -> Registry {
    let text = format!(r#"{{"device": [{{"device_id": "d", "attributes": {{"line": "{line}"}}}}]}}"#);
    Registry::check(serde_json::from_str(&text).unwrap()).unwrap()
}

/// The default definition, or one that groups by line where a registry says the lines.
fn plans(registry: Registry) -> Arc<MetricPlans> {
    let by_line =
        MetricConfig { name: "by_line".into(), by: Some(vec!["line".into()]), ..MetricConfig::default() };
    let definitions =
        if registry.devices().is_empty() { vec![] } else { vec![Definition::check(&by_line).unwrap()] };
    Arc::new(MetricPlans::new(definitions, Arc::new(registry)).unwrap())
}

/// Waits for a condition, whose check may block.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, met).await.is_ok(), "not in time: {what}");
}

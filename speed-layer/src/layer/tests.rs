//! The running layer against the embedded broker, or the Kafka that `WYE_TEST_KAFKA` names: what stands in the
//! realtime-views topic afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::control::ControlView;
use wye_domain::epoch::Fence;
use wye_domain::realtime_row::{self, Header, Record, Rows};
use wye_domain::registry::Registry;
use wye_domain::summary::Summary;
use wye_domain::wire::Acceptance;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::Outgoing;
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, DEAD_LETTER, REALTIME_VIEWS};
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::MetricPlans;

use super::*;
use crate::owner::Rules;
use crate::telemetry::SpeedTelemetry;

const PATIENCE: Duration = Duration::from_secs(60);

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

    fn shared(&self) -> Shared {
        Shared {
            log: self.log.clone(),
            linger: Duration::from_millis(1),
            handle: tokio::runtime::Handle::current(),
            rules: rules(Registry::default()),
            telemetry: SpeedTelemetry::default(),
            fault: Arc::default(),
        }
    }

    fn start(&self) -> (SpeedLayer, CancellationToken) {
        self.start_as(&self.shared(), Duration::from_millis(200))
    }

    fn start_as(&self, shared: &Shared, epoch_interval: Duration) -> (SpeedLayer, CancellationToken) {
        let rhythm = Rhythm {
            flush_interval: Duration::from_millis(20),
            epoch_interval,
            answer_patience: Duration::from_secs(3),
        };
        let cancel = CancellationToken::new();
        let kafka_partitions: Vec<i32> = (0..self.log.config().kafka_partitions).collect();
        (SpeedLayer::start(shared, rhythm, &kafka_partitions, 1, &cancel).unwrap(), cancel)
    }

    async fn control(&self, record: &ControlRecord) -> i64 {
        let payload = record.encode();
        let message =
            Outgoing { topic: CONTROL, kafka_partition: 0, key: None, payload: &payload, headers: &[] };
        self.producer.send(message).await.unwrap()
    }

    fn control_view(&self) -> ControlView {
        let mut view = ControlView::default();
        read_all(&self.log, (CONTROL, 0), None, |message| {
            view.apply(message.offset, &ControlRecord::decode(message.payload).unwrap());
        })
        .unwrap();
        view
    }

    /// The first readings offsets of the epochs that began, in the order of the topic.
    fn begun(&self) -> Vec<i64> {
        let mut begun = Vec::new();
        read_all(&self.log, (REALTIME_VIEWS, 0), None, |message| {
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
            kafka_partition: 0,
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
    fn rows(&self) -> BTreeMap<(i64, String, i64), Summary> {
        let (mut fence, mut epochs) = (Fence::default(), BTreeMap::<(i64, String, i64), Summary>::new());
        read_all(&self.log, (REALTIME_VIEWS, 0), None, |message| {
            let Ok(record) = realtime_row::decode(message.payload) else { return };
            if !fence.admit(record.header.generation()) {
                return;
            }
            match record.header {
                Header::Claim { .. } => {}
                Header::Begin { epoch, reset, .. } => {
                    if reset {
                        epochs.split_off(&(epoch, String::new(), i64::MIN));
                    }
                }
                Header::Rows { epoch, .. } => {
                    let Some(batch) = &record.rows else { return };
                    let rows = Rows::of(batch).unwrap();
                    for row in 0..batch.num_rows() {
                        let summary = rows.summaries.summary(row).unwrap();
                        let series = rows.series.text(row).unwrap().to_owned();
                        epochs.insert((epoch, series, rows.window_start[row]), summary);
                    }
                }
            }
        })
        .unwrap();
        epochs
    }

    async fn wait_for(&self, count: u64) -> Summary {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let summary = tokio::task::block_in_place(|| self.served());
            if summary.count >= count {
                return summary;
            }
            assert!(Instant::now() < deadline, "{} readings of {count}", summary.count);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn join(layer: SpeedLayer) {
    tokio::task::spawn_blocking(move || layer.join()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_become_rows_once_across_restarts() {
    let site = Site::new().await;
    for part in 0..4 {
        site.send_values(part * 50..part * 50 + 30).await;
        let (layer, cancel) = site.start();
        site.send_values(part * 50 + 20..part * 50 + 50).await;
        let expected = (part as u64 + 1) * 50;
        let summary = site.wait_for(expected).await;
        assert_eq!((summary.count, summary.conflicts), (expected, 0));
        assert_eq!(summary.sum.value(), (0..expected).sum::<u64>() as f64);
        cancel.cancel();
        join(layer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_reading_is_counted_and_stops_nothing() {
    let site = Site::new().await;
    let shared = site.shared();
    let (layer, cancel) = site.start_as(&shared, Duration::from_secs(3_600));
    for bad in ["{", "", r#"{"device_id":"d"}"#, "WYE\u{7}"] {
        site.send(bad).await;
    }
    site.send_values(0..5).await;
    site.wait_for(5).await;
    cancel.cancel();
    join(layer).await;
    for reason in ["not_json", "empty", "missing_field", "unknown_version"] {
        assert_eq!(shared.telemetry.rejected.get_or_create(&ReasonLabel { reason }).get(), 1, "{reason}");
    }
    // The archiver writes the letters.
    assert_eq!(site.log.offsets(DEAD_LETTER, 0).await.unwrap().high, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_second_layer_has_left_the_first_owns_everything_again() {
    let site = Site::with_partitions(3).await;
    let (first, first_cancel) = site.start();
    let all = |ownership: Ownership| BTreeMap::from([0, 1, 2].map(|place| (place, ownership.clone())));
    let first_owns = first.ownerships();
    until("the first owns all", async || first_owns.get() == all(Ownership::Owned)).await;
    site.send_values(0..20).await;
    site.wait_for(20).await;

    let (second, second_cancel) = site.start();
    let second_owns = second.ownerships();
    until("the second owns all", async || second_owns.get() == all(Ownership::Owned)).await;
    until("the first has noticed", async || first_owns.get() == all(Ownership::Elsewhere)).await;
    site.send_values(20..40).await;
    assert_eq!(site.wait_for(40).await.count, 40);
    // While the second one answers, the first asks and leaves it alone.
    until("the first asks", async || site.control_view().asked.is_some()).await;
    until("the second answers", async || site.control_view().unanswered().is_none()).await;
    assert_eq!((first_owns.get(), second_owns.get()), (all(Ownership::Elsewhere), all(Ownership::Owned)));

    second_cancel.cancel();
    join(second).await;
    site.send_values(40..60).await;
    until("the first owns all again", async || first_owns.get() == all(Ownership::Owned)).await;
    let summary = site.wait_for(60).await;
    assert_eq!((summary.count, summary.sum.value()), (60, (0..60).sum::<i64>() as f64));
    assert!(!first_cancel.is_cancelled());
    first_cancel.cancel();
    join(first).await;
}

fn both_owned() -> BTreeMap<i32, Ownership> {
    [0, 1].map(|kafka_partition| (kafka_partition, Ownership::Owned)).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_fails_gives_up_its_kafka_partition_and_no_other() {
    let site = Site::with_partitions(2).await;
    let shared = site.shared();
    let (layer, cancel) = site.start_as(&shared, Duration::from_secs(3_600));
    let owns = layer.ownerships();
    until("both are owned", async || owns.get() == both_owned()).await;
    let generation = |place: i32| {
        let mut view = ControlView::default();
        read_all(&site.log, (CONTROL, place), None, |message| {
            view.apply(message.offset, &ControlRecord::decode(message.payload).unwrap());
        })
        .unwrap();
        view.generation
    };
    let (lost, kept) = (generation(0), generation(1));
    // Somebody claims the one and goes away.
    site.control(&ControlRecord::Claim { owner: "passer-by".into() }).await;
    until("it is owned again", async || {
        let label = KafkaPartitionLabel { kafka_partition: 0 };
        shared.telemetry.given_up.get_or_create(&label).get() == 1 && owns.get() == both_owned()
    })
    .await;
    assert!(generation(0) > lost);
    assert_eq!(generation(1), kept);
    site.send_values(0..10).await;
    assert_eq!(site.wait_for(10).await.count, 10);
    cancel.cancel();
    join(layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_panics_is_replaced() {
    let site = Site::with_partitions(2).await;
    let shared = site.shared();
    let (layer, cancel) = site.start_as(&shared, Duration::from_secs(3_600));
    let owns = layer.ownerships();
    until("both are owned", async || owns.get() == both_owned()).await;
    site.send_values(0..5).await;
    assert_eq!(site.wait_for(5).await.count, 5);
    shared.fault.store(true, Ordering::Relaxed);
    until("it is owned again", async || {
        let given_up = [0, 1].map(|kafka_partition| {
            shared.telemetry.given_up.get_or_create(&KafkaPartitionLabel { kafka_partition }).get()
        });
        given_up.iter().sum::<u64>() == 1 && owns.get() == both_owned()
    })
    .await;
    site.send_values(5..10).await;
    assert_eq!(site.wait_for(10).await.count, 10);
    cancel.cancel();
    join(layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_cut_is_answered_at_once_by_a_start_behind_what_was_there() {
    let site = Site::new().await;
    let (layer, cancel) = site.start_as(&site.shared(), Duration::from_secs(3_600));
    site.send_values(0..30).await;
    let through = site.log.offsets(READINGS, 0).await.unwrap().high;
    let asked = Instant::now();
    let request = site.control(&ControlRecord::CutRequest { asked_by: "test".into(), through }).await;
    until("an answer", async || site.control_view().answered == Some(request)).await;
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_eq!(site.control_view().first_start_from(1), Some(through));
    // It begins there, whether it was there already or not.
    until("the epoch begins", async || site.begun().contains(&through)).await;
    assert_eq!(site.wait_for(30).await.count, 30);
    cancel.cancel();
    join(layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_pinned_by_a_batch_run_costs_the_open_epoch_and_no_earlier_one() {
    let site = Site::new().await;
    let (layer, cancel) = site.start_as(&site.shared(), Duration::from_secs(3_600));
    site.send_values(0..10).await;
    let request = site.control(&ControlRecord::CutRequest { asked_by: "test".into(), through: 10 }).await;
    until("an epoch at 10", async || site.control_view().answered == Some(request)).await;
    site.send_values(10..30).await;
    site.wait_for(30).await;
    let pin = ControlRecord::Epoch { generation: None, start: 20, announced_at: 0, answers: None };
    site.control(&pin).await;
    until("the pinned epoch begins", async || site.begun().contains(&20)).await;
    let summary = site.wait_for(30).await;
    assert_eq!((summary.count, summary.sum.value()), (30, (0..30).sum::<i64>() as f64));
    assert_eq!(site.begun(), [0, 10, 10, 20]);
    cancel.cancel();
    join(layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_does_not_decode_costs_a_rebuild_and_blocks_nothing() {
    let site = Site::new().await;
    let (layer, cancel) = site.start();
    site.send_values(0..10).await;
    site.wait_for(10).await;
    cancel.cancel();
    join(layer).await;
    let payload = b"WYR\x02 from a later version";
    let message = Outgoing { topic: REALTIME_VIEWS, kafka_partition: 0, key: None, payload, headers: &[] };
    site.producer.send(message).await.unwrap();
    let shared = site.shared();
    let (layer, cancel) = site.start_as(&shared, Duration::from_millis(200));
    site.send_values(10..20).await;
    let summary = site.wait_for(20).await;
    assert_eq!((summary.count, summary.sum.value()), (20, (0..20).sum::<i64>() as f64));
    let label = KafkaPartitionLabel { kafka_partition: 0 };
    assert_eq!(shared.telemetry.undecodable.get_or_create(&label).get(), 1);
    cancel.cancel();
    join(layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_moved_in_the_registry_is_rebuilt_in_its_new_group() {
    let site = Site::new().await;
    for (line, values) in [("north", 0..10), ("south", 10..20)] {
        let shared = Shared { rules: rules(at_line(line)), ..site.shared() };
        let (layer, cancel) = site.start_as(&shared, Duration::from_millis(200));
        let count = values.end as u64;
        site.send_values(values).await;
        until("all are in the group of the line", async || {
            site.served_by_series()
                == BTreeMap::from([(format!(r#"["by_line","by_line",["{line}"]]"#), count)])
        })
        .await;
        cancel.cancel();
        join(layer).await;
    }
}

/// The device of [`Site::send_values`], on a line.
fn at_line(line: &str) -> Registry {
    let text = format!(r#"{{"device": [{{"device_id": "d", "attributes": {{"line": "{line}"}}}}]}}"#);
    Registry::check(serde_json::from_str(&text).unwrap()).unwrap()
}

fn rules(registry: Registry) -> Rules {
    let by_line = MetricConfig {
        name: "by_line".into(),
        help: String::new(),
        unit: String::new(),
        filter: None,
        value: None,
        by: Some(vec!["line".into()]),
        window: None,
        rollups: vec![],
        aggregates: None,
    };
    let definitions =
        if registry.devices().is_empty() { vec![] } else { vec![Definition::check(&by_line).unwrap()] };
    Rules {
        plans: Arc::new(MetricPlans::new(definitions, Arc::new(registry)).unwrap()),
        acceptance: Acceptance::default(),
        duplicate_window: 86_400_000_000,
        duplicate_entries: 1_000_000,
    }
}

/// Waits for a condition, whose check may block.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

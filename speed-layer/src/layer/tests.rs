//! The running layer against the embedded broker, or the Kafka that `WYE_TEST_KAFKA` names: what stands in the
//! realtime-views topic afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::dead_letter::{CONTEXT_HEADER, Context};
use wye_domain::epoch::Fence;
use wye_domain::realtime_row::{self, Header, Rows};
use wye_domain::registry::Registry;
use wye_domain::summary::Summary;
use wye_domain::wire::Acceptance;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::Outgoing;
use wye_log::reader::read_all;
use wye_log::topics::{CONTROL, DEAD_LETTER, REALTIME_VIEWS};
use wye_tables::plan::MetricPlans;

use super::*;
use crate::telemetry::SpeedTelemetry;

const PATIENCE: Duration = Duration::from_secs(30);

struct Site {
    log: Log,
    producer: Producer,
    _broker: Broker,
    _directory: tempfile::TempDir,
}

impl Site {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
        let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
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
            plans: Arc::new(MetricPlans::new(vec![], Arc::new(Registry::default())).unwrap()),
            acceptance: Acceptance::default(),
            duplicate_window: 86_400_000_000,
            duplicate_entries: 1_000_000,
            telemetry: SpeedTelemetry::default(),
        }
    }

    fn start(&self) -> (SpeedLayer, CancellationToken) {
        let rhythm =
            Rhythm { flush_interval: Duration::from_millis(20), epoch_interval: Duration::from_millis(200) };
        let cancel = CancellationToken::new();
        (SpeedLayer::start(&self.shared(), rhythm, &[0], 1, &cancel).unwrap(), cancel)
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

    /// The merged summary of all epochs, by window, as a reader of the topic sees it.
    fn served(&self) -> Summary {
        let (mut fence, mut epochs) = (Fence::default(), BTreeMap::<i64, BTreeMap<i64, Summary>>::new());
        read_all(&self.log, (REALTIME_VIEWS, 0), None, |message| {
            let record = realtime_row::decode(message.payload).unwrap();
            if !fence.admit(record.header.generation()) {
                return;
            }
            match record.header {
                Header::Claim { .. } => {}
                Header::Begin { epoch, reset, .. } => {
                    if reset {
                        epochs.split_off(&epoch);
                    }
                    epochs.entry(epoch).or_default();
                }
                Header::Rows { epoch, .. } => {
                    let Some(batch) = &record.rows else { return };
                    let rows = Rows::of(batch).unwrap();
                    for row in 0..batch.num_rows() {
                        let summary = rows.summaries.summary(row).unwrap();
                        epochs.entry(epoch).or_default().insert(rows.window_start[row], summary);
                    }
                }
            }
        })
        .unwrap();
        let mut all = Summary::EMPTY;
        epochs.values().flat_map(BTreeMap::values).for_each(|summary| all.merge(summary));
        all
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
async fn what_is_no_reading_goes_to_the_dead_letters_and_stops_nothing() {
    let site = Site::new().await;
    let (layer, cancel) = site.start();
    let bad = ["{", "", r#"{"device_id":"d"}"#, "WYE\u{7}"];
    for bad in bad {
        site.send(bad).await;
    }
    site.send_values(0..5).await;
    site.wait_for(5).await;
    cancel.cancel();
    join(layer).await;
    let mut letters = Vec::new();
    tokio::task::block_in_place(|| {
        read_all(&site.log, (DEAD_LETTER, 0), None, |message| {
            let context = Context::decode(message.header(CONTEXT_HEADER).unwrap()).unwrap();
            letters.push((context.kafka_offset.unwrap(), context.reason, message.payload.to_owned()));
        })
    })
    .unwrap();
    let reasons = ["not_json", "empty", "missing_field", "unknown_version"];
    let expected: Vec<_> = (0..)
        .zip(reasons.into_iter().zip(bad))
        .map(|(offset, (reason, bytes))| (offset, reason.to_owned(), bytes.as_bytes().to_owned()))
        .collect();
    assert_eq!(letters, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_owner_fences_the_first() {
    let site = Site::new().await;
    let (first, first_cancel) = site.start();
    site.send_values(0..20).await;
    site.wait_for(20).await;
    let (second, second_cancel) = site.start();
    // The first one stops by itself once it hears of the claim.
    tokio::time::timeout(PATIENCE, join(first)).await.expect("the first owner stops");
    assert!(!first_cancel.is_cancelled());
    site.send_values(20..40).await;
    assert_eq!(site.wait_for(40).await.count, 40);
    second_cancel.cancel();
    join(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_announced_by_others_makes_the_owner_rebuild_there() {
    let site = Site::new().await;
    let rhythm =
        Rhythm { flush_interval: Duration::from_millis(20), epoch_interval: Duration::from_secs(3_600) };
    let cancel = CancellationToken::new();
    let layer = SpeedLayer::start(&site.shared(), rhythm, &[0], 1, &cancel).unwrap();
    site.send_values(0..30).await;
    site.wait_for(30).await;
    let record = ControlRecord::Epoch { generation: None, start: 10, announced_at: now_micros() }.encode();
    let message = Outgoing { topic: CONTROL, kafka_partition: 0, key: None, payload: &record, headers: &[] };
    site.producer.send(message).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut starts = Vec::new();
        tokio::task::block_in_place(|| {
            read_all(&site.log, (REALTIME_VIEWS, 0), None, |message| {
                if let Header::Begin { epoch, .. } = realtime_row::decode(message.payload).unwrap().header {
                    starts.push(epoch);
                }
            })
        })
        .unwrap();
        if starts.contains(&10) {
            break;
        }
        assert!(Instant::now() < deadline, "epochs {starts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let summary = site.wait_for(30).await;
    assert_eq!((summary.count, summary.sum.value()), (30, (0..30).sum::<i64>() as f64));
    cancel.cancel();
    join(layer).await;
}

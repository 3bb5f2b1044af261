//! For any readings, split into any appends, below any horizon, the views equal those of a naive oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use proptest::prelude::*;
use tokio::runtime::Runtime;
use wye_domain::horizon::Horizon;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::{Reading, ReadingBatchBuilder};
use wye_domain::registry::{DeviceConfig, DeviceNumber, Registry, RegistryConfig};
use wye_domain::series::SeriesKey;
use wye_domain::time::{Micros, Span};
use wye_metrics::amendment::Amending;
use wye_metrics::definition::{Definition, MetricConfig};
use wye_metrics::plan::{Expectations, MetricPlans};
use wye_metrics::view_rows::{COMPUTATION, ViewSchema};
use wye_tables::CompactionPolicy;
use wye_tables::columns::archive_schema;
use wye_tables::readings::{ArchiveBatch, Readings};
use wye_tables::run_record::RunRecord;
use wye_tables::store::TableRoot;
use wye_tables::views::{BatchViews, Replaces, ViewCommit};

use super::{Recomputation, Since, recompute};
use crate::testing::{ViewRows, view_rows};

const DEVICES: [&str; 4] = ["anna", "bert", "carl", "dora"];
const METRICS: [&str; 2] = ["pressure", "temperature"];
const MINUTE: i64 = 60_000_000;

/// A reading of one message. They are written in the order of the history.
#[derive(Clone, Debug)]
struct Sent {
    /// Its index in the history.
    at: i64,
    /// Whether it is in another Kafka partition than most readings of its device.
    strays: bool,
    device: usize,
    metric: usize,
    /// In seconds.
    event_time: i64,
    sequence: Option<i64>,
    /// In quarters, so that sums are exact.
    value: i64,
}

impl Sent {
    fn kafka_partition(&self) -> KafkaPartition {
        KafkaPartition(((self.device + usize::from(self.strays)) % 2) as i32)
    }

    /// Some readings of the log have the same.
    fn ingest_time(&self) -> Micros {
        Micros::from_secs(200) + Span(self.at / 3)
    }
}

#[derive(Clone, Debug)]
struct History {
    sent: Vec<Sent>,
    /// After how many readings the archiver appends.
    cuts: BTreeSet<usize>,
    /// What share of its log, in percent, the horizon of each Kafka partition covers.
    horizon: [i64; 2],
    threads: usize,
    cell_readings: u64,
    compacts: bool,
    /// Values are divided by it.
    divisor: f64,
}

fn histories() -> impl Strategy<Value = History> {
    let sequence = prop_oneof![3 => Just(None), 1 => (0i64..2).prop_map(Some)];
    let strays = prop::bool::weighted(0.2);
    let sent = (strays, 0..DEVICES.len(), 0..METRICS.len(), -90i64..150, sequence, 0i64..3).prop_map(
        |(strays, device, metric, event_time, sequence, value)| Sent {
            at: 0,
            strays,
            device,
            metric,
            event_time,
            sequence,
            value,
        },
    );
    // Few event times, so that there are duplicates and conflicts; and some wrong clocks.
    let clock = prop_oneof![4 => Just(0i64), 4 => 0i64..48, 1 => Just(500_000), 1 => Just(-200_000)];
    let sent = (sent, clock)
        .prop_map(|(sent, hours)| Sent { event_time: sent.event_time / 15 * 15 + hours * 3_600, ..sent });
    (
        prop::collection::vec(sent, 0..150),
        prop::collection::btree_set(0usize..150, 0..6),
        [0i64..101, 0i64..101],
        1usize..5,
        prop_oneof![Just(1_000u64), 10u64..60],
        any::<bool>(),
    )
        .prop_map(|(sent, cuts, horizon, threads, cell_readings, compacts)| {
            let sent = (0..).zip(sent).map(|(at, sent)| Sent { at, ..sent }).collect();
            History { sent, cuts, horizon, threads, cell_readings, compacts, divisor: 4.0 }
        })
}

fn plans() -> Arc<MetricPlans> {
    let warm = MetricConfig {
        name: "warm".into(),
        filter: Some("metric = 'temperature' AND value > 0".into()),
        value: Some("value * 2".into()),
        by: Some(vec!["metric AS reading_name".into()]),
        window: Some("5m".into()),
        aggregates: Some(vec!["avg".into(), "p50".into(), "distinct_devices".into()]),
        ..MetricConfig::default()
    };
    let everyone = MetricConfig {
        name: "everyone".into(),
        filter: None,
        value: None,
        window: Some("1m".into()),
        aggregates: None,
        ..warm.clone()
    };
    let definitions =
        vec![Definition::family(), Definition::check(&warm).unwrap(), Definition::check(&everyone).unwrap()];
    Arc::new(MetricPlans::new(definitions, Arc::new(registry())).unwrap())
}

/// Of all devices but the last.
fn registry() -> Registry {
    let devices = DEVICES[..DEVICES.len() - 1].iter().map(|name| DeviceConfig {
        device_id: (*name).into(),
        reporting_interval: Some("15s".into()),
        metrics: METRICS.map(str::to_owned).into(),
        ..DeviceConfig::default()
    });
    Registry::check(RegistryConfig { device: devices.collect(), metric_limits: vec![] }).unwrap()
}

/// What a summary must have.
#[derive(Clone, Debug, Default, PartialEq)]
struct Truth {
    values: Vec<(Micros, f64)>,
    conflicts: u64,
    /// Readings by device.
    devices: BTreeMap<usize, u32>,
}

/// By series and window; and how many readings, duplicates and conflicts there are.
fn oracle(history: &History, horizon: &Horizon) -> (BTreeMap<(String, Micros), Truth>, [u64; 3]) {
    let mut truths: BTreeMap<(String, Micros), Truth> = BTreeMap::new();
    let mut known: BTreeMap<(usize, usize, i64, Option<i64>), i64> = BTreeMap::new();
    let mut next = Horizon::default();
    let mut counts = [0; 3];
    let mut read = Vec::new();
    for sent in &history.sent {
        let offset = next.offset(sent.kafka_partition());
        next.set(sent.kafka_partition(), offset.next());
        if offset < horizon.offset(sent.kafka_partition()) {
            read.push((sent.ingest_time(), sent.kafka_partition(), offset, sent));
        }
    }
    read.sort_by_key(|(ingest_time, kafka_partition, offset, _)| (*ingest_time, *kafka_partition, *offset));
    for (.., sent) in read {
        counts[0] += 1;
        let identity = (sent.device, sent.metric, sent.event_time, sent.sequence);
        let first = known.get(&identity).copied();
        known.entry(identity).or_insert(sent.value);
        let is_first = first.is_none();
        if first == Some(sent.value) {
            counts[1] += 1;
            continue;
        }
        counts[2] += u64::from(!is_first);
        let time = sent.event_time * 1_000_000;
        let mut targets = vec![(
            series("*", METRICS[sent.metric], DEVICES[sent.device]),
            time.div_euclid(MINUTE) * MINUTE,
            sent.value as f64 / 4.0,
        )];
        let own = targets[0].clone();
        targets.push((series("everyone", "everyone", METRICS[sent.metric]), own.1, own.2));
        if METRICS[sent.metric] == "temperature" && sent.value > 0 {
            let window = time.div_euclid(5 * MINUTE) * 5 * MINUTE;
            targets.push((series("warm", "warm", "temperature"), window, sent.value as f64 / 2.0));
        }
        for (series, window, value) in targets {
            let truth = truths.entry((series, Micros(window))).or_default();
            if is_first {
                truth.values.push((Micros(time), value));
                *truth.devices.entry(sent.device).or_default() += 1;
            } else {
                truth.conflicts += 1;
            }
        }
    }
    (truths, counts)
}

fn series(definition: &str, metric: &str, group: &str) -> String {
    SeriesKey { definition: definition.into(), metric: metric.into(), group: Box::new([Some(group.into())]) }
        .encode()
}

fn batch(sent: &[(Offset, &Sent)], divisor: f64) -> RecordBatch {
    let mut builder = ReadingBatchBuilder::default();
    for (_, sent) in sent {
        builder.append(&Reading {
            device_id: DEVICES[sent.device],
            metric: METRICS[sent.metric],
            value: sent.value as f64 / divisor,
            event_time: Micros::from_secs(sent.event_time),
            sequence: sent.sequence,
            unit: None,
            tags: None,
        });
    }
    let mut columns: Vec<ArrayRef> = builder.finish().columns().to_vec();
    let times =
        TimestampMicrosecondArray::from_iter_values(sent.iter().map(|(_, sent)| sent.ingest_time().0));
    columns.push(Arc::new(times.with_timezone("UTC")));
    columns.push(Arc::new(Int64Array::from_iter_values(sent.iter().map(|(offset, _)| offset.0))));
    columns.push(Arc::new(Int32Array::from(vec![0; sent.len()])));
    RecordBatch::try_new(archive_schema(), columns).unwrap()
}

/// Appends readings in several commits; `next` are the offsets that come next.
async fn archive(readings: &Readings, history: &History, sent: std::ops::Range<usize>, next: &mut Horizon) {
    let mut start = sent.start;
    let ends = history.cuts.iter().copied().filter(|cut| sent.contains(cut));
    for end in ends.chain([sent.end]) {
        let mut batches = Vec::new();
        for kafka_partition in KafkaPartition::all(2) {
            let from = next.offset(kafka_partition);
            let mine =
                history.sent[start..end].iter().filter(|sent| sent.kafka_partition() == kafka_partition);
            let mine: Vec<(Offset, &Sent)> = (from.0..).map(Offset).zip(mine).collect();
            let end = mine.last().map_or(from, |(offset, _)| offset.next());
            next.set(kafka_partition, end);
            batches.push(ArchiveBatch {
                kafka_partition,
                offsets: from..end,
                readings: vec![batch(&mine, history.divisor)],
            });
        }
        readings.append(batches).await.unwrap();
        start = end;
    }
    if history.compacts {
        readings.compact(CompactionPolicy { small_rows: 1 << 20, least_files: 2 }).await.unwrap();
    }
}

/// Views in a directory of their own.
struct Views {
    views: BatchViews,
    _directory: tempfile::TempDir,
}

impl Views {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let views = BatchViews::open(&TableRoot::directory(directory.path()).unwrap()).unwrap();
        Self { views, _directory: directory }
    }

    /// Computes and commits; starts from the newest view where there is one. Returns the numbers of readings, duplicates and
    /// conflicts, and how many cells were computed.
    async fn run(
        &self,
        root: &TableRoot,
        readings: &Readings,
        horizon: &Horizon,
        how: &History,
    ) -> ([u64; 3], u64) {
        let plans = plans();
        let latest = self.views.latest().await.unwrap();
        let since = latest.as_ref().map(|view| Since {
            horizon: view.horizon.clone(),
            cells: view.cells().unwrap(),
            amended: Vec::new(),
            again: None,
        });
        let task = Recomputation {
            root: root.clone(),
            readings: readings.snapshot().await.unwrap(),
            views: self.views.clone(),
            expectations: Arc::new(Expectations::new(&plans).unwrap()),
            plans,
            amending: Amending::default(),
            horizon: horizon.clone(),
            as_of: None,
            now: Micros::MAX,
            since,
            threads: how.threads,
            cell_readings: how.cell_readings,
            restating: None,
            progress: None,
        };
        let done = recompute(task).await.unwrap();
        let (tally, windows, computed) = (done.tally(), done.windows(), done.computed_cells.values().sum());
        let commit = ViewCommit {
            schema: done.schema,
            files: done.files,
            replaces: done.replaces,
            horizon: horizon.clone(),
            run: RunRecord { as_of: done.as_of.unwrap_or_default(), ..RunRecord::default() },
            expected_version: latest.as_ref().map(|view| view.version()),
        };
        self.views.commit(commit).await.unwrap();
        let view = self.views.latest().await.unwrap().unwrap();
        assert_eq!((view.rows(), view.cells()), (windows, Some(done.cells)));
        ([tally.readings, tally.duplicates, tally.conflicts], computed)
    }
}

/// The part of the log that the horizon covers.
fn horizon_of(history: &History, archived: &Horizon) -> Horizon {
    let covered = archived.iter().map(|(kafka_partition, offset)| {
        let covered = offset.0 * history.horizon[kafka_partition.0 as usize] / 100;
        (kafka_partition, Offset(covered))
    });
    covered.collect()
}

async fn computed(history: &History) -> (ViewRows, [u64; 3], Horizon) {
    let directory = tempfile::tempdir().unwrap();
    let root = TableRoot::directory(directory.path()).unwrap();
    let readings = Readings::open(&root).await.unwrap();
    archive(&readings, history, 0..history.sent.len(), &mut Horizon::default()).await;
    let horizon = horizon_of(history, &readings.archived().await.unwrap());
    let views = Views::new();
    let (counts, _) = views.run(&root, &readings, &horizon, history).await;
    (view_rows(&views.views).await, counts, horizon)
}

/// The numbers of a view that was made in several runs, and of one that was made at once, with other cells.
async fn compared(history: &History) {
    let directory = tempfile::tempdir().unwrap();
    let root = TableRoot::directory(directory.path()).unwrap();
    let readings = Readings::open(&root).await.unwrap();
    let views = Views::new();
    let mut next = Horizon::default();
    let mut horizon = Horizon::default();
    let mut counts = [0; 3];
    let runs = 4;
    for run in 0..runs {
        let part = |run: usize| history.sent.len() * run / runs;
        archive(&readings, history, part(run)..part(run + 1), &mut next).await;
        // A horizon never goes back.
        let archived = readings.archived().await.unwrap();
        for (kafka_partition, offset) in horizon_of(history, &archived).iter() {
            horizon.set(kafka_partition, offset.max(horizon.offset(kafka_partition)));
        }
        (counts, _) = views.run(&root, &readings, &horizon, history).await;
        let (again, computed) = views.run(&root, &readings, &horizon, history).await;
        assert_eq!((again, computed), (counts, 0), "nothing was new");
    }
    for cell_readings in [1, 1_000] {
        let other = History { cell_readings, threads: 1, ..history.clone() };
        let whole = Views::new();
        assert_eq!(whole.run(&root, &readings, &horizon, &other).await.0, counts);
        let (found, expected) = (view_rows(&views.views).await, view_rows(&whole.views).await);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            // To the last bit, since no value here is NaN and both zeros are printed as they are.
            assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        }
    }
}

fn check(history: &History) -> Result<(), TestCaseError> {
    let (rows, counts, horizon) = Runtime::new().unwrap().block_on(computed(history));
    let (truths, expected_counts) = oracle(history, &horizon);
    prop_assert_eq!(counts, expected_counts);
    prop_assert_eq!(rows.keys().collect::<Vec<_>>(), truths.keys().collect::<Vec<_>>());
    for ((key, found), truth) in rows.iter().zip(truths.values()) {
        prop_assert_eq!(
            (found.count, found.conflicts),
            (truth.values.len() as u64, truth.conflicts),
            "{:?}",
            key
        );
        if truth.values.is_empty() {
            continue;
        }
        let mut values = truth.values.clone();
        values.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let numbers = values.iter().map(|(_, value)| *value);
        let (min, max) =
            (numbers.clone().fold(f64::INFINITY, f64::min), numbers.fold(f64::NEG_INFINITY, f64::max));
        let (first, last) = (values[0], values[values.len() - 1]);
        prop_assert_eq!((found.min, found.max), (min, max), "{:?}", key);
        prop_assert_eq!((found.first.event_time, found.first.value), first, "{:?}", key);
        prop_assert_eq!((found.last.event_time, found.last.value), last, "{:?}", key);
        prop_assert_eq!(found.sum.value(), values.iter().map(|(_, value)| value).sum::<f64>(), "{:?}", key);
        if key.0.contains("warm") {
            prop_assert_eq!(found.distinct_devices(), Some(truth.devices.len() as u64));
        }
        if key.0.contains("everyone") {
            let counts = found.device_counts().unwrap();
            for (number, device) in (0..).zip(0..DEVICES.len() - 1) {
                let expected = truth.devices.get(&device).copied().unwrap_or(0);
                prop_assert_eq!(counts.of(DeviceNumber(number)), expected, "{:?}", key);
            }
            prop_assert_eq!(counts.of(DeviceNumber(3)), 0);
        } else {
            prop_assert!(found.device_counts().is_none());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_views_equal_the_oracle(history in histories()) {
        check(&history)?;
    }

    #[test]
    fn many_small_runs_give_the_bits_of_one(history in histories()) {
        // With values whose sums are rounded.
        Runtime::new().unwrap().block_on(compared(&History { divisor: 7.0, ..history }));
    }
}

#[test]
fn without_readings_the_view_is_empty() {
    let history = History {
        sent: vec![],
        cuts: BTreeSet::new(),
        horizon: [100, 100],
        threads: 2,
        cell_readings: 1_000,
        compacts: false,
        divisor: 4.0,
    };
    check(&history).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_starts_from_a_view_only_if_that_was_computed_in_the_same_way() {
    let directory = tempfile::tempdir().unwrap();
    let root = TableRoot::directory(directory.path()).unwrap();
    let readings = Readings::open(&root).await.unwrap().snapshot().await.unwrap();
    let (views, plans) = (BatchViews::open(&root).unwrap(), plans());
    let good = RunRecord {
        definitions: plans.fingerprint().to_string(),
        computation: COMPUTATION,
        readings_table: readings.table_id().to_owned(),
        ..RunRecord::default()
    };
    let amendments = vec!["1".to_owned()];
    let runs = [
        (good.clone(), None),
        (RunRecord { definitions: "0".to_owned(), ..good.clone() }, Some("definitions")),
        (RunRecord { computation: COMPUTATION + 1, ..good.clone() }, Some("another version")),
        (RunRecord { readings_table: "other".to_owned(), ..good.clone() }, Some("another table")),
        (RunRecord { amendments, ..good }, Some("not in the table of amendments")),
    ];
    for (run, reason) in runs {
        let expected_version = views.latest_version().await.unwrap();
        let schema = Arc::clone(ViewSchema::of(&plans).arrow());
        let (files, replaces, horizon) = (vec![], Replaces::All, Horizon::default());
        let commit = ViewCommit { schema, files, replaces, horizon, run, expected_version };
        views.commit(commit).await.unwrap();
        let view = views.latest().await.unwrap().unwrap();
        match (Since::view(&view, &plans, &[], &readings), reason) {
            (Ok(_), None) => {}
            (Err(found), Some(reason)) => assert!(found.contains(reason), "{found}"),
            (found, reason) => panic!("{found:?}, not {reason:?}"),
        }
    }
}

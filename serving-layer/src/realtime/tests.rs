//! The store against a naive model: fences, resets, trims, captures that stay as they are.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wye_domain::summary::Summary;

use super::*;
use crate::testing;

const DEFINITIONS: u64 = 7;
const PARTITION: KafkaPartition = KafkaPartition(0);

fn horizon(offset: i64) -> Horizon {
    Horizon::from_iter([(PARTITION, Offset(offset))])
}

/// From a horizon on.
fn from(offset: i64) -> Start {
    Start::Horizon(Offset(offset))
}

fn reach(covered: i64, flaw: Option<Flaw>) -> Reach {
    Reach { covered: Offset(covered), flaw }
}

fn owner(claim: i64) -> Generation {
    Generation(Offset(claim))
}

fn begin(claim: i64, epoch: i64) -> Header {
    let (generation, epoch) = (owner(claim), Offset(epoch));
    Header::Begin { generation, epoch, definitions: DEFINITIONS, reset: false }
}

/// Begins an epoch again, without rows.
fn reset(claim: i64, epoch: i64) -> Header {
    let (generation, epoch) = (owner(claim), Offset(epoch));
    Header::Begin { generation, epoch, definitions: DEFINITIONS, reset: true }
}

fn rows(claim: i64, epoch: i64) -> Header {
    flushed(claim, epoch, 0)
}

fn flushed(claim: i64, epoch: i64, through: i64) -> Header {
    testing::flushed(owner(claim), epoch, through)
}

/// The header of a record of a flush that is not the last one.
fn partly(claim: i64, epoch: i64, through: i64) -> Header {
    let (generation, epoch, through) = (owner(claim), Offset(epoch), Offset(through));
    Header::Rows { generation, epoch, through, complete: false, newest_event_time: None }
}

fn row(series: u32, window_start: i64, values: &[i64]) -> RealtimeRow {
    let mut summary = Summary::EMPTY;
    for value in values {
        summary.add(*value as f64, Micros(window_start + value));
    }
    RealtimeRow { series: SeriesId(series), window_start: Micros(window_start), summary }
}

fn store() -> RealtimeStore {
    RealtimeStore::new(DEFINITIONS)
}

fn apply(store: &mut RealtimeStore, header: &Header, rows: &[RealtimeRow]) -> Applied {
    store.apply(PARTITION, header, rows).0
}

#[test]
fn records_of_a_replaced_owner_are_ignored() {
    let mut store = store();
    assert_eq!(apply(&mut store, &begin(1, 0), &[]), Applied::Taken);
    assert_eq!(apply(&mut store, &Header::Claim { generation: owner(4) }, &[]), Applied::Taken);
    assert_eq!(apply(&mut store, &rows(1, 0), &[row(0, 0, &[1])]), Applied::Fenced);
    assert_eq!(apply(&mut store, &rows(4, 0), &[row(0, 0, &[2])]), Applied::Taken);
    assert_eq!(store.newest_summary(SeriesId(0), Micros(0)).unwrap().last.value, 2.0);
    assert_eq!(apply(&mut store, &rows(4, 9), &[row(0, 0, &[3])]), Applied::NoEpoch);
}

#[test]
fn a_reset_removes_this_and_later_epochs() {
    let mut store = store();
    for epoch in [0, 10, 20] {
        apply(&mut store, &begin(1, epoch), &[]);
        apply(&mut store, &rows(1, epoch), &[row(0, epoch, &[1])]);
    }
    assert_eq!(store.newest_window(SeriesId(0)), Some(Micros(20)));
    apply(&mut store, &reset(2, 10), &[]);
    assert_eq!(store.capture().iter().map(|view| view.start()).collect::<Vec<_>>(), [Offset(0), Offset(10)]);
    assert_eq!(store.newest_window(SeriesId(0)), Some(Micros(0)));
    assert_eq!(store.size(), (2, 1));
}

#[test]
fn a_resumed_epoch_keeps_its_rows() {
    let mut store = store();
    apply(&mut store, &begin(1, 0), &[]);
    apply(&mut store, &rows(1, 0), &[row(0, 0, &[1])]);
    apply(&mut store, &begin(2, 0), &[]);
    assert_eq!(store.newest_window(SeriesId(0)), Some(Micros(0)));
}

#[test]
fn rows_of_other_definitions_are_left_out() {
    let mut store = store();
    let other = Header::Begin { generation: owner(1), epoch: Offset(0), definitions: 8, reset: false };
    assert_eq!(apply(&mut store, &other, &[]), Applied::OtherDefinitions);
    assert_eq!(apply(&mut store, &rows(1, 0), &[row(0, 0, &[1])]), Applied::OtherDefinitions);
    assert!(store.has_other_definitions());
    apply(&mut store, &reset(2, 0), &[]);
    assert!(!store.has_other_definitions());
}

#[test]
fn a_capture_stays_as_it_is() {
    let mut store = store();
    apply(&mut store, &begin(1, 0), &[]);
    apply(&mut store, &rows(1, 0), &[row(0, 0, &[1])]);
    let capture = store.capture();
    apply(&mut store, &rows(1, 0), &[row(0, 0, &[1, 2]), row(1, 0, &[5])]);
    let held = CapturedRows::collect(&capture, &Selection::all());
    assert_eq!((held.len(), held.summary(0).count), (1, 1));
    let now = CapturedRows::collect(&store.capture(), &Selection::all());
    assert_eq!((now.len(), now.summary(0).count), (2, 2));
}

#[test]
fn epochs_below_the_horizon_do_not_come_back() {
    let mut store = store();
    apply(&mut store, &begin(1, 0), &[]);
    store.trim(&horizon(10));
    assert_eq!(apply(&mut store, &begin(1, 5), &[]), Applied::NoEpoch);
    assert_eq!(apply(&mut store, &begin(1, 10), &[]), Applied::Taken);
}

#[test]
fn a_cleared_kafka_partition_keeps_its_horizon() {
    let mut store = store();
    apply(&mut store, &begin(7, 0), &[]);
    store.trim(&horizon(10));
    store.clear(PARTITION);
    // The topic was replaced, so generations begin again; what the batch view holds must not come back.
    assert_eq!(apply(&mut store, &begin(1, 5), &[]), Applied::NoEpoch);
    assert_eq!(apply(&mut store, &begin(1, 10), &[]), Applied::Taken);
}

#[test]
fn epochs_reach_to_their_last_complete_flush() {
    let mut store = store();
    let start = from(0);
    assert_eq!(store.reach(PARTITION, start), reach(0, None));
    apply(&mut store, &begin(1, 0), &[]);
    apply(&mut store, &partly(1, 0, 6), &[row(0, 0, &[1])]);
    assert_eq!(store.reach(PARTITION, start).covered, Offset(0));
    apply(&mut store, &flushed(1, 0, 6), &[]);
    assert_eq!(store.reach(PARTITION, start).covered, Offset(6));
    apply(&mut store, &begin(1, 6), &[]);
    apply(&mut store, &flushed(1, 6, 9), &[]);
    assert_eq!(store.reach(PARTITION, start), reach(9, None));
    assert_eq!(store.reach(PARTITION, from(6)), reach(9, None));
    // Nothing says what lies between this horizon and the next epoch.
    assert_eq!(store.reach(PARTITION, from(4)), reach(4, Some(Flaw::Gap)));
    assert_eq!(store.generation(PARTITION), Some(owner(1)));
}

#[test]
fn a_rebuild_is_a_flaw_until_it_is_done() {
    let mut store = store();
    let start = from(0);
    apply(&mut store, &begin(1, 0), &[]);
    apply(&mut store, &flushed(1, 0, 9), &[]);
    apply(&mut store, &reset(4, 0), &[]);
    assert_eq!(store.reach(PARTITION, start), reach(0, Some(Flaw::Rebuilding)));
    apply(&mut store, &flushed(4, 0, 5), &[]);
    assert_eq!(store.reach(PARTITION, start), reach(5, Some(Flaw::Rebuilding)));
    // A fenced owner does not finish it.
    apply(&mut store, &flushed(1, 0, 12), &[]);
    assert_eq!(store.reach(PARTITION, start).covered, Offset(5));
    apply(&mut store, &flushed(4, 0, 9), &[]);
    assert_eq!(store.reach(PARTITION, start), reach(9, None));
}

/// How many readings count.
fn count(store: &RealtimeStore) -> u64 {
    let rows = CapturedRows::collect(&store.capture(), &Selection::all());
    (0..rows.len()).map(|group| rows.summary(group).count).sum()
}

#[test]
fn rows_of_an_epoch_that_was_rebuilt_at_a_newer_horizon_wait_for_it() {
    let mut store = store();
    apply(&mut store, &begin(1, 0), &[]);
    apply(&mut store, &flushed(1, 0, 9), &[row(0, 0, &[1, 2]), row(1, 0, &[1])]);
    // A batch run has pinned 6; the next owner begins there, and writes the readings from 6 to 9 again.
    apply(&mut store, &reset(4, 6), &[]);
    apply(&mut store, &flushed(4, 6, 12), &[row(0, 0, &[2]), row(0, 60, &[3])]);
    assert_eq!(count(&store), 3);
    assert_eq!(store.newest_window(SeriesId(0)), Some(Micros(0)));
    assert_eq!(store.newest_summary(SeriesId(0), Micros(0)).unwrap().count, 2);
    assert_eq!(store.reach(PARTITION, from(0)), reach(9, Some(Flaw::Rebuilding)));
    assert_eq!(store.reach(PARTITION, from(6)).covered, Offset(12));
    store.trim(&horizon(6));
    assert_eq!((count(&store), store.newest_window(SeriesId(0))), (2, Some(Micros(60))));
    assert_eq!(store.reach(PARTITION, from(6)), reach(12, None));
}

#[test]
fn a_record_that_does_not_decode_is_a_flaw_until_its_epoch_is_removed() {
    let mut store = store();
    for epoch in [0, 10] {
        apply(&mut store, &begin(1, epoch), &[]);
        apply(&mut store, &flushed(1, epoch, epoch + 10), &[]);
    }
    store.damage(PARTITION);
    assert_eq!(store.reach(PARTITION, from(0)).flaw, Some(Flaw::Damaged));
    store.trim(&horizon(20));
    assert_eq!(store.reach(PARTITION, from(20)), reach(20, None));
}

#[test]
fn an_epoch_whose_reset_did_not_decode_is_a_flaw_beyond_its_horizon_too() {
    let mut store = store();
    for epoch in [0, 10] {
        apply(&mut store, &begin(1, epoch), &[]);
        apply(&mut store, &flushed(1, epoch, epoch + 10), &[]);
    }
    // A reset of the first epoch is lost, and its owner cuts at 5, which was pinned.
    store.damage(PARTITION);
    apply(&mut store, &flushed(4, 0, 5), &[]);
    apply(&mut store, &begin(4, 5), &[]);
    apply(&mut store, &flushed(4, 5, 20), &[]);
    assert_eq!(store.reach(PARTITION, from(0)).flaw, Some(Flaw::Damaged));
    store.trim(&horizon(5));
    assert_eq!(store.reach(PARTITION, from(5)).flaw, Some(Flaw::Damaged));
    store.trim(&horizon(20));
    assert_eq!(store.reach(PARTITION, from(20)), reach(20, None));
}

#[test]
fn the_oldest_window_is_remembered() {
    let mut store = store();
    apply(&mut store, &begin(1, 0), &[]);
    apply(&mut store, &rows(1, 0), &[row(0, 60, &[1]), row(0, 0, &[1]), row(0, 120, &[1])]);
    store.trim(&horizon(10));
    assert_eq!((store.oldest_window(SeriesId(0)), store.newest_window(SeriesId(0))), (Some(Micros(0)), None));
}

#[test]
fn conflicts_without_readings_lower_the_window_they_belong_to() {
    let mut store = store();
    for epoch in [0, 10] {
        apply(&mut store, &begin(1, epoch), &[]);
    }
    let conflict = Summary { conflicts: 1, ..Summary::EMPTY };
    let ahead = RealtimeRow { series: SeriesId(0), window_start: Micros(60), summary: conflict };
    apply(&mut store, &rows(1, 0), &[row(0, 0, &[1]), ahead]);
    assert_eq!(store.newest_window(SeriesId(0)), Some(Micros(0)));
    assert_eq!(store.newest_summary(SeriesId(0), Micros(60)).unwrap().conflicts, 1);
    apply(&mut store, &rows(1, 10), &[row(0, 60, &[2, 3])]);
    let newest = store.newest_summary(SeriesId(0), Micros(60)).unwrap();
    assert_eq!((newest.count, newest.conflicts), (2, 1));
}

#[derive(Clone, Debug)]
enum Step {
    Begin { kafka_partition: i32, reset: bool },
    Resume,
    Upsert { kafka_partition: i32, back: usize, series: u32, window: i64, values: Vec<i64> },
    Trim { kafka_partition: i32, back: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let values = prop::collection::vec(-5i64..5, 0..3);
    prop_oneof![
        2 => (0i32..2, prop::bool::weighted(0.2)).prop_map(|(kafka_partition, reset)| Step::Begin { kafka_partition, reset }),
        1 => Just(Step::Resume),
        8 => (0i32..2, 0usize..3, 0u32..3, 0i64..4, values).prop_map(|(kafka_partition, back, series, window, values)| {
            Step::Upsert { kafka_partition, back, series, window: window * 60, values }
        }),
        1 => (0i32..2, 0usize..3).prop_map(|(kafka_partition, back)| Step::Trim { kafka_partition, back }),
    ]
}

type Windows = BTreeMap<(SeriesId, Micros), Summary>;

/// By Kafka partition and start of an epoch.
type Model = BTreeMap<(i32, i64), Windows>;

fn merged(model: &Model) -> Windows {
    let mut all = Windows::new();
    for (key, summary) in model.values().flatten() {
        all.entry(*key).or_default().merge(summary);
    }
    all
}

fn starts(model: &Model, kafka_partition: i32) -> Vec<i64> {
    model.keys().filter(|key| key.0 == kafka_partition).map(|key| key.1).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_store_is_what_a_naive_merge_says(steps in prop::collection::vec(step(), 1..60)) {
        let mut store = store();
        let mut model = Model::new();
        let (mut generation, mut next) = (1, [0i64, 0]);
        for step in steps {
            match step {
                Step::Begin { kafka_partition, reset } => {
                    let own = starts(&model, kafka_partition);
                    // A reset goes back to an epoch that there is.
                    let epoch = match own.last() {
                        Some(last) if reset => *last,
                        _ => {
                            next[kafka_partition as usize] += 10;
                            next[kafka_partition as usize]
                        }
                    };
                    let header =
                        if reset { self::reset(generation, epoch) } else { begin(generation, epoch) };
                    store.apply(KafkaPartition(kafka_partition), &header, &[]);
                    model.insert((kafka_partition, epoch), Windows::new());
                }
                Step::Resume => {
                    generation += 1;
                    for kafka_partition in 0..2 {
                        store.apply(KafkaPartition(kafka_partition), &Header::Claim { generation: owner(generation) }, &[]);
                    }
                }
                Step::Upsert { kafka_partition, back, series, window, values } => {
                    let own = starts(&model, kafka_partition);
                    let Some(epoch) = own.iter().rev().nth(back) else { continue };
                    let mut row = row(series, window, &values);
                    // Absolute upserts only ever grow.
                    let known = model.get_mut(&(kafka_partition, *epoch)).unwrap();
                    let known = known.entry((row.series, row.window_start)).or_default();
                    row.summary.merge(known);
                    row.summary.conflicts += u64::from(values.is_empty());
                    *known = row.summary.clone();
                    store.apply(KafkaPartition(kafka_partition), &rows(generation, *epoch), &[row]);
                }
                Step::Trim { kafka_partition, back } => {
                    let own = starts(&model, kafka_partition);
                    let Some(horizon) = own.iter().rev().nth(back).copied() else { continue };
                    store.trim(&Horizon::from_iter([(KafkaPartition(kafka_partition), Offset(horizon))]));
                    model.retain(|key, _| key.0 != kafka_partition || key.1 >= horizon);
                }
            }
            let expected = merged(&model);
            let captured = CapturedRows::collect(&store.capture(), &Selection::all());
            prop_assert_eq!(captured.len(), expected.len());
            for (group, (key, summary)) in expected.iter().enumerate() {
                prop_assert_eq!(captured.key(group), *key);
                prop_assert_eq!(captured.find(captured.of_series(key.0), key.1), Some(group));
                prop_assert_eq!(captured.summary(group).count, summary.count);
                prop_assert_eq!(captured.summary(group).conflicts, summary.conflicts);
                prop_assert_eq!(captured.summary(group).last, summary.last);
            }
            for series in (0..3).map(SeriesId) {
                let newest = expected.iter().rfind(|(key, summary)| key.0 == series && summary.count > 0);
                prop_assert_eq!(store.newest_window(series), newest.map(|(key, _)| key.1));
                if let Some((key, summary)) = newest {
                    let found = store.newest_summary(series, key.1).unwrap();
                    prop_assert_eq!((found.count, found.conflicts, found.last), (summary.count, summary.conflicts, summary.last));
                }
            }
        }
    }
}

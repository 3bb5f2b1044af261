//! Sorted scans below a horizon, compared with a naive filter.

use std::collections::BTreeSet;

use arrow::array::AsArray;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use wye_domain::place::KafkaPartition;

use futures::TryStreamExt;

use super::cells::{FilesBelow, HowToRead};
use super::*;
use crate::CompactionPolicy;
use crate::event_times::TableTimes;
use crate::readings::Readings;
use crate::store::TableRoot;
use crate::testing::{self, Row, archive, arrival_of, rows_of, run};

fn random_rows(random: &mut StdRng, kafka_partition: i32, offsets: std::ops::Range<i64>) -> Vec<Row> {
    let mut rows = Vec::new();
    for kafka_offset in offsets {
        for kafka_index in 0..random.random_range(0..3) {
            rows.push(Row {
                device_id: format!("d{:02}", random.random_range(0..30)),
                metric: ["t", "p"][random.random_range(0..2)].to_owned(),
                event_time: random.random_range(-3..30) * 1_000_001,
                sequence: random.random_bool(0.3).then(|| random.random_range(0..3)),
                ingest_time: random.random_range(0..3),
                kafka_partition,
                kafka_offset,
                kafka_index,
                value: f64::from(random.random_range(0..9)).to_bits(),
                ..Row::default()
            });
        }
    }
    rows
}

/// Whether a row is below a horizon, if there is one.
fn is_below(row: &Row, horizon: Option<&Horizon>) -> bool {
    let Some(horizon) = horizon else { return true };
    horizon.get(KafkaPartition(row.kafka_partition)).is_some_and(|end| row.kafka_offset < end.0)
}

/// When rows were measured.
fn times_of<'a>(rows: impl Iterator<Item = &'a Row>) -> TableTimes {
    let mut times = TableTimes::default();
    times.add(&rows.map(|row| row.event_time).collect::<Vec<_>>());
    times
}

/// All readings of a cell, piece by piece.
async fn cell(below: &FilesBelow, window: Window, readings: u64, most_in_memory: u64) -> Vec<Vec<Row>> {
    let context = datafusion::execution::context::SessionContext::new().task_ctx();
    let how = HowToRead { batch_rows: 7, most_in_memory };
    let mut pieces = Vec::new();
    for piece in below.pieces(window, readings) {
        let batches = below.read(&piece, how, Arc::clone(&context)).await.unwrap();
        let batches: Vec<_> = batches.try_collect().await.unwrap();
        pieces.push(batches.iter().flat_map(rows_of).collect());
    }
    pieces
}

fn device_of(batch: &arrow::array::RecordBatch) -> Vec<String> {
    let column = wye_domain::reading::TextColumn::of(batch, "device_id").unwrap();
    (0..batch.num_rows()).map(|row| column.text(row).unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_equal_a_naive_filter_and_are_sorted() {
    for seed in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let readings = Readings::open(&TableRoot::directory(directory.path()).unwrap()).await.unwrap();
        let mut random = StdRng::seed_from_u64(seed);
        let mut all = Vec::new();
        for append in 0..6_i64 {
            let mut batches = Vec::new();
            for kafka_partition in 0..3 {
                let mut rows = random_rows(&mut random, kafka_partition, append * 20..append * 20 + 20);
                if seed % 3 == 0 {
                    // Files whose devices do not overlap.
                    rows.iter_mut().for_each(|row| row.device_id = format!("s{append}{}", &row.device_id));
                }
                batches.push(archive(kafka_partition, append * 20, append * 20 + 20, &rows));
                all.extend(rows);
            }
            batches.shuffle(&mut random);
            readings.append(batches).await.unwrap();
            if seed % 4 == 1 && append == 3 {
                readings.compact(CompactionPolicy { least_files: 2, ..Default::default() }).await.unwrap();
            }
        }
        all.sort();
        let horizon = testing::horizon([(0, random.random_range(0..130)), (2, random.random_range(0..130))]);
        let schema = stored_schema();
        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let snapshot = readings.snapshot().await.unwrap();
        let tagged = snapshot.snapshot.files.iter().filter_map(FileTags::of);
        assert_eq!(tagged.filter(|tags| tags.arrival.is_some()).count(), snapshot.files(), "seed {seed}");
        for horizon in [&horizon, &snapshot.archived()] {
            let since = testing::horizon([(0, random.random_range(0..90)), (1, 20)]);
            let contents = snapshot.contents(&since, horizon).await.unwrap();
            let below: Vec<&Row> = all.iter().filter(|row| is_below(row, Some(horizon))).collect();
            assert_eq!(contents.arrival, arrival_of(below.iter().copied()), "seed {seed}, {horizon:?}");
            assert_eq!(contents.times, times_of(below.iter().copied()), "seed {seed}, {horizon:?}");
            let new = below.iter().copied().filter(|row| !is_below(row, Some(&since)));
            assert_eq!(contents.new, times_of(new), "seed {seed}, {horizon:?}");
            let all = snapshot.contents(&Horizon::default(), horizon).await.unwrap();
            assert_eq!((&all.new, &all.times), (&contents.times, &contents.times));
        }
        let below = snapshot.below(&horizon).unwrap();
        for (start, end) in [(i64::MIN, i64::MAX), (0, 1), (-9, 12_000_000), (40_000_000, 90_000_000)] {
            let window = Window { start: Micros(start), end: Micros(end) };
            let mut expected =
                all.iter().filter(|row| is_below(row, Some(&horizon))).cloned().collect::<Vec<_>>();
            expected.retain(|row| (start..end).contains(&row.event_time));
            for (readings, most_in_memory) in
                [(1 << 20, 1 << 20), (20, 1 << 20), (20, 0), (20, 25), (1 << 20, 30)]
            {
                let found = cell(&below, window, readings, most_in_memory).await;
                assert_eq!(found.concat(), expected, "seed {seed}, {window:?}, {readings}, {most_in_memory}");
                assert!(readings > 20 || expected.len() < 60 || found.len() > 1, "seed {seed}");
                let mut seen = BTreeSet::new();
                for piece in &found {
                    let devices: BTreeSet<&String> = piece.iter().map(|row| &row.device_id).collect();
                    assert!(devices.into_iter().all(|device| seen.insert(device.clone())), "seed {seed}");
                }
            }
        }
        for horizon in [None, Some(&horizon)] {
            let expected: Vec<Row> = all.iter().filter(|row| is_below(row, horizon)).cloned().collect();
            let scan = SortedScan { horizon, window: None, columns: &columns, batch_size: Some(64) };
            let plan = snapshot.sorted_scan(&scan).unwrap();
            assert!(plan.properties().output_ordering().is_some(), "{plan:?}");
            let found: Vec<Row> = run(plan).await.iter().flatten().flat_map(rows_of).collect();
            assert_eq!(found, expected, "seed {seed}, {horizon:?}");

            // Fewer columns, in another order, give the same rows.
            let columns = ["value", "device_id"];
            let scan = SortedScan { columns: &columns, batch_size: None, ..scan };
            let found: Vec<(u64, String)> = run(snapshot.sorted_scan(&scan).unwrap())
                .await
                .iter()
                .flatten()
                .flat_map(|batch| {
                    let values =
                        batch.column(0).as_primitive::<arrow::datatypes::Float64Type>().values().to_vec();
                    values.into_iter().map(f64::to_bits).zip(device_of(batch))
                })
                .collect();
            let expected: Vec<(u64, String)> =
                expected.into_iter().map(|row| (row.value, row.device_id)).collect();
            assert_eq!(found, expected, "seed {seed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_of_an_empty_table_has_no_rows() {
    let directory = tempfile::tempdir().unwrap();
    let readings = Readings::open(&TableRoot::directory(directory.path()).unwrap()).await.unwrap();
    let scan = SortedScan { horizon: None, window: None, columns: &["metric"], batch_size: None };
    let plan = readings.snapshot().await.unwrap().sorted_scan(&scan).unwrap();
    assert_eq!(plan.schema().field(0).name(), "metric");
    assert_eq!(run(plan).await.concat().len(), 0);
}

//! The order of the master dataset, compared with a naive sort.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::testing::{Row, archive_batch, ingested, row, rows_of};

#[test]
fn sorting_equals_a_naive_sort() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut expected = Vec::new();
        let mut batches = Vec::new();
        for kafka_partition in 0..3 {
            let mut kafka_offset = 0;
            for _ in 0..4 {
                let rows: Vec<Row> = (0..random.random_range(0..60))
                    .map(|_| {
                        kafka_offset += 1;
                        Row {
                            device_id: ["b", "a", "", "ä"][random.random_range(0..4)].to_owned(),
                            metric: ["t", "p"][random.random_range(0..2)].to_owned(),
                            event_time: random.random_range(-3..3),
                            sequence: random.random_bool(0.5).then(|| random.random_range(-2..2)),
                            ingest_time: random.random_range(0..3),
                            kafka_partition,
                            kafka_offset,
                            kafka_index: random.random_range(0..3),
                            value: random.random_range(0..5),
                            unit: random.random_bool(0.3).then(|| "Cel".to_owned()),
                            tags: random
                                .random_bool(0.3)
                                .then(|| format!("{{\"x\":\"{}\"}}", random.random_range(0..3))),
                        }
                    })
                    .collect();
                batches.push((KafkaPartition(kafka_partition), archive_batch(&rows)));
                expected.extend(rows);
            }
        }
        expected.sort();
        let days = sort_by_day(&batches).unwrap();
        assert_eq!(days.len(), 1, "seed {seed}");
        assert_eq!(rows_of(&days[0].readings), expected, "seed {seed}");
    }
}

#[test]
fn days_are_those_of_utc() {
    let batches = vec![
        (KafkaPartition(0), archive_batch(&ingested(MICROS_PER_DAY, [row("b", 1, 0, 0), row("a", 1, 0, 1)]))),
        (KafkaPartition(0), archive_batch(&ingested(MICROS_PER_DAY - 1, [row("c", 1, 0, 2)]))),
    ];
    let days = sort_by_day(&batches).unwrap();
    let devices: Vec<(String, Vec<String>)> = days
        .iter()
        .map(|day| {
            (
                day.ingest_date.to_string(),
                rows_of(&day.readings).into_iter().map(|row| row.device_id).collect(),
            )
        })
        .collect();
    assert_eq!(
        devices,
        [
            ("1970-01-01".to_owned(), vec!["c".to_owned()]),
            ("1970-01-02".to_owned(), vec!["a".to_owned(), "b".to_owned()])
        ]
    );
    assert!(sort_by_day(&[]).unwrap().is_empty());
}

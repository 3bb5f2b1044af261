//! Appending exactly once, compaction and cleaning, in a real directory and on S3.

use object_store::ObjectStoreExt;
use wye_domain::ErrorKind;

use super::*;
use crate::CompactionPolicy;
use crate::columns::{READING_ORDER, stored_schema};
use crate::delta::cleaning::Keep;
use crate::real_time::Stopwatch;
use crate::scan::SortedScan;
use crate::testing::{
    Place, Row, archive, archive_batch, horizon, ingested, number, objects, row, rows_of, run,
};

async fn all_rows(readings: &Readings) -> Vec<Row> {
    let schema = stored_schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let scan = SortedScan { horizon: None, window: None, columns: &columns, batch_size: None };
    let plan = readings.snapshot().await.unwrap().sorted_scan(&scan).unwrap();
    run(plan).await.iter().flatten().flat_map(rows_of).collect()
}

fn new_root() -> (tempfile::TempDir, TableRoot) {
    let directory = tempfile::tempdir().unwrap();
    let root = TableRoot::directory(directory.path()).unwrap();
    (directory, root)
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_continue_where_the_last_one_ended() {
    for place in Place::all() {
        let root = place.root().await;
        let readings = Readings::open(&root).await.unwrap();
        assert!(readings.archived().await.unwrap().is_empty());

        let first = vec![
            archive(0, 5, 7, &[row("b", 1, 0, 5), row("a", 2, 0, 6)]),
            archive(1, 0, 1, &[row("c", 3, 1, 0)]),
        ];
        assert_eq!(readings.append(first.clone()).await.unwrap().readings, 3);
        assert_eq!(readings.archived().await.unwrap(), horizon([(0, 7), (1, 1)]));

        // A retry, as after a crash between the commit and its acknowledgement.
        assert_eq!(readings.append(first).await.unwrap_err().kind(), ErrorKind::Conflict);
        let gap = readings.append(vec![archive(0, 8, 9, &[row("a", 9, 0, 8)])]).await;
        assert_eq!(gap.unwrap_err().kind(), ErrorKind::Conflict);
        // One range that does not fit rejects the whole append.
        let half = vec![archive(0, 7, 8, &[row("a", 9, 0, 7)]), archive(1, 0, 1, &[row("c", 3, 1, 0)])];
        assert_eq!(readings.append(half).await.unwrap_err().kind(), ErrorKind::Conflict);
        let twice = vec![archive(0, 7, 8, &[]), archive(0, 8, 9, &[])];
        assert_eq!(readings.append(twice).await.unwrap_err().kind(), ErrorKind::Invalid);

        // Offsets without readings are archived too, and another handle reads all of it.
        readings.append(vec![archive(0, 7, 10, &[])]).await.unwrap();
        let other = Readings::open(&root).await.unwrap();
        assert_eq!(other.archived().await.unwrap(), horizon([(0, 10), (1, 1)]));
        let mut expected = vec![row("b", 1, 0, 5), row("a", 2, 0, 6), row("c", 3, 1, 0)];
        expected.sort();
        assert_eq!(all_rows(&other).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_readings_are_in_files_of_their_own() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    const MINUTE: i64 = 60_000_000;
    let mut expected = Vec::new();
    for append in 0..8 {
        // Two in time, one an hour late, one from the future.
        let now = 100 * MINUTE + append * MINUTE;
        let times = [now, now - MINUTE, now - 60 * MINUTE, now + 60 * MINUTE];
        let rows: Vec<Row> = (0..).zip(times).map(|(at, time)| row("a", time, 0, append * 4 + at)).collect();
        let rows = ingested(now, <[Row; 4]>::try_from(rows).unwrap());
        readings.append(vec![archive(0, append * 4, append * 4 + 4, &rows)]).await.unwrap();
        expected.extend(rows);
    }
    expected.sort();
    let late = |snapshot: &ReadingsSnapshot| -> Vec<(u64, Option<bool>)> {
        let files = snapshot.snapshot.files.iter();
        let mut late: Vec<_> = files.map(|file| (file.rows, FileTags::of(file).unwrap().late)).collect();
        late.sort_unstable();
        late
    };
    let found = late(&readings.snapshot().await.unwrap());
    assert_eq!(found, [vec![(1, Some(true)); 8], vec![(3, Some(false)); 8]].concat());
    assert_eq!(all_rows(&readings).await, expected);
    readings.compact(CompactionPolicy::default()).await.unwrap();
    assert_eq!(late(&readings.snapshot().await.unwrap()), [(8, Some(true)), (24, Some(false))]);
    assert_eq!(all_rows(&readings).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_concurrent_appends_wins() {
    for place in Place::all() {
        let root = place.root().await;
        let (one, two) = (Readings::open(&root).await.unwrap(), Readings::open(&root).await.unwrap());
        for round in 0..20 {
            let batch = vec![archive(0, round, round + 1, &[row("a", round, 0, round)])];
            let (first, second) = tokio::join!(one.append(batch.clone()), two.append(batch));
            assert_eq!(
                i32::from(first.is_ok()) + i32::from(second.is_ok()),
                1,
                "round {round}: {first:?} {second:?}"
            );
            let lost = first.err().or(second.err()).unwrap();
            assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");
        }
        // Appends to different Kafka partitions both succeed.
        let (first, second) = tokio::join!(
            one.append(vec![archive(1, 0, 1, &[row("b", 0, 1, 0)])]),
            two.append(vec![archive(2, 0, 1, &[row("c", 0, 2, 0)])]),
        );
        first.unwrap();
        second.unwrap();
        assert_eq!(one.archived().await.unwrap(), horizon([(0, 20), (1, 1), (2, 1)]));
        assert_eq!(all_rows(&one).await.len(), 22);
        // The files of the failed appends were removed.
        assert_eq!(one.log().clean_older(Keep::NOTHING).await.unwrap().files, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_keep_the_offsets() {
    for place in Place::all() {
        let root = place.root().await;
        let readings = Readings::open(&root).await.unwrap();
        for offset in 0..45 {
            readings.append(vec![archive(offset as i32 % 3, offset / 3, offset / 3 + 1, &[])]).await.unwrap();
        }
        let entries = objects(readings.log(), "_delta_log").await;
        let checkpoints = entries.iter().filter(|entry| entry.as_ref().contains("checkpoint.p"));
        assert_eq!(checkpoints.count(), 2);
        let other = Readings::open(&root).await.unwrap();
        let expected = horizon([(0, 15), (1, 15), (2, 15)]);
        assert_eq!(other.archived().await.unwrap(), expected);
        // delta-rs reads the same offsets.
        let snapshot = other.snapshot().await.unwrap();
        let table = snapshot.snapshot.delta_table(other.log());
        for (kafka_partition, offset) in expected.iter() {
            let name = format!("wye-archive/readings/{kafka_partition}");
            let known =
                table.snapshot().unwrap().transaction_version(other.log().log_store(), name).await.unwrap();
            assert_eq!(known, Some(offset.0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_keep_the_tags() {
    for place in Place::all() {
        let root = place.root().await;
        let readings = Readings::open(&root).await.unwrap();
        for offset in 0..25 {
            readings
                .append(vec![archive(0, offset, offset + 1, &[row("a", offset, 0, offset)])])
                .await
                .unwrap();
        }
        let snapshot = Readings::open(&root).await.unwrap().snapshot().await.unwrap();
        assert_eq!(snapshot.files(), 25);
        assert!(snapshot.snapshot.files.iter().all(|file| file.is_sorted_by(&READING_ORDER)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compacting_changes_files_and_no_reading() {
    for place in Place::all() {
        let root = place.root().await;
        let readings = Readings::open(&root).await.unwrap();
        let mut expected = Vec::new();
        for append in 0..10 {
            let rows: Vec<Row> = (0..50)
                .map(|i| row(&format!("d{}", i % 7), (i * 37 + append) % 23, 0, append * 50 + i))
                .collect();
            readings.append(vec![archive(0, append * 50, append * 50 + 50, &rows)]).await.unwrap();
            expected.extend(rows);
        }
        expected.sort();
        let before = readings.snapshot().await.unwrap();
        assert_eq!(before.files(), 10);
        let done = readings.compact(CompactionPolicy::default()).await.unwrap();
        assert_eq!((done.files_before, done.files_after, done.rows), (10, 1, 500));
        assert_eq!(readings.snapshot().await.unwrap().files(), 1);
        assert_eq!(all_rows(&readings).await, expected);
        assert_eq!(readings.archived().await.unwrap(), horizon([(0, 500)]));
        assert_eq!(readings.compact(CompactionPolicy::default()).await.unwrap().files_before, 0);

        // A reader of the previous version still finds its files.
        assert_eq!(readings.vacuum(Default::default()).await.unwrap().files, 0);
        let sql = "select count(*) from readings";
        assert_eq!(number("readings", before.provider().await.unwrap(), sql).await, 500);
        drop(before);
        assert_eq!(readings.vacuum(std::time::Duration::from_secs(600)).await.unwrap().files, 0);
        assert_eq!(cleaned(&readings).await, 10);
        assert_eq!(all_rows(&readings).await, expected);
    }
}

/// Cleans until something is removed. A file that has just left the table is as old as the store's clock is exact.
async fn cleaned(readings: &Readings) -> u64 {
    let started = Stopwatch::start();
    loop {
        let files = readings.vacuum(Default::default()).await.unwrap().files;
        if files > 0 || started.elapsed() > std::time::Duration::from_secs(30) {
            return files;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_kept_for_a_reader_in_another_process() {
    for place in Place::all() {
        let root = place.root().await;
        let readings = Readings::open(&root).await.unwrap();
        for offset in 0..10 {
            readings
                .append(vec![archive(0, offset, offset + 1, &[row("a", offset, 0, offset)])])
                .await
                .unwrap();
        }
        let reading = Readings::open(&root.leased_at_once()).await.unwrap();
        let reader = reading.snapshot().await.unwrap();
        // Another root shares nothing with the reader's, as in another process.
        let cleaner = Readings::open(&place.root().await).await.unwrap();
        assert_eq!(cleaner.compact(CompactionPolicy::default()).await.unwrap().files_before, 10);
        let started = Stopwatch::start();
        while objects(cleaner.log(), "_wye/leases").await.is_empty() {
            assert!(started.elapsed() < std::time::Duration::from_secs(30), "no lease");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert_eq!(cleaner.vacuum(Default::default()).await.unwrap().files, 0);
        let sql = "select count(*) from readings";
        assert_eq!(number("readings", reader.provider().await.unwrap(), sql).await, 10);
        drop(reader);
        // As if the lease of the dropped reader had expired.
        for lease in objects(cleaner.log(), "_wye/leases").await {
            cleaner.log().store().delete(&lease).await.unwrap();
        }
        assert_eq!(cleaned(&cleaner).await, 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_compactions_at_once_do_not_duplicate_readings() {
    for place in Place::all() {
        let root = place.root().await;
        let (one, two) = (Readings::open(&root).await.unwrap(), Readings::open(&root).await.unwrap());
        for offset in 0..10 {
            one.append(vec![archive(0, offset, offset + 1, &[row("a", offset, 0, offset)])]).await.unwrap();
        }
        let policy = CompactionPolicy::default();
        let appended = one.append(vec![archive(1, 0, 1, &[row("b", 0, 1, 0)])]);
        let (first, second, appended) = tokio::join!(one.compact(policy), two.compact(policy), appended);
        assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
        appended.unwrap();
        assert_eq!(all_rows(&one).await.len(), 11);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_reads_all_columns_and_days() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    let day = 86_400_000_000;
    let mut first = row("a", 1_700_000_000_123_456, 0, 0);
    (first.sequence, first.unit, first.tags) =
        (Some(7), Some("Cel".to_owned()), Some(r#"{"line":"1"}"#.to_owned()));
    let rows = [first, row("b", 2, 0, 1)];
    let mut batch = archive(0, 0, 3, &[]);
    batch.readings = vec![
        archive_batch(&ingested(20_000 * day, rows)),
        archive_batch(&ingested(20_001 * day, [row("c", 3, 0, 2)])),
    ];
    readings.append(vec![batch]).await.unwrap();
    let snapshot = readings.snapshot().await.unwrap();
    assert_eq!((snapshot.files(), snapshot.readings()), (2, 3));
    for (sql, expected) in [
        ("select count(*) from readings where ingest_date = date '2024-10-05'", 1),
        ("select count(*) from readings where ingest_time >= timestamp '2024-10-05T00:00:00Z'", 1),
        ("select count(*) from readings where device_id = 'a' and unit = 'Cel' and tags like '%line%'", 1),
        ("select count(*) from readings where event_time = timestamp '2023-11-14T22:13:20.123456Z'", 1),
        ("select count(*) from readings where event_time > timestamp '2023-11-14T22:13:20.123Z'", 1),
        ("select kafka_offset from readings where sequence is null and unit is null and device_id > 'b'", 2),
    ] {
        assert_eq!(number("readings", snapshot.provider().await.unwrap(), sql).await, expected, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hourly_measurements_take_at_most_four_bytes() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    let hours = 35_064_i64;
    let hour = 3_600_000_000_i64;
    let start = 1_362_096_000_000_000_i64;
    // The columns of a station, one message per thousand rows; values are a random walk over few distinct numbers.
    let mut rows = Vec::new();
    for (metric, name) in
        ["PM2.5", "PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM"].iter().enumerate()
    {
        let mut level = 50_i64;
        let mut state = metric as u64 + 1;
        for i in 0..hours {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            level = (level + (state >> 33) as i64 % 15 - 7).clamp(1, 900);
            rows.push(Row {
                device_id: "Aotizhongxin".to_owned(),
                metric: (*name).to_owned(),
                event_time: start + i * hour,
                kafka_offset: i / 1000,
                kafka_index: (i % 1000) as i32 * 11 + metric as i32,
                value: (level as f64).to_bits(),
                ..Row::default()
            });
        }
    }
    rows.sort_by_key(|row| (row.kafka_offset, row.kafka_index));
    let done = readings.append(vec![archive(0, 0, 36, &rows)]).await.unwrap();
    let per_reading = done.bytes as f64 / done.readings as f64;
    assert!(per_reading <= 4.0, "{per_reading} bytes a reading");
}

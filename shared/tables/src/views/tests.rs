//! Replacing views atomically, in a real directory.

use arrow::array::{AsArray, BinaryArray, DictionaryArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type};
use datafusion::config::ConfigOptions;
use datafusion::prelude::{col, lit};
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::reading::text_type;
use wye_domain::time::Micros;

use super::*;
use crate::delta::cleaning::Keep;
use crate::testing::{horizon, number, run};

fn new_views() -> (tempfile::TempDir, BatchViews) {
    let directory = tempfile::tempdir().unwrap();
    let views = BatchViews::open(&TableRoot::directory(directory.path()).unwrap()).unwrap();
    (directory, views)
}

fn rows(devices: &[&str], counts: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("device_id", text_type(), false),
        Field::new("count", DataType::Int64, false),
    ]);
    let devices: DictionaryArray<Int32Type> = devices.iter().copied().collect();
    RecordBatch::try_new(
        Arc::new(schema),
        vec![Arc::new(devices), Arc::new(Int64Array::from(counts.to_vec()))],
    )
    .unwrap()
}

async fn write(views: &BatchViews, rows: &RecordBatch) -> Vec<ViewFile> {
    let mut writer = views.writer(&rows.schema()).unwrap();
    writer.write(rows).await.unwrap();
    writer.finish().await.unwrap()
}

async fn prepared(
    views: &BatchViews,
    rows: &RecordBatch,
    offset: i64,
    expected_version: Option<ViewVersion>,
) -> ViewCommit {
    ViewCommit {
        schema: rows.schema(),
        files: write(views, rows).await,
        replaces: Replaces::All,
        horizon: horizon([(0, offset), (1, 2 * offset)]),
        run: RunRecord {
            run_id: format!("run-{offset}"),
            windows: rows.num_rows() as u64,
            ..Default::default()
        },
        expected_version,
    }
}

async fn sum(snapshot: &ViewSnapshot) -> i64 {
    let sql = "select sum(count) from batch_metrics";
    number("batch_metrics", snapshot.provider().await.unwrap(), sql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_replaces_views_and_horizon_at_once() {
    let (_directory, views) = new_views();
    assert!(views.latest().await.unwrap().is_none());
    assert_eq!(views.latest_version().await.unwrap(), None);
    assert!(views.history(5).await.unwrap().is_empty());

    // Readers do not see the files of a run that was killed before its commit.
    write(&views, &rows(&["x"], &[1000])).await;
    assert!(views.latest().await.unwrap().is_none());

    let first = views.commit(prepared(&views, &rows(&["a", "b"], &[1, 2]), 10, None).await).await.unwrap();
    let old = views.latest().await.unwrap().unwrap();
    assert_eq!((old.version(), old.rows()), (first, 2));
    assert_eq!(old.horizon, horizon([(0, 10), (1, 20)]));
    assert_eq!(old.run.as_ref().unwrap().run_id, "run-10");
    assert_eq!(sum(&old).await, 3);

    let other = BatchViews::open(old.root()).unwrap();
    write(&other, &rows(&["x"], &[1000])).await;
    let second = other.commit(prepared(&other, &rows(&["a"], &[40]), 11, Some(first)).await).await.unwrap();
    assert_eq!(views.latest_version().await.unwrap(), Some(second));
    let new = views.latest().await.unwrap().unwrap();
    assert_eq!((sum(&new).await, new.horizon.offset(KafkaPartition(1))), (40, Offset(22)));
    // The old snapshot can still be read.
    assert_eq!(sum(&old).await, 3);

    let history = views.history(5).await.unwrap();
    assert_eq!(history.iter().map(|run| run.version).collect::<Vec<_>>(), [second, first]);
    assert_eq!((history[1].run.windows, history[1].horizon.offset(KafkaPartition(0))), (2, Offset(10)));
    assert!(history[0].committed >= history[1].committed && history[1].committed > Micros::EPOCH);
    assert_eq!(views.history(1).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_whose_write_was_cancelled_has_no_files() {
    let (_directory, views) = new_views();
    let schema = Arc::new(Schema::new(vec![Field::new("sketch", DataType::Binary, false)]));
    // More than a file holds, so that the writer waits for the store.
    let mut bytes = vec![0; 65 << 20];
    StdRng::seed_from_u64(1).fill(&mut bytes[..]);
    let large = BinaryArray::from(vec![bytes.as_slice()]);
    let large = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(large)]).unwrap();
    let small = BinaryArray::from(vec![&b"small"[..]]);
    let small = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(small)]).unwrap();
    let mut writer = views.writer(&schema).unwrap();
    writer.write(&small).await.unwrap();
    assert!(writer.write(&large).now_or_never().is_none());
    assert!(writer.write(&small).await.is_err());
    assert!(writer.finish().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_concurrent_runs_wins() {
    let (directory, views) = new_views();
    let other = BatchViews::open(&TableRoot::directory(directory.path()).unwrap()).unwrap();
    let mut expected = None;
    for round in 0..10 {
        let one = prepared(&views, &rows(&["a"], &[1]), round, expected).await;
        let two = prepared(&other, &rows(&["a"], &[1]), round, expected).await;
        let (first, second) = tokio::join!(views.commit(one), other.commit(two));
        assert_eq!(i32::from(first.is_ok()) + i32::from(second.is_ok()), 1, "{first:?} {second:?}");
        assert_eq!(first.as_ref().err().or(second.as_ref().err()).unwrap().kind(), ErrorKind::Conflict);
        expected = first.ok().or(second.ok());
        assert_eq!(sum(&views.latest().await.unwrap().unwrap()).await, 1);
    }
    // A run that started from an older version is rejected.
    let late = prepared(&views, &rows(&["a"], &[1]), 99, Some(ViewVersion(1))).await;
    assert_eq!(views.commit(late).await.unwrap_err().kind(), ErrorKind::Conflict);
    // A horizon must not lose a Kafka partition, and must not go back.
    for backwards in [horizon([(1, 99)]), horizon([(0, 99), (1, 0)])] {
        let mut commit = prepared(&views, &rows(&["a"], &[1]), 99, expected).await;
        commit.horizon = backwards;
        assert_eq!(views.commit(commit).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
}

/// A file with one count, of a cell that starts at a second.
async fn of_cell(views: &BatchViews, start: i64, count: i64) -> Vec<ViewFile> {
    let (start, end) = (Micros::from_secs(start), Micros::from_secs(start + 10));
    let cell = CellRecord { start, end, readings: count as u64, ..CellRecord::default() };
    ViewFile::of_cell(write(views, &rows(&["a"], &[count])).await, &cell).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_replace_some_cells() {
    let (_directory, views) = new_views();
    let mut first = prepared(&views, &rows(&["a"], &[1]), 1, None).await;
    first.files = of_cell(&views, 0, 1).await;
    first.files.extend(of_cell(&views, 10, 20).await);
    first.files.extend(of_cell(&views, 20, 300).await);
    // A cell without rows.
    let empty =
        CellRecord { start: Micros::from_secs(30), end: Micros::from_secs(31), ..CellRecord::default() };
    let writer = views.writer(&rows(&[], &[]).schema()).unwrap();
    first.files.extend(ViewFile::of_cell(writer.finish().await.unwrap(), &empty).unwrap());
    let version = views.commit(first).await.unwrap();
    let old = views.latest().await.unwrap().unwrap();
    let starts =
        |view: &ViewSnapshot| view.cells().map(|cells| cells.into_keys().map(Micros::seconds).collect());
    assert_eq!((sum(&old).await, starts(&old)), (321, Some(vec![0, 10, 20, 30])));

    let mut second = prepared(&views, &rows(&["a"], &[1]), 2, Some(version)).await;
    second.files = of_cell(&views, 10, 4_000).await;
    second.files.extend(of_cell(&views, 40, 50_000).await);
    second.replaces = Replaces::Cells([10, 20, 40].map(Micros::from_secs).into());
    let version = views.commit(second).await.unwrap();
    let new = views.latest().await.unwrap().unwrap();
    assert_eq!((sum(&new).await, starts(&new)), (54_001, Some(vec![0, 10, 30, 40])));
    assert_eq!(new.cells().unwrap()[&Micros::from_secs(10)].readings, 4_000);
    assert_eq!(sum(&old).await, 321);

    // A file that does not say its cell is replaced always.
    let mut third = prepared(&views, &rows(&["a"], &[7]), 3, Some(version)).await;
    third.replaces = Replaces::Cells([Micros::EPOCH].into());
    let version = views.commit(third).await.unwrap();
    let mixed = views.latest().await.unwrap().unwrap();
    assert_eq!((sum(&mixed).await, mixed.cells()), (54_007, None));
    let mut fourth = prepared(&views, &rows(&["a"], &[1]), 4, Some(version)).await;
    fourth.files = of_cell(&views, 0, 2).await;
    fourth.replaces = Replaces::Cells(BTreeSet::new());
    views.commit(fourth).await.unwrap();
    let healed = views.latest().await.unwrap().unwrap();
    assert_eq!((sum(&healed).await, starts(&healed)), (54_002, Some(vec![0, 10, 30, 40])));

    // Other columns replace everything or nothing.
    let other = Arc::new(Schema::new(vec![Field::new("count", DataType::Float64, true)]));
    let other = RecordBatch::try_new(other, vec![Arc::new(Float64Array::from(vec![1.5]))]).unwrap();
    let mut fifth = prepared(&views, &other, 5, Some(healed.version())).await;
    fifth.replaces = Replaces::Cells(BTreeSet::new());
    assert_eq!(views.commit(fifth).await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_read_in_one_plan_partition_in_the_order_of_writing() {
    let (_directory, views) = new_views();
    let mut commit = prepared(&views, &rows(&["a"], &[0]), 1, None).await;
    commit.files.clear();
    for cell in (0..40).rev() {
        let mut files = Vec::new();
        for part in 0..12 {
            files.extend(write(&views, &rows(&["a"], &[cell * 100 + part])).await);
        }
        let (start, end) = (Micros::from_secs(cell), Micros::from_secs(cell + 1));
        let record = CellRecord { start, end, ..CellRecord::default() };
        commit.files.extend(ViewFile::of_cell(files, &record).unwrap());
    }
    views.commit(commit).await.unwrap();
    let snapshot = views.latest().await.unwrap().unwrap();
    let plan = snapshot.scan(&["count"], &[]).unwrap();
    // No optimizer divides files, so that a part of a cell would be in another plan partition.
    let mut options = ConfigOptions::new();
    options.optimizer.repartition_file_min_size = 0;
    assert!(plan.repartitioned(3, &options).unwrap().is_none());
    let parts = run(plan).await;
    assert!((2..=16).contains(&parts.len()), "{}", parts.len());
    let counts = |part: &Vec<RecordBatch>| -> Vec<i64> {
        part.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
    };
    let parts: Vec<Vec<i64>> = parts.iter().map(counts).collect();
    assert!(parts.iter().all(|part| part[0] % 100 == 0 && part[part.len() - 1] % 100 == 11), "{parts:?}");
    let expected: Vec<i64> = (0..40).flat_map(|cell| (0..12).map(move |part| cell * 100 + part)).collect();
    assert_eq!(parts.concat(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_may_change_from_run_to_run() {
    let (_directory, views) = new_views();
    let first = views.commit(prepared(&views, &rows(&["a"], &[1]), 1, None).await).await.unwrap();
    let old = views.latest().await.unwrap().unwrap();
    let schema = Arc::new(Schema::new(vec![
        Field::new("line", text_type(), true),
        Field::new("count", DataType::Float64, true),
    ]));
    let lines: DictionaryArray<Int32Type> = [Some("l"), None].into_iter().collect();
    let changed =
        RecordBatch::try_new(schema, vec![Arc::new(lines), Arc::new(Float64Array::from(vec![1.5, 2.5]))])
            .unwrap();
    views.commit(prepared(&views, &changed, 2, Some(first)).await).await.unwrap();
    let new = views.latest().await.unwrap().unwrap();
    assert_eq!(new.schema().fields(), changed.schema().fields());
    let sql = "select count(*) from batch_metrics where line is null and count > 2";
    assert_eq!(number("batch_metrics", new.provider().await.unwrap(), sql).await, 1);
    assert_eq!(sum(&old).await, 1);

    let unusable = Arc::new(Schema::new(vec![Field::new("a b", DataType::Int64, true)]));
    assert!(views.writer(&unusable).is_err_and(|error| error.kind() == ErrorKind::Invalid));
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_project_and_filter() {
    let (_directory, views) = new_views();
    let (one, two) = (rows(&["a", "b", "c"], &[1, 2, 3]), rows(&["d", "e"], &[4, 5]));
    let mut commit = prepared(&views, &one, 1, None).await;
    commit.files.extend(write(&views, &two).await);
    views.commit(commit).await.unwrap();
    let snapshot = views.latest().await.unwrap().unwrap();
    assert_eq!(snapshot.schema(), one.schema());
    let filter = col("device_id").gt_eq(lit("b")).and(col("count").lt(lit(5_i32)));
    let plan = snapshot.scan(&["count"], &[filter]).unwrap();
    let mut counts: Vec<i64> = run(plan)
        .await
        .iter()
        .flatten()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [2, 3, 4]);
    assert_eq!(snapshot.scan(&["nothing"], &[]).unwrap_err().kind(), ErrorKind::Internal);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleaning_keeps_what_readers_need() {
    let (directory, views) = new_views();
    let mut version = None;
    for round in 1..=45 {
        version = Some(
            views.commit(prepared(&views, &rows(&["a"], &[round]), round, version).await).await.unwrap(),
        );
    }
    write(&views, &rows(&["x"], &[1000])).await;
    assert_eq!(views.vacuum(Duration::from_secs(600)).await.unwrap().files, 0);
    assert_eq!(views.vacuum(Duration::ZERO).await.unwrap().files, 44);
    // The file of a killed run is removed only when it is old.
    let unnamed = views.log.clean_older(Keep::NOTHING).await.unwrap();
    assert_eq!(unnamed.files, 1);
    assert_eq!(sum(&views.latest().await.unwrap().unwrap()).await, 45);
    assert_eq!(views.vacuum(Duration::from_secs(90_000)).await.unwrap_err().kind(), ErrorKind::Invalid);

    // A handle whose next log entries were deleted reads the whole log again.
    let idle = BatchViews::open(&TableRoot::directory(directory.path()).unwrap()).unwrap();
    assert_eq!(idle.latest_version().await.unwrap(), version);
    for round in 46..=64 {
        version = Some(
            views.commit(prepared(&views, &rows(&["a"], &[round]), round, version).await).await.unwrap(),
        );
    }
    for entry in std::fs::read_dir(directory.path().join("batch_metrics/_delta_log")).unwrap() {
        let path = entry.unwrap().path();
        let number = path.file_name().unwrap().to_string_lossy().split('.').next().unwrap().parse::<u64>();
        if number.is_ok_and(|number| number < 59) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let newest = idle.latest().await.unwrap().unwrap();
    assert_eq!((Some(newest.version()), sum(&newest).await), (version, 64));
    assert_eq!(newest.horizon, horizon([(0, 64), (1, 128)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_plan_partition_reads_its_own_file_only() {
    let (_directory, views) = new_views();
    let mut commit = prepared(&views, &rows(&["a"], &[0]), 1, None).await;
    for count in 1..300 {
        commit.files.extend(write(&views, &rows(&["a"], &[count])).await);
    }
    views.commit(commit).await.unwrap();
    let snapshot = views.latest().await.unwrap().unwrap();
    let plan = snapshot.scan(&["count"], &[]).unwrap();
    let orders: Vec<Vec<i64>> = futures::future::join_all((0..4).map(|_| run(Arc::clone(&plan))))
        .await
        .into_iter()
        .map(|partitions| {
            assert_eq!(partitions.len(), 300);
            partitions
                .iter()
                .map(|batches| {
                    let counts: Vec<i64> = batches
                        .iter()
                        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                        .collect();
                    assert_eq!(counts.len(), 1, "{counts:?}");
                    counts[0]
                })
                .collect()
        })
        .collect();
    assert!(orders.iter().all(|order| *order == orders[0]));
}

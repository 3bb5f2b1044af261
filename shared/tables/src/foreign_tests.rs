//! Tables that another engine has rewritten: all rows are read, in order, whatever statistics and tags the files have.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMicrosecondType};
use datafusion::execution::context::SessionContext;
use deltalake::kernel::{Action, Add, Remove};
use deltalake::operations::optimize::OptimizeType;
use deltalake::protocol::DeltaOperation;
use deltalake::{DeltaTable, DeltaTableBuilder};
use futures::TryStreamExt;
use wye_domain::ErrorKind;
use wye_domain::horizon::Horizon;
use wye_domain::place::KafkaPartition;
use wye_domain::reading::{TextBuilder, TextColumn, text_type, time_type};
use wye_domain::time::{Micros, Window};

use crate::CompactionPolicy;
use crate::columns::{READING_ORDER, stored_schema};
use crate::delta::{AfterOthers, Commit, DeltaLog};
use crate::readings::Readings;
use crate::run_record::RunRecord;
use crate::scan::SortedScan;
use crate::scan::cells::HowToRead;
use crate::store::{TableName, TableRoot};
use crate::testing::{self, Row, archive, number, row, rows_of, run};
use crate::views::{BatchViews, Replaces, ViewCommit, ViewSnapshot, ViewVersion};

fn new_root() -> (tempfile::TempDir, TableRoot) {
    let directory = tempfile::tempdir().unwrap();
    let root = TableRoot::directory(directory.path()).unwrap();
    (directory, root)
}

/// The table as any program opens it with delta-rs.
async fn foreign(root: &TableRoot, table: TableName) -> DeltaTable {
    DeltaTableBuilder::from_url(root.table_url(table)).unwrap().load().await.unwrap()
}

pub(crate) async fn optimize(root: &TableRoot, table: TableName) {
    let (_, metrics) = foreign(root, table).await.optimize().with_type(OptimizeType::Compact).await.unwrap();
    assert!(metrics.num_files_removed > 1, "{metrics:?}");
}

/// Readings of four devices in six files, with duplicates in different files and Kafka partitions.
async fn filled(readings: &Readings) -> Vec<Row> {
    let mut all = Vec::new();
    for append in 0..6_i64 {
        let kafka_partition = (append % 2) as i32;
        let from = append / 2 * 20;
        let rows: Vec<Row> = (from..from + 20)
            .map(|offset| Row {
                ingest_time: 1_000 - append,
                ..row(&format!("d{}", offset % 4), offset % 6, kafka_partition, offset)
            })
            .collect();
        readings.append(vec![archive(kafka_partition, from, from + 20, &rows)]).await.unwrap();
        all.extend(rows);
    }
    all.sort();
    all
}

async fn scanned(readings: &Readings, horizon: Option<&Horizon>) -> Vec<Row> {
    let schema = stored_schema();
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let scan = SortedScan { horizon, window: None, columns: &columns, batch_size: Some(16) };
    let plan = readings.snapshot().await.unwrap().sorted_scan(&scan).unwrap();
    run(plan).await.iter().flatten().flat_map(rows_of).collect()
}

/// All readings below a horizon as a batch run reads them.
async fn in_pieces(readings: &Readings, horizon: &Horizon) -> Vec<Row> {
    let below = readings.snapshot().await.unwrap().below(horizon).unwrap();
    let all = Window { start: Micros::MIN, end: Micros::MAX };
    let how = HowToRead { batch_rows: 16, most_in_memory: 1_000 };
    let mut rows = Vec::new();
    for piece in below.pieces(all, 30) {
        let batches = below.read(&piece, how, SessionContext::new().task_ctx()).await.unwrap();
        let batches: Vec<RecordBatch> = batches.try_collect().await.unwrap();
        rows.extend(batches.iter().flat_map(rows_of));
    }
    rows
}

async fn check(readings: &Readings, expected: &[Row]) {
    let horizon = testing::horizon([(0, 33), (1, 47)]);
    let below: Vec<Row> = expected
        .iter()
        .filter(|row| row.kafka_offset < horizon.offset(KafkaPartition(row.kafka_partition)).0)
        .cloned()
        .collect();
    assert_eq!(scanned(readings, None).await, expected);
    assert_eq!(scanned(readings, Some(&horizon)).await, below);
    assert_eq!(in_pieces(readings, &horizon).await, below);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_another_engine_are_sorted_by_each_scan_until_a_compaction_sorts_them() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    let mut expected = filled(&readings).await;
    optimize(&root, TableName::Readings).await;
    let snapshot = readings.snapshot().await.unwrap();
    assert_eq!((snapshot.files(), snapshot.readings()), (1, 120));
    assert!(!snapshot.snapshot.files[0].is_sorted_by(&READING_ORDER));
    check(&readings, &expected).await;

    // Together with files of our own.
    let more = [row("d1", 2, 0, 60), row("d9", 2, 0, 61)];
    readings.append(vec![archive(0, 60, 62, &more)]).await.unwrap();
    expected.extend(more);
    expected.sort();
    check(&readings, &expected).await;

    let policy = CompactionPolicy { least_files: 100, ..Default::default() };
    assert_eq!(readings.compact(policy).await.unwrap().files_before, 1);
    let snapshot = readings.snapshot().await.unwrap();
    assert!(snapshot.snapshot.files.iter().all(|file| file.is_sorted_by(&READING_ORDER)));
    check(&readings, &expected).await;
    assert_eq!(readings.compact(policy).await.unwrap().files_before, 0);
}

/// Replaces each file by a copy with other statistics and tags.
async fn recommit(log: &DeltaLog, change: impl Fn(usize, Add) -> Add) {
    let base = log.existing().await.unwrap();
    let mut actions = Vec::new();
    for (number, file) in base.files.iter().enumerate() {
        let old = object_store::path::Path::from(file.add.path.as_str());
        let path = format!("{}-copy.parquet", file.add.path.trim_end_matches(".parquet"));
        let new = object_store::path::Path::from(path.as_str());
        log.store().copy_opts(&old, &new, Default::default()).await.unwrap();
        actions.push(Action::Remove(Remove {
            path: file.add.path.clone(),
            data_change: false,
            deletion_timestamp: Some(1),
            partition_values: Some(file.add.partition_values.clone()),
            ..Remove::default()
        }));
        let add = change(number, file.add.clone());
        actions.push(Action::Add(Add { path, data_change: false, ..add }));
    }
    let commit = Commit {
        base: &base,
        actions,
        transactions: vec![],
        operation: DeltaOperation::Optimize { predicate: None, target_size: 0 },
        info: serde_json::Map::new(),
        after_others: AfterOthers::Refuse,
    };
    log.commit(commit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_statistics_is_not_empty() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    let expected = filled(&readings).await;
    recommit(readings.log(), |number, add| {
        let stats = [
            None,
            Some("{}"),
            Some(r#"{"nullCount":{"device_id":0,"kafka_offset":0}}"#),
            Some("nonsense"),
            Some(r#"{"numRecords":null,"minValues":{"device_id":"d0"}}"#),
        ];
        let stats = stats.get(number).map(|stats| stats.map(str::to_owned));
        Add { stats: stats.unwrap_or(add.stats.clone()), tags: None, ..add }
    })
    .await;
    let snapshot = readings.snapshot().await.unwrap();
    assert_eq!((snapshot.files(), snapshot.readings()), (6, 120));
    check(&readings, &expected).await;
    // Another handle reads the footers itself.
    assert_eq!(Readings::open(&root).await.unwrap().snapshot().await.unwrap().readings(), 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_of_another_file_are_ignored() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    let expected = filled(&readings).await;
    recommit(readings.log(), |_, add| add).await;
    let snapshot = readings.snapshot().await.unwrap();
    assert!(snapshot.snapshot.files.iter().all(|file| file.add.tags.is_some()));
    assert!(snapshot.snapshot.files.iter().all(|file| !file.is_sorted_by(&READING_ORDER)));
    check(&readings, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_engines_that_merge_the_same_files_wins() {
    let (_directory, root) = new_root();
    let readings = Readings::open(&root).await.unwrap();
    let expected = filled(&readings).await;
    let files = readings.snapshot().await.unwrap().snapshot.files.to_vec();
    optimize(&root, TableName::Readings).await;
    let lost = readings.log().replace("test", &files, vec![]).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");
    check(&readings, &expected).await;

    // An append in the meantime is no conflict.
    let files = readings.snapshot().await.unwrap().snapshot.files.to_vec();
    let other = Readings::open(&root).await.unwrap();
    other.append(vec![archive(0, 60, 61, &[row("z", 1, 0, 60)])]).await.unwrap();
    readings.log().replace("test", &files, vec![]).await.unwrap();
    assert_eq!(readings.snapshot().await.unwrap().readings(), 1);
}

fn view_rows(rows: &[(&str, i64, i64)]) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("series", text_type(), false),
        Field::new("window_start", time_type(), false),
        Field::new("count", DataType::Int64, false),
    ]);
    let mut series = TextBuilder::default();
    rows.iter().for_each(|row| series.append(Some(row.0)));
    let windows = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1));
    let columns: Vec<ArrayRef> = vec![
        series.finish(),
        Arc::new(windows.with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// The rows of a view, plan partition by plan partition.
async fn rows_of_view(view: &ViewSnapshot) -> Vec<Vec<(String, i64, i64)>> {
    let plan = view.scan(&["count", "window_start", "series"], &[]).unwrap();
    run(plan).await.iter().map(|part| part.iter().flat_map(rows_of_view_batch).collect()).collect()
}

fn rows_of_view_batch(batch: &RecordBatch) -> Vec<(String, i64, i64)> {
    let counts = batch.column(0).as_primitive::<Int64Type>();
    let windows = batch.column(1).as_primitive::<TimestampMicrosecondType>();
    let series = TextColumn::of(batch, "series").unwrap();
    (0..batch.num_rows())
        .map(|row| (series.text(row).unwrap().to_owned(), windows.value(row), counts.value(row)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_the_same_after_an_optimize() {
    let (_directory, root) = new_root();
    let views = BatchViews::open(&root).unwrap();
    let parts =
        [view_rows(&[("a", 0, 1), ("b", 0, 2), ("b", 60, 3)]), view_rows(&[("a", 60, 4), ("c", 0, 5)])];
    let mut files = Vec::new();
    for part in &parts {
        let mut writer = views.writer(&part.schema()).unwrap();
        writer.write(part).await.unwrap();
        files.extend(writer.finish().await.unwrap());
    }
    let run = RunRecord { run_id: "first".into(), as_of: Micros(7), ..RunRecord::default() };
    let horizon = testing::horizon([(0, 9)]);
    let schema = parts[0].schema();
    let commit = ViewCommit {
        schema,
        files,
        replaces: Replaces::All,
        horizon: horizon.clone(),
        run: run.clone(),
        expected_version: None,
    };
    let version = views.commit(commit).await.unwrap();
    let old = views.latest().await.unwrap().unwrap();
    assert_eq!(rows_of_view(&old).await.concat().len(), 5);

    optimize(&root, TableName::BatchViews).await;
    let new = views.latest().await.unwrap().unwrap();
    assert_eq!((new.version(), new.rows(), new.run.as_ref()), (ViewVersion(version.0 + 1), 5, Some(&run)));
    assert_eq!(new.horizon, horizon);
    let expected: Vec<(String, i64, i64)> =
        [("a", 0, 1), ("a", 60, 4), ("b", 0, 2), ("b", 60, 3), ("c", 0, 5)]
            .map(|(series, window, count)| (series.to_owned(), window, count))
            .into();
    assert_eq!(rows_of_view(&new).await, [expected]);
    assert_eq!(views.history(5).await.unwrap().len(), 1);
    let sql = "select sum(count) from batch_metrics";
    assert_eq!(number("batch_metrics", new.provider().await.unwrap(), sql).await, 15);

    // The next run replaces the file of the other engine.
    let mut writer = views.writer(&parts[1].schema()).unwrap();
    writer.write(&parts[1]).await.unwrap();
    let commit = ViewCommit {
        schema: parts[1].schema(),
        files: writer.finish().await.unwrap(),
        replaces: Replaces::All,
        horizon,
        run: RunRecord { run_id: "second".into(), ..RunRecord::default() },
        expected_version: Some(new.version()),
    };
    views.commit(commit).await.unwrap();
    let newest = views.latest().await.unwrap().unwrap();
    assert_eq!((newest.rows(), newest.run.unwrap().run_id), (2, "second".to_owned()));
}

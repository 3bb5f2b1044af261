//! What differs between S3 and a directory: how it is opened, and files in several parts. Batch views on S3.

use std::sync::Arc;

use arrow::array::{BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wye_domain::ErrorKind;

use crate::run_record::RunRecord;
use crate::s3::{AccessKeys, S3Options};
use crate::store::TableRoot;
use crate::testing::{self, Place, horizon, number};
use crate::views::{BatchViews, Replaces, ViewCommit, ViewVersion};

fn counts(counts: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("count", DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(counts.to_vec()))]).unwrap()
}

async fn prepared(
    views: &BatchViews,
    rows: &RecordBatch,
    offset: i64,
    expected_version: Option<ViewVersion>,
) -> ViewCommit {
    let mut writer = views.writer(&rows.schema()).unwrap();
    writer.write(rows).await.unwrap();
    ViewCommit {
        schema: rows.schema(),
        files: writer.finish().await.unwrap(),
        replaces: Replaces::All,
        horizon: horizon([(0, offset)]),
        run: RunRecord { run_id: format!("run-{offset}"), ..Default::default() },
        expected_version,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_runs_at_once_commits_its_views() {
    for place in Place::all() {
        let one = BatchViews::open(&place.root().await).unwrap();
        let two = BatchViews::open(&place.root().await).unwrap();
        let mut expected = None;
        for round in 1..=5 {
            let first = prepared(&one, &counts(&[round]), round, expected).await;
            let second = prepared(&two, &counts(&[round]), round, expected).await;
            let (first, second) = tokio::join!(one.commit(first), two.commit(second));
            assert_eq!(i32::from(first.is_ok()) + i32::from(second.is_ok()), 1, "{first:?} {second:?}");
            let lost = first.as_ref().err().or(second.as_ref().err()).unwrap();
            assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");
            expected = first.ok().or(second.ok());
        }
        let newest = one.latest().await.unwrap().unwrap();
        assert_eq!((Some(newest.version()), newest.horizon.clone()), (expected, horizon([(0, 5)])));
        let sql = "select sum(count) from batch_metrics";
        assert_eq!(number("batch_metrics", newest.provider().await.unwrap(), sql).await, 5);
        assert_eq!(one.history(10).await.unwrap().len(), 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_parts_is_stored() {
    for place in Place::all() {
        let views = BatchViews::open(&place.root().await).unwrap();
        // A part has about 10 MiB.
        let mut bytes = vec![0; 25 << 20];
        StdRng::seed_from_u64(1).fill(&mut bytes[..]);
        let schema = Schema::new(vec![Field::new("sketch", DataType::Binary, false)]);
        let rows = Arc::new(BinaryArray::from(bytes.chunks(1 << 20).collect::<Vec<_>>()));
        let rows = RecordBatch::try_new(Arc::new(schema), vec![rows]).unwrap();
        views.commit(prepared(&views, &rows, 1, None).await).await.unwrap();
        let newest = views.latest().await.unwrap().unwrap();
        let sql = "select count(distinct sketch) from batch_metrics";
        assert_eq!(number("batch_metrics", newest.provider().await.unwrap(), sql).await, 25);
        assert!(newest.bytes() > 25 << 20, "{} bytes", newest.bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_is_an_error_without_secrets() {
    let Some(options) = testing::s3() else { return };
    let secret = options.keys.clone().unwrap().secret;
    let opened = TableRoot::open("s3://wye/unit-tests", &options).await.unwrap();
    assert!(!format!("{opened:?} {options:?}").contains(&secret));

    let keys = AccessKeys { secret: "n0thing".to_owned(), ..options.keys.clone().unwrap() };
    let wrong = S3Options { keys: Some(keys), ..options.clone() };
    let closed = S3Options {
        endpoint: Some("http://127.0.0.1:9".to_owned()),
        retries: 1,
        retry_timeout: std::time::Duration::ZERO,
        ..options.clone()
    };
    for (location, options, kind, word) in [
        ("s3://absent-bucket/x", &options, ErrorKind::Invalid, "no such bucket"),
        ("s3://wye/x", &wrong, ErrorKind::Invalid, "rejects the access key"),
        ("s3://wye/x", &closed, ErrorKind::Unavailable, "s3://wye/x/"),
    ] {
        let error = TableRoot::open(location, options).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(word) && !text.contains(&secret) && !text.contains("n0thing"), "{text}");
    }
}

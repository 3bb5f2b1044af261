//! SQL over small captures: the merged tables compared with a naive merge, names, and statements that are rejected.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wye_domain::summary::Summary;
use wye_domain::time::{Micros, Span, WindowSize, format_rfc3339};
use wye_metrics::sql_tables::{SqlTable, reserved_names};
use wye_runtime::clock::{Clock, SystemClock};

use crate::testing::{Row, Site, begin, family, flush, line, minute, sketched, summary};

const COUNTS: &str =
    "SELECT metric_key, window_start, \"count\", sum, source FROM unified_series ORDER BY 1, 2";

#[tokio::test(flavor = "multi_thread")]
async fn each_window_is_merged_once() {
    let site = Site::new().await;
    begin(&site.hub, 0);
    let [a, b, c] = ["a", "b", "c"].map(|device| family("t", device));
    let first: Vec<Row> =
        vec![(a.clone(), minute(0), summary(&[(1.0, 1)])), (b, minute(0), summary(&[(9.0, 2)]))];
    flush(&site.hub, 0, &first);
    let before = "\"t{device_id=\"\"a\"\"}\",1970-01-01T00:00:00Z,1,1.0,realtime\n\
                  \"t{device_id=\"\"b\"\"}\",1970-01-01T00:00:00Z,1,9.0,realtime";
    assert_eq!(site.sql(COUNTS).await, before);
    site.batch(10, &[first]).await;
    assert_eq!(site.sql(COUNTS).await, before.replace("realtime", "batch"));
    begin(&site.hub, 10);
    flush(&site.hub, 10, &[(a, minute(0), summary(&[(5.0, 3)])), (c, minute(1), summary(&[(2.0, 61)]))]);
    assert_eq!(
        site.sql(COUNTS).await,
        "\"t{device_id=\"\"a\"\"}\",1970-01-01T00:00:00Z,2,6.0,merged\n\
         \"t{device_id=\"\"b\"\"}\",1970-01-01T00:00:00Z,1,9.0,batch\n\
         \"t{device_id=\"\"c\"\"}\",1970-01-01T00:01:00Z,1,2.0,realtime"
    );
    assert_eq!(site.sql("SELECT count(*), sum(\"count\") FROM unified_series").await, "3,4");
    assert_eq!(site.sql("SELECT count(*) FROM batch_metrics").await, "2");
    assert_eq!(site.sql("SELECT count(*) FROM realtime_metrics").await, "2");
    assert_eq!(
        site.sql("SELECT min, max, stddev FROM t WHERE device_id = 'a'").await,
        "1.0,5.0,2.8284271247461903"
    );
}

/// A row of one reading of metric `t`.
fn one_reading(device: &str, window: Micros, value: f64) -> Row {
    (family("t", device), window, summary(&[(value, window.seconds())]))
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_on_the_key_are_applied_to_both_layers() {
    let site = Site::new().await;
    let rows = vec![
        one_reading("a", minute(0), 1.0),
        one_reading("a", minute(1), 2.0),
        one_reading("b", minute(1), 3.0),
    ];
    site.batch(10, &[rows]).await;
    begin(&site.hub, 10);
    flush(&site.hub, 10, &[one_reading("a", minute(1), 4.0), one_reading("b", minute(2), 5.0)]);
    for (condition, answer) in [
        ("device_id = 'a'", "2,7.0"),
        ("device_id IN ('a', 'c') AND metric = 't'", "2,7.0"),
        ("window_start >= '1970-01-01T00:01:00Z'", "3,14.0"),
        ("window_start BETWEEN '1970-01-01T00:01:00Z' AND '1970-01-01T00:01:00Z'", "2,9.0"),
        ("window_end <= '1970-01-01T00:02:00Z'", "3,10.0"),
        ("metric_key = 't{device_id=\"b\"}'", "2,8.0"),
        ("device_id LIKE 'b%' AND \"count\" = 1", "2,8.0"),
        ("source = 'merged'", "1,6.0"),
        ("definition = 'line_heat'", "0,"),
    ] {
        let sql = format!("SELECT count(*), sum(sum) FROM unified_series WHERE {condition}");
        assert_eq!(site.sql(&sql).await, answer, "{condition}");
    }
    // Realtime rows that a condition leaves out are not collected.
    for (condition, windows) in [
        ("device_id = 'a'", 1),
        ("window_start >= '1970-01-01T00:02:00Z'", 1),
        ("'1970-01-01T00:02:00Z' > window_start", 1),
        ("window_start BETWEEN '1970-01-01T00:01:00Z' AND '1970-01-01T00:01:30Z'", 1),
        ("window_start > '1970-01-01T00:01:00Z' AND window_start < '1970-01-01T00:02:00Z'", 0),
        ("window_start = '1970-01-01T00:02:00Z' AND metric = 't'", 1),
        ("date_part('epoch', window_start)::BIGINT / 60 = 2", 2),
        ("\"count\" = 1", 2),
    ] {
        let plan = site.sql(&format!("EXPLAIN SELECT sum FROM unified_series WHERE {condition}")).await;
        assert!(plan.contains(&format!("realtime_windows={windows}")), "{condition}: {plan}");
    }
}

/// A row of two equal readings of `line_heat`.
fn two_readings(window: Micros, value: f64, device: &str) -> Row {
    let readings = [(value, window.seconds()), (value, window.seconds() + 1)];
    (line("L1"), window, sketched(&readings, device))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_metric_has_its_own_columns_and_rollups() {
    let site = Site::new().await;
    // A window of five minutes has rows in two files and in an epoch.
    site.batch(
        10,
        &[
            vec![two_readings(minute(0), 1.0, "a"), two_readings(minute(1), 2.0, "a")],
            vec![two_readings(minute(2), 3.0, "b"), two_readings(minute(5), 7.0, "a")],
        ],
    )
    .await;
    begin(&site.hub, 10);
    flush(&site.hub, 10, &[two_readings(minute(3), 6.0, "c"), two_readings(minute(11), 8.0, "a")]);
    assert_eq!(
        site.sql(
            "SELECT line, window_start, avg, max, distinct_devices, source FROM line_heat ORDER BY 2 LIMIT 1"
        )
        .await,
        "L1,1970-01-01T00:00:00Z,1.0,1.0,1,batch"
    );
    assert_eq!(
        site.sql(
            "SELECT window_start, avg, max, distinct_devices, source, state FROM line_heat_5m ORDER BY 1"
        )
        .await,
        "1970-01-01T00:00:00Z,3.0,6.0,3,merged,LIVE\n\
         1970-01-01T00:05:00Z,7.0,7.0,1,batch,SETTLED\n\
         1970-01-01T00:10:00Z,8.0,8.0,1,realtime,LIVE"
    );
    let bounded = "SELECT avg FROM line_heat_5m WHERE window_start < '1970-01-01T00:05:00Z'";
    assert_eq!(site.sql(bounded).await, "3.0");
    // An aggregate that is not listed is null. Every metric has a count.
    assert_eq!(
        site.sql("SELECT sum, min, \"count\" FROM unified_series ORDER BY window_start LIMIT 1").await,
        ",,2"
    );
    assert_eq!(
        site.sql("SELECT round(p50) FROM line_heat WHERE window_start = '1970-01-01T00:05:00Z'").await,
        "7.0"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollup_over_hundreds_of_files_has_each_window_once() {
    let site = Site::new().await;
    let files: Vec<Vec<Row>> =
        (0..400).map(|n| vec![(family("t", "a"), minute(n), summary(&[(1.0, n * 60)]))]).collect();
    site.batch(10, &files).await;
    for _ in 0..10 {
        let counted = "SELECT count(*), count(DISTINCT window_start), sum(\"count\") FROM t_1h";
        assert_eq!(site.sql(counted).await, "7,7,400");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn now_is_the_time_of_the_query() {
    let site = Site::new().await;
    let start = SystemClock::default().now();
    let (from, to) = (start - Span::from_secs(1), start + Span::from_mins(10));
    let within = format!(
        "SELECT now() = now(), now() BETWEEN TIMESTAMP '{}' AND TIMESTAMP '{}'",
        format_rfc3339(from),
        format_rfc3339(to)
    );
    assert_eq!(site.sql(&within).await, "true,true");
    let nanoseconds = "SELECT CAST(now() AS BIGINT)";
    let (first, second) = (site.sql(nanoseconds).await, site.sql(nanoseconds).await);
    assert!(first.parse::<i64>().unwrap() < second.parse::<i64>().unwrap(), "{first} {second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn current_values_are_the_newest_windows() {
    let site = Site::new().await;
    let now = WindowSize::MINUTE.start_of(SystemClock::default().now());
    site.batch(10, &[vec![one_reading("a", minute(0), 1.0), one_reading("b", now, 2.0)]]).await;
    begin(&site.hub, 10);
    flush(&site.hub, 10, &[one_reading("a", now, 3.0), one_reading("b", now, 4.0)]);
    assert_eq!(
        site.sql("SELECT device_id, current_value, data_points, source FROM unified_metrics ORDER BY 1")
            .await,
        "a,3.0,1,realtime\nb,4.0,2,merged"
    );
    assert_eq!(
        site.sql("SELECT metric_key, current_value FROM unified_metrics_classic ORDER BY 1").await,
        "\"t{device_id=\"\"a\"\"}\",3.0\n\"t{device_id=\"\"b\"\"}\",2.0"
    );
    assert_eq!(
        site.sql("SELECT arrow_typeof(confidence_score) FROM unified_metrics LIMIT 1").await,
        "\"Decimal128(3, 2)\""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_can_be_listed_described_and_read() {
    let site = Site::new().await;
    for table in SqlTable::ALL.map(SqlTable::name) {
        assert!(reserved_names().any(|name| name == table), "a metric could be called {table}");
        // There always is a Kafka partition.
        let rows = if table == "coverage" { "1" } else { "0" };
        assert_eq!(site.sql(&format!("SELECT count(*) FROM {table}")).await, rows, "{table}");
        site.sql(&format!("SELECT * FROM {table}")).await;
        assert!(!site.sql(&format!("DESCRIBE {table}")).await.is_empty());
    }
    begin(&site.hub, 0);
    flush(&site.hub, 0, &[(family("PM2.5", "a"), minute(0), summary(&[(1.0, 1)]))]);
    site.batch(0, &[]).await;
    assert_eq!(site.sql("SELECT readings, windows FROM batch_runs").await, "0,0");
    let listed = site.sql("SHOW TABLES").await;
    for name in ["unified_series", "line_heat", "line_heat_5m", "PM2.5", "PM2.5_1h"] {
        assert!(listed.contains(&format!("public,{name},")), "{listed}");
    }
    assert_eq!(site.sql("SELECT last FROM \"PM2.5\"").await, "1.0");
    assert_eq!(site.sql("SELECT last FROM \"PM2.5_1h\"").await, "1.0");
    assert!(site.sql("EXPLAIN SELECT * FROM unified_series").await.contains("MergedExec"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_changed() {
    let site = Site::new().await;
    for sql in [
        "CREATE TABLE x (a INT)",
        "DROP TABLE readings",
        "INSERT INTO readings VALUES (1)",
        "DELETE FROM readings",
        "SET datafusion.execution.batch_size = 1",
        "COPY (SELECT 1) TO '/tmp/x.csv'",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT 1; SELECT 2",
        "SELEC 1",
        "SELECT nothing FROM unified_series",
    ] {
        let error = site.refused(sql).await;
        assert_eq!(error.kind(), wye_domain::ErrorKind::Invalid, "{sql}: {error}");
        assert!(!error.to_string().contains("backtrace"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_without_quotes_are_found_in_any_case() {
    let site = Site::new().await;
    let metrics = ["PM2.5", "TEMP", "dew", "dewPoint", "Dewpoint"];
    site.batch(10, &[metrics.map(|metric| (family(metric, "a"), minute(0), summary(&[(1.0, 1)]))).to_vec()])
        .await;
    for sql in [
        "SELECT last FROM TEMP",
        "SELECT last FROM temp",
        "SELECT t.last FROM Temp t",
        "SELECT TEMP.last FROM TEMP",
        "SELECT Last FROM TEMP WHERE Device_ID = 'a'",
        "SELECT last FROM TEMP_1H",
        "SELECT last FROM DEW",
        "SELECT last FROM \"dewPoint\"",
        "SELECT X FROM (SELECT last AS \"X\" FROM temp) WHERE x > 0 ORDER BY X",
        "SELECT s.x FROM (SELECT last AS \"X\" FROM temp) s",
    ] {
        assert_eq!(site.sql(sql).await, "1.0", "{sql}");
    }
    // A statement that can be planned as it is written is not changed.
    assert_eq!(site.sql("SELECT x FROM (SELECT 1 AS \"X\", 2 AS x)").await, "2");
    for (sql, words) in [
        ("SELECT * FROM tmep", vec!["no table tmep", "\"TEMP\""]),
        ("SELECT * FROM dewpoint", vec!["no table dewpoint", "\"Dewpoint\" or \"dewPoint\"", "quotes"]),
        ("SELECT * FROM volume", vec!["no table volume", "SHOW TABLES"]),
        ("SELECT lst FROM temp", vec!["no column lst", "\"last\""]),
        ("SELECT nothing FROM temp", vec!["no column nothing", "device_id", "window_start"]),
        ("SELECT x FROM (SELECT 1 AS \"X\", 2 AS \"X\")", vec!["two columns", "AS"]),
        ("SELECT last FROM temp a, temp b", vec!["last", "several tables"]),
        ("SELEC 1", vec!["line 1, column 1", "SELEC"]),
        ("SELECT 1\n  FROM t t t", vec!["line 2, column 12"]),
        ("SELECT", vec!["statement ends"]),
        ("SELECT foo(1)", vec!["foo"]),
        ("SELECT abz(1)", vec!["abz", "abs"]),
        ("SELECT 1 + 'a'", vec!["a"]),
        ("SELECT 1 / 0", vec!["divide by zero"]),
        ("SELECT sum(device_id) FROM temp", vec!["sum cannot be applied", "String"]),
        ("SELECT device_id, count(*) FROM temp", vec!["device_id", "GROUP BY"]),
        ("SELECT CAST('x' AS BIGINT)", vec!["'x'"]),
        ("SELECT $1", vec!["$1"]),
        ("SELECT 1 WHERE 'a' ~ '('", vec!["regular expression", "unclosed group"]),
        ("SELECT 1; SELECT 2", vec!["single"]),
        ("INSERT INTO readings VALUES (1)", vec!["INSERT is not supported", "only reads"]),
        ("", vec!["statement"]),
    ] {
        let error = site.refused(sql).await;
        let message = error.to_string();
        assert_eq!(error.kind(), wye_domain::ErrorKind::Invalid, "{sql}: {message}");
        for word in words {
            assert!(message.contains(word), "{sql}: {message}");
        }
        for word in ["DataFusion", "SchemaError", "External error", "Error during", "caused by", "wye.public"]
        {
            assert!(!message.contains(word), "{sql}: {message}");
        }
    }
}

/// Device, minute and value of each reading.
type Readings = Vec<(u8, u8, i8)>;

type Windows = BTreeMap<(String, Micros), Summary>;

fn rows(readings: &Readings) -> Windows {
    let mut rows = Windows::new();
    for (device, place, value) in readings {
        let window = minute(i64::from(*place));
        let row = rows.entry((family("t", &format!("d{device}")), window)).or_default();
        row.add(f64::from(*value), window);
    }
    rows
}

fn listed(rows: &Windows) -> Vec<Row> {
    rows.iter().map(|((text, window), summary)| (text.clone(), *window, summary.clone())).collect()
}

/// The expected answer: device, window, count, sum, min.
fn naive(parts: &[Windows], step: Option<WindowSize>) -> String {
    let mut all = Windows::new();
    for ((text, window), summary) in parts.iter().flatten() {
        let window = step.map_or(*window, |step| step.start_of(*window));
        all.entry((text.clone(), window)).or_default().merge(summary);
    }
    let lines = all.iter().map(|((text, window), summary)| {
        let key = wye_domain::series::SeriesKey::decode(text).unwrap();
        let device = key.group[0].as_deref().unwrap().to_owned();
        let start = (*window - Micros::EPOCH).0 / WindowSize::MINUTE.span().0;
        format!("{device},{start},{},{:?},{:?}", summary.count, summary.sum.value(), summary.min)
    });
    lines.collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// EQ-1 for the merge alone: the answer is the same however the readings are split into files of the view and epochs.
    #[test]
    fn any_split_into_layers_gives_the_naive_answer(
        files in prop::collection::vec(prop::collection::vec((0u8..3, 0u8..130, -9i8..9), 0..12), 0..3),
        epochs in prop::collection::vec(prop::collection::vec((0u8..3, 0u8..130, -9i8..9), 0..12), 0..3),
        // Cells of two hours have whole hours, the others do not.
        cells in prop::option::of(prop::sample::select(vec!["7m", "20m", "2h"])),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let site = Site::new().await;
            // As a batch run writes them: files hold whole windows, and each file continues the order of the one before.
            let whole = rows(&files.concat());
            let sorted = listed(&whole);
            let cut = sorted.len().div_ceil(files.len().max(1)).max(1);
            if let Some(length) = cells.filter(|_| !sorted.is_empty()) {
                site.batch_in_cells(10, WindowSize::parse(length).unwrap(), &sorted, cut).await;
            } else if !files.is_empty() {
                site.batch(10, &sorted.chunks(cut).map(<[Row]>::to_vec).collect::<Vec<_>>()).await;
            }
            let mut parts = vec![whole];
            for (epoch, readings) in (10..).zip(&epochs) {
                begin(&site.hub, epoch);
                let rows = rows(readings);
                flush(&site.hub, epoch, &listed(&rows));
                parts.push(rows);
            }
            let select = "SELECT device_id, date_part('epoch', window_start)::BIGINT / 60, \"count\", sum, min FROM";
            let base = site.sql(&format!("{select} unified_series ORDER BY device_id, window_start")).await;
            assert_eq!(base, naive(&parts, None));
            if !base.is_empty() {
                let hours = site.sql(&format!("{select} t_1h ORDER BY device_id, window_start")).await;
                assert_eq!(hours, naive(&parts, Some(WindowSize::HOUR)));
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_should_have_readings_and_have_none_are_rows() {
    let site = Site::new().await;
    // Of device a, a reading is expected each second.
    let rows = [0, 1, 4].map(|place| one_reading("a", minute(place), 1.0));
    let (a, b) = ([rows.to_vec(), vec![one_reading("b", minute(0), 1.0)]].concat(), vec![]);
    site.batch_ingested_from(minute(0), 10, &[a, b]).await;
    begin(&site.hub, 10);
    flush(&site.hub, 10, &[one_reading("a", minute(6), 1.0)]);
    let windows = "SELECT date_part('minute', window_start)::BIGINT, state, count FROM";
    let missing = "WHERE state = 'INSUFFICIENT_DATA' AND window_start < '1970-01-01T00:10:00Z' ORDER BY 1";
    let expected = [2, 3, 5, 7, 8, 9].map(|place| format!("{place},INSUFFICIENT_DATA,0")).join("\n");
    for table in ["unified_series", "t"] {
        assert_eq!(site.sql(&format!("{windows} {table} {missing}")).await, expected);
        let one = format!("{windows} {table} WHERE window_start = '1970-01-01T00:03:00Z'");
        assert_eq!(site.sql(&one).await, "3,INSUFFICIENT_DATA,0");
        let none =
            format!("{windows} {table} WHERE window_start = '1970-01-01T00:03:00Z' AND device_id = 'b'");
        assert_eq!(site.sql(&none).await, "");
    }
    let row = "SELECT avg, last_time, expected, confidence_score FROM unified_series";
    assert_eq!(site.sql(&format!("{row} WHERE window_start = '1970-01-01T00:03:00Z'")).await, ",,60.0,0.00");
    let batch = "SELECT count(*) FROM batch_metrics WHERE state = 'INSUFFICIENT_DATA'";
    assert_eq!(site.sql(batch).await, "0");
    let plan = site.sql("EXPLAIN SELECT avg FROM t WHERE device_id = 'a'").await;
    assert!(plan.contains("expected_series=1"), "{plan}");
    let current = "SELECT current_value, state, confidence_score FROM unified_metrics WHERE device_id = 'a'";
    assert_eq!(site.sql(current).await, "1.0,INSUFFICIENT_DATA,0.00");
}

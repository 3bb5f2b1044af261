//! Hostile statements: each is answered or rejected in limited memory and time, and a short query next to them is answered
//! as usual.

#![expect(clippy::disallowed_methods, reason = "tests wait in real time")]

use std::time::Duration;

use wye_domain::ErrorKind;

use super::Limits;
use crate::testing::{Row, Site, family, minute, summary};

/// Kinds of statements; the argument is a size.
const SHAPES: [fn(usize) -> String; 58] = [
    |n| format!("SELECT 1{}", "+1".repeat(n)),
    |n| format!("SELECT 1{}", "-1".repeat(n)),
    |n| format!("SELECT {}1", "- ".repeat(n)),
    |n| format!("SELECT {}true", "NOT ".repeat(n)),
    |n| format!("SELECT 1 WHERE 1 IN ({})", list(n)),
    |n| format!("SELECT 1 WHERE 1 NOT IN ({})", list(n)),
    |n| format!("SELECT count(*) FROM unified_series WHERE device_id IN ({})", texts(n)),
    |n| format!("SELECT 1 WHERE false{}", " OR 1 = 2".repeat(n)),
    |n| format!("SELECT 1 WHERE true{}", " AND 1 = 1".repeat(n)),
    |n| format!("SELECT count(*) FROM unified_series WHERE false{}", ors(n)),
    |n| vec!["SELECT 1"; n].join(" UNION ALL "),
    |n| vec!["SELECT 1"; n].join(" UNION "),
    |n| vec!["SELECT 1"; n].join(" INTERSECT "),
    |n| vec!["SELECT 1"; n].join(" EXCEPT "),
    |n| vec!["SELECT * FROM unified_series"; n].join(" UNION ALL "),
    |n| format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n)),
    |n| format!("SELECT {}1{}", "[".repeat(n), "]".repeat(n)),
    |n| format!("SELECT * FROM {}unified_series{}", "(".repeat(n), ")".repeat(n)),
    |n| format!("{}SELECT 1{}", "(".repeat(n), ")".repeat(n)),
    |n| format!("{}1{}", "SELECT * FROM (SELECT ".repeat(n), ")".repeat(n)),
    |n| format!("SELECT {}1{}", "(SELECT ".repeat(n), ")".repeat(n)),
    |n| format!("SELECT 1 WHERE {}1 = 1{}", "EXISTS (SELECT 1 WHERE ".repeat(n), ")".repeat(n)),
    |n| format!("SELECT CASE {} ELSE 0 END", "WHEN 1 = 2 THEN 1 ".repeat(n)),
    |n| format!("SELECT {}0{}", "CASE WHEN 1 = 2 THEN 1 ELSE ".repeat(n), " END".repeat(n)),
    |n| format!("SELECT {}1{}", "abs(".repeat(n), ")".repeat(n)),
    |n| format!("SELECT {}'a'{}", "upper(".repeat(n), ")".repeat(n)),
    |n| format!("SELECT {}1{}", "CAST(".repeat(n), " AS BIGINT)".repeat(n)),
    |n| format!("SELECT 1{}", "::BIGINT".repeat(n)),
    |n| format!("SELECT 'a'{}", " || 'a'".repeat(n)),
    |n| format!("SELECT coalesce({})", list(n)),
    |n| format!("SELECT concat({})", texts(n)),
    |n| format!("SELECT make_array({})", list(n)),
    |n| format!("SELECT [{}]", list(n)),
    |n| format!("SELECT {}", list(n)),
    |n| format!("SELECT 1 AS {}", "a".repeat(n)),
    |n| format!("SELECT \"{}\"", "a".repeat(n)),
    |n| format!("SELECT '{}'", "a".repeat(n)),
    |n| format!("SELECT {}", "9".repeat(n)),
    |n| format!("SELECT 1e{}", "9".repeat(n)),
    |n| format!("SELECT 1 -- {}", "a".repeat(n)),
    |n| format!("SELECT 1 {}", "/* ".repeat(n)),
    |n| format!("SELECT {}1{}", "/*".repeat(n), "*/".repeat(n)),
    |n| format!("WITH {} SELECT * FROM t0", named(n, |_| "SELECT 1".to_owned())),
    |n| format!("WITH {} SELECT * FROM t{}", named(n, after), n - 1),
    |n| format!("WITH {} SELECT * FROM t{}", named(n, doubled), n - 1),
    |n| format!("SELECT * FROM {}", vec!["unified_series"; n].join(", ")),
    |n| format!("SELECT 1 FROM {}", aliases(n).join(" CROSS JOIN ")),
    |n| format!("SELECT 1 FROM (SELECT 1 AS x) a0 {}", joins(n)),
    |n| format!("VALUES {}", vec!["(1)"; n].join(",")),
    |n| format!("SELECT 1 ORDER BY {}", vec!["1"; n].join(",")),
    |n| format!("SELECT 1 GROUP BY {}", vec!["1"; n].join(",")),
    |n| format!("SELECT 1{}", ";".repeat(n)),
    |n| vec!["SELECT 1"; n].join(";"),
    |n| format!("SELECT {}", vec!["sum(1) OVER ()"; n].join(",")),
    |n| format!("SELECT 1 WHERE 'a' LIKE '{}'", "%_".repeat(n)),
    |n| format!("SELECT 1 WHERE 'a' ~ '{}a{}'", "(".repeat(n), ")*".repeat(n)),
    |n| format!("EXPLAIN {}", vec!["SELECT 1"; n].join(" UNION ALL ")),
    |n| "\u{0}\u{202e}\"'`$[({".repeat(n),
];

/// Short statements that need much memory or time.
const GREEDY: [&str; 45] = [
    "SELECT repeat('x', 500000000)",
    "SELECT length(repeat('x', 500000000))",
    "SELECT repeat(device_id, 500000000) FROM unified_series",
    "SELECT length(repeat('x', 60000000)) FROM generate_series(1, 100000)",
    "SELECT repeat('x', 1000000) FROM generate_series(1, 100000)",
    "SELECT lpad('x', 2000000000, 'y')",
    "SELECT rpad(device_id, 2000000000, 'y') FROM unified_series",
    "SELECT range(1, 2000000000)",
    "SELECT generate_series(1, 2000000000)",
    "SELECT generate_series(1, window_start::BIGINT) FROM unified_series",
    "SELECT range(DATE '1970-01-01', DATE '5000-01-01', INTERVAL '1 second')",
    "SELECT array_repeat(1, 2000000000)",
    "SELECT array_repeat(array_repeat(array_repeat('x', 1000), 1000), 1000)",
    "SELECT array_resize([1], 2000000000, 0)",
    "SELECT replace(repeat('a', 100000), 'a', repeat('b', 100000))",
    "SELECT regexp_replace(repeat('a', 100000), 'a', repeat('b', 100000), 'g')",
    "SELECT regexp_replace(repeat('a', 100000), '', repeat('b', 100000), 'g')",
    "SELECT array_to_string(range(0, 1000000), repeat('x', 100000))",
    "SELECT concat(repeat('x', 50000000), repeat('x', 50000000))",
    "SELECT repeat('x', 50000000) || repeat('x', 50000000)",
    "SELECT length(string_agg(repeat('x', 100000), '')) FROM generate_series(1, 1000000)",
    "SELECT array_agg(value) FROM generate_series(1, 2000000000)",
    "SELECT string_agg(value::VARCHAR, ',') FROM generate_series(1, 2000000000)",
    "SELECT unnest(range(0, 5000000)), repeat('x', 1000)",
    "SELECT unnest(range(0, 5000000)), device_id, repeat(device_id, 100000) FROM unified_series",
    "SELECT unnest(a), a FROM (SELECT range(0, 100000) AS a)",
    "SELECT arrow_cast(NULL, 'FixedSizeBinary(2000000000)')",
    "SELECT arrow_cast(make_array(1), 'FixedSizeList(2000000000, Int64)')",
    "SELECT levenshtein(repeat('a', 10000000), repeat('b', 10000000))",
    "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b, generate_series(1, 1000000) c",
    "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b ON a.value < b.value",
    "SELECT count(*) FROM generate_series(1, 1000000) a LEFT JOIN generate_series(1, 1000000) b ON a.value * b.value = 7",
    "SELECT a.value FROM generate_series(1, 3000000) a, generate_series(1, 3000000) b ORDER BY a.value * b.value",
    "SELECT DISTINCT a.value * 1000000 + b.value FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b",
    "SELECT a.value, count(*) FROM generate_series(1, 100000000) a GROUP BY a.value ORDER BY 2",
    "SELECT sum(value) OVER (ORDER BY value DESC ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) FROM generate_series(1, 2000000000)",
    "SELECT (SELECT string_agg(repeat('x', 1000), '') FROM generate_series(1, 100000)) FROM generate_series(1, 1000000)",
    "SELECT * FROM (SELECT string_agg(repeat('x', 1000), '') s FROM generate_series(1, 100000)) a, generate_series(1, 1000000)",
    "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
    "WITH RECURSIVE r AS (SELECT 'x' AS x UNION ALL SELECT x || x FROM r) SELECT max(length(x)) FROM r",
    "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT r.x FROM r, r r2) SELECT count(*) FROM r",
    "SELECT struct(c, c) FROM (SELECT struct(b, b) AS c FROM (SELECT struct(a, a) AS b FROM (SELECT range(0, 1000000) AS a)))",
    "SELECT approx_percentile_cont(a.value, 0.5) FROM generate_series(1, 100000) a, generate_series(1, 100000) b",
    "SELECT median(a.value) FROM generate_series(1, 100000) a, generate_series(1, 100000) b",
    "SELECT regexp_count(repeat('a', 1000000), '(a{1,500}){1,500}')",
];

fn list(n: usize) -> String {
    (0..n).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
}

fn texts(n: usize) -> String {
    (0..n).map(|n| format!("'d{n}'")).collect::<Vec<_>>().join(",")
}

fn ors(n: usize) -> String {
    (0..n).map(|n| format!(" OR device_id = 'd{n}'")).collect()
}

fn aliases(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("(SELECT {n} AS x) a{n}")).collect()
}

fn joins(n: usize) -> String {
    (1..n).map(|n| format!("JOIN (SELECT 1 AS x) a{n} ON a{n}.x = a{}.x ", n - 1)).collect()
}

fn named(n: usize, query: fn(usize) -> String) -> String {
    (0..n).map(|n| format!("t{n} AS ({})", query(n))).collect::<Vec<_>>().join(", ")
}

fn after(n: usize) -> String {
    if n == 0 { "SELECT 1 AS x".to_owned() } else { format!("SELECT x + 1 AS x FROM t{}", n - 1) }
}

fn doubled(n: usize) -> String {
    if n == 0 { "SELECT 1 AS x".to_owned() } else { format!("SELECT a.x FROM t{} a, t{} b", n - 1, n - 1) }
}

async fn site(time: Duration) -> Site {
    // On a busy machine, short queries may take longer than long ones usually wait for a slot.
    let site = Site::with(Limits { time, patience: time, ..Limits::default() }).await;
    let rows: Vec<Row> =
        (0..50).map(|n| (family("t", &format!("d{n}")), minute(n), summary(&[(1.0, n * 60)]))).collect();
    site.batch(10, &[rows]).await;
    site
}

/// Runs a statement to its end, and returns its number of rows.
async fn run(site: &Site, sql: &str) -> Result<usize, crate::ServingError> {
    let mut rows = site.engine.query(sql).await?;
    let mut count = 0;
    while let Some(batch) = rows.next().await {
        count += batch?.num_rows();
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_every_shape_and_size_are_answered_or_rejected() {
    let site = site(Duration::from_secs(20)).await;
    let mut statements = 0;
    let mut wrong = Vec::new();
    for (shape, statement) in SHAPES.iter().enumerate() {
        for size in [1, 7, 45, 300, 2_500, 40_000] {
            statements += 1;
            let sql = statement(size);
            let started = std::time::Instant::now();
            if let Err(error) = run(&site, &sql).await {
                let start: String = sql.chars().take(60).collect();
                if error.kind() != ErrorKind::Invalid {
                    wrong.push(format!("shape {shape}, size {size}, {start}: {error}"));
                }
                assert!(error.to_string().len() < 4_000, "shape {shape}, size {size}");
            }
            if started.elapsed() > Duration::from_secs(15) {
                wrong.push(format!("shape {shape}, size {size}: {:?}", started.elapsed()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(statements >= 300, "{statements}");
    assert_eq!(site.sql("SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn short_statements_cannot_take_much_memory() {
    let site = site(Duration::from_secs(2)).await;
    for sql in GREEDY {
        if let Err(error) = run(&site, sql).await {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{sql}: {error}");
        }
        assert_eq!(site.sql("SELECT 1").await, "1", "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_of_values_is_computed() {
    let site = site(Duration::from_secs(60)).await;
    let sql = format!("SELECT count(*) FROM unified_series WHERE device_id IN ({})", texts(50_000));
    assert_eq!(site.sql(&sql).await, "50");
    let sql = format!("SELECT count(*) FROM unified_series WHERE \"count\" IN ({})", list(50_000));
    assert_eq!(site.sql(&sql).await, "50");
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_work_within_their_limits() {
    let site = site(Duration::from_secs(60)).await;
    for (expression, answer) in [
        ("repeat('ab', 3)", "ababab"),
        ("lpad('7', 3, '0')", "007"),
        ("'a' || 'b' || 1", "ab1"),
        ("('a' || NULL) IS NULL", "true"),
        ("concat('a', NULL, 'b')", "ab"),
        ("concat_ws('-', 'a', 'b')", "a-b"),
        ("replace('a.b.c', '.', '')", "abc"),
        ("regexp_replace('a1b2', '[0-9]', '', 'g')", "ab"),
        ("array_to_string(range(0, 4), ',')", "\"0,1,2,3\""),
        ("array_length(range(0, 1000000))", "1000000"),
        ("length(repeat('x', 1000000))", "1000000"),
        ("array_length([1, 2] || [3])", "3"),
        ("cardinality(range(TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-02', INTERVAL '1 hour'))", "24"),
    ] {
        assert_eq!(site.sql(&format!("SELECT {expression}")).await, answer, "{expression}");
    }
    let joined =
        "SELECT count(*), max(length(device_id || repeat('-', length(device_id)))) FROM unified_series";
    assert_eq!(site.sql(joined).await, "50,6");
    // A batch that is too large for one step is computed in slices.
    let slices =
        "SELECT sum(length(replace(repeat('a', 2000 + value % 2), 'a', 'bb'))) FROM generate_series(1, 4000)";
    assert_eq!(site.sql(slices).await, "16004000");
    assert_eq!(site.sql("SELECT count(*) FROM (SELECT unnest(range(0, 100000)) AS x)").await, "100000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_when_its_client_disconnects() {
    let site = site(Duration::from_secs(600)).await;
    let heavy = "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b \
                 ON a.value % 7 < b.value % 5";
    // Before the first row: in a short slot, in a long slot, and while it waits for a slot.
    for patience in [1, 50, 150, 400, 400, 400, 400, 400] {
        let asked = tokio::time::timeout(Duration::from_millis(patience), site.engine.query(heavy)).await;
        assert!(asked.map_or(true, |rows| rows.is_ok()));
    }
    // After the first rows.
    let mut rows = site.engine.query("SELECT * FROM generate_series(1, 2000000000)").await.unwrap();
    rows.next().await.unwrap().unwrap();
    drop(rows);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !site.engine.idle() {
        assert!(
            std::time::Instant::now() < deadline,
            "queries still run after their clients have disconnected"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_queries_are_answered_while_long_ones_run() {
    let site = site(Duration::from_secs(600)).await;
    let heavy = "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b \
                 ON a.value % 7 < b.value % 5";
    let mut long = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let engine = site.engine.clone();
        long.spawn(async move {
            let mut rows = engine.query(heavy).await.unwrap();
            rows.next().await.is_some()
        });
    }
    for _ in 0..50 {
        // The long ones take hours, so without slots for short ones this would not be answered at all.
        let short = tokio::time::timeout(Duration::from_secs(60), site.sql("SELECT 1")).await;
        assert_eq!(short.unwrap(), "1");
        tokio::task::yield_now().await;
    }
    assert!(long.try_join_next().is_none(), "the long queries should still run");
    long.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_time_are_limited() {
    let site =
        Site::with(Limits { time: Duration::from_millis(300), rows: 1_000, ..Limits::default() }).await;
    let error = site.refused("SELECT * FROM generate_series(1, 1001)").await.to_string();
    assert!(error.contains("1000 rows"), "{error}");
    assert_eq!(site.sql("SELECT count(*) FROM generate_series(1, 1001)").await, "1001");
    let error =
        site.refused("SELECT count(*) FROM generate_series(1, 2000000000) a, generate_series(1, 9) b").await;
    assert!(error.to_string().contains("0.3 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_do_not_fit_into_memory_are_spilled() {
    let site = site(Duration::from_secs(120)).await;
    let sorted = "SELECT count(*) FROM (SELECT value, row_number() OVER (ORDER BY value % 1000, -value) AS place \
                  FROM generate_series(1, 8000000)) WHERE place = 8000000";
    assert_eq!(site.sql(sorted).await, "1");
}

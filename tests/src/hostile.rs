//! Hostile input: valid bodies that are damaged in many ways, and bodies that are large, deeply nested or unusual. All of it
//! follows from a seed.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A source of hostile bytes.
#[derive(Debug)]
pub struct Hostile {
    random: StdRng,
    valid: Vec<Vec<u8>>,
}

const DEEP: usize = 20_000;
const VERY_DEEP: usize = 100_000;

impl Hostile {
    /// A source of damaged copies of `valid`, which must not be empty.
    pub fn new(seed: u64, valid: Vec<Vec<u8>>) -> Self {
        Self { random: StdRng::seed_from_u64(seed), valid }
    }

    /// The next body: one of the valid ones, damaged one to eight times.
    pub fn next_body(&mut self) -> Vec<u8> {
        let chosen = self.random.random_range(0..self.valid.len());
        let mut body = self.valid[chosen].clone();
        for _ in 0..self.random.random_range(1..=8) {
            self.damage(&mut body);
        }
        body
    }

    fn damage(&mut self, body: &mut Vec<u8>) {
        let at = self.random.random_range(0..=body.len());
        match self.random.random_range(0..10) {
            0 => body.truncate(at),
            1 => {
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
            2 => body.insert(at, self.random.random()),
            3 => {
                let end = (at + self.random.random_range(0..64)).min(body.len());
                body.drain(at..end);
            }
            4 => {
                let end = (at + self.random.random_range(0..256)).min(body.len());
                body.extend_from_within(at..end);
            }
            5 => {
                // Four or eight bytes of another length.
                let length = [0_i64, 1, -1, i64::from(i32::MAX), i64::from(i32::MIN), i64::MAX]
                    [self.random.random_range(0..6)];
                for (byte, new) in body[at..].iter_mut().zip(length.to_be_bytes()) {
                    *byte = new;
                }
            }
            6 => {
                let text = ODD_TEXTS[self.random.random_range(0..ODD_TEXTS.len())];
                body.splice(at..at, text.bytes());
            }
            7 => {
                let bracket = b"[]{}\",:"[self.random.random_range(0..7)];
                let count = self.random.random_range(1..3000);
                body.splice(at..at, std::iter::repeat_n(bracket, count));
            }
            8 => body.rotate_left(at),
            _ => body.clear(),
        }
    }
}

/// Texts that parsers often read wrongly.
const ODD_TEXTS: [&str; 24] = [
    "null",
    "NaN",
    "Infinity",
    "-0",
    "1e999",
    "1e-999",
    "18446744073709551616",
    "-9223372036854775809",
    "0x10",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "\r\n\r\n",
    "\"\"",
    "{}",
    "[]",
    "[[[[[[[[[[",
    "{\"a\":{\"a\":{\"a\":",
    "9999-12-31T23:59:60Z",
    "-262144-01-01T00:00:00Z",
    "'; DROP TABLE readings; --",
    "%s%n%x",
];

/// JSON bodies that are deeply nested, long or unusual. Each may be accepted or rejected, and none may do harm.
pub fn shaped_json() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("open brackets only", "[".repeat(DEEP).into_bytes()),
        ("very many open brackets", "[".repeat(VERY_DEEP).into_bytes()),
        ("open braces only", "{\"a\":".repeat(DEEP).into_bytes()),
        ("closed brackets", nested("[", "]", DEEP).into_bytes()),
        ("closed objects", nested("{\"a\":", "}", DEEP).into_bytes()),
        ("an unknown field of brackets", reading(&format!(",\"x\":{}", nested("[", "]", VERY_DEEP)))),
        ("an unknown field of open brackets", reading(&format!(",\"x\":{}", "[".repeat(VERY_DEEP)))),
        ("an unknown field of objects", reading(&format!(",\"x\":{}", nested("{\"a\":", "}", DEEP)))),
        ("tags of brackets", reading(&format!(",\"tags\":{}", nested("[", "]", DEEP)))),
        ("tags of objects", reading(&format!(",\"tags\":{}", nested("{\"a\":", "}", DEEP)))),
        ("a tag of objects", reading(&format!(",\"tags\":{{\"k\":{}}}", nested("{\"a\":", "}", DEEP)))),
        ("a value of brackets", format!("{{\"value\":{}}}", nested("[", "]", DEEP)).into_bytes()),
        ("brackets in a text", reading(&format!(",\"unit\":\"{}\"", "[".repeat(DEEP)))),
        ("a long text", reading(&format!(",\"unit\":\"{}\"", "x".repeat(1 << 20)))),
        ("many tags", {
            let tags: Vec<String> = (0..50_000).map(|number| format!("\"k{number}\":\"v\"")).collect();
            reading(&format!(",\"tags\":{{{}}}", tags.join(",")))
        }),
        ("many digits", reading("").iter().map(|byte| if *byte == b'1' { b'9' } else { *byte }).collect()),
        ("a number of a million digits", format!("{{\"value\":{}}}", "9".repeat(1 << 20)).into_bytes()),
        ("commas", ",".repeat(100_000).into_bytes()),
        ("empty objects", format!("[{}]", vec!["{}"; 20_000].join(",")).into_bytes()),
        ("empty arrays", format!("[{}]", vec!["[]"; 20_000].join(",")).into_bytes()),
        ("nulls", format!("[{}]", vec!["null"; 50_000].join(",")).into_bytes()),
        ("line ends", "\n".repeat(200_000).into_bytes()),
        ("a repeated field", reading(&",\"value\":2".repeat(50_000))),
        ("no UTF-8", b"{\"device_id\":\"\xff\xfe\xfd\"}".to_vec()),
        ("nothing", Vec::new()),
        ("zeros", vec![0; 1 << 20]),
    ]
}

/// A reading with further fields.
fn reading(extra: &str) -> Vec<u8> {
    format!(
        "{{\"device_id\":\"d\",\"metric\":\"m\",\"value\":1,\"event_time\":\"2026-01-01T00:00:00Z\"{extra}}}"
    )
    .into_bytes()
}

fn nested(open: &str, close: &str, depth: usize) -> String {
    format!("{}1{}", open.repeat(depth), close.repeat(depth))
}

/// A gzip stream of `mib` MiB of one byte, which has a thousandth of that size.
pub fn gzip_bomb(mib: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..mib {
        encoder.write_all(&chunk).expect("a write to a vector cannot fail");
    }
    encoder.finish().expect("a write to a vector cannot fail")
}

/// SQL that is deeply nested, long or expensive: a description and the statement.
pub fn shaped_sql() -> Vec<(String, String)> {
    let mut statements = Vec::new();
    for size in [100, 1_000, 5_000, 50_000] {
        add(&mut statements, &format!("{size} additions"), format!("SELECT {}", vec!["1"; size].join("+")));
        add(
            &mut statements,
            &format!("{size} OR"),
            format!("SELECT 1 WHERE {}", vec!["1=2"; size].join(" OR ")),
        );
        add(
            &mut statements,
            &format!("{size} AND"),
            format!("SELECT 1 WHERE {}", vec!["1=1"; size].join(" AND ")),
        );
        add(&mut statements, &format!("{size} UNION ALL"), vec!["SELECT 1"; size].join(" UNION ALL "));
        add(&mut statements, &format!("{size} UNION"), vec!["SELECT 1"; size].join(" UNION "));
        let list: Vec<String> = (0..size).map(|number| number.to_string()).collect();
        add(&mut statements, &format!("IN of {size}"), format!("SELECT 1 WHERE 7 IN ({})", list.join(",")));
        add(&mut statements, &format!("VALUES of {size}"), format!("VALUES {}", vec!["(1)"; size].join(",")));
        add(&mut statements, &format!("{size} columns"), format!("SELECT {}", vec!["1"; size].join(",")));
        add(
            &mut statements,
            &format!("{size} parentheses"),
            format!("SELECT {}1{}", "(".repeat(size), ")".repeat(size)),
        );
        add(&mut statements, &format!("{size} open parentheses"), format!("SELECT {}", "(".repeat(size)));
        add(&mut statements, &format!("{size} NOT"), format!("SELECT {} true", "NOT ".repeat(size)));
        add(&mut statements, &format!("{size} minus"), format!("SELECT {} 1", "- ".repeat(size)));
        add(
            &mut statements,
            &format!("{size} calls"),
            format!("SELECT {}1{}", "abs(".repeat(size), ")".repeat(size)),
        );
        add(&mut statements, &format!("{size} casts"), format!("SELECT 1{}", "::int".repeat(size)));
        add(
            &mut statements,
            &format!("{size} concatenations"),
            format!("SELECT {}", vec!["'a'"; size].join("||")),
        );
        let whens: Vec<String> = (0..size).map(|number| format!("WHEN {number} THEN {number}")).collect();
        add(&mut statements, &format!("CASE of {size}"), format!("SELECT CASE 1 {} END", whens.join(" ")));
        add(
            &mut statements,
            &format!("{size} subqueries"),
            format!("SELECT * FROM {}(SELECT 1){}", "(SELECT * FROM ".repeat(size), " t)".repeat(size)),
        );
        let with: Vec<String> = (1..size).map(|n| format!("c{n} AS (SELECT * FROM c{})", n - 1)).collect();
        add(
            &mut statements,
            &format!("{size} CTEs"),
            format!("WITH c0 AS (SELECT 1), {} SELECT * FROM c{}", with.join(","), size - 1),
        );
        let joins: Vec<String> = (1..size.min(1_000)).map(|n| format!("(SELECT 1) t{n}")).collect();
        add(&mut statements, &format!("{size} joins"), format!("SELECT count(*) FROM {}", joins.join(",")));
        add(&mut statements, &format!("{size} statements"), "SELECT 1;".repeat(size));
    }
    for sql in [
        "SELECT count(*) FROM unified_series a, unified_series b, unified_series c",
        "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b, generate_series(1, 100000) c",
        "SELECT sum(a.value * b.value) FROM generate_series(1, 100000) a, generate_series(1, 1000000) b",
        "SELECT * FROM generate_series(1, 2000000000)",
        "SELECT generate_series(1, 2000000000)",
        "SELECT range(0, 2000000000)",
        "SELECT array_length(range(0, 500000000))",
        "SELECT length(repeat('x', 500000000))",
        "SELECT repeat('x', 2147483647)",
        "SELECT repeat(repeat(repeat('x', 10000), 10000), 100)",
        "SELECT lpad('x', 2000000000, 'y')",
        "SELECT rpad('x', 2000000000, 'y')",
        "SELECT array_repeat(1, 1000000000)",
        "SELECT array_repeat(array_repeat(1, 100000), 100000)",
        "SELECT replace(repeat('x', 100000), 'x', repeat('y', 100000))",
        "SELECT regexp_replace(repeat('x', 100000), 'x', repeat('y', 100000), 'g')",
        "SELECT string_agg(repeat('x', 100000), ',') FROM generate_series(1, 100000)",
        "SELECT array_agg(repeat('x', 1000)) FROM generate_series(1, 10000000)",
        "SELECT array_agg(a.value) FROM generate_series(1, 100000) a, generate_series(1, 10000) b",
        "SELECT count(DISTINCT a.value * 100000 + b.value) FROM generate_series(1, 100000) a, generate_series(1, 1000) b",
        "SELECT a.value FROM generate_series(1, 100000) a, generate_series(1, 1000) b ORDER BY random()",
        "SELECT a.value, row_number() OVER (ORDER BY b.value) FROM generate_series(1, 100000) a, generate_series(1, 1000) b",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "WITH RECURSIVE t(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM t) SELECT length(s) FROM t",
        "SELECT 'x' ~ '(a+)+(b+)+(c+)+(d+)+(e+)+$'",
        "SELECT regexp_like(repeat('a', 30000), '(a{1,1000}){1,1000}')",
        "SELECT power(10, 400), 1/0, 1.0/0, sqrt(-1)",
        "SELECT CAST('9999999999999' AS timestamp), to_timestamp(9223372036854775807)",
        "SELECT date_bin(interval '0 seconds', now())",
        "SELECT interval '999999999999999 years'",
        "CREATE TABLE t AS SELECT 1",
        "DROP TABLE readings",
        "INSERT INTO readings SELECT * FROM readings",
        "COPY (SELECT 1) TO '/tmp/wye-must-not-exist.csv'",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        "SET datafusion.execution.batch_size = 1",
        "SET datafusion.runtime.memory_limit = '1K'",
        "RESET datafusion.execution.batch_size",
        "PREPARE p AS SELECT 1",
        "EXPLAIN ANALYZE SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b",
        "EXPLAIN ANALYZE INSERT INTO readings SELECT * FROM readings",
        "SELECT",
        "",
        ";",
        "SELECT * FROM \"",
        "SELECT '",
        "/*",
        "--",
        "SELECT $1",
        "SELECT \u{0}",
        "SELECT * FROM information_schema.tables, information_schema.columns, information_schema.columns x",
    ] {
        add(&mut statements, sql.get(..80).unwrap_or(sql), sql.to_owned());
    }
    add(&mut statements, "a million letters", format!("SELECT {}", "x".repeat(1_000_000)));
    add(&mut statements, "a text of ten million letters", format!("SELECT '{}'", "x".repeat(10_000_000)));
    statements
}

fn add(statements: &mut Vec<(String, String)>, what: &str, sql: String) {
    statements.push((what.to_owned(), sql));
}

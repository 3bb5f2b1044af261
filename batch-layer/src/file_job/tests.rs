//! Whole jobs over small files.

use arrow::util::pretty::pretty_format_batches;
use tempfile::TempDir;

use wye_domain::ErrorKind;

use super::input::Header;
use super::output::Existing;
use super::report::{Rule, RuleReport};
use super::*;

const CSV: CsvOptions = CsvOptions { delimiter: None, header: Header::Present };

/// A folder with files, and a job over them.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn job(&self, inputs: &[&str], recipe: &str, sql: &str) -> FileJob {
        let inputs: Vec<Input> =
            inputs.iter().map(|name| Input::parse(self.path(name).to_str().unwrap()).unwrap()).collect();
        let recipes = if recipe.is_empty() {
            Vec::new()
        } else {
            vec![(inputs[0].name.clone(), Recipe::parse(recipe, "recipe.toml").unwrap())]
        };
        FileJob {
            inputs,
            csv: CSV,
            recipes,
            sql: sql.to_owned(),
            memory: LEAST_MEMORY,
            threads: 2,
            temp_dir: self.folder.path().to_owned(),
            on_read: None,
            on_query: None,
        }
    }

    async fn run(&self, job: FileJob) -> Result<(JobReport, String), FileJobError> {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1_000);
        let report = run(job, Destination::Channel(sender), CancellationToken::new()).await?;
        let mut batches = Vec::new();
        while let Some(batch) = receiver.recv().await {
            batches.push(batch);
        }
        let left = std::fs::read_dir(self.folder.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("wye-job")), "{left:?}");
        let table = pretty_format_batches(&batches).unwrap().to_string();
        let rows = table.lines().filter(|line| line.starts_with('|'));
        let cells = rows.map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            cells.join(",")
        });
        Ok((report, cells.collect::<Vec<_>>().join("\n")))
    }

    async fn rows(&self, inputs: &[&str], recipe: &str, sql: &str) -> String {
        self.run(self.job(inputs, recipe, sql)).await.unwrap().1
    }

    async fn error(&self, inputs: &[&str], recipe: &str, sql: &str) -> FileJobError {
        self.run(self.job(inputs, recipe, sql)).await.expect_err(sql)
    }
}

fn rule<'a>(report: &'a JobReport, column: &str, rule: Rule) -> &'a RuleReport {
    let rules = report.inputs.iter().flat_map(|input| &input.rules);
    rules.into_iter().find(|found| found.column == column && found.rule == rule).unwrap()
}

#[tokio::test]
async fn types_of_csv_columns_are_those_that_all_values_have() {
    // The last row is beyond the sample: `late` is then a float, and `word` a text.
    let mut text = "n,f,code,day,at,yes,late,word,none\n".to_owned();
    for row in 0..10_000 {
        text += &format!("{row},{row}.5,00{row},2026-01-31,2026-01-31 12:00:00,true,{row},{row},\n");
    }
    text += "7,8,9,2026-02-01,2026-01-31T12:00:01.5Z,false,0.5,x,\n";
    let bench = Bench::new(&[("t.csv", &text)]);
    let job = bench.job(&["t.csv"], "", "SELECT count(*) AS n, sum(late) AS s, max(at) AS m FROM t");
    let (report, rows) = bench.run(job).await.unwrap();
    let types: Vec<&str> = report.inputs[0].columns.iter().map(|column| column.type_name.as_str()).collect();
    let expected = ["integer", "float", "text", "date", "timestamp", "boolean", "float", "text", "integer"];
    assert_eq!(types, expected);
    assert_eq!(rows, "n,s,m\n10001,49995000.5,2026-01-31T12:00:01.500");
    assert_eq!(report.inputs[0].rows_read, 10_001);
}

#[tokio::test]
async fn every_rule_is_applied_in_order_and_counted() {
    let text = "id,temp,day,note\n\
                1, 20.5 ,31/01/2026,  a \n\
                2,NA,01/02/2026,b\n\
                3,-99,02/02/2026,\n\
                4,high,03/02/2026,c\n\
                5,70,04/02/2026,d\n\
                6,-50,05/02/2026,e\n\
                ,1,06/02/2026,f\n\
                1,21,31/01/2026,g\n";
    let recipe = "trim = true\nmissing = [\"\", \"NA\", -99]\n\
                  [columns.id]\ntype = \"integer\"\nrequired = \"drop\"\n\
                  [columns.temp]\ntype = \"float\"\nrename = \"temperature\"\ninvalid = \"null\"\n\
                  min = -40\nbelow = \"null\"\nmax = 60\nabove = \"drop\"\n\
                  [columns.day]\ntype = \"date\"\nformat = \"%d/%m/%Y\"\n\
                  [dedupe]\nby = [\"id\", \"day\"]\nkeep = \"last\"\n";
    let bench = Bench::new(&[("t.csv", text)]);
    let (report, rows) =
        bench.run(bench.job(&["t.csv"], recipe, "SELECT id, temperature, day, note FROM t")).await.unwrap();
    assert_eq!(
        rows,
        "id,temperature,day,note\n2,,2026-02-01,b\n3,,2026-02-02,\n4,,2026-02-03,c\n6,,2026-02-05,e\n\
         1,21.0,2026-01-31,g"
    );
    let input = &report.inputs[0];
    assert_eq!((input.rows_read, input.rows_dropped), (8, 3));
    let examples = |column, kind| -> Vec<(u64, Option<String>)> {
        let found = rule(&report, column, kind);
        assert_eq!(found.values as usize, found.examples.len(), "{found:?}");
        found.examples.iter().map(|example| (example.row, example.value.clone())).collect()
    };
    let text = |row, value: &str| (row, Some(value.to_owned()));
    assert_eq!(examples("temp", Rule::Trimmed), [text(1, " 20.5 ")]);
    assert_eq!(examples("note", Rule::Trimmed), [text(1, "  a ")]);
    assert_eq!(examples("temp", Rule::Missing), [text(2, "NA"), text(3, "-99")]);
    assert_eq!(examples("note", Rule::Missing), [text(3, "")]);
    assert_eq!(examples("temp", Rule::Invalid), [text(4, "high")]);
    assert_eq!(examples("temp", Rule::Above), [text(5, "70")]);
    assert_eq!(examples("temp", Rule::Below), [text(6, "-50")]);
    assert_eq!(examples("id", Rule::Required), [(7, None)]);
    assert_eq!(examples("id, day", Rule::Duplicate), [text(1, "1, 2026-01-31")]);
}

#[tokio::test]
async fn a_rule_that_says_fail_ends_the_job_with_a_report() {
    let bench = Bench::new(&[("t.csv", "x\n1\nhigh\n3\nlow\n")]);
    let job = bench.job(&["t.csv"], "[columns.x]\ntype = \"float\"\nmax = 2\n", "SELECT * FROM t");
    let (sender, mut receiver) = tokio::sync::mpsc::channel(10);
    let report = run(job, Destination::Channel(sender), CancellationToken::new()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Rejected);
    assert!(receiver.recv().await.is_none());
    assert_eq!(rule(&report, "x", Rule::Invalid).values, 2);
    assert_eq!(report.failures.len(), 2, "{:?}", report.failures);
    assert!(report.failures[0].contains("\"high\" in row 2, \"low\" in row 4"), "{:?}", report.failures);
}

#[tokio::test]
async fn repeated_rows_are_removed_in_the_order_of_the_files() {
    let bench = Bench::new(&[]);
    std::fs::create_dir(bench.path("t")).unwrap();
    std::fs::write(bench.path("t/b.csv"), "v,k\n5,a\n6,\n7,c\n").unwrap();
    std::fs::write(bench.path("t/a.csv"), "k,v\na,1\nb,2\n,3\na,4\n").unwrap();
    let sql = "SELECT k, v FROM t";
    let first = bench.rows(&["t"], "[dedupe]\nby = [\"k\"]", sql).await;
    assert_eq!(first, "k,v\na,1\nb,2\n,3\n,6\nc,7");
    let last = bench.rows(&["t"], "[dedupe]\nby = [\"k\"]\nkeep = \"last\"", sql).await;
    assert_eq!(last, "k,v\nb,2\n,3\na,5\n,6\nc,7");
}

#[tokio::test]
async fn json_and_parquet_are_read_and_written() {
    let lines = "{\"a\": 1, \"b\": \"x\"}\n{\"a\": 2.5, \"b\": null, \"c\": [1, 2]}\n";
    let bench = Bench::new(&[("t.jsonl", lines)]);
    let sql = "SELECT a, b, c FROM input ORDER BY a";
    let expected = "a,b,c\n1.0,x,\n2.5,,[1, 2]";
    for (input, output) in [("t.jsonl", "u.json"), ("u.json", "v.parquet"), ("v.parquet", "w.ndjson")] {
        let destination = Destination::File { path: bench.path(output), existing: Existing::Refuse };
        run(bench.job(&[input], "", sql), destination, CancellationToken::new()).await.unwrap();
        assert_eq!(bench.rows(&[output], "", sql).await, expected, "{output}");
    }
    // Rules work on types of the file too.
    let recipe = "missing = [1]\n[columns.a]\nmax = 2\nabove = \"null\"\n[columns.b]\nrename = \"B\"";
    assert_eq!(bench.rows(&["v.parquet"], recipe, "SELECT a, B FROM v").await, "a,B\n,x\n,");
}

#[tokio::test]
async fn a_float_is_no_integer_where_it_would_be_cut() {
    let bench = Bench::new(&[("t.jsonl", "{\"a\": 1.0}\n{\"a\": 2.5}\n")]);
    let recipe = "[columns.a]\ntype = \"integer\"\ninvalid = \"null\"";
    assert_eq!(bench.rows(&["t.jsonl"], recipe, "SELECT a FROM t").await, "a\n1\n");
}

#[tokio::test]
async fn a_query_that_only_filters_keeps_the_order_and_others_have_short_names() {
    let mut text = "n\n".to_owned();
    for row in 0..300_000 {
        text += &format!("{row}\n");
    }
    let bench = Bench::new(&[("t.csv", &text)]);
    let rows = bench.rows(&["t.csv"], "", "SELECT n FROM t WHERE n % 50000 = 49999").await;
    assert_eq!(rows, "n\n49999\n99999\n149999\n199999\n249999\n299999");
    assert_eq!(
        bench.rows(&["t.csv"], "", "SELECT max(n), t.n % 2 FROM t GROUP BY 2 ORDER BY 1 LIMIT 1").await,
        "max(n),n % Int64(2)\n299998,0"
    );
}

#[tokio::test]
async fn a_file_that_exists_is_replaced_only_on_request() {
    let bench = Bench::new(&[("t.csv", "a\n1\n"), ("out.csv", "old")]);
    for (existing, sql, expected) in [
        (Existing::Refuse, "SELECT a FROM t", "old"),
        (Existing::Replace, "SELECT 1 / (a - 1) FROM t", "old"),
        (Existing::Replace, "SELECT a AS b FROM t", "b\n1\n"),
    ] {
        let destination = Destination::File { path: bench.path("out.csv"), existing };
        let done = run(bench.job(&["t.csv"], "", sql), destination, CancellationToken::new()).await;
        assert_eq!(done.is_err(), expected == "old", "{done:?}");
        assert_eq!(std::fs::read_to_string(bench.path("out.csv")).unwrap(), expected);
        assert_eq!(std::fs::read_dir(bench.folder.path()).unwrap().count(), 2);
    }
}

#[tokio::test]
async fn a_mistake_is_answered_with_what_to_do() {
    let bench = Bench::new(&[
        ("t.csv", "\u{feff}Temp,b\n1,2\n"),
        ("semicolon.csv", "a;b\n1;2\n"),
        ("twice.csv", "a,a\n1,2\n"),
        ("uneven.csv", "a,b\n1,2\n3\n"),
        ("open.csv", "a,b\n1,\"x\n2,y\n"),
        ("empty.csv", ""),
        ("broken.jsonl", "{\"a\": 1}\n{\"a\": \n"),
        ("x.parquet", "no parquet"),
        ("text.txt", "a\n"),
        ("text.csv", "a\nNA\n"),
    ]);
    std::fs::write(bench.path("latin.csv"), b"a\ncaf\xe9\n").unwrap();
    for (input, recipe, sql, kind, words) in [
        ("t.csv", "", "SELECT temp FROM t", ErrorKind::Invalid, &["Temp"][..]),
        ("t.csv", "", "SELECT \"Temp\" FROM 't.csv'", ErrorKind::Invalid, &["--input"]),
        ("t.csv", "", "SELECT * FROM u", ErrorKind::Invalid, &["no table u", "t, input", "--input"]),
        (
            "t.csv",
            "[columns.temp]\nrequired = \"drop\"",
            "SELECT 1",
            ErrorKind::Invalid,
            &["recipe.toml", "\"Temp\""],
        ),
        (
            "t.csv",
            "[columns.b]\nrename = \"Temp\"",
            "SELECT 1",
            ErrorKind::Invalid,
            &["recipe.toml", "columns.b"],
        ),
        ("t.csv", "[columns.b]\nmin = 1", "SELECT 1", ErrorKind::Invalid, &["columns.b", "type"]),
        (
            "t.csv",
            "[columns.b]\ntype = \"date\"\nmin = 1",
            "SELECT 1",
            ErrorKind::Invalid,
            &["columns.b", "date"],
        ),
        (
            "t.csv",
            "[columns.b]\ntype = \"float\"\nmin = 2\nmax = 1",
            "SELECT 1",
            ErrorKind::Invalid,
            &["above"],
        ),
        ("t.csv", "[dedupe]\nby = [\"c\"]", "SELECT 1", ErrorKind::Invalid, &["dedupe", "\"c\"", "Temp, b"]),
        ("t.csv", "", "SELECT 1 / (b - 2) FROM t", ErrorKind::Corrupt, &["divide by zero"]),
        ("semicolon.csv", "", "SELECT 1", ErrorKind::Invalid, &["--delimiter \";\""]),
        ("twice.csv", "", "SELECT 1", ErrorKind::Corrupt, &["twice.csv", "two columns \"a\""]),
        ("uneven.csv", "", "SELECT 1", ErrorKind::Corrupt, &["uneven.csv", "line 3"]),
        ("empty.csv", "", "SELECT 1", ErrorKind::Corrupt, &["empty.csv", "empty"]),
        ("open.csv", "", "SELECT 1", ErrorKind::Corrupt, &["open.csv", "quote"]),
        ("t.csv", "", "SELECT b AS c, \"Temp\" AS c FROM t", ErrorKind::Invalid, &["same name", "AS"]),
        ("text.csv", "", "SELECT avg(a) FROM text", ErrorKind::Invalid, &["avg", "text", "recipe"]),
        ("latin.csv", "", "SELECT 1", ErrorKind::Corrupt, &["latin.csv", "to UTF-8"]),
        ("broken.jsonl", "", "SELECT 1", ErrorKind::Corrupt, &["broken.jsonl", "line 3"]),
        ("x.parquet", "", "SELECT 1", ErrorKind::Corrupt, &["x.parquet"]),
        ("text.txt", "", "SELECT 1", ErrorKind::Invalid, &["text.txt", ".csv"]),
        ("none.csv", "", "SELECT 1", ErrorKind::Invalid, &["none.csv", "No such file"]),
    ] {
        let error = bench.error(&[input], recipe, sql).await;
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{input}: {message}");
        assert_eq!(error.kind(), kind, "{message}");
    }
}

#[tokio::test]
async fn the_query_spills_to_disk_where_memory_is_short() {
    let mut text = "k,v\n".to_owned();
    for row in 0..400_000_u64 {
        let key = row.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        text += &format!("{key:016x}-{key:016x}-{key:016x}-{key:016x}-{key:016x}-{key:016x},{row}\n");
    }
    let bench = Bench::new(&[("t.csv", &text)]);
    for memory in [LEAST_MEMORY, 2 * LEAST_MEMORY] {
        let sql =
            "SELECT sum(n) AS s, count(*) AS c FROM (SELECT row_number() OVER (ORDER BY k) AS n FROM t)";
        let job = bench.job(&["t.csv"], "[dedupe]\nby = [\"k\"]", sql);
        let (_, rows) = bench.run(FileJob { memory, ..job }).await.unwrap();
        assert_eq!(rows, "s,c\n80000200000,400000");
    }
}

#[tokio::test]
async fn a_format_is_for_numbers_too() {
    let json = "{\"t\":1767225600,\"d\":20260131}\n{\"t\":60,\"d\":20261331}\n";
    let recipe = "[columns.t]\ntype = \"timestamp\"\nformat = \"%s\"\n[columns.d]\ntype = \"date\"\nformat = \"%Y%m%d\"\ninvalid = \"null\"\n";
    let bench = Bench::new(&[("t.json", json)]);
    let (report, rows) = bench.run(bench.job(&["t.json"], recipe, "SELECT * FROM t")).await.unwrap();
    assert_eq!(report.failures, [] as [String; 0]);
    assert_eq!(rows, "d,t\n2026-01-31,2026-01-01T00:00:00\n,1970-01-01T00:01:00");
    assert_eq!(rule(&report, "d", Rule::Invalid).values, 1);
}

#[tokio::test]
async fn numbers_are_finite_and_keep_their_digits() {
    let text = "x,y,z\n1.5,0.5,\"1,5\"\nnan,9007199254740993,2\ninf,1,3\n1e999,2,4\n-Infinity,3,5\n";
    let bench = Bench::new(&[("t.csv", text)]);
    let recipe = "decimal_comma = true\n[columns.x]\ntype = \"float\"\ninvalid = \"null\"\n";
    let (report, rows) = bench.run(bench.job(&["t.csv"], recipe, "SELECT * FROM t")).await.unwrap();
    assert_eq!(rows, "x,y,z\n1.5,0.5,1.5\n,9007199254740993,2.0\n,1,3.0\n,2,4.0\n,3,5.0");
    assert_eq!(rule(&report, "x", Rule::Invalid).values, 4);
}

#[tokio::test]
async fn columns_of_a_result_have_different_names() {
    let bench = Bench::new(&[("a.csv", "id,n\n1,2\n"), ("b.csv", "id,n\n1,3\n")]);
    let error = bench.error(&["a.csv", "b.csv"], "", "SELECT * FROM a JOIN b ON a.id = b.id").await;
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("several columns named \"id\""), "{error}");
}

#[tokio::test]
async fn an_output_is_not_in_the_folder_of_an_input() {
    let bench = Bench::new(&[]);
    std::fs::create_dir(bench.path("data")).unwrap();
    std::fs::write(bench.path("data/a.csv"), "x\n1\n").unwrap();
    let output = |name: &str| Destination::File { path: bench.path(name), existing: Existing::Replace };
    let job = || bench.job(&["data"], "", "SELECT * FROM data");
    let refused = run(job(), output("data/all.csv"), CancellationToken::new()).await.unwrap_err();
    assert!(refused.to_string().contains("would read it"), "{refused}");
    run(job(), output("all.csv"), CancellationToken::new()).await.unwrap();
    assert_eq!(std::fs::read_to_string(bench.path("all.csv")).unwrap(), "x\n1\n");
}

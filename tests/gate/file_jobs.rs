//! Jobs over files: `wye batch sql` on messy files, compared with what this test computes by itself from what it has written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;
use wye_tests::site::program;

const ROWS: usize = 20_000;
const SEED: u64 = 7;
const RECIPE: &str = r#"
trim = true
missing = ["", "NA", "-", -999]

[columns.id]
type = "integer"
required = "drop"

[columns."Temp (C)"]
rename = "temp"
type = "float"
invalid = "null"
min = -40
below = "null"
max = 60.5
above = "drop"

[columns.day]
type = "date"
format = "%d/%m/%Y"
invalid = "drop"

[dedupe]
by = ["id", "day"]
keep = "last"
"#;
const SQL: &str = "SELECT kind, count(*) AS n, count(temp) AS temps, sum(temp) AS total, min(day) AS first_day, \
                   max(weight) AS heaviest FROM messy JOIN weights USING (kind) GROUP BY kind ORDER BY kind";

/// A folder, in which commands run.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir()? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.path(name), text).with_context(|| format!("write {name}"))
    }

    /// Runs `wye batch sql ARGUMENTS`.
    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(program()?);
        command.args(["batch", "sql"]).args(arguments).current_dir(self.folder.path());
        command.output().context("run wye batch sql")
    }

    /// Runs a command that must succeed.
    fn done(&self, arguments: &[&str]) -> Result<(String, String)> {
        let Output { status, stdout, stderr } = self.run(arguments)?;
        let stderr = String::from_utf8(stderr)?;
        ensure!(status.success(), "{arguments:?}: {status}: {stderr}");
        Ok((String::from_utf8(stdout)?, stderr))
    }

    /// Runs a command that must end with an exit code and a message.
    fn ends_with(&self, code: i32, words: &[&str], arguments: &[&str]) -> Result<()> {
        let Output { status, stderr, .. } = self.run(arguments)?;
        let printed = String::from_utf8_lossy(&stderr);
        ensure!(status.code() == Some(code), "{arguments:?}: {status}, not {code}: {printed}");
        for word in words {
            ensure!(printed.contains(word), "{arguments:?} does not print {word:?} but: {printed}");
        }
        Ok(())
    }
}

/// A row as it is written, and as it is meant.
struct Row {
    cells: [String; 4],
    id: Option<i64>,
    temp: Temp,
    /// Day, month and year; `None` where the text is no date.
    day: Option<(u32, u32, i32)>,
    kind: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Temp {
    Number(f64),
    Missing,
    NotANumber,
}

/// What a rule of a column should have found.
type Counts = BTreeMap<(&'static str, &'static str), u64>;

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[random.random_range(0..from.len())]
}

fn row(random: &mut StdRng) -> Row {
    let id = (random.random_range(0..20) > 0).then(|| random.random_range(0..3_000));
    let (temp, written) = match random.random_range(0..20) {
        0 => (Temp::Missing, pick(random, &["", "NA", "-", "-999", "-999.0"]).to_owned()),
        1 => (Temp::NotANumber, pick(random, &["high", "1,5", "12 C", "--"]).to_owned()),
        2 => (Temp::Number(75.25), "75.25".to_owned()),
        3 => (Temp::Number(-60.0), "-6e1".to_owned()),
        _ => {
            // Quarters, so that sums are exact in any order.
            let value = f64::from(random.random_range(-160..=242)) / 4.0;
            (Temp::Number(value), value.to_string())
        }
    };
    let date = (random.random_range(1..=28), random.random_range(1..=3), 2026);
    let (day, written_day) = match random.random_range(0..50) {
        0 => (None, "31/02/2026".to_owned()),
        1 => (None, "2026-01-31".to_owned()),
        _ => (Some(date), format!("{:02}/{:02}/{}", date.0, date.1, date.2)),
    };
    let kind = pick(random, &["pump", "fan, large", "the \"old\" one", "heizlüfter"]).to_owned();
    let id_text = id.map(|id: i64| id.to_string()).unwrap_or_else(|| pick(random, &["", "NA"]).to_owned());
    let mut cells = [id_text, written, written_day, kind.clone()];
    for cell in &mut cells {
        if random.random_range(0..30) == 0 {
            *cell = format!("{}{cell}{}", pick(random, &[" ", "\t", ""]), pick(random, &["  ", "\u{a0}"]));
        }
    }
    Row { cells, id, temp, day, kind }
}

/// Rows as CSV, every cell in quotes that needs them.
fn csv(rows: &[Row]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["id", "Temp (C)", "day", "kind"])?;
    for row in rows {
        writer.write_record(&row.cells)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// What is expected of the messy rows: the result as CSV, what each rule found, and how many rows are dropped.
fn expected(rows: &[Row]) -> Result<(String, Counts, u64)> {
    let mut counts = Counts::new();
    let mut last: HashMap<(i64, (u32, u32, i32)), usize> = HashMap::new();
    let mut kept: Vec<(usize, Option<f64>)> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, column) in row.cells.iter().zip(["id", "Temp (C)", "day", "kind"]) {
            let is_trimmed = cell.trim_matches([' ', '\t', '\u{a0}']).len() < cell.len();
            *counts.entry((column, "trimmed")).or_default() += u64::from(is_trimmed);
        }
        let mut is_dropped = row.id.is_none() || row.day.is_none();
        *counts.entry(("id", "missing")).or_default() += u64::from(row.id.is_none());
        *counts.entry(("id", "required")).or_default() += u64::from(row.id.is_none());
        *counts.entry(("day", "invalid")).or_default() += u64::from(row.day.is_none());
        let (rule, temp) = match row.temp {
            Temp::Missing => (Some("missing"), None),
            Temp::NotANumber => (Some("invalid"), None),
            Temp::Number(value) if value < -40.0 => (Some("below"), None),
            Temp::Number(value) if value > 60.5 => (Some("above"), Some(value)),
            Temp::Number(value) => (None, Some(value)),
        };
        is_dropped |= rule == Some("above");
        if let Some(rule) = rule {
            *counts.entry(("Temp (C)", rule)).or_default() += 1;
        }
        if let (false, Some(id), Some(day)) = (is_dropped, row.id, row.day) {
            last.insert((id, day), index);
            kept.push((index, temp));
        }
    }
    let all = kept.len();
    let lasts: BTreeSet<usize> = last.into_values().collect();
    kept.retain(|(index, _)| lasts.contains(index));
    counts.insert(("id, day", "duplicate"), (all - kept.len()) as u64);
    let dropped = (rows.len() - kept.len()) as u64;

    let mut kinds: BTreeMap<&str, Vec<(usize, Option<f64>)>> = BTreeMap::new();
    for (index, temp) in kept {
        kinds.entry(&rows[index].kind).or_default().push((index, temp));
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["kind", "n", "temps", "total", "first_day", "heaviest"])?;
    for (kind, of_kind) in &kinds {
        let temps: Vec<f64> = of_kind.iter().filter_map(|(_, temp)| *temp).collect();
        let days = of_kind.iter().filter_map(|(index, _)| rows[*index].day);
        let (day, month, year) =
            days.min_by_key(|(day, month, year)| (*year, *month, *day)).context("a day")?;
        let mut total = temps.iter().sum::<f64>().to_string();
        if !total.contains('.') {
            total += ".0";
        }
        writer.write_record([
            kind,
            of_kind.len().to_string().as_str(),
            temps.len().to_string().as_str(),
            total.as_str(),
            format!("{year}-{month:02}-{day:02}").as_str(),
            kind.len().to_string().as_str(),
        ])?;
    }
    Ok((String::from_utf8(writer.into_inner()?)?, counts, dropped))
}

/// What each rule found, by a report.
fn reported(input: &Value) -> Result<BTreeMap<(String, String), u64>> {
    let rules = input["rules"].as_array().context("no rules")?;
    rules
        .iter()
        .map(|rule| {
            let text = |key: &str| rule[key].as_str().map(str::to_owned).context("no text");
            Ok(((text("column")?, text("rule")?), rule["values"].as_u64().context("no number")?))
        })
        .collect()
}

/// A messy file, its recipe and another table. Returns the rows.
fn prepare(bench: &Bench) -> Result<Vec<Row>> {
    let mut random = StdRng::seed_from_u64(SEED);
    let rows: Vec<Row> = (0..ROWS).map(|_| row(&mut random)).collect();
    bench.write("messy.csv", &csv(&rows)?)?;
    bench.write("recipe.toml", RECIPE)?;
    let mut weights = String::new();
    for kind in rows.iter().map(|row| &row.kind).collect::<BTreeSet<_>>() {
        writeln!(weights, "{}", serde_json::json!({"kind": kind, "weight": kind.len()}))?;
    }
    bench.write("kinds.jsonl", &weights)?;
    Ok(rows)
}

#[test]
fn a_messy_file_is_cleaned_counted_and_queried() -> Result<()> {
    let bench = Bench::new()?;
    let rows = prepare(&bench)?;
    let (result, counts, dropped) = expected(&rows)?;
    let inputs = ["--input", "messy.csv", "--input", "weights=kinds.jsonl", "--clean", "recipe.toml"];
    let with_output =
        |output, more: &[&'static str]| [&inputs[..], &["--sql", SQL, "--output", output], more].concat();
    let (printed, lines) = bench.done(&with_output("result.csv", &["--json"]))?;
    ensure!(lines.is_empty(), "with --json, standard error has: {lines}");
    assert_eq!(std::fs::read_to_string(bench.path("result.csv"))?, result);

    let report: Value = serde_json::from_str(&printed)?;
    assert_eq!(report["outcome"], "done");
    assert_eq!(report["rows"].as_u64(), Some(4));
    let messy = &report["inputs"][0];
    assert_eq!(messy["rows_read"].as_u64(), Some(ROWS as u64));
    assert_eq!(messy["rows_dropped"].as_u64(), Some(dropped));
    let found = reported(messy)?;
    for ((column, rule), values) in &counts {
        let key = ((*column).to_owned(), (*rule).to_owned());
        assert_eq!(found.get(&key), Some(values), "{key:?} of {found:?}");
    }
    let all: u64 = found.values().sum();
    assert_eq!(all, counts.values().sum::<u64>(), "{found:?}");

    // The same in lines, and for other ways to the same rows.
    let (_, lines) = bench.done(&with_output("result.csv", &["--overwrite"]))?;
    ensure!(lines.contains("20,000 rows read from 1 file"), "{lines}");
    ensure!(
        lines.contains("Temp (C)") && lines.contains("made null") && lines.contains("row dropped"),
        "{lines}"
    );
    bench.write("query.sql", SQL)?;
    let (printed, _) =
        bench.done(&[&inputs[..], &["--sql-file", "query.sql", "--memory", "64MiB"]].concat())?;
    assert_eq!(printed, result);
    for output in ["result.parquet", "result.json", "result.jsonl"] {
        bench.done(&with_output(output, &[]))?;
        let (again, lines) = bench.done(&[
            "--input",
            output,
            "--sql",
            "SELECT kind, n, temps, total, \
            first_day, heaviest FROM result",
        ])?;
        assert_eq!((again, lines), (result.clone(), String::new()), "{output}");
    }
    Ok(())
}

#[test]
fn a_mistake_ends_with_its_exit_code_and_without_an_output() -> Result<()> {
    let bench = Bench::new()?;
    bench.write("t.csv", "a,b\n1,x\n2,y\n")?;
    bench.write("fails.toml", "[columns.b]\ntype = \"float\"\n")?;
    bench.write("wrong.toml", "\n[columns.a]\nmaximum = 2\n")?;
    bench.write("out.csv", "old")?;
    let all: [(i32, &[&str], &[&str]); 12] = [
        (2, &["--sql"], &["--input", "t.csv"]),
        (2, &["--output"], &["--input", "t.csv", "--sql", "SELECT 1", "--json"]),
        (2, &["none.csv", "No such file"], &["--input", "none.csv", "--sql", "SELECT 1"]),
        (2, &["no table u", "t, input"], &["--input", "t.csv", "--sql", "SELECT * FROM u"]),
        (2, &["no column \"A\"", "\"a\""], &["--input", "t.csv", "--sql", "SELECT A FROM t"]),
        (2, &["INSERT", "only reads"], &["--input", "t.csv", "--sql", "INSERT INTO t VALUES (1)"]),
        (
            2,
            &["no table fails.toml", "--input"],
            &["--input", "t.csv", "--sql", "SELECT * FROM 'fails.toml'"],
        ),
        (
            2,
            &["wrong.toml, line 3", "maximum"],
            &["--input", "t.csv", "--clean", "wrong.toml", "--sql", "SELECT 1"],
        ),
        (
            2,
            &["recipe for the table u"],
            &["--input", "t.csv", "--clean", "u=fails.toml", "--sql", "SELECT 1"],
        ),
        (
            2,
            &["out.csv exists", "--overwrite"],
            &["--input", "t.csv", "--sql", "SELECT 1", "--output", "out.csv"],
        ),
        (
            1,
            &["\"x\" in row 1", "invalid"],
            &["--input", "t.csv", "--clean", "fails.toml", "--sql", "SELECT 1", "--output", "new.csv"],
        ),
        (
            1,
            &["divide by zero"],
            &["--input", "t.csv", "--sql", "SELECT 1 / (a - 2) FROM t", "--output", "new.csv"],
        ),
    ];
    for (code, words, arguments) in all {
        bench.ends_with(code, words, arguments)?;
    }
    assert_eq!(std::fs::read_to_string(bench.path("out.csv"))?, "old");
    let mut left = names(bench.folder.path())?;
    left.retain(|name| !["t.csv", "fails.toml", "wrong.toml", "out.csv"].contains(&name.as_str()));
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

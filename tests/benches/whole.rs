//! Figures of the whole program on this machine, measured from outside. Run by `make bench`.
//!
//! Everything is measured several times, on a new data directory each time, and printed as the median with the smallest and
//! the largest. DuckDB does the work of a batch run on the same files, in turn with it. No figure is checked, since they
//! vary with the load of the machine.

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_tests::api::Api;
use wye_tests::site::Site;
use wye_tests::{datasets, oracle, wait};

const PATIENCE: Duration = Duration::from_secs(300);
/// How often everything is measured.
const RUNS: usize = 5;
/// How many readings the data set has.
const BEIJING: u64 = 3_796_226;

fn main() -> Result<()> {
    let mut figures = Figures::default();
    for run in 1..=RUNS {
        datasets::say(&format!("run {run} of {RUNS}"));
        idle(&mut figures)?;
        load_and_batch(&mut figures)?;
    }
    figures.print();
    Ok(())
}

/// Figures by name, in the order in which they were first added.
#[derive(Default)]
struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn print(&mut self) {
        println!("{:<72} {:>12} {:>12} {:>12}", "", "median", "smallest", "largest");
        for (name, values) in &mut self.0 {
            values.sort_by(f64::total_cmp);
            let digits = if values[0].abs() < 100.0 { 2 } else { 0 };
            let (middle, last) = (values[values.len() / 2], values[values.len() - 1]);
            println!("{name:<72} {middle:>12.digits$} {:>12.digits$} {last:>12.digits$}", values[0]);
        }
    }
}

/// The memory of `wye up` with nothing to do.
fn idle(figures: &mut Figures) -> Result<()> {
    let site = Site::alone()?;
    let mut server = site.up()?;
    server.ready()?;
    let mut largest: f64 = 0.0;
    for _ in 0..10 {
        std::thread::sleep(Duration::from_secs(1));
        largest = largest.max(resident_mib(server.process.id())?);
    }
    figures.add("`wye up` idle, largest of 10 s, MiB", largest);
    server.stop()
}

fn load_and_batch(figures: &mut Figures) -> Result<()> {
    let Some(files) = datasets::beijing(10)? else {
        println!("../shared/datasets/beijing-multisite is absent: all other figures are skipped");
        return Ok(());
    };
    let mut site = Site::alone()?;
    site.configure("[batch]\ninterval = \"0s\"\n")?;
    let mut server = site.up()?;
    let api = server.ready()?;

    let started = Instant::now();
    site.load_into_log(&datasets::mapping("beijing-multisite"), &files)?.succeed(PATIENCE)?;
    let loaded = started.elapsed().as_secs_f64();
    figures.add("load, process start to end, readings/s", BEIJING as f64 / loaded);
    let visible = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM unified_series";
    wait::until("every reading in unified_series", PATIENCE, || {
        Ok((api.sql(visible)?.value::<u64>()? >= BEIJING).then_some(()))
    })?;
    figures.add("start of the load until all is in unified_series, s", started.elapsed().as_secs_f64());
    figures.add("memory with all of it in realtime views, MiB", resident_mib(server.process.id())?);
    wait::until("every reading archived", PATIENCE, || {
        Ok((api.sql("SELECT count(*) FROM readings")?.value::<u64>()? >= BEIJING).then_some(()))
    })?;
    // The horizon is an epoch start: the last epoch ends within the epoch interval.
    wait::until("a batch run over everything", PATIENCE, || {
        Ok((batch_run(&api, false)?["readings"].as_u64() == Some(BEIJING)).then_some(()))
    })?;
    let readings = site.data_dir().join("tables/readings");
    for _ in 0..3 {
        let report = batch_run(&api, true)?;
        figures.add("batch run over all of it, s", report["duration_ms"].as_f64().unwrap_or_default() / 1e3);
        let rival = duckdb(&readings)?;
        for (variant, name) in [
            ("exact", "  DuckDB on the same files, duplicates out, windows, Parquet, s"),
            ("windows", "  DuckDB, windows only, s"),
        ] {
            figures.add(name, rival[variant].as_f64().unwrap_or_default());
        }
    }
    figures.add("memory after the batch runs, MiB", resident_mib(server.process.id())?);
    figures.add("master dataset, bytes a reading", parquet_bytes(&readings)? as f64 / BEIJING as f64);
    for query in [
        "SELECT count(*), sum(count) FROM unified_series",
        "SELECT metric, avg(sum / count) FROM unified_series GROUP BY metric",
    ] {
        let started = Instant::now();
        api.sql(query)?;
        figures.add(&format!("{query}, s"), started.elapsed().as_secs_f64());
    }
    current(&api, figures)?;
    freshness(&api, figures)?;
    server.stop()
}

/// Does a batch run, and returns its report.
fn batch_run(api: &Api, force: bool) -> Result<Value> {
    let (status, body) = api.post("/v1/batch-runs", &json!({ "force": force }))?;
    ensure!(status == 200, "{body}");
    serde_json::from_str(&body).context("read the report of the batch run")
}

/// The times of DuckDB, in seconds.
fn duckdb(table: &Path) -> Result<Value> {
    let script = datasets::project_root().join("tests/rivals/batch_duckdb.py");
    let output = Command::new(oracle::python()?).arg(script).arg(table).output().context("start DuckDB")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seconds: Value = serde_json::from_slice(&output.stdout).context("read what DuckDB has measured")?;
    ensure!(seconds["rows"].as_u64().is_some_and(|rows| rows > 0), "DuckDB found no windows");
    Ok(seconds)
}

/// Requests `current` of one series 2,000 times a second for 10 s. The latency of a request begins when it was due.
fn current(api: &Api, figures: &mut Figures) -> Result<()> {
    const RATE: f64 = 2_000.0;
    const CONNECTIONS: usize = 8;
    const REQUESTS: usize = 2_500;
    let address = api.url().trim_start_matches("http://").to_owned();
    let start = Instant::now() + Duration::from_millis(200);
    let mut latencies: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let address = &address;
                scope.spawn(move || -> Result<Vec<f64>> {
                    let mut stream = TcpStream::connect(address)?;
                    stream.set_nodelay(true)?;
                    let mut reader = BufReader::new(stream.try_clone()?);
                    let request = format!(
                        "GET /v1/metrics/PM2.5/current?device_id=Gucheng HTTP/1.1\r\nHost: {address}\r\n\r\n"
                    );
                    let mut latencies = Vec::with_capacity(REQUESTS);
                    for i in 0..REQUESTS {
                        let due =
                            start + Duration::from_secs_f64((i * CONNECTIONS + connection) as f64 / RATE);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        stream.write_all(request.as_bytes())?;
                        read_response(&mut reader)?;
                        latencies.push(due.elapsed().as_secs_f64() * 1e3);
                    }
                    Ok(latencies)
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a client thread has panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    let rate = latencies.len() as f64 / start.elapsed().as_secs_f64();
    figures.add("current of one series, requests/s (2,000 due)", rate);
    let (p50, p99) = percentiles(&mut latencies);
    figures.add("  p50, ms", p50);
    figures.add("  p99, ms", p99);
    Ok(())
}

fn read_response(reader: &mut BufReader<TcpStream>) -> Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "{line}");
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(())
}

/// The time from the acknowledgement of a reading until `current` has its value, 200 times.
fn freshness(api: &Api, figures: &mut Figures) -> Result<()> {
    let mut delays = Vec::new();
    for i in 0..200 {
        let event_time =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as u64;
        let reading = json!({"device_id": "probe", "metric": "freshness", "value": i, "event_time": event_time, "sequence": i});
        let (status, body) = api.post("/v1/readings", &reading)?;
        ensure!(status == 200, "{body}");
        let acknowledged = Instant::now();
        loop {
            let (status, body) = api.get("/v1/metrics/freshness/current?device_id=probe&agg=last")?;
            if status == 200 && body.contains(&format!("\"last\":{i}")) {
                break;
            }
            ensure!(acknowledged.elapsed() < Duration::from_secs(10), "not visible: {body}");
        }
        delays.push(acknowledged.elapsed().as_secs_f64() * 1e3);
    }
    let (p50, p99) = percentiles(&mut delays);
    figures.add("freshness, acknowledged to visible in current, 200 readings, p50, ms", p50);
    figures.add("freshness, p99, ms", p99);
    Ok(())
}

fn percentiles(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let [p50, p99] = [0.5, 0.99].map(|share| values[((values.len() - 1) as f64 * share) as usize]);
    (p50, p99)
}

fn resident_mib(process: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kib / 1024.0)
}

fn parquet_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += parquet_bytes(&entry.path())?;
        } else if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

//! The figures of the whole program on this machine, measured from outside. Run on demand, by `make bench`.
//!
//! Each line names what was measured, how often, and the figure. Nothing is asserted: machines are noisy.

#![expect(clippy::print_stdout, reason = "a benchmark reports on its terminal")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_tests::api::Api;
use wye_tests::site::Site;
use wye_tests::{datasets, wait};

const PATIENCE: Duration = Duration::from_secs(300);

fn main() -> Result<()> {
    idle()?;
    load_and_batch()
}

/// The memory of `wye up` with nothing to do.
fn idle() -> Result<()> {
    let site = Site::new()?;
    let mut server = site.up()?;
    server.ready()?;
    let mut largest = 0;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_secs(1));
        largest = largest.max(resident_kib(server.process.id())?);
    }
    println!("idle memory of `wye up`, largest of 20 s: {:.0} MiB", f64::from(largest) / 1024.0);
    server.stop()
}

fn load_and_batch() -> Result<()> {
    let Some(files) = datasets::beijing(10) else {
        println!("no ../shared/datasets/beijing-multisite here: the rest is skipped");
        return Ok(());
    };
    let mut site = Site::new()?;
    site.configure("[batch]\ninterval = \"0s\"\n")?;
    let mut server = site.up()?;
    let api = server.ready()?;

    let started = Instant::now();
    let summary = site.load(&datasets::mapping("beijing-multisite"), &files)?.succeed(PATIENCE)?;
    let loaded = started.elapsed().as_secs_f64();
    println!("{}", summary.trim_end());
    let count = wait::until("every reading in unified_series", PATIENCE, || {
        let served: u64 =
            api.sql("SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM unified_series")?.value()?;
        Ok((served >= 3_796_226).then_some(served))
    })?;
    println!(
        "load, process start to end: {:.0} readings/s; all visible after {:.1} s",
        count as f64 / loaded,
        started.elapsed().as_secs_f64()
    );
    println!(
        "memory with all of it in realtime views: {:.0} MiB",
        f64::from(resident_kib(server.process.id())?) / 1024.0
    );
    wait::until("every reading archived", PATIENCE, || {
        Ok((api.sql("SELECT count(*) FROM readings")?.value::<u64>()? >= count).then_some(()))
    })?;
    // The horizon is an epoch start: the last epoch ends within the epoch interval.
    let mut durations = Vec::new();
    wait::until("a batch run over everything", PATIENCE, || {
        let (status, body) = api.post("/v1/batch-runs", &json!({}))?;
        ensure!(status == 200, "{body}");
        let report: Value = serde_json::from_str(&body)?;
        let fresh = report["outcome"] == "committed";
        if fresh {
            durations.push(report["duration_ms"].as_f64().unwrap_or_default());
            println!("batch run: {body}");
        }
        Ok((report["readings"].as_u64() == Some(count)).then_some(()))
    })?;
    let bytes = parquet_bytes(&site.data_dir().join("tables/readings"))?;
    println!("master dataset: {:.2} bytes a reading", bytes as f64 / count as f64);
    for query in [
        "SELECT count(*), sum(count) FROM unified_series",
        "SELECT metric, avg(sum / count) FROM unified_series GROUP BY metric",
    ] {
        let started = Instant::now();
        api.sql(query)?;
        println!("{query}: {:.2} s", started.elapsed().as_secs_f64());
    }
    current(&api)?;
    freshness(&api)?;
    server.stop()
}

/// `current` of one series at 2,000 requests a second for 10 s: latency from the time at which each request was due.
fn current(api: &Api) -> Result<()> {
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
    let seconds = start.elapsed().as_secs_f64();
    let (p50, p99) = percentiles(&mut latencies);
    println!(
        "current of one series, {:.0} requests/s for {seconds:.0} s: p50 {p50:.2} ms, p99 {p99:.2} ms",
        latencies.len() as f64 / seconds
    );
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

/// From the acknowledgement of a reading to its value in `current`, 200 times.
fn freshness(api: &Api) -> Result<()> {
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
    println!("freshness, acknowledged to visible in current, 200 readings: p50 {p50:.0} ms, p99 {p99:.0} ms");
    Ok(())
}

fn percentiles(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
    (at(0.5), at(0.99))
}

fn resident_kib(process: u32) -> Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    line.split_whitespace().nth(1).context("no figure")?.parse().context("VmRSS is a number")
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

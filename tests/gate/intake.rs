//! Clients of the real program: loads that are killed and started again, bytes that should crash it, and connections that
//! should block it, while `current` is requested.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wye_domain::place::KafkaPartition;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::READINGS;
use wye_tests::api::Api;
use wye_tests::datasets::say;
use wye_tests::site::Site;
use wye_tests::wait;

const WITHIN: Duration = Duration::from_secs(120);
/// The longest time that `current` may take during an attack.
const CURRENT_WITHIN: Duration = Duration::from_secs(5);

/// Some megabytes of readings of four devices, and the mapping for them.
fn generated(site: &Site, rows: usize) -> Result<(PathBuf, PathBuf)> {
    let (file, mapping) = (site.directory().join("generated.csv"), site.directory().join("generated.toml"));
    let mut text = String::from("device,time,a,b,c,d\n");
    for row in 0..rows {
        let (device, time) = (row % 4, 1_767_225_600 + (row / 4) * 10);
        text.push_str(&format!("d{device},{time},{row}.5,{},{},NA\n", row % 97, row % 89));
    }
    std::fs::write(&file, text)?;
    let metrics: Vec<String> =
        ["a", "b", "c", "d"].iter().map(|name| format!("[[metric]]\ncolumn = \"{name}\"\n")).collect();
    std::fs::write(
        &mapping,
        format!(
            "missing = [\"NA\"]\n[device]\ncolumn = \"device\"\n[time]\ncolumns = [\"time\"]\n\
             format = \"unix_seconds\"\n{}",
            metrics.concat()
        ),
    )?;
    Ok((file, mapping))
}

fn counted(api: &Api, of: &str) -> Result<u64> {
    api.sql(&format!("SELECT CAST(coalesce(sum(\"count\"), 0) AS BIGINT) FROM {of}"))?.value()
}

#[test]
fn a_load_that_is_killed_and_started_again_resumes() -> Result<()> {
    const ROWS: usize = 400_000;
    let site = Site::new()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let (file, mapping) = generated(&site, ROWS)?;
    for attempt in 0..6 {
        let mut load = site.load(&mapping, std::slice::from_ref(&file))?;
        load.ended_within(Duration::from_millis(20 + 60 * attempt))?;
        load.kill()?;
    }
    let started = Instant::now();
    site.load(&mapping, std::slice::from_ref(&file))?.succeed(WITHIN)?;
    say(&format!("the load after six kills took {:.1} s", started.elapsed().as_secs_f64()));
    let expected = ROWS as u64 * 3;
    wait::until("every reading once", WITHIN, || {
        let seen = counted(&api, "unified_series")?;
        ensure!(seen <= expected, "{seen} of {expected}");
        Ok((seen == expected).then_some(()))
    })?;
    wait::until("every reading once in the master dataset", WITHIN, || {
        let seen = api.sql("SELECT count(*) FROM readings")?.value::<u64>()?;
        ensure!(seen <= expected, "{seen} of {expected}: the log has duplicates");
        Ok((seen == expected).then_some(()))
    })?;
    server.stop()
}

#[test]
fn deeply_nested_and_damaged_bytes_stop_nothing_over_http_or_in_the_log() -> Result<()> {
    let site = Site::new()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let hostile = hostile_bodies();
    for body in &hostile {
        let (status, _) = send(api.url(), "POST /v1/readings", body)?;
        ensure!(status == 400, "{status} for {:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
    }
    let bootstrap = std::fs::read_to_string(site.data_dir().join("kafka.addr"))?;
    produce(bootstrap.trim(), &hostile)?;
    let (status, answer) = api.post("/v1/readings", &reading())?;
    ensure!(status == 200, "{answer}");
    let letters = 2 * hostile.len() as u64;
    wait_for_letters(&api, letters)?;
    server.stop()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    wait_for_letters(&api, letters)?;
    wait::until("the good reading", WITHIN, || Ok((counted(&api, "unified_series")? == 1).then_some(())))?;
    server.stop()
}

fn reading() -> Value {
    json!({"device_id": "pump", "metric": "pressure", "value": 1, "event_time": "2026-01-01T00:00:00Z"})
}

/// Arrays in arrays.
fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// A reading with another field.
fn with(field: &str) -> String {
    format!("{},{field}}}", reading().to_string().trim_end_matches('}'))
}

fn hostile_bodies() -> Vec<Vec<u8>> {
    [
        "[".repeat(20_000),
        deep(100_000),
        "{\"a\":".repeat(100_000),
        with(&format!("\"tags\":{}1{}", "{\"a\":".repeat(20_000), "}".repeat(20_000))),
        with(&format!("\"unknown\":{}", deep(100_000))),
        with(&format!("\"unit\":\"{}\"", "x".repeat(100_000))),
        "WYE\u{1}WYE\u{1}".to_owned(),
        "\u{0}".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

fn produce(bootstrap_servers: &str, payloads: &[Vec<u8>]) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let producer = Producer::new(&Log::new(LogConfig::new(bootstrap_servers, 4))?, Duration::ZERO)?;
        for payload in payloads {
            let message = Outgoing {
                topic: READINGS,
                kafka_partition: KafkaPartition(1),
                key: Some(b"x"),
                payload,
                headers: &[],
            };
            producer.send(message).await?;
        }
        Ok(())
    })
}

fn wait_for_letters(api: &Api, expected: u64) -> Result<()> {
    wait::until("a dead letter for each of them", WITHIN, || {
        let seen = api.sql("SELECT count(*) FROM dead_letters")?.value::<u64>()?;
        ensure!(seen <= expected, "{seen} dead letters instead of {expected}");
        Ok((seen == expected).then_some(()))
    })
}

/// Sends one request on a new connection. Returns the status and the answer.
fn send(url: &str, line: &str, body: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).context("connect")?;
    stream.set_read_timeout(Some(WITHIN))?;
    let head =
        format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, answer))
}

#[test]
fn current_is_answered_during_hostile_connections() -> Result<()> {
    let mut site = Site::alone()?;
    site.configure("[http]\nmax_connections = 300\nidle_timeout = \"3s\"\nstall_timeout = \"3s\"\n")?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let (status, answer) = api.post("/v1/readings", &reading())?;
    ensure!(status == 200, "{answer}");
    let current = "GET /v1/metrics/pressure/current";
    wait::until("the metric", WITHIN, || Ok((send(api.url(), current, b"")?.0 == 200).then_some(())))?;
    let address = api.url().trim_start_matches("http://");
    let (mut hostile, mut times) = (Vec::new(), Vec::new());
    for number in 0..1_030 {
        let mut stream = TcpStream::connect(address)?;
        let sent: &[u8] = match number % 8 {
            0..4 => b"",
            4..7 => b"GET /v1/metrics HTTP/1.1\r\nx-slow: a",
            _ => b"POST /v1/readings HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n[",
        };
        // This fails where the server has closed the connection to make room for others.
        let _ = stream.write_all(sent);
        hostile.push(stream);
        if number % 10 == 0 {
            let started = Instant::now();
            let (status, answer) = send(api.url(), current, b"")?;
            ensure!(status == 200, "with {number} other connections: {answer}");
            times.push(started.elapsed());
        }
    }
    times.sort();
    let (p99, worst) = (times[times.len() * 99 / 100], times[times.len() - 1]);
    say(&format!("`current` with 1,030 hostile connections: p99 {p99:?}, worst {worst:?}"));
    ensure!(worst < CURRENT_WITHIN, "{worst:?}");
    for mut stream in hostile {
        stream.set_read_timeout(Some(WITHIN))?;
        // The server closes each, with or without an answer.
        let ended = stream.read_to_end(&mut Vec::new());
        ensure!(
            ended.is_ok() || ended.is_err_and(|it| it.kind() != std::io::ErrorKind::WouldBlock),
            "still open"
        );
    }
    server.stop()
}

//! Attacks on the real program from outside, on all ports: hostile bytes, hostile statements, hostile connections. It must
//! not stop, must keep its memory bounded, and must answer an ordinary user at the same time. The user's results are printed.
//!
//! All input follows from a seed, which is printed; `WYE_TEST_SEED` repeats it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::runtime::Runtime;
use wye_log::client::{Log, LogConfig};
use wye_log::partitioner::partition_of;
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::{MAX_PAYLOAD_BYTES, READINGS};
use wye_tests::api::Api;
use wye_tests::beside::Beside;
use wye_tests::datasets::say;
use wye_tests::hostile::{self, Hostile};
use wye_tests::setting;
use wye_tests::site::{Server, Site};
use wye_tests::wait;

/// How many damaged bodies are sent to each port.
const DAMAGED: usize = 400;
/// The memory limit of the process during an attack, in MiB; queries may use 1 GiB of it.
const MOST_MIB: u64 = 2_500;
/// How many idle connections an attacker keeps open: more than the usual limit of open files of a process.
const IDLE: usize = 1_100;
const PATIENCE: Duration = Duration::from_secs(90);
const CONFIG: &str = r#"
[batch]
interval = "2s"
[log]
kafka_partitions = 2
embedded_port = 0
[sql]
time = "5s"
memory = "1GiB"
"#;
const CURRENT: &str = "/v1/metrics/pressure/current?device_id=user";

/// A running Wye with one ordinary device, under attack.
struct Attack {
    server: Server,
    api: Api,
    address: String,
    beside: Beside,
}

impl Attack {
    fn start(site: &mut Site) -> Result<Self> {
        site.configure(CONFIG)?;
        let mut server = site.up()?;
        let api = server.ready()?;
        let address = api.url().trim_start_matches("http://").to_owned();
        let reading = json!({"device_id": "user", "metric": "pressure", "value": 1, "event_time": "2026-01-01T00:00:00Z"});
        let (status, answer) = api.post("/v1/readings", &reading)?;
        ensure!(status == 200, "{answer}");
        wait::until("the user's reading in the answers", PATIENCE, || {
            Ok(matches!(api.get(CURRENT), Ok((200, text)) if text.contains("\"user\"")).then_some(()))
        })?;
        let beside = Beside::start(&address, CURRENT, server.process.id());
        Ok(Self { server, api, address, beside })
    }

    /// Ends the attack, and checks that the server still runs, that a new reading gets into the answers, and that its memory
    /// was bounded.
    fn end(mut self, what: &str) -> Result<Server> {
        self.server.process.still_runs()?;
        let seen = self.beside.stop().with_context(|| format!("requests during {what}"))?;
        say(&format!(
            "{what}: {} answers to a user, p99 {:?}, slowest {:?}, at most {} MiB",
            seen.answers, seen.p99, seen.slowest, seen.resident_mib
        ));
        ensure!(seen.resident_mib < MOST_MIB, "{what}: {} MiB", seen.resident_mib);
        let after = json!({"device_id": "after", "metric": "pressure", "value": 2, "event_time": "2026-01-01T00:00:00Z"});
        let (status, answer) = self.api.post("/v1/readings", &after)?;
        ensure!(status == 200, "after {what}: {answer}");
        wait::until("a reading sent after the attack", PATIENCE, || {
            let path = "/v1/metrics/pressure/current?device_id=after";
            Ok(matches!(self.api.get(path), Ok((200, text)) if text.contains("\"after\"")).then_some(()))
        })?;
        Ok(self.server)
    }
}

fn seed() -> Result<u64> {
    let seed = setting::number("WYE_TEST_SEED")?.unwrap_or_else(rand::random);
    say(&format!("attack: seed {seed}"));
    Ok(seed)
}

/// Valid JSON bodies, which are then damaged.
fn valid_json() -> Vec<Vec<u8>> {
    let [a, b, c] = ["a", "b", "c"].map(|device| {
        json!({"device_id": device, "metric": "m", "value": 1.5, "event_time": 1_767_225_600_000_i64, "sequence": 7,
               "unit": "Cel", "tags": {"line": "north", "état": "ünï"}})
    });
    vec![
        a.to_string().into_bytes(),
        json!([a, b, c]).to_string().into_bytes(),
        format!("{a}\n{b}\n").into_bytes(),
    ]
}

#[test]
fn hostile_bodies_over_http() -> Result<()> {
    let mut hostile = Hostile::new(seed()?, valid_json());
    let mut site = Site::alone()?;
    let attack = Attack::start(&mut site)?;
    let mut sent = 0;
    for (what, body) in hostile::shaped_json() {
        for content_type in
            ["application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"]
        {
            answered(&attack, content_type, None, &body).with_context(|| what.to_owned())?;
            sent += 1;
        }
    }
    for _ in 0..DAMAGED {
        let body = hostile.next_body();
        for content_type in
            ["application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"]
        {
            answered(&attack, content_type, None, &body)?;
            sent += 1;
        }
        for encoding in ["gzip", "zstd"] {
            answered(&attack, "application/json", Some(encoding), &body)?;
            sent += 1;
        }
    }
    answered(&attack, "application/json", Some("gzip"), &hostile::gzip_bomb(4_096)).context("gzip bomb")?;
    for path in
        ["/v1/sql", "/v1/metrics/%ff/current", "/v1/metrics/pressure/series?from=%00&step=-1s", "/v1/nothing"]
    {
        let (status, text) = attack.api.get(path)?;
        ensure!((400..500).contains(&status), "GET {path}: {status}: {text}");
        sent += 1;
    }
    attack.end(&format!("{sent} hostile bodies"))?.stop()
}

/// Checks that the answer to a body is not a failure of the server: 2xx, 4xx, or 503 where a limit is reached.
fn answered(attack: &Attack, content_type: &str, encoding: Option<&str>, body: &[u8]) -> Result<()> {
    let (status, text) = attack.api.post_bytes("/v1/readings", content_type, encoding, body)?;
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    ensure!(
        (200..300).contains(&status) || (400..500).contains(&status) || status == 503,
        "{status}: {text} for {content_type} {shown:?}"
    );
    Ok(())
}

#[test]
fn hostile_messages_in_the_topic() -> Result<()> {
    let mut hostile = Hostile::new(seed()?, valid_json());
    let mut site = Site::alone()?;
    let attack = Attack::start(&mut site)?;
    let mut bodies: Vec<Vec<u8>> = hostile::shaped_json().into_iter().map(|(_, body)| body).collect();
    bodies.extend((0..2 * DAMAGED).map(|_| hostile.next_body()));
    // The bulk format: a prefix of four bytes, then bytes that should be an Arrow stream.
    bodies.extend((0..DAMAGED).map(|_| [b"WYE\x01".to_vec(), hostile.next_body()].concat()));
    bodies.retain(|body| body.len() <= MAX_PAYLOAD_BYTES);
    let servers = std::fs::read_to_string(site.data_dir().join("kafka.addr"))?.trim().to_owned();
    write_messages(&servers, &bodies)?;
    let server = attack.end(&format!("{} hostile messages", bodies.len()))?;
    // A message that crashes a reader would crash it again at each start.
    server.stop()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let (status, text) = api.get(CURRENT)?;
    ensure!(status == 200, "after a restart: {status}: {text}");
    server.stop()
}

fn write_messages(servers: &str, bodies: &[Vec<u8>]) -> Result<()> {
    let runtime = Runtime::new()?;
    runtime.block_on(async {
        let log = Log::new(LogConfig::new(servers, 2))?;
        let producer = Producer::new(&log, Duration::from_millis(5))?;
        for body in bodies {
            let (key, kafka_partition) = (b"hostile".as_slice(), partition_of(b"hostile", 2));
            let message =
                Outgoing { topic: READINGS, kafka_partition, key: Some(key), payload: body, headers: &[] };
            producer.send(message).await?;
        }
        Ok(())
    })
}

#[test]
fn hostile_statements() -> Result<()> {
    let mut site = Site::alone()?;
    let attack = Attack::start(&mut site)?;
    let statements = hostile::shaped_sql();
    let (mut computed, mut refused, mut cut_off) = (0, 0, 0);
    for (what, sql) in &statements {
        let since = Instant::now();
        match attack.api.post("/v1/sql", &json!({ "sql": sql })) {
            Ok((200..300, _)) => computed += 1,
            Ok((400..500 | 503 | 504, _)) => refused += 1,
            Ok((status, text)) => anyhow::bail!("{what}: {status}: {}", text.get(..500).unwrap_or(&text)),
            // A limit cuts off an answer that has begun. There must be no other reason, so the next query works.
            Err(error) => {
                let one = attack.api.sql("SELECT 1 AS one").with_context(|| format!("{what}: {error:#}"))?;
                ensure!(one.value::<u64>()? == 1, "{what}: {error:#}");
                cut_off += 1;
            }
        }
        ensure!(since.elapsed() < PATIENCE, "{what} took {:?}", since.elapsed());
    }
    ensure!(!std::path::Path::new("/tmp/wye-must-not-exist.csv").exists(), "SQL wrote a file");
    say(&format!("{computed} statements computed, {refused} refused, {cut_off} cut off by a limit"));
    attack.end(&format!("{} hostile statements", statements.len()))?.stop()
}

/// Eight clients send a large query and disconnect at once, repeatedly. A small query is answered at the same time.
#[test]
fn clients_that_disconnect() -> Result<()> {
    let mut site = Site::alone()?;
    let attack = Attack::start(&mut site)?;
    let heavy = json!({"sql": "SELECT sum(a.value * b.value) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"})
        .to_string();
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        for _ in 0..8 {
            let mut stream = TcpStream::connect(&attack.address)?;
            let length = heavy.len();
            write!(
                stream,
                "POST /v1/sql HTTP/1.1\r\nHost: wye\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{heavy}"
            )?;
        }
        let since = Instant::now();
        ensure!(attack.api.sql("SELECT 1 AS one")?.value::<u64>()? == 1);
        slowest = slowest.max(since.elapsed());
    }
    ensure!(slowest < Duration::from_secs(5), "SELECT 1 took {slowest:?}");
    say(&format!("SELECT 1 during abandoned queries: at most {slowest:?}"));
    // The queries end when their clients disconnect, so the process becomes idle.
    let process = attack.server.process.id();
    wait::until("idle process after the clients have disconnected", PATIENCE, || {
        let before = cpu_ticks(process)?;
        std::thread::sleep(Duration::from_secs(1));
        Ok((cpu_ticks(process)? - before < 60).then_some(()))
    })?;
    attack.end("clients that disconnect")?.stop()
}

/// The processor time that a process has used, in ticks of 10 ms.
fn cpu_ticks(process: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = text.rsplit(')').next().context("a stat line")?.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[test]
fn hostile_connections() -> Result<()> {
    let mut random = Hostile::new(seed()?, vec![b"POST /v1/readings HTTP/1.1\r\nHost: wye\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}".to_vec()]);
    let mut site = Site::alone()?;
    let attack = Attack::start(&mut site)?;
    let kafka = std::fs::read_to_string(site.data_dir().join("kafka.addr"))?.trim().to_owned();
    let mut open = Vec::new();
    for address in [&attack.address, &kafka] {
        for number in 0..IDLE {
            let Ok(mut stream) = TcpStream::connect(address) else { break };
            // Some send nothing, others only the beginning of a request.
            let _ = match number % 4 {
                0 => Ok(()),
                1 => stream.write_all(b"POST /v1/readings HTTP/1.1\r\nHost: wye\r\n"),
                2 => stream.write_all(
                    b"POST /v1/readings HTTP/1.1\r\nHost: wye\r\nContent-Length: 60000000\r\n\r\n[",
                ),
                _ => stream.write_all(&[0x03, 0xff, 0xff, 0xff, 0, 0]),
            };
            open.push(stream);
        }
    }
    say(&format!("{} idle connections are open", open.len()));
    for address in [&attack.address, &kafka] {
        for _ in 0..DAMAGED {
            let Ok(mut stream) = TcpStream::connect(address) else { continue };
            stream.set_read_timeout(Some(Duration::from_millis(20)))?;
            let _ = stream.write_all(&random.next_body());
            let _ = stream.read(&mut [0; 256]);
        }
    }
    drop(open);
    attack.end("hostile connections")?.stop()
}

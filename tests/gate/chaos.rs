//! Two servers on one real Kafka, under load, while servers are killed and stopped, Kafka is stopped, and the disk of the
//! tables is full. No answer that says `complete` lacks a reading that it covers, no answer counts a reading twice, and at the
//! end every acknowledged reading is in the answers and in the master dataset exactly once.
//!
//! `WYE_TEST_CHAOS_SECONDS` makes the run longer; `WYE_TEST_SEED` repeats the schedule.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use wye_domain::place::{KafkaPartition, Offset};
use wye_domain::position::Position;
use wye_tests::api::{Api, CoveredAnswer};
use wye_tests::datasets::say;
use wye_tests::kafka::Kafka;
use wye_tests::process::Signal;
use wye_tests::setting;
use wye_tests::site::{Server, Site};
use wye_tests::wait;

const SECONDS: u64 = 40;
const WRITERS: usize = 4;
const READINGS_EACH: u64 = 20;
const SETTLE_WITHIN: Duration = Duration::from_secs(180);
/// The size of the tables' file system, where the test may mount one.
const DISK_MIB: u64 = 512;
/// How many requests a writer sends before a pause.
const BURST: u64 = 20;
const BETWEEN_BURSTS: Duration = Duration::from_millis(800);
const PAUSE: Duration = Duration::from_millis(50);
const COUNTS: &str = "SELECT device_id, CAST(sum(\"count\") AS BIGINT) FROM unified_series WHERE metric = 'chaos' GROUP BY device_id";

const CONFIG: &str = r#"
[speed]
epoch_interval = "1s"
[archive]
interval = "500ms"
[batch]
interval = "3s"
"#;

#[test]
fn complete_answers_are_complete_whatever_happens() -> Result<()> {
    let seconds = setting::number("WYE_TEST_CHAOS_SECONDS")?.unwrap_or(SECONDS);
    let seed = setting::number("WYE_TEST_SEED")?.unwrap_or_else(rand::random);
    let mut site = Site::new()?;
    let Some(kafka) = Kafka::start(site.directory().join("kafka"))? else { return Ok(()) };
    let disk = Disk::new(site.directory().join("tables"))?;
    site.configure(&format!(
        "{CONFIG}[log]\nbootstrap_servers = \"{}\"\nkafka_partitions = 3\n[tables]\nroot = \"{}\"\n",
        kafka.bootstrap_servers()?,
        disk.path.join("root").display()
    ))?;
    say(&format!("chaos: seed {seed}, {seconds} s"));
    let outcome = run(&site, &kafka, &disk, seed, Duration::from_secs(seconds));
    if let Err(error) = outcome {
        panic!("with WYE_TEST_SEED={seed}, outputs in {}: {error:#}", site.keep().display());
    }
    Ok(())
}

/// A file system for the tables, which can be filled. Without the permission to mount one it is never full, and a message
/// says so.
struct Disk {
    path: PathBuf,
    mounted: bool,
}

impl Disk {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let size = format!("size={DISK_MIB}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "wye-chaos"]).arg(&path).output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        if !mounted {
            say("skipped: full disks, since this user may not mount a file system");
        }
        Ok(Self { path, mounted })
    }

    fn fill(&self) -> Result<()> {
        if self.mounted {
            let _ = fs::write(self.path.join("ballast"), vec![1; (DISK_MIB as usize) << 20]);
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        let ballast = self.path.join("ballast");
        if ballast.exists() { fs::remove_file(ballast).context("free the disk") } else { Ok(()) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily, since a server that is being killed may still have a file open.
            let _ = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}

/// What one device has sent.
#[derive(Clone, Debug, Default)]
struct Sent {
    /// Readings in requests that were sent at least once.
    begun: u64,
    /// The positions of the acknowledged requests.
    acknowledged: Vec<Position>,
}

/// What the writers and the reader share.
#[derive(Clone, Default)]
struct Board {
    /// The addresses of the servers; `None` while one is restarted.
    addresses: Arc<Mutex<Vec<Option<String>>>>,
    sent: Arc<Mutex<BTreeMap<String, Sent>>>,
    stop: Arc<AtomicBool>,
}

impl Board {
    fn address(&self, number: usize) -> Option<String> {
        let addresses = self.addresses.lock().expect("no holder panics");
        addresses.get(number % addresses.len().max(1)).cloned().flatten()
    }

    fn set(&self, number: usize, address: Option<String>) {
        self.addresses.lock().expect("no holder panics")[number] = address;
    }

    fn sent(&self) -> BTreeMap<String, Sent> {
        self.sent.lock().expect("no holder panics").clone()
    }

    fn update(&self, device: &str, change: impl FnOnce(&mut Sent)) {
        change(self.sent.lock().expect("no holder panics").entry(device.to_owned()).or_default());
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Sends the requests of one device, and retries each until it is acknowledged.
fn write(board: &Board, writer: usize) -> Result<u64> {
    let device = format!("chaos-{writer}");
    let mut request = 0;
    while !board.stopped() {
        let body: Vec<Value> = (0..READINGS_EACH)
            .map(|index| {
                let number = request * READINGS_EACH + index;
                json!({"device_id": device, "metric": "chaos", "value": number as f64, "sequence": number,
                       "event_time": 1_767_225_600_000_u64 + number * 100})
            })
            .collect();
        board.update(&device, |sent| sent.begun += READINGS_EACH);
        let key = format!("{device}/{request}");
        let position = send_until_acknowledged(board, writer, &key, &json!(body))?;
        board.update(&device, |sent| sent.acknowledged.push(position));
        request += 1;
        // Answers can be complete only in the pauses between bursts.
        std::thread::sleep(if request.is_multiple_of(BURST) { BETWEEN_BURSTS } else { PAUSE });
    }
    Ok(request)
}

fn send_until_acknowledged(board: &Board, writer: usize, key: &str, body: &Value) -> Result<Position> {
    let since = Instant::now();
    for attempt in writer.. {
        ensure!(since.elapsed() < SETTLE_WITHIN, "{key} was not acknowledged");
        if let Some(address) = board.address(attempt)
            && let Ok((200, text)) =
                Api::with_patience(&address, Duration::from_secs(15))?.post_once("/v1/readings", key, body)
        {
            let answer: Value = serde_json::from_str(&text)?;
            let position = answer["position"].as_str().with_context(|| format!("no position in {text}"))?;
            return Ok(position.parse()?);
        }
        std::thread::sleep(PAUSE);
    }
    Err(anyhow!("{key} was not acknowledged"))
}

/// The number of answers, and of those that were complete.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    all: usize,
    complete: usize,
}

/// Queries the servers in turn, and checks the complete answers, until the board is stopped.
fn query(board: &Board) -> Result<Answers> {
    let mut answers = Answers::default();
    for number in 0.. {
        if board.stopped() {
            break;
        }
        std::thread::sleep(PAUSE);
        let Some(address) = board.address(number) else { continue };
        let before = board.sent();
        let Ok(answer) = Api::with_patience(&address, Duration::from_secs(5))?.sql_with_coverage(COUNTS)
        else {
            continue;
        };
        let after = board.sent();
        answers.all += 1;
        if !answer.complete {
            continue;
        }
        answers.complete += 1;
        let counts: BTreeMap<&str, u64> =
            answer.rows.iter().map(|row| Ok((row[0].as_str(), row[1].parse()?))).collect::<Result<_>>()?;
        for (device, sent) in &before {
            let acknowledged = sent.acknowledged.iter();
            let covered = acknowledged.filter(|position| position.is_covered_by(|it| covered(&answer, it)));
            let least = covered.count() as u64 * READINGS_EACH;
            let most = after[device].begun;
            let count = counts.get(device.as_str()).copied().unwrap_or(0);
            ensure!(
                (least..=most).contains(&count),
                "complete, but {device} has {count} readings, not {least} to {most}; covered {:?}",
                answer.covered
            );
        }
    }
    Ok(answers)
}

/// The offset up to which an answer covers a Kafka partition.
fn covered(answer: &CoveredAnswer, kafka_partition: KafkaPartition) -> Offset {
    Offset(answer.covered.get(&kafka_partition.0).copied().unwrap_or(0))
}

fn run(site: &Site, kafka: &Kafka, disk: &Disk, seed: u64, duration: Duration) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let sites = [site.another("first"), site.another("second")];
    let board = Board::default();
    board.addresses.lock().expect("no holder panics").resize(sites.len(), None);
    let mut servers: Vec<Server> = sites.iter().map(Site::up).collect::<Result<_>>()?;
    for (number, server) in servers.iter_mut().enumerate() {
        board.set(number, Some(server.ready()?.address().to_owned()));
    }
    let writers: Vec<JoinHandle<Result<u64>>> = (0..WRITERS)
        .map(|writer| {
            let board = board.clone();
            std::thread::spawn(move || write(&board, writer))
        })
        .collect();
    let reader = std::thread::spawn({
        let board = board.clone();
        move || query(&board)
    });

    let end = Instant::now() + duration;
    let mut happened: BTreeMap<&str, usize> = BTreeMap::new();
    while Instant::now() < end && !reader.is_finished() {
        let number = random.random_range(0..servers.len());
        let pause = random.random_range(Duration::from_millis(200)..Duration::from_secs(4));
        let what = ["kill", "stop", "stopped Kafka", "full disk", "quiet"][random.random_range(0..5)];
        *happened.entry(what).or_default() += 1;
        match what {
            "kill" => {
                servers[number].process.kill()?;
                board.set(number, None);
                std::thread::sleep(pause);
                servers[number] = sites[number].up()?;
            }
            "stop" => {
                servers[number].process.signal(Signal::Stop)?;
                std::thread::sleep(pause);
                servers[number].process.signal(Signal::Resume)?;
            }
            "stopped Kafka" => {
                kafka.signal(Signal::Stop)?;
                std::thread::sleep(pause);
                kafka.signal(Signal::Resume)?;
            }
            "full disk" => {
                disk.fill()?;
                std::thread::sleep(pause);
                disk.free()?;
            }
            _ => std::thread::sleep(pause),
        }
        for (number, server) in servers.iter_mut().enumerate() {
            server.process.still_runs()?;
            if board.address(number).is_none() {
                board.set(number, server.address()?);
            }
        }
    }
    say(&format!("chaos: {happened:?}"));
    for (number, server) in servers.iter_mut().enumerate() {
        board.set(number, Some(server.ready()?.address().to_owned()));
    }
    board.stop.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for writer in writers {
        requests += writer.join().map_err(|_| anyhow!("a writer panicked"))??;
    }
    let answers = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
    let expected = requests * READINGS_EACH;
    say(&format!(
        "chaos: {expected} readings acknowledged, {} answers, {} of them complete",
        answers.all, answers.complete
    ));
    ensure!(answers.complete > 0, "no answer was complete");

    let mut apis = Vec::new();
    for server in &mut servers {
        apis.push(server.ready()?);
    }
    all_counted(&apis, expected).context("before the last batch run")?;
    sites[0].batch_run()?.succeed(SETTLE_WITHIN)?;
    all_counted(&apis, expected).context("after the last batch run")?;
    let mut archived = 0;
    wait::until("complete master dataset", SETTLE_WITHIN, || {
        archived = apis[0].sql("SELECT count(*) FROM readings WHERE metric = 'chaos'")?.value::<u64>()?;
        Ok((archived >= expected).then_some(()))
    })?;
    let distinct =
        "SELECT count(*) FROM (SELECT DISTINCT device_id, sequence FROM readings WHERE metric = 'chaos')";
    ensure!(apis[0].sql(distinct)?.value::<u64>()? == expected, "readings are lost");
    // A request without an answer may be in the log twice. The second is a duplicate, and never counted.
    say(&format!("chaos: {archived} rows in the master dataset for {expected} readings"));
    for server in servers {
        server.stop()?;
    }
    Ok(())
}

/// Waits until every server counts exactly the acknowledged readings.
fn all_counted(apis: &[Api], expected: u64) -> Result<()> {
    for api in apis {
        let mut seen = 0;
        wait::until("the acknowledged readings in the answers", SETTLE_WITHIN, || {
            seen = api
                .sql("SELECT CAST(coalesce(sum(\"count\"), 0) AS BIGINT) FROM unified_series WHERE metric = 'chaos'")?
                .value::<u64>()?;
            ensure!(seen <= expected, "{seen} readings are counted, {expected} were sent");
            Ok((seen == expected).then_some(()))
        })
        .with_context(|| format!("{seen} of {expected} readings are counted by {}", api.url()))?;
    }
    Ok(())
}

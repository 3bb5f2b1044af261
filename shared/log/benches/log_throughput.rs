//! The speed of the log: messages written and read through the embedded broker (or another, with `--bootstrap HOST:PORT`),
//! how soon a waiting reader has a message, and how much memory and processor time this takes.
//!
//! `cargo bench -p wye-log --bench log_throughput -- [--megabytes N] [--partitions N] [--bootstrap HOST:PORT]`

#![expect(clippy::print_stdout, reason = "a benchmark prints its results")]
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use wye_broker::{Broker, BrokerConfig};
use wye_domain::place::{KafkaPartition, Offset};
use wye_log::LogError;
use wye_log::client::{Log, LogConfig};
use wye_log::producer::{Delivery, Outgoing, Producer};
use wye_log::reader::Reader;
use wye_log::topics::{self, TopicSpec};

struct Options {
    megabytes: usize,
    kafka_partitions: i32,
    bootstrap_servers: Option<String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = options();
    let directory = std::env::temp_dir().join(format!("wye-log-throughput-{}", std::process::id()));
    let mut embedded = None;
    let bootstrap_servers = match options.bootstrap_servers.clone() {
        Some(bootstrap_servers) => bootstrap_servers,
        None => {
            let broker = Broker::start(BrokerConfig::new(&directory)).await.expect("the broker starts");
            embedded.insert(broker).bootstrap_servers().to_owned()
        }
    };
    println!("broker alone, idle: {} MB resident", resident_megabytes());
    let log = Log::new(LogConfig::new(bootstrap_servers, options.kafka_partitions))?;
    log.wait_ready(&CancellationToken::new()).await?;
    for message_bytes in [100, 150_000] {
        throughput(&log, &options, message_bytes).await?;
    }
    latency(&log).await?;
    println!("at the end: {} MB resident", resident_megabytes());
    if let Some(broker) = embedded {
        println!("on disk: {} MB", bytes_on_disk(&directory) / 1_000_000);
        broker.stop().await;
        std::fs::remove_dir_all(&directory).expect("the directory is ours");
    }
    Ok(())
}

/// Writes the megabytes of the options as messages of one size, then reads them.
async fn throughput(log: &Log, options: &Options, message_bytes: usize) -> Result<(), LogError> {
    let topic = new_topic(log, options.kafka_partitions).await?;
    let count = options.megabytes * 1_000_000 / message_bytes;
    // Parts of a long text, so that a batch compresses like different readings.
    let pool = text(message_bytes + 4_000_000);
    let producer = Producer::new(log, Duration::from_millis(5))?;
    let (started, processor) = (Instant::now(), processor_seconds());
    let mut in_flight: VecDeque<Delivery> = VecDeque::new();
    for number in 0..count {
        if in_flight.len() > 100_000
            && let Some(delivery) = in_flight.pop_front()
        {
            delivery.await?;
        }
        let kafka_partition = KafkaPartition(number as i32 % options.kafka_partitions);
        let payload = &pool[number * 101 % 4_000_000..][..message_bytes];
        let message = Outgoing { topic, kafka_partition, key: None, payload, headers: &[] };
        loop {
            match producer.enqueue(message) {
                Ok(delivery) => {
                    in_flight.push_back(delivery);
                    break;
                }
                Err(LogError::QueueFull) => match in_flight.pop_front() {
                    Some(delivery) => drop(delivery.await?),
                    None => tokio::task::yield_now().await,
                },
                Err(error) => return Err(error),
            }
        }
    }
    for delivery in in_flight {
        delivery.await?;
    }
    report("write", count, message_bytes, started.elapsed(), processor_seconds() - processor);

    let mut reader = Reader::new(log, topic)?;
    let starts: Vec<_> =
        (0..options.kafka_partitions).map(|number| (KafkaPartition(number), Offset(0))).collect();
    reader.assign(&starts)?;
    let reading = tokio::task::spawn_blocking(move || {
        let (started, processor) = (Instant::now(), processor_seconds());
        reader.poll_batch(1, Duration::from_secs(10), &mut |_| {})?;
        println!("a new reader has its first message after {:?}", started.elapsed());
        let (mut seen, mut bytes) = (1, message_bytes);
        while seen < count {
            seen += reader.poll_batch(10_000, Duration::from_millis(100), &mut |message| {
                bytes += message.payload.len();
            })?;
        }
        assert_eq!(bytes, count * message_bytes);
        report("read ", count, message_bytes, started.elapsed(), processor_seconds() - processor);
        let started = Instant::now();
        drop(reader);
        println!("a reader is closed after {:?}", started.elapsed());
        Ok::<_, LogError>(())
    });
    reading.await.expect("the reading thread does not panic")
}

/// How long after its acknowledgement a waiting reader has a message.
async fn latency(log: &Log) -> Result<(), LogError> {
    const MESSAGES: usize = 1000;
    let topic = new_topic(log, 1).await?;
    let producer = Producer::new(log, Duration::ZERO)?;
    let message =
        Outgoing { topic, kafka_partition: KafkaPartition(0), key: None, payload: b"x", headers: &[] };
    let mut reader = Reader::new(log, topic)?;
    reader.assign(&[(KafkaPartition(0), Offset(0))])?;
    let reading = tokio::task::spawn_blocking(move || {
        let mut arrivals = Vec::with_capacity(MESSAGES);
        while arrivals.len() < MESSAGES {
            let on = &mut |_: wye_log::reader::Message<'_>| arrivals.push(Instant::now());
            reader.poll_batch(1000, Duration::from_millis(100), on)?;
        }
        Ok::<_, LogError>(arrivals)
    });
    let (mut sent, mut acknowledged) = (Vec::new(), Vec::new());
    for _ in 0..MESSAGES {
        sent.push(Instant::now());
        producer.send(message).await?;
        acknowledged.push(Instant::now());
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    let arrivals = reading.await.expect("the reading thread does not panic")?;
    print_delays("sent to acknowledged", &sent, &acknowledged);
    print_delays("acknowledged to read", &acknowledged, &arrivals);
    print_delays("sent to read", &sent, &arrivals);
    Ok(())
}

/// Prints how long after `from` the times `to` are.
fn print_delays(what: &str, from: &[Instant], to: &[Instant]) {
    let mut delays: Vec<_> =
        to.iter().zip(from).map(|(to, from)| to.saturating_duration_since(*from)).collect();
    // The first ones show how long the clients take to connect.
    delays.drain(..100);
    delays.sort_unstable();
    let (median, p99) = (delays[delays.len() / 2], delays[delays.len() * 99 / 100]);
    println!("{what}: p50 {median:?}, p99 {p99:?}");
}

fn report(what: &str, count: usize, message_bytes: usize, elapsed: Duration, processor: f64) {
    let (seconds, count) = (elapsed.as_secs_f64(), count as f64);
    println!(
        "{what} {message_bytes:>6} B: {:>9.0} messages/s, {:>6.1} MB/s, {:.2} processor-s per million messages, {} MB resident",
        count / seconds,
        count * message_bytes as f64 / seconds / 1e6,
        processor / count * 1e6,
        resident_megabytes(),
    );
}

async fn new_topic(log: &Log, kafka_partitions: i32) -> Result<&'static str, LogError> {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let name: &'static str = Box::leak(format!("throughput-{since_1970}").into_boxed_str());
    let config = topics::specs(1, 1).swap_remove(0).config;
    log.ensure(&[TopicSpec { name, kafka_partitions, config }]).await?;
    Ok(name)
}

/// Text that compresses about as well as readings.
fn text(length: usize) -> Vec<u8> {
    let (mut text, mut noise) = (Vec::with_capacity(length + 100), 1_u32);
    while text.len() < length {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (device, value) = (noise >> 24, f64::from(noise) / 1e7);
        text.extend(
            format!(r#"{{"device_id":"machine-{device}","metric":"temperature","value":{value}}}"#).bytes(),
        );
    }
    text.truncate(length);
    text
}

fn options() -> Options {
    let mut options = Options { megabytes: 500, kafka_partitions: 4, bootstrap_servers: None };
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        match name.as_str() {
            "--megabytes" => options.megabytes = value.parse().expect("a number of megabytes"),
            "--partitions" => options.kafka_partitions = value.parse().expect("a number of partitions"),
            "--bootstrap" => options.bootstrap_servers = Some(value),
            _ => panic!("unknown option {name}"),
        }
    }
    options
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// The processor time of this process (clients and embedded broker), in seconds.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    fields.iter().sum::<f64>() / 100.0
}

fn bytes_on_disk(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    };
    entries.flatten().map(|entry| bytes_on_disk(&entry.path())).sum()
}

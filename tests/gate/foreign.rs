//! Faults of other producers and brokers in the log: a device in the wrong Kafka partition, and record batches that no client
//! can decode. Nothing stops, no other reading is lost, and each fault is reported.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::runtime::Runtime;
use wye_domain::place::KafkaPartition;
use wye_log::client::{Log, LogConfig};
use wye_log::partitioner::partition_of;
use wye_log::producer::{Outgoing, Producer};
use wye_log::topics::{CONTROL, READINGS, REALTIME_VIEWS};
use wye_tests::api::Api;
use wye_tests::site::Site;
use wye_tests::wait;

const KAFKA_PARTITIONS: i32 = 2;
const CONFIG: &str = "[log]\nkafka_partitions = 2\n[batch]\ninterval = \"0s\"\n";
const PATIENCE: Duration = Duration::from_secs(60);
/// A record batch of an unknown codec, with three offsets and a correct checksum.
const UNREADABLE: &str = "000000000000000000000039000000000254f2ad72000700000002000001977420dc00000001977420dc00\
                          ffffffffffffffffffffffffffff000000036e6f20636f646563";

#[test]
fn faults_of_others_in_the_log_stop_nothing() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let device = "pump-1";
    let right = partition_of(device.as_bytes(), KAFKA_PARTITIONS);
    let wrong = KafkaPartition(1 - right.0);
    post(&api, device, 0)?;

    // A reading in the wrong Kafka partition is reported in the telemetry, and counts.
    write(&site, device, wrong, 1)?;
    count(&api, 2)?;
    let metrics = format!("wye_speed_misplaced_messages_total{{kafka_partition=\"{wrong}\"}} 1");
    wait::until("misplaced message in the telemetry", PATIENCE, || {
        Ok(api.get("/metrics")?.1.contains(&metrics).then_some(()))
    })?;
    server.stop()?;

    // Batches that cannot be decoded, which the next owner, the archiver and the serving layer read.
    let from = append_unreadable(&site, READINGS, right)?;
    append_unreadable(&site, REALTIME_VIEWS, right)?;
    append_unreadable(&site, CONTROL, right)?;
    let mut server = site.up()?;
    let api = server.ready()?;
    post(&api, device, 2)?;
    count(&api, 3)?;
    let letters = "SELECT kafka_partition, kafka_offset, detail FROM dead_letters \
                   WHERE reason = 'unreadable_record_batch'";
    let letter = wait::until("dead letter about the batch", PATIENCE, || {
        Ok(api.sql(letters)?.rows.into_iter().next())
    })?;
    ensure!(letter[..2] == [right.to_string(), from.to_string()], "{letter:?}");
    ensure!(letter[2].contains(&format!("offsets {from} to {}", from + 2)), "{letter:?}");

    site.batch_run()?.succeed(PATIENCE)?;
    count(&api, 3)?;
    // What may have been in the records that were skipped is in the batch view.
    wait::until("complete answer", PATIENCE, || {
        Ok(api.sql_with_coverage("SELECT 1")?.complete.then_some(()))
    })?;
    server.stop()
}

fn reading(device: &str, number: i64) -> serde_json::Value {
    json!({"device_id": device, "metric": "load", "value": 1, "event_time": 1_750_000_000_000 + number * 1_000})
}

fn post(api: &Api, device: &str, number: i64) -> Result<()> {
    let (status, answer) = api.post("/v1/readings", &reading(device, number))?;
    ensure!(status == 200, "{answer}");
    Ok(())
}

/// Writes a reading as another producer does, with the device as key.
fn write(site: &Site, device: &str, kafka_partition: KafkaPartition, number: i64) -> Result<()> {
    let bootstrap = fs::read_to_string(site.data_dir().join("kafka.addr"))?;
    let producer =
        Producer::new(&Log::new(LogConfig::new(bootstrap.trim(), KAFKA_PARTITIONS))?, Duration::ZERO)?;
    let payload = serde_json::to_vec(&reading(device, number))?;
    let message = Outgoing {
        topic: READINGS,
        kafka_partition,
        key: Some(device.as_bytes()),
        payload: &payload,
        headers: &[],
    };
    Runtime::new()?.block_on(producer.send(message))?;
    Ok(())
}

/// Waits until this many readings are in the answers.
fn count(api: &Api, readings: i64) -> Result<()> {
    wait::until("readings in the answers", PATIENCE, || {
        let counted = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM unified_series";
        Ok((api.sql(counted)?.value::<i64>()? == readings).then_some(()))
    })
}

/// Appends a batch that cannot be decoded to a Kafka partition of the stopped embedded broker. Returns its first offset.
fn append_unreadable(site: &Site, topic: &str, kafka_partition: KafkaPartition) -> Result<i64> {
    let path = newest_segment(&site.data_dir().join("log").join(format!("{topic}-{kafka_partition}")))?;
    let written = fs::read(&path)?;
    let mut end: i64 =
        path.file_stem().and_then(|name| name.to_str()).context("a segment's name")?.parse()?;
    let mut at = 0;
    while at < written.len() {
        let (base, delta) = (number(&written[at..][..8]), number(&written[at + 23..][..4]));
        end = base + delta + 1;
        at += 12 + number(&written[at + 8..][..4]) as usize;
    }
    let digits = UNREADABLE.as_bytes().chunks(2);
    let mut batch = Vec::new();
    for pair in digits {
        batch.push(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    }
    batch[..8].copy_from_slice(&end.to_be_bytes());
    OpenOptions::new().append(true).open(&path)?.write_all(&batch)?;
    Ok(end)
}

/// The number in big-endian bytes.
fn number(bytes: &[u8]) -> i64 {
    bytes.iter().fold(0, |number, byte| (number << 8) | i64::from(*byte))
}

fn newest_segment(directory: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let segments = paths.into_iter().filter(|path| path.extension().is_some_and(|it| it == "log"));
    segments.max().with_context(|| format!("no segment in {}", directory.display()))
}

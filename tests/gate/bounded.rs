//! The log stays small: records that are archived and no longer needed are deleted from every topic, however long Wye runs,
//! and no answer changes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use wye_domain::place::KafkaPartition;
use wye_log::client::{Log, LogConfig};
use wye_log::topics::{DEAD_LETTER, LEDGER, READINGS, specs};
use wye_tests::api::Api;
use wye_tests::site::Site;
use wye_tests::wait;

const PATIENCE: Duration = Duration::from_secs(60);
const KAFKA_PARTITIONS: i32 = 2;
const ROUNDS: u64 = 8;
/// Requests in a round: enough that the ledger of all rounds is compacted.
const REQUESTS: u64 = 300;
/// How many requests are sent at a time.
const SENDERS: u64 = 4;
/// Valid readings in a request; one more is rejected.
const READINGS_EACH: u64 = 20;

const CONFIG: &str = r#"
[log]
kafka_partitions = 2
[speed]
epoch_interval = "100ms"
duplicate_window = "0s"
[archive]
interval = "100ms"
keep_dead_letters = "0s"
[batch]
interval = "0s"
"#;

/// Whether the requests of a round were sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    FirstTime,
    Again,
}

/// By topic: the number of records that were written, and of those that it still has.
type Records = BTreeMap<&'static str, (i64, i64)>;

fn records(log: &Log, runtime: &Runtime) -> Result<Records> {
    let mut records = Records::new();
    for spec in specs(KAFKA_PARTITIONS, 1) {
        for kafka_partition in 0..spec.kafka_partitions {
            let range = runtime.block_on(log.offsets(spec.name, KafkaPartition(kafka_partition)))?;
            let (written, left) = records.entry(spec.name).or_default();
            *written += range.high.0;
            *left += range.high.0 - range.low.0;
        }
    }
    Ok(records)
}

/// Sends the requests of a round, some at a time, and checks that each is answered as `expected`.
fn send_round(api: &Api, round: u64, expected: Sent) -> Result<()> {
    std::thread::scope(|scope| {
        let numbers = round * REQUESTS..(round + 1) * REQUESTS;
        let senders: Vec<_> = (0..SENDERS as usize)
            .map(|sender| {
                let numbers = numbers.clone().skip(sender).step_by(SENDERS as usize);
                scope.spawn(move || send(api.address(), numbers, expected))
            })
            .collect();
        senders.into_iter().try_for_each(|sender| sender.join().expect("a sender does not panic"))
    })
}

fn send(address: &str, numbers: impl Iterator<Item = u64>, expected: Sent) -> Result<()> {
    let api = Api::new(address)?;
    for number in numbers {
        let (status, answer) = api.post_once("/v1/readings", &format!("bounded/{number}"), &body(number))?;
        ensure!(status == 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).context("read the answer")?;
        ensure!(answer["duplicate_request"] == (expected == Sent::Again), "{answer}");
    }
    Ok(())
}

/// The body of a request: readings that no other request has, and an invalid one.
fn body(number: u64) -> Value {
    let readings = (0..READINGS_EACH).map(|index| {
        let (device, time) = (format!("device-{}", index % 5), 1_700_000_000_000 + number * 1_000 + index);
        json!({"device_id": device, "metric": "load", "value": index, "event_time": time})
    });
    readings.chain([json!({"device_id": "device-0"})]).collect()
}

/// Does batch runs until all readings are below the horizon.
fn batch_all(site: &Site, api: &Api, readings: u64) -> Result<()> {
    wait::until("batch view of everything", PATIENCE, || {
        site.batch_run()?.succeed(PATIENCE)?;
        let counted = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM batch_metrics";
        Ok((api.sql(counted)?.value::<u64>()? == readings).then_some(()))
    })
}

fn check_answers(api: &Api, rounds: u64) -> Result<()> {
    wait::until("dead letters", PATIENCE, || {
        let letters = api.sql("SELECT count(*) FROM dead_letters")?.value::<u64>()?;
        Ok((letters == rounds * REQUESTS).then_some(()))
    })?;
    let counted = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM unified_series";
    let served = api.sql(counted)?.value::<u64>()?;
    ensure!(served == rounds * REQUESTS * READINGS_EACH, "{served} readings are served");
    Ok(())
}

/// How many records a topic may have.
fn bound(topic: &str) -> i64 {
    match topic {
        // It is compacted when it has some thousand records, which is once in this test.
        LEDGER => 1_500,
        READINGS | DEAD_LETTER => REQUESTS as i64,
        // A few epochs.
        _ => 40,
    }
}

#[test]
fn every_topic_stays_small_and_no_answer_changes() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let bootstrap = std::fs::read_to_string(site.data_dir().join("kafka.addr"))?;
    let log = Log::new(LogConfig::new(bootstrap.trim(), KAFKA_PARTITIONS))?;
    let runtime = Runtime::new()?;
    for round in 0..ROUNDS {
        send_round(&api, round, Sent::FirstTime)?;
        batch_all(&site, &api, (round + 1) * REQUESTS * READINGS_EACH)?;
        check_answers(&api, round + 1)?;
    }
    let mut last = Records::new();
    let small = wait::at_most(PATIENCE, || {
        last = records(&log, &runtime)?;
        let is_small = last.iter().all(|(topic, (written, left))| {
            let bound = bound(topic);
            *written > 3 * bound && *left <= bound
        });
        Ok(is_small.then_some(()))
    })?;
    ensure!(small.is_some(), "records that were written, and that are left: {last:?}");

    // Requests that are sent again add nothing, and after a restart the answers are the same.
    for round in [0, ROUNDS - 1] {
        send_round(&api, round, Sent::Again)?;
    }
    check_answers(&api, ROUNDS)?;
    server.stop()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    check_answers(&api, ROUNDS)?;
    send_round(&api, 3, Sent::Again)?;
    server.stop()
}

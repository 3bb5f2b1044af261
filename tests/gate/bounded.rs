//! The log stays small: what is archived and past its use leaves every topic, however long Wye runs, and no answer moves.

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
/// Requests in a round: enough that the ledger of all rounds is condensed.
const REQUESTS: u64 = 300;
/// How many requests are under way at a time.
const SENDERS: u64 = 4;
/// Readings in a request; one more is refused.
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

/// When the requests of a round were first sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Now,
    Before,
}

/// Records of each topic, written and still there.
type Records = BTreeMap<&'static str, (i64, i64)>;

fn records(log: &Log, runtime: &Runtime) -> Result<Records> {
    let mut records = Records::new();
    for spec in specs(KAFKA_PARTITIONS, 1) {
        for kafka_partition in 0..spec.kafka_partitions {
            let range = runtime.block_on(log.offsets(spec.name, KafkaPartition(kafka_partition)))?;
            let (written, there) = records.entry(spec.name).or_default();
            *written += range.high.0;
            *there += range.high.0 - range.low.0;
        }
    }
    Ok(records)
}

/// Sends the requests of a round, some at a time, and fails unless each is answered as `expected`.
fn send_round(api: &Api, round: u64, expected: Sent) -> Result<()> {
    let address = api.url().trim_start_matches("http://");
    let send = |sender: u64| -> Result<()> {
        let api = Api::new(address)?;
        for request in (sender..REQUESTS).step_by(SENDERS as usize) {
            let number = round * REQUESTS + request;
            let (status, answer) =
                api.post_once("/v1/readings", &format!("bounded/{number}"), &body(number))?;
            ensure!(status == 200, "{answer}");
            let answer: Value = serde_json::from_str(&answer).context("read the answer")?;
            ensure!(answer["duplicate_request"] == (expected == Sent::Before), "{answer}");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS).map(|sender| scope.spawn(move || send(sender))).collect();
        senders.into_iter().try_for_each(|sender| sender.join().expect("a sender does not panic"))
    })
}

/// Readings of their own for each number, and something that is none.
fn body(number: u64) -> Value {
    let reading = |index: u64| {
        let (device, time) = (format!("device-{}", index % 5), 1_700_000_000_000 + number * 1_000 + index);
        json!({"device_id": device, "metric": "load", "value": index, "event_time": time})
    };
    (0..READINGS_EACH).map(reading).chain([json!({"device_id": "device-0"})]).collect()
}

/// Batch runs until everything is below the horizon.
fn batch_all(site: &Site, api: &Api, readings: u64) -> Result<()> {
    wait::until("batch view of everything", PATIENCE, || {
        site.batch_run()?.succeed(PATIENCE)?;
        let counted = "SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM batch_metrics";
        Ok((api.sql(counted)?.value::<u64>()? == readings).then_some(()))
    })
}

fn check_answers(api: &Api, rounds: u64) -> Result<()> {
    let count = |sql: &str| api.sql(sql)?.value::<u64>();
    wait::until("letters", PATIENCE, || {
        Ok((count("SELECT count(*) FROM dead_letters")? == rounds * REQUESTS).then_some(()))
    })?;
    let served = count("SELECT CAST(coalesce(sum(count), 0) AS BIGINT) FROM unified_series")?;
    ensure!(served == rounds * REQUESTS * READINGS_EACH, "{served} readings are served");
    Ok(())
}

#[test]
fn every_topic_stays_small_and_no_answer_moves() -> Result<()> {
    let mut site = Site::new()?;
    site.configure(CONFIG)?;
    let mut server = site.up()?;
    let api = server.ready()?;
    let bootstrap = std::fs::read_to_string(site.data_dir().join("kafka.addr"))?;
    let log = Log::new(LogConfig::new(bootstrap.trim(), KAFKA_PARTITIONS))?;
    let runtime = Runtime::new()?;
    for round in 0..ROUNDS {
        send_round(&api, round, Sent::Now)?;
        batch_all(&site, &api, (round + 1) * REQUESTS * READINGS_EACH)?;
        check_answers(&api, round + 1)?;
    }
    let mut last = Records::new();
    let small = wait::at_most(PATIENCE, || {
        last = records(&log, &runtime)?;
        let is_small = |(topic, (written, there)): (&&str, &(i64, i64))| {
            let bound = match *topic {
                // It is condensed when it has some thousand records, which is once in this test.
                LEDGER => 1_500,
                READINGS | DEAD_LETTER => REQUESTS as i64,
                // A few epochs.
                _ => 40,
            };
            *written > 3 * bound && *there <= bound
        };
        Ok(last.iter().all(is_small).then_some(()))
    })?;
    ensure!(small.is_some(), "records written and still there: {last:?}");

    // Loaded again, all of it is there already; and after a restart the answers are the same.
    for round in [0, ROUNDS - 1] {
        send_round(&api, round, Sent::Before)?;
    }
    check_answers(&api, ROUNDS)?;
    server.stop()?;
    let mut server = site.up()?;
    let api = server.ready()?;
    check_answers(&api, ROUNDS)?;
    send_round(&api, 3, Sent::Before)?;
    server.stop()
}

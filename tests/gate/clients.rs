//! Ordinary Kafka clients work with the embedded broker: the script of each client in `tests/clients` runs against its own
//! broker. A client that is not installed is skipped with a message; in CI that is a failure.

use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use wye_broker::{Broker, BrokerConfig};
use wye_log::client::{Log, LogConfig};
use wye_log::topics::{self, TopicSpec};
use wye_tests::datasets::{self, say};

/// The exit code of a script whose client is not installed.
const ABSENT: i32 = 77;
const TOPIC: &str = "ordinary";

/// Runs the script of a client to its end.
fn drive(client: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let broker = runtime.block_on(Broker::start(BrokerConfig::new(directory.path().join("log"))))?;
    let bootstrap = broker.bootstrap_servers().to_owned();
    let log = Log::new(LogConfig::new(bootstrap.clone(), 1))?;
    let config = topics::specs(1, 1).swap_remove(0).config;
    let topic = TopicSpec { name: TOPIC, kafka_partitions: 2, config };
    runtime.block_on(log.ensure(&[topic]))?;

    let script = datasets::project_root().join("tests/clients").join(format!("{client}.sh"));
    let since = Instant::now();
    let ran = Command::new(&script).args([bootstrap.as_str(), TOPIC]).arg(directory.path()).output();
    let Output { status, stdout, stderr } = ran.with_context(|| format!("run {}", script.display()))?;
    let output = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    match status.code() {
        Some(0) => say(&format!("{client}: works, in {:?}", since.elapsed())),
        Some(ABSENT) => {
            datasets::absent(&format!("{client}: {output}"))?;
        }
        _ => bail!("{client} does not work ({status}): {output}"),
    }
    runtime.block_on(broker.stop());
    Ok(())
}

#[test]
fn kcat_works() -> Result<()> {
    drive("kcat")
}

#[test]
fn the_java_clients_and_tools_work() -> Result<()> {
    drive("java")
}

#[test]
fn confluent_kafka_works() -> Result<()> {
    drive("confluent")
}

#[test]
fn kafka_python_works() -> Result<()> {
    drive("kafka-python")
}

#[test]
fn franz_go_works() -> Result<()> {
    drive("franz")
}

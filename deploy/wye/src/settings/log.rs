//! The section `[log]`: the Kafka cluster or the embedded broker.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use wye_runtime::config::value::byte_size;
use wye_runtime::config::{ConfigError, Setting, Unworkable, is_address};

use super::secret::{self, Secret};

/// The largest number of Kafka partitions of a topic: clusters have no larger topics in practice.
const MOST_PARTITIONS: i32 = 10_000;
/// The largest message of Wye's own topics, in bytes.
const LARGEST_MESSAGE: usize = 8 << 20;
/// How many connections to the embedded broker the layers may have at a time.
const OWN_CONNECTIONS: usize = 32;

/// `[log]`; see `settings.toml` for units and reasons.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogSection {
    pub(crate) bootstrap_servers: String,
    pub(crate) kafka_partitions: i32,
    pub(crate) replication_factor: i32,
    #[serde(deserialize_with = "embedded_port")]
    pub(crate) embedded_port: EmbeddedPort,
    pub(crate) embedded_connections: usize,
    #[serde(with = "humantime_serde")]
    pub(crate) embedded_idle: Duration,
    #[serde(deserialize_with = "byte_size")]
    pub(crate) embedded_memory: usize,
    #[serde(deserialize_with = "byte_size")]
    pub(crate) embedded_max_batch: usize,
    pub(crate) client: BTreeMap<String, Secret>,
    pub(crate) sasl_password: Secret,
    pub(crate) sasl_password_file: String,
}

impl LogSection {
    /// Whether the log is the embedded broker's.
    pub(crate) fn is_embedded(&self) -> bool {
        self.bootstrap_servers.is_empty()
    }

    /// The properties of the Kafka client, with the password, wherever it was written. A password file is relative to the
    /// folder of the configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] when the password file cannot be read, or there are two passwords.
    pub(crate) fn client_properties(
        &self,
        file: Option<&Path>,
    ) -> Result<BTreeMap<String, String>, ConfigError> {
        const PASSWORD: &str = "sasl.password";
        let client = self.client.iter();
        let mut properties: BTreeMap<String, String> =
            client.map(|(property, value)| (property.clone(), value.reveal().to_owned())).collect();
        let mut passwords: Vec<String> = properties.remove(PASSWORD).into_iter().collect();
        passwords.extend(self.sasl_password.given().map(str::to_owned));
        passwords.extend(secret::read_file(&self.sasl_password_file, file)?);
        if passwords.len() > 1 {
            let problem = "the password for Kafka is written more than once; keep one of sasl_password, \
                           sasl_password_file and client.\"sasl.password\"";
            return Err(ConfigError::Parse { place: "[log]".to_owned(), problem: problem.to_owned() });
        }
        properties.extend(passwords.pop().map(|password| (PASSWORD.to_owned(), password)));
        Ok(properties)
    }
}

/// The port of the embedded broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EmbeddedPort {
    /// The usual port of Kafka, or a free one if that is in use.
    Default,
    /// This port, or Wye does not start; 0 is a free port.
    Only(u16),
}

impl LogSection {
    pub(super) fn check(&self) -> Vec<Unworkable> {
        let (partitions, replicas) = (self.kafka_partitions, self.replication_factor);
        let servers = self.bootstrap_servers.split(',').map(str::trim);
        let wrong = servers.filter(|_| !self.bootstrap_servers.is_empty()).find(|server| !is_address(server));
        [
            (!(1..=MOST_PARTITIONS).contains(&partitions)).then(|| {
                let problem = format!("is {partitions}, and must be 1 to {MOST_PARTITIONS}");
                named("kafka_partitions", "4").cannot_work(problem)
            }),
            (!(1..=i32::from(i16::MAX)).contains(&replicas)).then(|| {
                let problem = format!("is {replicas}, and each record must be on at least 1 broker");
                named("replication_factor", "3").cannot_work(problem)
            }),
            wrong.map(|wrong| {
                named("bootstrap_servers", "\"kafka-1:9092,kafka-2:9092\"")
                    .cannot_work(format!("names {wrong:?}, which is not HOST:PORT"))
            }),
            named("embedded_idle", "\"10m\"").at_least(self.embedded_idle, Duration::from_secs(1)),
            too_small(self.embedded_memory)
                .map(|problem| named("embedded_memory", "\"256MiB\"").cannot_work(problem)),
            too_small(self.embedded_max_batch)
                .map(|problem| named("embedded_max_batch", "\"64MiB\"").cannot_work(problem)),
            (self.embedded_connections < OWN_CONNECTIONS).then(|| {
                let connections = self.embedded_connections;
                let problem = format!("is {connections}, and Wye itself needs up to {OWN_CONNECTIONS}");
                named("embedded_connections", "400").cannot_work(problem)
            }),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A setting of this section.
fn named(key: &'static str, example: &'static str) -> Setting {
    Setting { section: "log", key, example }
}

/// The problem of a limit that is smaller than the largest message.
fn too_small(bytes: usize) -> Option<String> {
    (bytes < LARGEST_MESSAGE).then(|| format!("is {bytes} bytes, but a message of Wye may have 8MiB"))
}

fn embedded_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<EmbeddedPort, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(i64),
        Text(String),
    }
    let written = match Written::deserialize(deserializer)? {
        Written::Text(text) if text == "default" => return Ok(EmbeddedPort::Default),
        Written::Text(text) => text,
        Written::Number(number) => number.to_string(),
    };
    written.parse().map(EmbeddedPort::Only).map_err(|_| {
        serde::de::Error::custom(format!(
            "{written:?} is not a port; write a number from 0 to 65535, or \"default\""
        ))
    })
}

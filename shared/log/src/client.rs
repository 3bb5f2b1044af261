//! The connection to the log: waiting for it, its topics, its offsets, deleting its heads.
//!
//! This file does not know what is in a topic, nor how records are written or read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientConfig, TopicPartitionList};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};

use crate::access;
use crate::error::{LogError, kind_of_code};
use crate::kafka_logs::{RateLimit, TracingContext};
use crate::properties::{self, configure};
use crate::topics::{self, TopicSpec};

mod settings;

/// How long one question to the broker may take.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long new topics may take until every partition has a leader.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// So many refusals of a connection one after the other are final.
const REFUSALS: u32 = 2;
/// How often "still waiting" is said.
const WAITING_NOTICE: Duration = Duration::from_secs(5);

/// Where the log is and what it looks like.
#[derive(Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    /// How many Kafka partitions the readings have; at least 1. It cannot change once topics exist.
    pub kafka_partitions: i32,
    /// On how many brokers each record stands.
    pub replication_factor: i32,
    /// librdkafka properties passed through as they are (security, tuning); they win over Wye's own. Those that Wye's
    /// invariants rest on are refused by [`Log::new`]. Values may be secrets.
    pub extra: BTreeMap<String, String>,
}

impl fmt::Debug for LogConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bootstrap_servers, kafka_partitions, replication_factor, extra } = self;
        formatter
            .debug_struct("LogConfig")
            .field("bootstrap_servers", bootstrap_servers)
            .field("kafka_partitions", kafka_partitions)
            .field("replication_factor", replication_factor)
            .field("extra", &extra.keys())
            .finish()
    }
}

impl LogConfig {
    /// A log at `bootstrap_servers` with one replica and nothing extra.
    pub fn new(bootstrap_servers: impl Into<String>, kafka_partitions: i32) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            kafka_partitions,
            replication_factor: 1,
            extra: BTreeMap::new(),
        }
    }

    /// The librdkafka configuration of one client: `own` properties under [`Self::extra`].
    pub(crate) fn client(&self, own: &[(&str, &str)]) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set_log_level(RDKafkaLogLevel::Info);
        client.set("bootstrap.servers", &self.bootstrap_servers);
        client.set("client.id", "wye");
        // A broker that comes back is found again within a second; the default backs off to ten.
        client.set("reconnect.backoff.max.ms", "1000");
        client.set("socket.nagle.disable", "true");
        for (key, value) in own {
            client.set(*key, *value);
        }
        for (key, value) in &self.extra {
            client.set(key, value);
        }
        client
    }
}

/// Which offsets of a Kafka partition can be read: `low..high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// The first offset that is still there (or, with nothing there, the next one to come).
    pub low: Offset,
    /// The offset that the next record will get.
    pub high: Offset,
}

impl OffsetRange {
    /// Whether there is nothing to read.
    pub fn is_empty(self) -> bool {
        self.low >= self.high
    }
}

/// The connection to the log. Clones share it.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    config: LogConfig,
    /// Also asks for metadata and offsets.
    admin: AdminClient<TracingContext>,
}

impl Log {
    /// Prepares the clients; nothing is sent yet.
    ///
    /// # Errors
    /// `Setting` when a property may not be set or librdkafka refuses it; `Configure` when the client cannot be made.
    pub fn new(config: LogConfig) -> Result<Self, LogError> {
        config.extra.keys().try_for_each(|property| properties::check(property))?;
        // Nobody polls the log queue of an admin client, so nothing may be put there: it would grow for ever.
        let mut quiet = config.client(&[]);
        quiet.set_log_level(RDKafkaLogLevel::Emerg);
        let admin = quiet.create_with_context(TracingContext).map_err(configure)?;
        Ok(Self { inner: Arc::new(Inner { config, admin }) })
    }

    /// What this log was made from.
    pub fn config(&self) -> &LogConfig {
        &self.inner.config
    }

    /// Waits until a broker answers, however long it takes, and says so every few seconds.
    ///
    /// # Errors
    /// `Refused` when a broker is there but refuses the connection (certificate, password); `Cancelled` when `cancel`
    /// fires first.
    pub async fn wait_ready(&self, cancel: &CancellationToken) -> Result<(), LogError> {
        let mut notice = RateLimit::new(WAITING_NOTICE);
        let mut refusals = 0;
        loop {
            let config = self.inner.config.clone();
            let answer = blocking(move || access::check(&config, Duration::from_secs(2)));
            let answered = tokio::select! {
                () = cancel.cancelled() => return Err(LogError::Cancelled),
                answer = answer => answer,
            };
            let Err(error) = answered else { return Ok(()) };
            // A broker that is starting or stopping may refuse once what it takes a moment later.
            refusals = if matches!(error, LogError::Refused { .. }) { refusals + 1 } else { 0 };
            if refusals == REFUSALS {
                return Err(error);
            }
            if notice.allows() {
                let bootstrap_servers = &self.inner.config.bootstrap_servers;
                warn!(%error, "cannot reach Kafka at {bootstrap_servers}; waiting");
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(LogError::Cancelled),
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
    }

    /// Creates Wye's topics that are not there yet, waits until they can be used, and checks the settings of all of
    /// them. Repeating it does no harm.
    ///
    /// # Errors
    /// `PartitionCount` when a topic is there with another number of Kafka partitions; `TopicSettings` when it has
    /// settings that lose readings or mislead; `Administer` when the broker refuses one; `Ask` when it cannot be
    /// reached.
    pub async fn ensure_topics(&self) -> Result<(), LogError> {
        let LogConfig { kafka_partitions, replication_factor, .. } = self.inner.config;
        self.ensure(&topics::specs(kafka_partitions, replication_factor)).await
    }

    /// [`Self::ensure_topics`] for any topics.
    ///
    /// # Errors
    /// As [`Self::ensure_topics`].
    pub async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        let missing = self.missing(specs).await?;
        for spec in missing {
            self.create(spec).await?;
        }
        let deadline = Instant::now() + CREATE_TIMEOUT;
        loop {
            let missing = self.missing(specs).await?;
            let Some(first) = missing.first() else { return self.check_settings(specs).await };
            if Instant::now() >= deadline {
                return Err(LogError::Administer {
                    what: format!("use topic {:?}", first.name),
                    reason: "it has no leader after 30 s".to_owned(),
                    kind: ErrorKind::Unavailable,
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Which offsets of a Kafka partition can be read now.
    ///
    /// # Errors
    /// `Ask` when the broker cannot be reached or does not know the partition.
    pub async fn offsets(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
    ) -> Result<OffsetRange, LogError> {
        let log = self.clone();
        let topic = topic.to_owned();
        blocking(move || log.offsets_blocking(&topic, kafka_partition)).await
    }

    /// [`Self::offsets`] for a thread of its own: blocks for up to ten seconds.
    ///
    /// # Errors
    /// As [`Self::offsets`].
    pub fn offsets_blocking(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
    ) -> Result<OffsetRange, LogError> {
        self.offsets_within(topic, kafka_partition, ASK_TIMEOUT)
    }

    /// [`Self::offsets_blocking`] that blocks for up to `timeout`.
    pub(crate) fn offsets_within(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
        timeout: Duration,
    ) -> Result<OffsetRange, LogError> {
        let found = self.inner.admin.inner().fetch_watermarks(topic, kafka_partition.0, timeout);
        let what = || format!("the offsets of {topic:?} partition {kafka_partition}");
        let (low, high) = found.map_err(|source| self.ask_error(what(), source))?;
        Ok(OffsetRange { low: Offset(low), high: Offset(high) })
    }

    /// Deletes the head of a Kafka partition: every record below offset `before`. Below the low watermark there is
    /// nothing to do, and nothing is sent. Readers that stand below `before` get
    /// [`LogError::OffsetGone`].
    ///
    /// # Errors
    /// `Administer` when the broker refuses (`before` past the end of the log); `Ask` when it cannot be reached.
    pub async fn delete_records(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
        before: Offset,
    ) -> Result<(), LogError> {
        if before <= self.offsets(topic, kafka_partition).await?.low {
            return Ok(());
        }
        let what = || format!("delete the records of {topic:?} partition {kafka_partition} below {before}");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, kafka_partition.0, rdkafka::Offset::Offset(before.0))
            .map_err(configure)?;
        let options =
            AdminOptions::new().request_timeout(Some(ASK_TIMEOUT)).operation_timeout(Some(ASK_TIMEOUT));
        let deleted = self.inner.admin.delete_records(&list, &options).await;
        let deleted = deleted.map_err(|source| administer(what(), &source))?;
        for element in deleted.elements() {
            element.error().map_err(|source| administer(what(), &source))?;
        }
        Ok(())
    }

    async fn create(&self, spec: &TopicSpec) -> Result<(), LogError> {
        let replication = TopicReplication::Fixed(self.inner.config.replication_factor);
        let mut topic = NewTopic::new(spec.name, spec.kafka_partitions, replication);
        for (key, value) in &spec.config {
            topic = topic.set(key, value);
        }
        let options =
            AdminOptions::new().request_timeout(Some(ASK_TIMEOUT)).operation_timeout(Some(ASK_TIMEOUT));
        let what = || format!("create topic {:?}", spec.name);
        let results = self.inner.admin.create_topics([&topic], &options).await;
        for result in results.map_err(|source| administer(what(), &source))? {
            match result {
                Ok(name) => info!(topic = name, kafka_partitions = spec.kafka_partitions, "created topic"),
                // Another process was first, which is as good.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => {
                    return Err(LogError::Administer {
                        what: what(),
                        reason: code.to_string(),
                        kind: kind_of_code(code),
                    });
                }
            }
        }
        Ok(())
    }

    /// Those of `specs` that are not there or have a partition without a leader.
    async fn missing<'a>(&self, specs: &'a [TopicSpec]) -> Result<Vec<&'a TopicSpec>, LogError> {
        let log = self.clone();
        let metadata = blocking(move || log.metadata(None, ASK_TIMEOUT)).await?;
        let mut missing = Vec::new();
        for spec in specs {
            let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == spec.name) else {
                missing.push(spec);
                continue;
            };
            let found = topic.partitions().len() as i32;
            if found == 0 || topic.partitions().iter().any(|partition| partition.leader() < 0) {
                missing.push(spec);
            } else if found != spec.kafka_partitions {
                let (topic, expected) = (spec.name.to_owned(), spec.kafka_partitions);
                return Err(LogError::PartitionCount { topic, found, expected });
            }
        }
        Ok(missing)
    }

    fn metadata(&self, topic: Option<&str>, timeout: Duration) -> Result<Metadata, LogError> {
        let answer = self.inner.admin.inner().fetch_metadata(topic, timeout);
        answer.map_err(|source| self.ask_error("its topics".to_owned(), source))
    }

    pub(crate) fn ask_error(&self, what: String, source: KafkaError) -> LogError {
        LogError::Ask {
            bootstrap_servers: self.inner.config.bootstrap_servers.clone(),
            what,
            source: source.into(),
        }
    }
}

fn administer(what: String, source: &KafkaError) -> LogError {
    let kind = source.rdkafka_error_code().map_or(ErrorKind::Internal, kind_of_code);
    LogError::Administer { what, reason: source.to_string(), kind }
}

/// Runs a blocking librdkafka call beside the async threads.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and the caller with it.
            Err(_) => std::future::pending().await,
        },
    }
}

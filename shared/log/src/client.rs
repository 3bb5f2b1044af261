//! The connection to the log: waiting for it, its topics, its offsets, deleting old records.
//!
//! This file must not know what is in a topic, nor how records are written or read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::{ClientConfig, TopicPartitionList};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wye_domain::ErrorKind;
use wye_domain::place::{KafkaPartition, Offset};

use crate::access;
use crate::error::{LogError, kind_of_code};
use crate::kafka_logs::{RateLimit, TracingContext};
use crate::properties::{self, configure};
use crate::real_time::Deadline;
use crate::topics::{self, TopicSpec};

mod settings;

/// How long one request to the broker may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long new topics may take until every partition has a leader.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one attempt to connect may take, in [`Log::wait_ready`].
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause between two attempts to connect.
const CONNECT_INTERVAL: Duration = Duration::from_millis(200);
/// After so many rejected connections in a row, [`Log::wait_ready`] returns the error.
const MAX_REJECTIONS: u32 = 2;
/// How often [`Log::wait_ready`] logs that it still waits.
const NOTICE_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is checked whether new topics are ready.
const CREATE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The address of the log, and how its topics are created.
#[derive(Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `host:port`, comma-separated.
    pub bootstrap_servers: String,
    /// How many Kafka partitions the readings have; at least 1. It cannot be changed once the topics exist.
    pub kafka_partitions: i32,
    /// On how many brokers each record is stored.
    pub replication_factor: i32,
    /// librdkafka properties, passed on unchanged (security, tuning); they override Wye's own. [`Log::new`] rejects those
    /// that Wye's invariants depend on. Values may be secrets.
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
    /// A log at `bootstrap_servers` with one replica and no extra properties.
    pub fn new(bootstrap_servers: impl Into<String>, kafka_partitions: i32) -> Self {
        Self {
            bootstrap_servers: bootstrap_servers.into(),
            kafka_partitions,
            replication_factor: 1,
            extra: BTreeMap::new(),
        }
    }

    /// The librdkafka configuration of one client: the `own` properties, overridden by [`Self::extra`].
    pub(crate) fn client(&self, own: &[(&str, &str)]) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set_log_level(RDKafkaLogLevel::Info);
        client.set("bootstrap.servers", &self.bootstrap_servers);
        client.set("client.id", "wye");
        // Reconnects within a second after the broker is back; the default waits up to ten seconds.
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

/// The offsets of a Kafka partition that can be read: `low..high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    /// The first offset that has not been deleted; equal to `high` where there are no records.
    pub low: Offset,
    /// The offset that the next record will get.
    pub high: Offset,
}

impl OffsetRange {
    /// Whether there are no records.
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
    /// Also used for metadata and offsets.
    admin: AdminClient<TracingContext>,
}

impl Log {
    /// Prepares the clients. Sends nothing yet.
    ///
    /// # Errors
    /// `Setting` when a property may not be set or librdkafka rejects it; `Configure` when the client cannot be
    /// created.
    pub fn new(config: LogConfig) -> Result<Self, LogError> {
        config.extra.keys().try_for_each(|property| properties::check(property))?;
        let mut client = config.client(&[]);
        // The log queue of an admin client is never polled, so it must stay empty: it would grow without limit.
        client.set_log_level(RDKafkaLogLevel::Emerg);
        let admin = client.create_with_context(TracingContext).map_err(configure)?;
        Ok(Self { inner: Arc::new(Inner { config, admin }) })
    }

    /// The configuration of this log.
    pub fn config(&self) -> &LogConfig {
        &self.inner.config
    }

    /// Waits until a broker answers, without a limit, and logs that it waits every few seconds.
    ///
    /// # Errors
    /// `Refused` when a broker rejects the connection (certificate, password); `Cancelled` when `shutdown` is cancelled
    /// first.
    pub async fn wait_ready(&self, shutdown: &CancellationToken) -> Result<(), LogError> {
        let mut notice = RateLimit::new(NOTICE_INTERVAL);
        let mut rejections = 0;
        loop {
            let config = self.inner.config.clone();
            let checked = tokio::select! {
                () = shutdown.cancelled() => return Err(LogError::Cancelled),
                checked = blocking(move || access::check(&config, CONNECT_TIMEOUT)) => checked,
            };
            let Err(error) = checked else { return Ok(()) };
            // A broker that is starting or stopping may reject a connection once and accept the next one.
            rejections = if matches!(error, LogError::Refused { .. }) { rejections + 1 } else { 0 };
            if rejections == MAX_REJECTIONS {
                return Err(error);
            }
            if notice.allows() {
                let bootstrap_servers = &self.inner.config.bootstrap_servers;
                warn!(%error, "cannot reach Kafka at {bootstrap_servers}; waiting");
            }
            tokio::select! {
                () = shutdown.cancelled() => return Err(LogError::Cancelled),
                () = tokio::time::sleep(CONNECT_INTERVAL) => {}
            }
        }
    }

    /// Creates the missing topics of Wye, waits until they can be used, and checks the settings of all of them. It can
    /// be repeated.
    ///
    /// # Errors
    /// `PartitionCount` when a topic exists with another number of Kafka partitions; `TopicSettings` when an existing
    /// topic has settings with which readings are lost or times are wrong; `Administer` when the broker rejects a
    /// request; `Ask` when it cannot be reached.
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
        let deadline = Deadline::after(CREATE_TIMEOUT);
        loop {
            let missing = self.missing(specs).await?;
            let Some(first) = missing.first() else { return self.check_settings(specs).await };
            if deadline.has_passed() {
                return Err(LogError::Administer {
                    what: format!("use topic {:?}", first.name),
                    reason: format!("it has no leader after {} s", CREATE_TIMEOUT.as_secs()),
                    kind: ErrorKind::Unavailable,
                });
            }
            tokio::time::sleep(CREATE_POLL_INTERVAL).await;
        }
    }

    /// The offsets of a Kafka partition that can be read now.
    ///
    /// # Errors
    /// `Ask` when the broker cannot be reached or does not have the Kafka partition.
    pub async fn offsets(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
    ) -> Result<OffsetRange, LogError> {
        let log = self.clone();
        let topic = topic.to_owned();
        blocking(move || log.offsets_blocking(&topic, kafka_partition)).await
    }

    /// [`Self::offsets`] for a thread that may block, for up to ten seconds.
    ///
    /// # Errors
    /// As [`Self::offsets`].
    pub fn offsets_blocking(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
    ) -> Result<OffsetRange, LogError> {
        self.offsets_within(topic, kafka_partition, REQUEST_TIMEOUT)
    }

    /// [`Self::offsets_blocking`] that blocks for up to `timeout`.
    pub(crate) fn offsets_within(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
        timeout: Duration,
    ) -> Result<OffsetRange, LogError> {
        let found = self.inner.admin.inner().fetch_watermarks(topic, kafka_partition.0, timeout);
        let (low, high) = found.map_err(|source| {
            self.ask_error(format!("the offsets of {topic:?} partition {kafka_partition}"), source)
        })?;
        Ok(OffsetRange { low: Offset(low), high: Offset(high) })
    }

    /// Deletes every record of a Kafka partition below offset `before`; sends nothing where they are deleted already.
    /// Readers whose next offset is below `before` get [`LogError::OffsetGone`].
    ///
    /// # Errors
    /// `Administer` when the broker rejects the request (`before` is past the end of the log); `Ask` when it cannot be
    /// reached.
    pub async fn delete_records(
        &self,
        topic: &str,
        kafka_partition: KafkaPartition,
        before: Offset,
    ) -> Result<(), LogError> {
        if before <= self.offsets(topic, kafka_partition).await?.low {
            return Ok(());
        }
        let what = format!("delete the records of {topic:?} partition {kafka_partition} below {before}");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, kafka_partition.0, rdkafka::Offset::Offset(before.0))
            .map_err(configure)?;
        let deleted = self.inner.admin.delete_records(&list, &admin_options()).await;
        let deleted = deleted.map_err(|source| administer(&what, &source))?;
        for element in deleted.elements() {
            element.error().map_err(|source| administer(&what, &source))?;
        }
        Ok(())
    }

    async fn create(&self, spec: &TopicSpec) -> Result<(), LogError> {
        let replication = TopicReplication::Fixed(self.inner.config.replication_factor);
        let mut topic = NewTopic::new(spec.name, spec.kafka_partitions, replication);
        for (key, value) in &spec.config {
            topic = topic.set(key, value);
        }
        let what = format!("create topic {:?}", spec.name);
        let results = self.inner.admin.create_topics([&topic], &admin_options()).await;
        for result in results.map_err(|source| administer(&what, &source))? {
            match result {
                Ok(name) => info!(topic = name, kafka_partitions = spec.kafka_partitions, "created topic"),
                // Another process has created it in the meantime.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => {
                    let (reason, kind) = (code.to_string(), kind_of_code(code));
                    return Err(LogError::Administer { what, reason, kind });
                }
            }
        }
        Ok(())
    }

    /// Those of `specs` that do not exist or have a Kafka partition without a leader.
    async fn missing<'a>(&self, specs: &'a [TopicSpec]) -> Result<Vec<&'a TopicSpec>, LogError> {
        let log = self.clone();
        let metadata = blocking(move || log.metadata(None, REQUEST_TIMEOUT)).await?;
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

    /// The error of a request for metadata or offsets; `what` continues "cannot ask Kafka for ..".
    pub(crate) fn ask_error(&self, what: String, source: KafkaError) -> LogError {
        LogError::Ask {
            bootstrap_servers: self.inner.config.bootstrap_servers.clone(),
            what,
            source: source.into(),
        }
    }
}

/// The options of every request of the admin client.
fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT))
}

/// The error of an operation of the admin client; `what` continues "cannot ..".
fn administer(what: &str, source: &KafkaError) -> LogError {
    let kind = source.rdkafka_error_code().map_or(ErrorKind::Internal, kind_of_code);
    LogError::Administer { what: what.to_owned(), reason: source.to_string(), kind }
}

/// Runs a blocking librdkafka call outside of the async threads.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, so the caller ends as well.
            Err(_) => std::future::pending().await,
        },
    }
}

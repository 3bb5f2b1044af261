//! Writing to the log: acknowledged by every replica, each message once and in order per Kafka partition.
//!
//! This file must not know which Kafka partition a key belongs to (see [`crate::partitioner`]), nor what a payload
//! means.
//!
//! The producer is idempotent: it numbers its batches, and a broker drops a batch that it has already. That holds for
//! this client's own retries. A message whose delivery failed (`Write` error of kind `Unavailable`) may be in the log
//! or not; a caller that sends it again may write a duplicate. The numbering survives a restart of the broker: Apache
//! Kafka and the embedded broker both store it with the log.
//!
//! When client and broker no longer agree on the numbering, librdkafka fails permanently, with everything in its queue.
//! The next call fails too and replaces the client. So no message is written after a lost one without an error between
//! them. The call after that works.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use tracing::warn;
use wye_domain::place::{KafkaPartition, Offset};

use crate::client::Log;
use crate::error::LogError;
use crate::kafka_logs::TracingContext;
use crate::properties::configure;
use crate::topics::MAX_MESSAGE_BYTES;

/// How long [`Producer::send`] waits before it retries a full queue.
const QUEUE_FULL_DELAY: Duration = Duration::from_millis(2);

/// One message to write.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// The topic to write to.
    pub topic: &'a str,
    /// The Kafka partition of that topic.
    pub kafka_partition: KafkaPartition,
    /// The key, if any.
    pub key: Option<&'a [u8]>,
    /// The payload, at most [`crate::topics::MAX_PAYLOAD_BYTES`].
    pub payload: &'a [u8],
    /// Name and value of each header.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// Writes messages. Clones share one connection and one queue.
#[derive(Clone)]
pub struct Producer {
    config: Arc<ClientConfig>,
    /// Replaced when it has failed permanently.
    client: Arc<RwLock<Client>>,
}

type Client = FutureProducer<TracingContext>;

impl Producer {
    /// Prepares a producer that collects messages for up to `linger` (batching delay) before it sends a batch. A longer
    /// delay costs less work per message, a shorter one less latency. Sends nothing yet.
    ///
    /// # Errors
    /// `Configure` when librdkafka rejects a property.
    pub fn new(log: &Log, linger: Duration) -> Result<Self, LogError> {
        let linger_ms = (linger.as_micros() as f64 / 1000.0).to_string();
        let message_max_bytes = MAX_MESSAGE_BYTES.to_string();
        let config = log.config().client(&[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("compression.type", "lz4"),
            ("linger.ms", &linger_ms),
            ("message.max.bytes", &message_max_bytes),
            ("batch.size", "1000000"),
            ("batch.num.messages", "100000"),
            // The limits of the queue, in messages and in bytes of messages.
            ("queue.buffering.max.messages", "200000"),
            ("queue.buffering.max.kbytes", "65536"),
        ]);
        let client = create(&config)?;
        Ok(Self { config: Arc::new(config), client: Arc::new(RwLock::new(client)) })
    }

    /// Writes one message, waits until it is acknowledged, and returns its offset. Waits for room when the queue is
    /// full.
    ///
    /// # Errors
    /// `Write` when the broker rejects the message, or is not reached within `delivery.timeout.ms` (5 minutes).
    pub async fn send(&self, message: Outgoing<'_>) -> Result<Offset, LogError> {
        loop {
            match self.enqueue(message) {
                Ok(delivery) => return delivery.await,
                Err(LogError::QueueFull) => tokio::time::sleep(QUEUE_FULL_DELAY).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Copies one message into the queue. The returned [`Delivery`] completes when it is acknowledged; messages to
    /// one Kafka partition are written in the order of these calls. Dropping the delivery does not cancel the write.
    ///
    /// # Errors
    /// `QueueFull`: await earlier deliveries, then retry. `Write` when the message cannot be sent at all.
    pub fn enqueue(&self, message: Outgoing<'_>) -> Result<Delivery, LogError> {
        let mut record = FutureRecord::<[u8], [u8]>::to(message.topic)
            .partition(message.kafka_partition.0)
            .payload(message.payload);
        if let Some(key) = message.key {
            record = record.key(key);
        }
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            let headers = message
                .headers
                .iter()
                .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }));
            record = record.headers(headers);
        }
        let sent = self.client.read().unwrap_or_else(PoisonError::into_inner).send_result(record);
        match sent {
            Ok(inner) => Ok(Delivery { inner }),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Err(LogError::QueueFull),
            Err((source, _)) => {
                if source.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                    self.replace_client();
                }
                let destination = format!("{:?} partition {}", message.topic, message.kafka_partition);
                Err(LogError::Write { destination, source: source.into() })
            }
        }
    }

    /// Waits until every message in the queue is acknowledged or has failed.
    ///
    /// # Errors
    /// `Write` when that takes longer than `timeout`.
    pub async fn flush(&self, timeout: Duration) -> Result<(), LogError> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let flushed = tokio::task::spawn_blocking(move || client.flush(timeout)).await;
        match flushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                Err(LogError::Write { destination: "the log (flush)".to_owned(), source: source.into() })
            }
            Err(_) => Err(LogError::Cancelled),
        }
    }

    /// Replaces a client that has failed permanently.
    fn replace_client(&self) {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        // Where several callers notice at once, the first replaces the client for all.
        let Some((_, reason)) = client.client().fatal_error() else { return };
        match create(&self.config) {
            Ok(new) => {
                warn!(reason, "the Kafka producer has failed permanently and is replaced");
                let old = std::mem::replace(&mut *client, new);
                // Its drop waits for its threads, so it must not run on the caller's thread.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => {
                warn!(reason, %error, "the Kafka producer has failed permanently and cannot be replaced");
            }
        }
    }
}

fn create(config: &ClientConfig) -> Result<Client, LogError> {
    config.create_with_context(TracingContext).map_err(configure)
}

/// The pending acknowledgement of one message; completes with its offset.
pub struct Delivery {
    inner: DeliveryFuture,
}

impl Future for Delivery {
    type Output = Result<Offset, LogError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.poll_unpin(context).map(|outcome| match outcome {
            Ok(Ok(delivered)) => Ok(Offset(delivered.offset)),
            Ok(Err((source, message))) => {
                let destination = format!("{:?} partition {}", message.topic(), message.partition());
                Err(LogError::Write { destination, source: source.into() })
            }
            Err(_) => Err(LogError::Write {
                destination: "the log".to_owned(),
                source: KafkaError::Canceled.into(),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::{rd_kafka_resp_err_t, rd_kafka_test_fatal_error};

    use super::*;
    use crate::client::LogConfig;
    use crate::topics::LEDGER;
    use wye_broker::{Broker, BrokerConfig};

    #[expect(unsafe_code, reason = "librdkafka's own test function for a permanent failure")]
    fn fail_permanently(producer: &Producer) {
        let client = producer.client.read().unwrap();
        let code = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the handle lives as long as `client`, and the reason is a static string that ends with a zero byte.
        unsafe { rd_kafka_test_fatal_error(client.client().native_ptr(), code, c"test".as_ptr()) };
    }

    #[tokio::test]
    async fn a_producer_that_has_failed_permanently_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
        let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
        log.ensure_topics().await.unwrap();
        let producer = Producer::new(&log, Duration::from_millis(1)).unwrap();
        let message = Outgoing {
            topic: LEDGER,
            kafka_partition: KafkaPartition(0),
            key: None,
            payload: b"x",
            headers: &[],
        };
        assert_eq!(producer.send(message).await.unwrap(), Offset(0));
        fail_permanently(&producer);
        // The first call gets the error; clones share the new client.
        producer.clone().send(message).await.unwrap_err();
        assert_eq!(producer.send(message).await.unwrap(), Offset(1));
    }
}

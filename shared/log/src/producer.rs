//! Writing to the log, acknowledged by every replica, each message once and in order per Kafka partition.
//!
//! This file does not choose partitions (see [`crate::partitioner`]) and does not know what a payload means.
//!
//! The producer is idempotent: it numbers its batches, and a broker drops a batch that it has already. That holds for
//! retries of this client's own. A message that was given up (`Write` error of kind `Unavailable`) may be in the log
//! or not; whoever sends it again must be ready for it to stand there twice. The numbering survives a restart of the
//! broker: Apache Kafka and the embedded broker both keep it with the log.
//!
//! Where client and broker no longer agree on the numbering, librdkafka gives up for good: everything in its queue
//! fails. The call that finds this out fails too, and puts a new client in the place of the old one, so that
//! nothing that was to come after a lost message overtakes it unnoticed, and the next try works.

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

use crate::client::Log;
use crate::error::LogError;
use crate::kafka_logs::TracingContext;
use crate::properties::configure;
use crate::topics::MAX_MESSAGE_BYTES;

/// How long [`Producer::send`] rests before it tries a full queue again.
const QUEUE_FULL_REST: Duration = Duration::from_millis(2);

/// One message to write.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub topic: &'a str,
    /// Which Kafka partition of it.
    pub kafka_partition: i32,
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
    /// Replaced when it has failed for good.
    client: Arc<RwLock<Client>>,
}

type Client = FutureProducer<TracingContext>;

impl Producer {
    /// Prepares a producer that waits up to `linger` for messages to share a batch: longer is less work per message,
    /// shorter is fresher. Nothing is sent yet.
    ///
    /// # Errors
    /// `Configure` when librdkafka refuses a property.
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
            // The bounds of what waits for the broker, in messages and in bytes of messages.
            ("queue.buffering.max.messages", "200000"),
            ("queue.buffering.max.kbytes", "65536"),
        ]);
        let client = create(&config)?;
        Ok(Self { config: Arc::new(config), client: Arc::new(RwLock::new(client)) })
    }

    /// Writes one message and waits until it is acknowledged; where the queue is full, for that first. Returns its
    /// offset.
    ///
    /// # Errors
    /// `Write` when the broker refuses the message, or could not be reached within `delivery.timeout.ms` (5 minutes).
    pub async fn send(&self, message: Outgoing<'_>) -> Result<i64, LogError> {
        loop {
            match self.enqueue(message) {
                Ok(delivery) => return delivery.await,
                Err(LogError::QueueFull) => tokio::time::sleep(QUEUE_FULL_REST).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts one message (copied) into the queue. The returned [`Delivery`] tells when it is acknowledged; messages to
    /// one Kafka partition are written in the order of these calls. Dropping the delivery does not take it back.
    ///
    /// # Errors
    /// `QueueFull`: await earlier deliveries, then try again. `Write` when the message cannot be sent at all.
    pub fn enqueue(&self, message: Outgoing<'_>) -> Result<Delivery, LogError> {
        let mut record = FutureRecord::<[u8], [u8]>::to(message.topic)
            .partition(message.kafka_partition)
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
                    self.renew();
                }
                let place = format!("{:?} partition {}", message.topic, message.kafka_partition);
                Err(LogError::Write { place, source: source.into() })
            }
        }
    }

    /// Waits until everything in the queue is acknowledged or given up.
    ///
    /// # Errors
    /// `Write` when that takes longer than `patience`.
    pub async fn flush(&self, patience: Duration) -> Result<(), LogError> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner).clone();
        let flushed = tokio::task::spawn_blocking(move || client.flush(patience)).await;
        match flushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                Err(LogError::Write { place: "the log (flush)".to_owned(), source: source.into() })
            }
            Err(_) => Err(LogError::Cancelled),
        }
    }

    /// Puts a new client in the place of one that has failed for good.
    fn renew(&self) {
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        // Of several that find it out at once, one is enough.
        let Some((_, reason)) = client.client().fatal_error() else { return };
        match create(&self.config) {
            Ok(new) => {
                warn!(reason, "the Kafka producer has failed for good and is replaced");
                let old = std::mem::replace(&mut *client, new);
                // It waits for its threads as it goes, which is nothing for a caller's thread.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => {
                warn!(reason, %error, "the Kafka producer has failed for good and cannot be replaced");
            }
        }
    }
}

fn create(config: &ClientConfig) -> Result<Client, LogError> {
    config.create_with_context(TracingContext).map_err(configure)
}

/// The acknowledgement to come of one message: its offset.
pub struct Delivery {
    inner: DeliveryFuture,
}

impl Future for Delivery {
    type Output = Result<i64, LogError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.poll_unpin(context).map(|outcome| match outcome {
            Ok(Ok(delivered)) => Ok(delivered.offset),
            Ok(Err((source, message))) => {
                let place = format!("{:?} partition {}", message.topic(), message.partition());
                Err(LogError::Write { place, source: source.into() })
            }
            Err(_) => {
                Err(LogError::Write { place: "the log".to_owned(), source: KafkaError::Canceled.into() })
            }
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

    #[expect(unsafe_code, reason = "librdkafka's own way to provoke what cannot be provoked from outside")]
    fn break_for_good(producer: &Producer) {
        let client = producer.client.read().unwrap();
        let code = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        // SAFETY: the handle lives as long as `client`, and the reason is a static string that ends with a zero byte.
        unsafe { rd_kafka_test_fatal_error(client.client().native_ptr(), code, c"provoked".as_ptr()) };
    }

    #[tokio::test]
    async fn a_producer_that_has_failed_for_good_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
        let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
        log.ensure_topics().await.unwrap();
        let producer = Producer::new(&log, Duration::from_millis(1)).unwrap();
        let message = Outgoing { topic: LEDGER, kafka_partition: 0, key: None, payload: b"x", headers: &[] };
        assert_eq!(producer.send(message).await.unwrap(), 0);
        break_for_good(&producer);
        // Whoever finds it out is told, clones go on with the new client.
        producer.clone().send(message).await.unwrap_err();
        assert_eq!(producer.send(message).await.unwrap(), 1);
    }
}

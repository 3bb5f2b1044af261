//! Log lines and error events of librdkafka, passed on to `tracing`.
//!
//! librdkafka reports every lost connection several times, at error level. Wye waits for an unreachable broker, and the
//! code that waits reports it from time to time ([`RateLimit`]); so connection events are logged at debug level.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, error, warn};

use crate::real_time::Deadline;

/// The context of every Kafka client of this crate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TracingContext;

/// The `fac` words of librdkafka's log lines about connections that are opened and lost.
const CONNECTION_EVENTS: [&str; 8] =
    ["FAIL", "ERROR", "REQTMOUT", "BROKERFAIL", "CONNECT", "GETPID", "FINDCOORD", "COORDQUERY"];

impl ClientContext for TracingContext {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        match level {
            _ if CONNECTION_EVENTS.contains(&fac) => debug!(target: "librdkafka", fac, "{message}"),
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => error!(target: "librdkafka", fac, "{message}"),
            RDKafkaLogLevel::Warning => warn!(target: "librdkafka", fac, "{message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                debug!(target: "librdkafka", fac, "{message}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(code) if is_connection_loss(code) => debug!(target: "librdkafka", ?code, "{reason}"),
            // The reader returns both to its caller.
            Some(RDKafkaErrorCode::PartitionEOF | RDKafkaErrorCode::AutoOffsetReset) => {}
            Some(code) => warn!(target: "librdkafka", ?code, "{reason}"),
            None => warn!(target: "librdkafka", "{error}: {reason}"),
        }
    }
}

impl ConsumerContext for TracingContext {}

/// Whether `code` says only that a broker cannot be reached at the moment.
pub(crate) fn is_connection_loss(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut
            | Code::TimedOutQueue
            | Code::BrokerNotAvailable
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::NetworkException
            | Code::CoordinatorNotAvailable
    )
}

/// Limits how often a repeated message is logged.
#[derive(Debug)]
pub(crate) struct RateLimit {
    interval: Duration,
    /// When the next message may be logged.
    next: Option<Deadline>,
}

impl RateLimit {
    /// Lets the first message through, then at most one per `interval`.
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, next: None }
    }

    /// Whether a message may be logged now.
    pub(crate) fn allows(&mut self) -> bool {
        let is_due = self.next.is_none_or(Deadline::has_passed);
        if is_due {
            self.next = Some(Deadline::after(self.interval));
        }
        is_due
    }
}

//! What librdkafka says about itself, on its way into `tracing`.
//!
//! librdkafka reports every lost connection several times, at error level. To Wye a broker that is away is a thing to
//! wait for, and whoever waits says so once in a while ([`Seldom`]); so connection noise is demoted to debug here.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::{debug, error, warn};

/// The context of every Kafka client of this crate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TracingContext;

/// The `fac` words of librdkafka's log lines that tell of connections coming and going.
const CONNECTION_NOISE: [&str; 8] =
    ["FAIL", "ERROR", "REQTMOUT", "BROKERFAIL", "CONNECT", "GETPID", "FINDCOORD", "COORDQUERY"];

impl ClientContext for TracingContext {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        match level {
            _ if CONNECTION_NOISE.contains(&fac) => debug!(target: "librdkafka", fac, "{message}"),
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
            // Not faults: the reader tells its caller of both.
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

/// Lets one through every so often: for a message that would else repeat without end.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    last: Option<Instant>,
}

impl Seldom {
    /// One at once, then at most one in `every`.
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, last: None }
    }

    /// Whether it is time again.
    pub(crate) fn now(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= self.every);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

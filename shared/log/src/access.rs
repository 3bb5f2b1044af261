//! Whether a broker accepts this client, and if not, why. librdkafka retries forever when a certificate or a password
//! is wrong, and every request ends in a timeout. The reason comes as a separate event, which is collected here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::LogConfig;
use crate::error::LogError;
use crate::properties::configure;

/// How long the delivery of one pending event may take.
const EVENT_TIMEOUT: Duration = Duration::from_millis(10);

/// Keeps the last rejection.
#[derive(Default)]
struct RejectionContext {
    rejection: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

/// Requests metadata from any broker, with a new client: librdkafka reports a reason once, and then not for a while.
/// Blocks for about `timeout`.
///
/// # Errors
/// `Refused` when a broker answers and rejects this client; `Ask` when none answers.
pub(crate) fn check(config: &LogConfig, timeout: Duration) -> Result<(), LogError> {
    let mut client = config.client(&[]);
    client.set_log_level(RDKafkaLogLevel::Emerg);
    let client: BaseConsumer<RejectionContext> =
        client.create_with_context(RejectionContext::default()).map_err(configure)?;
    let Err(source) = client.fetch_metadata(None, timeout) else { return Ok(()) };
    while client.poll(EVENT_TIMEOUT).is_some() {}
    let rejection = client.context().rejection.lock().unwrap_or_else(PoisonError::into_inner).take();
    let bootstrap_servers = config.bootstrap_servers.clone();
    let Some((code, reason)) = rejection else {
        return Err(LogError::Ask {
            bootstrap_servers,
            what: "its topics".to_owned(),
            source: source.into(),
        });
    };
    let check = match code {
        RDKafkaErrorCode::SSL => "security.protocol, ssl.ca.location and the other ssl.* properties",
        _ => "sasl.mechanism, sasl.username and the password",
    };
    Err(LogError::Refused { bootstrap_servers, reason, check })
}

impl ClientContext for RejectionContext {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode::{Authentication, SSL, SaslAuthenticationFailed};
        if let Some(code @ (Authentication | SSL | SaslAuthenticationFailed)) = error.rdkafka_error_code() {
            let rejection = Some((code, reason.to_owned()));
            *self.rejection.lock().unwrap_or_else(PoisonError::into_inner) = rejection;
        }
    }
}

impl ConsumerContext for RejectionContext {}

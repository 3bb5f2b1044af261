//! Whether a broker lets this client in: a question whose answer says why not. librdkafka retries for ever when a
//! certificate or a password is wrong, and answers every question with a time-out; the reason comes as an event beside.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::client::LogConfig;
use crate::error::LogError;
use crate::properties::configure;

/// How long the events that have come may take to be served.
const SERVE: Duration = Duration::from_millis(10);

/// The last refusal.
#[derive(Default)]
struct Listening {
    refusal: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

/// Asks any broker for anything, with a client of its own: librdkafka reports a reason once, and then not for a while.
/// Blocks for about `patience`.
///
/// # Errors
/// `Refused` when a broker is there and does not let this client in; `Ask` when none answers.
pub(crate) fn ask(config: &LogConfig, patience: Duration) -> Result<(), LogError> {
    let mut client = config.client(&[]);
    client.set_log_level(RDKafkaLogLevel::Emerg);
    let client: BaseConsumer<Listening> =
        client.create_with_context(Listening::default()).map_err(configure)?;
    let Err(source) = client.fetch_metadata(None, patience) else { return Ok(()) };
    while client.poll(SERVE).is_some() {}
    let refusal = client.context().refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
    let bootstrap_servers = config.bootstrap_servers.clone();
    let Some((code, reason)) = refusal else {
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

impl ClientContext for Listening {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode::{Authentication, SSL, SaslAuthenticationFailed};
        if let Some(code @ (Authentication | SSL | SaslAuthenticationFailed)) = error.rdkafka_error_code() {
            let refusal = Some((code, reason.to_owned()));
            *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
        }
    }
}

impl ConsumerContext for Listening {}

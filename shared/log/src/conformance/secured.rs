//! A Kafka with TLS and passwords: `WYE_TEST_KAFKA_TLS` is the folder with the certificates and passwords of a client,
//! which `scripts/kafka.sh` writes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use wye_domain::ErrorKind;
use wye_domain::place::Offset;

use super::{FIRST, new_topic, offsets, on_blocking_thread, read_numbers, write_numbers};
use crate::LogError;
use crate::client::{Log, LogConfig};

/// The folder; `None` where there is none. On CI it must exist.
fn folder() -> Option<PathBuf> {
    match std::env::var_os("WYE_TEST_KAFKA_TLS") {
        Some(folder) => Some(folder.into()),
        None => {
            assert!(std::env::var_os("CI").is_none(), "WYE_TEST_KAFKA_TLS must be set: see scripts/kafka.sh");
            eprintln!("skipped: WYE_TEST_KAFKA_TLS is not set");
            None
        }
    }
}

/// The text of one file in the folder.
fn text(folder: &std::path::Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap().trim().to_owned()
}

fn log(folder: &std::path::Path, changes: &[(&str, &str)]) -> Log {
    let ca = folder.join("ca.pem").display().to_string();
    let mut extra: BTreeMap<String, String> = [
        ("security.protocol", "SASL_SSL".to_owned()),
        ("ssl.ca.location", ca),
        ("sasl.mechanism", "SCRAM-SHA-512".to_owned()),
        ("sasl.username", text(folder, "user")),
        ("sasl.password", text(folder, "password")),
    ]
    .map(|(property, value)| (property.to_owned(), value))
    .into();
    extra.extend(changes.iter().map(|(property, value)| ((*property).to_owned(), (*value).to_owned())));
    Log::new(LogConfig { extra, ..LogConfig::new(text(folder, "bootstrap"), 1) }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_written_and_read_over_tls_with_scram() {
    let Some(folder) = folder() else { return };
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let log = log(&folder, &[("sasl.mechanism", mechanism)]);
        log.wait_ready(&CancellationToken::new()).await.unwrap();
        let topic = new_topic(&log, 1).await;
        write_numbers(&log, topic, 0, 100).await;
        log.delete_records(topic, FIRST, Offset(10)).await.unwrap();
        let read = on_blocking_thread(move || read_numbers(&log, topic, 10, 100).unwrap()).await;
        assert_eq!(read, offsets(10..100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_certificate_authority_is_reported_at_once() {
    let Some(folder) = folder() else { return };
    let other_ca = folder.join("other-ca.pem").display().to_string();
    for (changes, words) in [
        (&[("sasl.password", "wr0ng")], ["invalid credentials", "sasl.username and the password"]),
        (&[("sasl.username", "nobody")], ["invalid credentials", "sasl.username and the password"]),
        (&[("ssl.ca.location", other_ca.as_str())], ["certificate verify failed", "ssl.ca.location"]),
    ] {
        let started = Instant::now();
        let error = log(&folder, changes).wait_ready(&CancellationToken::new()).await.unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        assert!(matches!(error, LogError::Refused { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let message = error.to_string();
        assert!(words.iter().all(|word| message.contains(word)) && !message.contains("wr0ng"), "{message}");
    }
}

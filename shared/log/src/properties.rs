//! Which librdkafka properties a user may not set, and why. Must not know what a client does with them.

use rdkafka::error::KafkaError;

use crate::error::LogError;

/// Properties that Wye's invariants depend on, in all their spellings, each with the reason.
const FIXED: [(&[&str], &str); 14] = [
    (&["bootstrap.servers", "metadata.broker.list"], "write bootstrap_servers in [log] instead"),
    (
        &["acks", "request.required.acks"],
        "a reading is acknowledged once every replica has it, so it is always \"all\"",
    ),
    (
        &["enable.idempotence", "message.send.max.retries", "retries", "transactional.id"],
        "without Wye's own setting a retry could write a reading twice, or lose one",
    ),
    (
        &["max.in.flight.requests.per.connection", "max.in.flight"],
        "the readings of a device could be written out of order",
    ),
    (
        &["message.timeout.ms", "delivery.timeout.ms", "request.timeout.ms"],
        "Wye sets the time limit of a write, since its clients wait for the answer",
    ),
    (
        &["message.max.bytes", "receive.message.max.bytes", "max.message.bytes"],
        "the largest message of Wye's topics is fixed",
    ),
    (
        &["auto.offset.reset"],
        "an offset outside of the log must be an error; otherwise readings would be skipped or counted twice",
    ),
    (
        &[
            "group.id",
            "group.instance.id",
            "group.protocol",
            "group.remote.assignor",
            "partition.assignment.strategy",
        ],
        "Wye's readers belong to no consumer group: their offsets are stored with their results",
    ),
    (
        &[
            "enable.auto.commit",
            "auto.commit.enable",
            "enable.auto.offset.store",
            "offset.store.method",
            "auto.commit.interval.ms",
        ],
        "Wye commits no offsets to Kafka: it stores them with its results",
    ),
    (&["enable.partition.eof"], "Wye must detect the end of the log"),
    (&["isolation.level"], "records of an aborted transaction would be counted"),
    (&["allow.auto.create.topics"], "topics need certain settings, so Wye creates them itself"),
    (&["partitioner"], "every producer must choose the Kafka partition of a device by murmur2"),
    (
        &["test.mock.num.brokers", "enabled_events", "log.queue", "statistics.interval.ms"],
        "Wye uses it internally",
    ),
];

/// Checks the name of one property.
///
/// # Errors
/// `Setting` with the reason when it may not be set.
pub(crate) fn check(property: &str) -> Result<(), LogError> {
    match FIXED.iter().find(|(names, _)| names.contains(&property)) {
        Some((_, why)) => {
            Err(LogError::Setting { property: property.to_owned(), problem: format!("cannot be set: {why}") })
        }
        None => Ok(()),
    }
}

/// The error of a client that cannot be created. It leaves out the value of a property, which may be a secret.
pub(crate) fn configure(source: KafkaError) -> LogError {
    match source {
        KafkaError::ClientConfig(_, problem, property, value) => {
            let problem = if value.is_empty() { problem } else { problem.replace(&value, "(not shown)") };
            LogError::Setting { property, problem }
        }
        source => LogError::Configure { source: source.into() },
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::ClientConfig;
    use rdkafka::producer::BaseProducer;

    use super::*;

    #[test]
    fn fixed_properties_are_rejected_with_the_reason() {
        for (names, why) in FIXED {
            for property in names {
                let error = check(property).unwrap_err().to_string();
                assert!(error.contains(property) && error.contains(why), "{error}");
            }
        }
        for property in ["security.protocol", "ssl.ca.location", "sasl.mechanism", "linger.ms", "client.id"] {
            check(property).unwrap();
        }
    }

    #[test]
    fn an_error_does_not_show_the_value() {
        for property in ["sasl.passwrd", "security.protocol", "compression.type"] {
            let created: Result<BaseProducer, _> = ClientConfig::new().set(property, "s3cret").create();
            let error = configure(created.err().unwrap());
            assert!(matches!(error, LogError::Setting { .. }));
            let text = format!("{error} {error:?}");
            assert!(text.contains(property) && !text.contains("s3cret"), "{text}");
        }
    }
}

//! Which librdkafka properties a user may set, and why not the others. Must not know what a client does with them.

use rdkafka::error::KafkaError;

use crate::error::LogError;

/// Properties that Wye's invariants rest on, in all their spellings, each with the reason.
const REFUSED: [(&[&str], &str); 14] = [
    (&["bootstrap.servers", "metadata.broker.list"], "write bootstrap_servers in [log] instead"),
    (
        &["acks", "request.required.acks"],
        "a reading is acknowledged once every replica has it, so it is always \"all\"",
    ),
    (
        &["enable.idempotence", "message.send.max.retries", "retries", "transactional.id"],
        "without Wye's own setting a retry could write a reading twice, or leave one out",
    ),
    (
        &["max.in.flight.requests.per.connection", "max.in.flight"],
        "readings of a device could change their order",
    ),
    (
        &["message.timeout.ms", "delivery.timeout.ms", "request.timeout.ms"],
        "Wye decides how long a write may take, since it answers its clients by then",
    ),
    (
        &["message.max.bytes", "receive.message.max.bytes", "max.message.bytes"],
        "Wye's topics hold messages of a fixed largest size",
    ),
    (
        &["auto.offset.reset"],
        "a place that is not in the log must be noticed; else readings would be left out or counted twice",
    ),
    (
        &[
            "group.id",
            "group.instance.id",
            "group.protocol",
            "group.remote.assignor",
            "partition.assignment.strategy",
        ],
        "Wye's readers belong to no consumer group: their places are stored with what they made of the records",
    ),
    (
        &[
            "enable.auto.commit",
            "auto.commit.enable",
            "enable.auto.offset.store",
            "offset.store.method",
            "auto.commit.interval.ms",
        ],
        "Wye commits no offsets: its places are stored with what it made of the records",
    ),
    (&["enable.partition.eof"], "Wye has to know when it has read to the end"),
    (&["isolation.level"], "records of an aborted transaction would be counted"),
    (
        &["allow.auto.create.topics"],
        "topics must have the settings that Wye needs, so Wye creates them itself",
    ),
    (&["partitioner"], "a device belongs to the Kafka partition that murmur2 gives, on every producer"),
    (
        &["test.mock.num.brokers", "enabled_events", "log.queue", "statistics.interval.ms"],
        "Wye uses it for its own purposes",
    ),
];

/// Checks one property as it was written.
///
/// # Errors
/// `Setting` with the reason when it may not be set.
pub(crate) fn check(property: &str) -> Result<(), LogError> {
    let refused = REFUSED.iter().find(|(names, _)| names.contains(&property));
    match refused {
        Some((_, why)) => {
            Err(LogError::Setting { property: property.to_owned(), problem: format!("cannot be set: {why}") })
        }
        None => Ok(()),
    }
}

/// The error of a client that cannot be made. The value of a property stays out of it: it may be a secret.
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
    fn properties_that_invariants_rest_on_are_refused_with_the_reason() {
        for (names, why) in REFUSED {
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
    fn a_value_does_not_get_into_an_error() {
        for property in ["sasl.passwrd", "security.protocol", "compression.type"] {
            let made: Result<BaseProducer, _> = ClientConfig::new().set(property, "s3cret").create();
            let error = configure(made.err().unwrap());
            assert!(matches!(error, LogError::Setting { .. }));
            let words = format!("{error} {error:?}");
            assert!(words.contains(property) && !words.contains("s3cret"), "{words}");
        }
    }
}

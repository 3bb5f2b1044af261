//! What Wye needs of a topic's settings: those that it gives to the topics that it makes, and what it says about a topic
//! that somebody else has made. Must not know how settings are asked for.

use std::collections::BTreeMap;

use crate::topics::MAX_MESSAGE_BYTES;

/// The size of a segment of the topics that Wye makes, in bytes. A broker gives the disk back in whole segments; each
/// takes a few file handles.
const SEGMENT_BYTES: usize = 64 << 20;
/// Segments above this make trimming so coarse that it is said.
const COARSE_SEGMENT_BYTES: i64 = 256 << 20;

/// The settings of a topic that Wye makes on so many brokers, by their Kafka names.
pub(crate) fn of_new_topic(replication_factor: i32) -> Vec<(&'static str, String)> {
    vec![
        ("cleanup.policy", "delete".to_owned()),
        ("retention.ms", "-1".to_owned()),
        ("retention.bytes", "-1".to_owned()),
        ("max.message.bytes", MAX_MESSAGE_BYTES.to_string()),
        ("message.timestamp.type", "LogAppendTime".to_owned()),
        ("segment.bytes", SEGMENT_BYTES.to_string()),
        ("min.insync.replicas", in_sync_replicas(replication_factor).to_string()),
    ]
}

/// How many brokers must have a record before it is acknowledged: a majority, where one may be away.
fn in_sync_replicas(replication_factor: i32) -> i32 {
    if replication_factor < 3 { 1 } else { replication_factor / 2 + 1 }
}

/// A setting that Wye cannot work with, or had better not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Objection {
    /// The setting, as in "retention.ms".
    pub(crate) setting: &'static str,
    /// What it is.
    pub(crate) found: String,
    /// What it should be.
    pub(crate) wanted: String,
    /// What goes wrong with it.
    pub(crate) why: &'static str,
    /// Whether Wye refuses to start on it.
    pub(crate) weight: Weight,
}

/// How bad a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Acknowledged readings would be lost, or answers wrong.
    Refused,
    /// It works, but not well.
    Warned,
}

/// What speaks against the settings that a topic has. A setting that the broker does not tell is taken to be right.
pub(crate) fn objections(found: &BTreeMap<String, String>, replication_factor: i32) -> Vec<Objection> {
    use Weight::{Refused, Warned};
    let text = |setting: &str| found.get(setting).map(|value| value.trim().to_owned());
    let number = |setting: &str| text(setting).and_then(|value| value.parse::<i64>().ok());
    let mut objections = Vec::new();
    let mut object = |setting, wanted: String, why, weight| {
        let found = text(setting).unwrap_or_default();
        objections.push(Objection { setting, found, wanted, why, weight });
    };
    if text("cleanup.policy").is_some_and(|policy| policy != "delete") {
        let why = "compaction removes records that are not archived yet";
        object("cleanup.policy", "delete".to_owned(), why, Refused);
    }
    for setting in ["retention.ms", "retention.bytes"] {
        if number(setting).is_some_and(|limit| limit >= 0) {
            let why = "the broker deletes records that are not archived yet; Wye deletes those that are";
            object(setting, "-1".to_owned(), why, Refused);
        }
    }
    if text("message.timestamp.type").is_some_and(|stamp| stamp != "LogAppendTime") {
        let why = "ingest time would be the clock of each producer";
        object("message.timestamp.type", "LogAppendTime".to_owned(), why, Refused);
    }
    if number("max.message.bytes").is_some_and(|limit| limit < MAX_MESSAGE_BYTES as i64) {
        let why = "Wye's largest messages would be refused";
        object("max.message.bytes", MAX_MESSAGE_BYTES.to_string(), why, Refused);
    }
    if let Some(in_sync) = number("min.insync.replicas") {
        let wanted = in_sync_replicas(replication_factor);
        if in_sync > i64::from(replication_factor) {
            let why = "more than the topic has replicas, so that every write is refused";
            object("min.insync.replicas", wanted.to_string(), why, Refused);
        } else if in_sync < i64::from(wanted) {
            let why = "a record is acknowledged by one broker alone, and lost with it";
            object("min.insync.replicas", wanted.to_string(), why, Warned);
        }
    }
    if text("unclean.leader.election.enable").is_some_and(|enabled| enabled == "true") {
        let why = "a broker that lacks acknowledged records can become the leader, and they are lost";
        object("unclean.leader.election.enable", "false".to_owned(), why, Warned);
    }
    if number("segment.bytes").is_some_and(|bytes| bytes > COARSE_SEGMENT_BYTES) {
        let why = "the disk space of archived records comes back in steps of this size only";
        object("segment.bytes", SEGMENT_BYTES.to_string(), why, Warned);
    }
    objections
}

/// The command that makes it right.
pub(crate) fn command(bootstrap_servers: &str, topic: &str, objections: &[Objection]) -> String {
    let settings: Vec<String> =
        objections.iter().map(|objection| format!("{}={}", objection.setting, objection.wanted)).collect();
    format!(
        "kafka-configs.sh --bootstrap-server {bootstrap_servers} --alter --entity-type topics --entity-name {topic} \
         --add-config {}",
        settings.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn against(settings: &[(&str, &str)], replication_factor: i32) -> Vec<(&'static str, Weight)> {
        let found = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        objections(&found, replication_factor).iter().map(|one| (one.setting, one.weight)).collect()
    }

    #[test]
    fn nothing_speaks_against_the_topics_that_wye_makes() {
        for (replication_factor, in_sync) in [(1, "1"), (2, "1"), (3, "2"), (5, "3")] {
            let settings = of_new_topic(replication_factor);
            assert!(settings.contains(&("min.insync.replicas", in_sync.to_owned())));
            let found = settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            assert_eq!(objections(&found, replication_factor), []);
        }
    }

    #[test]
    fn each_setting_that_would_lose_records_or_mislead_is_named() {
        use Weight::{Refused, Warned};
        for (setting, value, replication_factor, weight) in [
            ("cleanup.policy", "compact", 1, Refused),
            ("cleanup.policy", "compact,delete", 1, Refused),
            ("retention.ms", "604800000", 1, Refused),
            ("retention.bytes", "0", 1, Refused),
            ("message.timestamp.type", "CreateTime", 1, Refused),
            ("max.message.bytes", "1048588", 1, Refused),
            ("min.insync.replicas", "2", 1, Refused),
            ("min.insync.replicas", "1", 3, Warned),
            ("unclean.leader.election.enable", "true", 3, Warned),
            ("segment.bytes", "1073741824", 1, Warned),
        ] {
            assert_eq!(against(&[(setting, value)], replication_factor), [(setting, weight)]);
        }
        assert_eq!(against(&[("max.message.bytes", "20000000"), ("min.insync.replicas", "3")], 3), []);
    }

    #[test]
    fn the_command_changes_what_is_wrong() {
        let found = [("retention.ms".to_owned(), "1".to_owned())].into();
        let command = command("kafka:9092", "readings", &objections(&found, 1));
        assert!(command.ends_with("--entity-name readings --add-config retention.ms=-1"), "{command}");
        assert!(command.contains("--bootstrap-server kafka:9092"), "{command}");
    }
}

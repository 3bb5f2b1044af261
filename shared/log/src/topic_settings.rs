//! Which settings a topic must have: those of the topics that Wye creates, and the problems of a topic that was created
//! in another way. Must not know how settings are read from a broker.

use std::collections::BTreeMap;

use crate::topics::MAX_MESSAGE_BYTES;

/// The segment size of the topics that Wye creates, in bytes. A broker frees disk space in whole segments; each takes a
/// few file handles.
const SEGMENT_BYTES: usize = 64 << 20;
/// Larger segments lead to a warning: disk space is freed in large steps only.
const LARGE_SEGMENT_BYTES: i64 = 256 << 20;

/// The settings of a topic that Wye creates with this many replicas, by their Kafka names.
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

/// How many replicas must have a record before it is acknowledged: a majority of three or more, else one.
fn in_sync_replicas(replication_factor: i32) -> i32 {
    if replication_factor < 3 { 1 } else { replication_factor / 2 + 1 }
}

/// A setting that must or should be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The setting, such as "retention.ms".
    pub(crate) setting: &'static str,
    /// Its value.
    pub(crate) found: String,
    /// The value that it should have.
    pub(crate) wanted: String,
    /// What goes wrong with it.
    pub(crate) why: &'static str,
    /// Whether Wye rejects the topic.
    pub(crate) severity: Severity,
}

/// How severe a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Acknowledged readings would be lost, or answers wrong.
    Rejected,
    /// Wye works with it, but not well.
    Warned,
}

/// The problems of a topic's settings. A setting that the broker does not report is taken to be right.
pub(crate) fn problems(found: &BTreeMap<String, String>, replication_factor: i32) -> Vec<Problem> {
    use Severity::{Rejected, Warned};
    let settings = Settings(found);
    let mut problems = Vec::new();
    if settings.text("cleanup.policy").is_some_and(|policy| policy != "delete") {
        let why = "compaction removes records that are not archived yet";
        problems.push(settings.problem("cleanup.policy", "delete", why, Rejected));
    }
    for setting in ["retention.ms", "retention.bytes"] {
        if settings.number(setting).is_some_and(|limit| limit >= 0) {
            let why = "the broker deletes records that are not archived yet; Wye deletes records itself once they are archived";
            problems.push(settings.problem(setting, "-1", why, Rejected));
        }
    }
    if settings.text("message.timestamp.type").is_some_and(|timestamp| timestamp != "LogAppendTime") {
        let why = "ingest time would be set by the clock of each producer";
        problems.push(settings.problem("message.timestamp.type", "LogAppendTime", why, Rejected));
    }
    if settings.number("max.message.bytes").is_some_and(|limit| limit < MAX_MESSAGE_BYTES as i64) {
        let why = "Wye's largest messages would be rejected";
        problems.push(settings.problem("max.message.bytes", MAX_MESSAGE_BYTES, why, Rejected));
    }
    if let Some(in_sync) = settings.number("min.insync.replicas") {
        let wanted = in_sync_replicas(replication_factor);
        if in_sync > i64::from(replication_factor) {
            let why = "the topic has fewer replicas, so every write is rejected";
            problems.push(settings.problem("min.insync.replicas", wanted, why, Rejected));
        } else if in_sync < i64::from(wanted) {
            let why =
                "a record is acknowledged once a single broker has it, and is lost if that broker fails";
            problems.push(settings.problem("min.insync.replicas", wanted, why, Warned));
        }
    }
    if settings.text("unclean.leader.election.enable").is_some_and(|enabled| enabled == "true") {
        let why = "a broker without all acknowledged records can become the leader, and the missing records are lost";
        problems.push(settings.problem("unclean.leader.election.enable", "false", why, Warned));
    }
    if settings.number("segment.bytes").is_some_and(|bytes| bytes > LARGE_SEGMENT_BYTES) {
        let why = "the disk space of archived records is freed in steps of this size only";
        problems.push(settings.problem("segment.bytes", SEGMENT_BYTES, why, Warned));
    }
    problems
}

/// The settings of a topic, as the broker reports them.
struct Settings<'a>(&'a BTreeMap<String, String>);

impl Settings<'_> {
    fn text(&self, setting: &str) -> Option<&str> {
        self.0.get(setting).map(|value| value.trim())
    }

    fn number(&self, setting: &str) -> Option<i64> {
        self.text(setting)?.parse().ok()
    }

    fn problem(
        &self,
        setting: &'static str,
        wanted: impl ToString,
        why: &'static str,
        severity: Severity,
    ) -> Problem {
        let found = self.text(setting).unwrap_or_default().to_owned();
        Problem { setting, found, wanted: wanted.to_string(), why, severity }
    }
}

/// The command that corrects the settings.
pub(crate) fn command(bootstrap_servers: &str, topic: &str, problems: &[Problem]) -> String {
    let settings: Vec<String> =
        problems.iter().map(|problem| format!("{}={}", problem.setting, problem.wanted)).collect();
    format!(
        "kafka-configs.sh --bootstrap-server {bootstrap_servers} --alter --entity-type topics --entity-name {topic} \
         --add-config {}",
        settings.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(settings: &[(&str, &str)], replication_factor: i32) -> Vec<(&'static str, Severity)> {
        let found = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        problems(&found, replication_factor)
            .iter()
            .map(|problem| (problem.setting, problem.severity))
            .collect()
    }

    #[test]
    fn topics_that_wye_creates_have_no_problems() {
        for (replication_factor, in_sync) in [(1, "1"), (2, "1"), (3, "2"), (5, "3")] {
            let settings = of_new_topic(replication_factor);
            assert!(settings.contains(&("min.insync.replicas", in_sync.to_owned())));
            let found = settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            assert_eq!(problems(&found, replication_factor), []);
        }
    }

    #[test]
    fn each_wrong_setting_is_reported() {
        use Severity::{Rejected, Warned};
        for (setting, value, replication_factor, severity) in [
            ("cleanup.policy", "compact", 1, Rejected),
            ("cleanup.policy", "compact,delete", 1, Rejected),
            ("retention.ms", "604800000", 1, Rejected),
            ("retention.bytes", "0", 1, Rejected),
            ("message.timestamp.type", "CreateTime", 1, Rejected),
            ("max.message.bytes", "1048588", 1, Rejected),
            ("min.insync.replicas", "2", 1, Rejected),
            ("min.insync.replicas", "1", 3, Warned),
            ("unclean.leader.election.enable", "true", 3, Warned),
            ("segment.bytes", "1073741824", 1, Warned),
        ] {
            assert_eq!(problems_of(&[(setting, value)], replication_factor), [(setting, severity)]);
        }
        assert_eq!(problems_of(&[("max.message.bytes", "20000000"), ("min.insync.replicas", "3")], 3), []);
    }

    #[test]
    fn the_command_corrects_the_settings() {
        let found = [("retention.ms".to_owned(), "1".to_owned())].into();
        let command = command("kafka:9092", "readings", &problems(&found, 1));
        assert!(command.ends_with("--entity-name readings --add-config retention.ms=-1"), "{command}");
        assert!(command.contains("--bootstrap-server kafka:9092"), "{command}");
    }
}

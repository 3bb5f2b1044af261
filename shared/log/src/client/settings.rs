//! The settings of topics that are there already: looked at, and changed where the broker is Wye's own. What speaks against
//! them is for [`crate::topic_settings`] to say.

use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use tracing::warn;

use super::{ASK_TIMEOUT, Log, administer, blocking};
use crate::error::{LogError, kind_of_code};
use crate::topic_settings::{self, Objection, Weight};
use crate::topics::{self, TopicSpec};

impl Log {
    /// Gives Wye's topics that are there the settings of new ones, as after an upgrade. For a broker that is Wye's own.
    ///
    /// # Errors
    /// `Administer` when the broker refuses; `Ask` when it cannot be reached.
    pub async fn update_topics(&self) -> Result<(), LogError> {
        let specs = topics::specs(self.config().kafka_partitions, self.config().replication_factor);
        let log = self.clone();
        let metadata = blocking(move || log.metadata(None, ASK_TIMEOUT)).await?;
        let there = |spec: &&TopicSpec| metadata.topics().iter().any(|topic| topic.name() == spec.name);
        let changes: Vec<AlterConfig<'_>> = specs
            .iter()
            .filter(there)
            .map(|spec| {
                let change = AlterConfig::new(ResourceSpecifier::Topic(spec.name));
                spec.config.iter().fold(change, |change, (setting, value)| change.set(setting, value))
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        let what = || "change the settings of the topics".to_owned();
        let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
        let altered = self.inner.admin.alter_configs(&changes, &options).await;
        for outcome in altered.map_err(|source| administer(what(), &source))? {
            if let Err((topic, code)) = outcome {
                let (what, reason) = (format!("change the settings of {topic:?}"), code.to_string());
                return Err(LogError::Administer { what, reason, kind: kind_of_code(code) });
            }
        }
        Ok(())
    }

    /// Looks at the settings that the topics have.
    pub(super) async fn check_settings(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        let what = || "ask for the settings of the topics".to_owned();
        let topics: Vec<_> = specs.iter().map(|spec| ResourceSpecifier::Topic(spec.name)).collect();
        let options = AdminOptions::new().request_timeout(Some(ASK_TIMEOUT));
        let described = self.inner.admin.describe_configs(&topics, &options).await;
        let described = described.map_err(|source| administer(what(), &source))?;
        let log = self.clone();
        let metadata = blocking(move || log.metadata(None, ASK_TIMEOUT)).await?;
        for (spec, resource) in specs.iter().zip(described) {
            let topic = spec.name;
            let entries = match resource {
                Ok(resource) => resource.entries,
                Err(code) => {
                    warn!(topic, %code, "cannot check the settings of a topic");
                    continue;
                }
            };
            let found = entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect();
            let partitions = metadata.topics().iter().filter(|found| found.name() == topic);
            let replicas = partitions.flat_map(|found| found.partitions()).map(|one| one.replicas().len());
            let replication_factor = replicas.min().unwrap_or(1) as i32;
            self.judge(topic, topic_settings::objections(&found, replication_factor))?;
        }
        Ok(())
    }

    fn judge(&self, topic: &str, objections: Vec<Objection>) -> Result<(), LogError> {
        let (refused, warned): (Vec<_>, Vec<_>) =
            objections.into_iter().partition(|objection| objection.weight == Weight::Refused);
        for Objection { setting, found, wanted, why, .. } in &warned {
            warn!(topic, "{setting} is {found:?} and should be {wanted:?}: {why}");
        }
        if refused.is_empty() {
            return Ok(());
        }
        let problems: Vec<String> = refused
            .iter()
            .map(|Objection { setting, found, wanted, why, .. }| {
                format!("{setting} is {found:?} and must be {wanted:?} ({why})")
            })
            .collect();
        Err(LogError::TopicSettings {
            topic: topic.to_owned(),
            problems: problems.join(", "),
            command: topic_settings::command(&self.inner.config.bootstrap_servers, topic, &refused),
        })
    }
}

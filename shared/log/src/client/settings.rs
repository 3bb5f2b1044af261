//! The settings of existing topics: checked, and updated on the embedded broker. Must not know which settings are wrong
//! ([`crate::topic_settings`]).

use rdkafka::admin::{AlterConfig, ResourceSpecifier};
use tracing::warn;

use super::{Log, REQUEST_TIMEOUT, admin_options, administer, blocking};
use crate::error::{LogError, kind_of_code};
use crate::topic_settings::{self, Problem, Severity};
use crate::topics::{self, TopicSpec};

impl Log {
    /// Gives existing topics of Wye the settings of new ones, as needed after an upgrade. For the embedded broker.
    ///
    /// # Errors
    /// `Administer` when the broker rejects the change; `Ask` when it cannot be reached.
    pub async fn update_topics(&self) -> Result<(), LogError> {
        let specs = topics::specs(self.config().kafka_partitions, self.config().replication_factor);
        let log = self.clone();
        let metadata = blocking(move || log.metadata(None, REQUEST_TIMEOUT)).await?;
        let changes: Vec<AlterConfig<'_>> = specs
            .iter()
            .filter(|spec| metadata.topics().iter().any(|topic| topic.name() == spec.name))
            .map(|spec| {
                let change = AlterConfig::new(ResourceSpecifier::Topic(spec.name));
                spec.config.iter().fold(change, |change, (setting, value)| change.set(setting, value))
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        let altered = self.inner.admin.alter_configs(&changes, &admin_options()).await;
        for outcome in altered.map_err(|source| administer("change the settings of the topics", &source))? {
            if let Err((topic, code)) = outcome {
                let (what, reason) = (format!("change the settings of {topic:?}"), code.to_string());
                return Err(LogError::Administer { what, reason, kind: kind_of_code(code) });
            }
        }
        Ok(())
    }

    /// Checks the settings of existing topics.
    ///
    /// # Errors
    /// `TopicSettings` when a setting is rejected; `Administer` when the broker rejects the request; `Ask` when it
    /// cannot be reached.
    pub(super) async fn check_settings(&self, specs: &[TopicSpec]) -> Result<(), LogError> {
        let topics: Vec<_> = specs.iter().map(|spec| ResourceSpecifier::Topic(spec.name)).collect();
        let described = self.inner.admin.describe_configs(&topics, &admin_options()).await;
        let described = described.map_err(|source| administer("read the settings of the topics", &source))?;
        let log = self.clone();
        let metadata = blocking(move || log.metadata(None, REQUEST_TIMEOUT)).await?;
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
            self.report(topic, topic_settings::problems(&found, replication_factor))?;
        }
        Ok(())
    }

    /// Logs the settings that should be changed.
    ///
    /// # Errors
    /// `TopicSettings` with those that must be changed.
    fn report(&self, topic: &str, problems: Vec<Problem>) -> Result<(), LogError> {
        let (rejected, warned): (Vec<_>, Vec<_>) =
            problems.into_iter().partition(|problem| problem.severity == Severity::Rejected);
        for Problem { setting, found, wanted, why, .. } in &warned {
            warn!(topic, "{setting} is {found:?} and should be {wanted:?}: {why}");
        }
        if rejected.is_empty() {
            return Ok(());
        }
        let problems: Vec<String> = rejected
            .iter()
            .map(|Problem { setting, found, wanted, why, .. }| {
                format!("{setting} is {found:?} and must be {wanted:?} ({why})")
            })
            .collect();
        Err(LogError::TopicSettings {
            topic: topic.to_owned(),
            problems: problems.join(", "),
            command: topic_settings::command(&self.inner.config.bootstrap_servers, topic, &rejected),
        })
    }
}

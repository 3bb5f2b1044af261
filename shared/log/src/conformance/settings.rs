//! Topics that exist already: their settings are checked before they are used.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::{Target, new_topic, targets};
use crate::LogError;
use crate::client::{Log, LogConfig};
use crate::topics::{self, LEDGER, READINGS, TopicSpec};
use wye_broker::{Broker, BrokerConfig};

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_an_earlier_version_get_the_current_settings() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
    for (name, settings) in [
        (READINGS, &[("message.timestamp.type", "CreateTime"), ("max.message.bytes", "1048588")][..]),
        (LEDGER, &[]),
    ] {
        create(&log, name, settings).await;
    }
    let error = log.ensure_topics().await.unwrap_err();
    assert!(matches!(error, LogError::TopicSettings { .. }), "{error}");
    log.update_topics().await.unwrap();
    log.ensure_topics().await.unwrap();
    log.update_topics().await.unwrap();
    broker.stop().await;

    // The settings survive a restart.
    let broker = Broker::start(BrokerConfig::new(directory.path())).await.unwrap();
    let log = Log::new(LogConfig::new(broker.bootstrap_servers(), 1)).unwrap();
    log.ensure_topics().await.unwrap();
    broker.stop().await;
}

/// Creates a topic with these settings instead of Wye's.
async fn create(log: &Log, name: &str, settings: &[(&str, &str)]) {
    let client: AdminClient<DefaultClientContext> = log.config().client(&[]).create().unwrap();
    let mut topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
    for (setting, value) in settings {
        topic = topic.set(setting, value);
    }
    client.create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_wrong_settings_is_rejected_with_the_command_that_corrects_it() {
    for (number, target) in targets().await.into_iter().enumerate() {
        let Target { log, _embedded } = target;
        for (setting, value, wanted) in [
            ("retention.ms", "604800000", "-1"),
            ("retention.bytes", "1000000000", "-1"),
            ("max.message.bytes", "1048588", "8388608"),
            ("cleanup.policy", "compact", "delete"),
            ("message.timestamp.type", "CreateTime", "LogAppendTime"),
        ] {
            // The embedded broker does not create a topic with a retention or with compaction.
            if number == 0 && (setting.starts_with("retention") || setting == "cleanup.policy") {
                continue;
            }
            let name: &'static str = format!("{}-created", new_topic(&log, 1).await).leak();
            create(&log, name, &[(setting, value)]).await;
            let config = topics::specs(1, 1).swap_remove(0).config;
            let error = log.ensure(&[TopicSpec { name, kafka_partitions: 1, config }]).await.unwrap_err();
            assert!(matches!(error, LogError::TopicSettings { .. }), "{error}");
            let message = error.to_string();
            let change = format!("{setting}={wanted}");
            for words in [name, setting, value, wanted, "kafka-configs.sh", &change] {
                assert!(message.contains(words), "{words}: {message}");
            }
        }
    }
}

//! Requests that describe and change the settings of topics. Clients cannot see the settings of the broker.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::incremental_alter_configs_request::AlterableConfig;
use kafka_protocol::messages::incremental_alter_configs_response as incremental;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;
use tracing::error;

use super::{Refused, string};
use crate::offsets;
use crate::server::Server;
use crate::topic_settings::{self, Origin};

/// The resource type of topics.
const TOPIC: i8 = 2;

type Settings = BTreeMap<String, String>;

pub(super) fn describe(server: &Server, request: &DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request.resources.iter().map(|resource| describe_one(server, resource));
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe_one(server: &Server, resource: &DescribeConfigsResource) -> DescribeConfigsResult {
    const SET_ON_TOPIC: i8 = 1;
    const DEFAULT: i8 = 5;
    let result = DescribeConfigsResult::default()
        .with_resource_type(resource.resource_type)
        .with_resource_name(resource.resource_name.clone());
    if resource.resource_type != TOPIC {
        return result;
    }
    let Some(topic) = server.catalog.topic(&resource.resource_name) else {
        return result.with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    let settings = topic_settings::in_force(&topic.config).filter(|setting| {
        let keys = resource.configuration_keys.as_ref();
        keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == setting.name))
    });
    let settings = settings.map(|setting| {
        DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(setting.name))
            .with_value(Some(string(&setting.value)))
            .with_config_source(match setting.origin {
                Origin::Topic => SET_ON_TOPIC,
                Origin::Default => DEFAULT,
            })
    });
    result.with_configs(settings.collect())
}

/// Replaces the settings of topics; those that are not named get their defaults.
pub(super) fn alter(server: &Server, request: &AlterConfigsRequest) -> AlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let named = resource.configs.iter().filter_map(|setting| {
            setting.value.as_ref().map(|value| (setting.name.to_string(), value.to_string()))
        });
        let settings: Settings = named.collect();
        let name = &*resource.resource_name;
        let checked = check_change(server, (resource.resource_type, name), |_| Ok(settings));
        let (code, reason) = outcome(match checked {
            Ok(settings) if !request.validate_only => store(server, name, settings),
            checked => checked.map(|_| ()),
        });
        AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(code)
            .with_error_message(reason)
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

/// Changes single settings of topics.
pub(super) fn alter_incrementally(
    server: &Server,
    request: &IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let name = &*resource.resource_name;
        let checked = check_change(server, (resource.resource_type, name), |settings| {
            resource.configs.iter().try_fold(settings, apply)
        });
        let (code, reason) = outcome(match checked {
            Ok(settings) if !request.validate_only => store(server, name, settings),
            checked => checked.map(|_| ()),
        });
        incremental::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(code)
            .with_error_message(reason)
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

/// One step of an incremental change.
fn apply(mut settings: Settings, step: &AlterableConfig) -> Result<Settings, Refused> {
    const SET: i8 = 0;
    const DELETE: i8 = 1;
    match (step.config_operation, &step.value) {
        (SET, Some(value)) => {
            settings.insert(step.name.to_string(), value.to_string());
        }
        (DELETE, _) => {
            settings.remove(step.name.as_str());
        }
        _ => {
            let reason = format!("{}: the embedded broker can only set and delete settings", step.name);
            return Err((ResponseError::InvalidConfig, reason));
        }
    }
    Ok(settings)
}

/// The settings of a topic after a change, checked but not stored.
fn check_change(
    server: &Server,
    (resource_type, name): (i8, &str),
    change: impl FnOnce(Settings) -> Result<Settings, Refused>,
) -> Result<Settings, Refused> {
    if resource_type != TOPIC || name == offsets::TOPIC {
        let reason = "only topics have settings here; those of the broker are in the configuration of wye up";
        return Err((ResponseError::InvalidRequest, reason.to_owned()));
    }
    let topic = server.catalog.topic(name).ok_or_else(unknown_topic)?;
    let settings = change(topic.config.clone())?;
    topic_settings::check(&settings).map_err(|problem| (ResponseError::InvalidConfig, problem))?;
    Ok(settings)
}

fn store(server: &Server, name: &str, settings: Settings) -> Result<(), Refused> {
    match server.catalog.configure(name, settings) {
        Ok(true) => Ok(()),
        Ok(false) => Err(unknown_topic()),
        Err(error) => {
            error!(topic = name, %error, "embedded broker: cannot store the settings of a topic on the disk");
            let reason = format!("the broker cannot store the settings on its disk: {error}");
            Err((ResponseError::KafkaStorageError, reason))
        }
    }
}

fn unknown_topic() -> Refused {
    (ResponseError::UnknownTopicOrPartition, "there is no such topic".to_owned())
}

/// The error code and message of a response.
fn outcome(changed: Result<(), Refused>) -> (i16, Option<StrBytes>) {
    match changed {
        Ok(()) => (0, None),
        Err((error, reason)) => (error.code(), Some(StrBytes::from_string(reason))),
    }
}

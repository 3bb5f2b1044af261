//! Settings: those of topics are told; changing them is refused, since they are fixed when a topic is created.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult,
};
use kafka_protocol::messages::incremental_alter_configs_response;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::string;
use crate::server::Server;
use crate::topic_settings::{self, Origin};

const TOPIC: i8 = 2;
const FIXED: &str = "the embedded broker fixes the settings of a topic when it is created; delete the topic and \
                     create it with other settings";

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
    let asked = |name: &str| {
        resource.configuration_keys.as_ref().is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
    };
    let settings = topic_settings::in_force(&topic.config).filter(|setting| asked(setting.name));
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

pub(super) fn alter(_server: &Server, request: &AlterConfigsRequest) -> AlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(ResponseError::PolicyViolation.code())
            .with_error_message(Some(StrBytes::from_static_str(FIXED)))
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

pub(super) fn alter_incrementally(
    _server: &Server,
    request: &IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        incremental_alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone())
            .with_error_code(ResponseError::PolicyViolation.code())
            .with_error_message(Some(StrBytes::from_static_str(FIXED)))
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

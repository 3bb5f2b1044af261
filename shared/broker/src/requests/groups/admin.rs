//! Requests of operators and their tools about consumer groups: listing, describing, reading and deleting offsets.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponsePartition, OffsetFetchResponseTopic,
};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    ListGroupsRequest, ListGroupsResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest,
    OffsetFetchResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use wye_domain::place::KafkaPartition;

use super::super::string;
use super::commit_error;
use crate::groups::{Description, Groups};
use crate::offsets::Committed;
use crate::server::Server;

/// The state of a group without members, and the protocol type that is assumed for it.
const EMPTY: &str = "Empty";
const CONSUMER: &str = "consumer";
/// The first versions of ListGroups with states and with types.
const STATE_SINCE: i16 = 4;
const TYPE_SINCE: i16 = 5;

pub(in crate::requests) fn fetch_offsets(
    server: &Server,
    request: &OffsetFetchRequest,
) -> OffsetFetchResponse {
    let offsets = &server.coordinator.offsets;
    let topics: Vec<OffsetFetchResponseTopic> = match &request.topics {
        Some(topics) => topics
            .iter()
            .map(|topic| {
                let partitions = topic.partition_indexes.iter().map(|&index| {
                    let kafka_partition = KafkaPartition(index);
                    let committed = offsets.get(&request.group_id, &topic.name, kafka_partition);
                    offset_of(kafka_partition, committed)
                });
                OffsetFetchResponseTopic::default()
                    .with_name(topic.name.clone())
                    .with_partitions(partitions.collect())
            })
            .collect(),
        None => {
            let mut topics: BTreeMap<String, Vec<OffsetFetchResponsePartition>> = BTreeMap::new();
            for ((topic, kafka_partition), committed) in offsets.all(&request.group_id) {
                topics.entry(topic).or_default().push(offset_of(kafka_partition, Some(committed)));
            }
            let topics = topics.into_iter().map(|(topic, partitions)| {
                OffsetFetchResponseTopic::default()
                    .with_name(TopicName(StrBytes::from_string(topic)))
                    .with_partitions(partitions)
            });
            topics.collect()
        }
    };
    OffsetFetchResponse::default().with_topics(topics)
}

fn offset_of(kafka_partition: KafkaPartition, committed: Option<Committed>) -> OffsetFetchResponsePartition {
    let partition = OffsetFetchResponsePartition::default().with_partition_index(kafka_partition.0);
    match committed {
        Some(committed) => partition
            .with_committed_offset(committed.offset.0)
            .with_committed_leader_epoch(committed.leader_epoch)
            .with_metadata(Some(StrBytes::from_string(committed.metadata))),
        None => partition
            .with_committed_offset(-1)
            .with_committed_leader_epoch(-1)
            .with_metadata(Some(StrBytes::default())),
    }
}

pub(in crate::requests) fn describe(
    server: &Server,
    request: &DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let groups = request.groups.iter().map(|group_id| {
        let group = DescribedGroup::default().with_group_id(group_id.clone());
        match server.coordinator.inspect(|groups| groups.describe(group_id)) {
            Some(description) => describe_members(group, description),
            None if server.coordinator.offsets.all(group_id).is_empty() => {
                group.with_group_state(StrBytes::from_static_str("Dead"))
            }
            None => group
                .with_group_state(StrBytes::from_static_str(EMPTY))
                .with_protocol_type(StrBytes::from_static_str(CONSUMER)),
        }
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn describe_members(group: DescribedGroup, description: Description) -> DescribedGroup {
    let members = description.members.into_iter().map(|member| {
        DescribedGroupMember::default()
            .with_member_id(member.identity.member_id.into())
            .with_group_instance_id(member.identity.instance_id.map(StrBytes::from))
            .with_client_id(member.client_id.into())
            .with_client_host(member.client_host.into())
            .with_member_metadata(member.metadata)
            .with_member_assignment(member.assignment)
    });
    group
        .with_group_state(StrBytes::from_static_str(description.state))
        .with_protocol_type(description.protocol_type.into())
        .with_protocol_data(description.protocol.into())
        .with_members(members.collect())
}

pub(in crate::requests) fn list(
    server: &Server,
    request: &ListGroupsRequest,
    version: i16,
) -> ListGroupsResponse {
    let mut groups: BTreeMap<String, (String, &str)> = BTreeMap::new();
    for group in server.coordinator.offsets.groups() {
        groups.insert(group, (CONSUMER.to_owned(), EMPTY));
    }
    for (group, protocol_type, state) in server.coordinator.inspect(Groups::list) {
        groups.insert(group, (protocol_type, state));
    }
    let groups = groups.into_iter().filter(|(_, (_, state))| {
        matches(&request.states_filter, state) && matches(&request.types_filter, "classic")
    });
    let groups = groups.map(|(group, (protocol_type, state))| {
        let listed = ListedGroup::default()
            .with_group_id(StrBytes::from_string(group).into())
            .with_protocol_type(protocol_type.into());
        let listed = if version >= STATE_SINCE { listed.with_group_state(string(state)) } else { listed };
        if version >= TYPE_SINCE {
            listed.with_group_type(StrBytes::from_static_str("classic"))
        } else {
            listed
        }
    });
    ListGroupsResponse::default().with_groups(groups.collect())
}

/// Whether a filter, which may be empty, has a value.
fn matches(filter: &[StrBytes], value: &str) -> bool {
    filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
}

pub(in crate::requests) fn delete(server: &Server, request: &DeleteGroupsRequest) -> DeleteGroupsResponse {
    let results = request.groups_names.iter().map(|group| {
        let result = DeletableGroupResult::default().with_group_id(group.clone());
        let committed = server.coordinator.offsets.all(group);
        let deleted = if server.coordinator.inspect(|groups| groups.has_members(group)) {
            Err(ResponseError::NonEmptyGroup)
        } else if committed.is_empty() {
            Err(ResponseError::GroupIdNotFound)
        } else {
            let partitions = committed.into_iter().map(|(partition, _)| partition).collect();
            server.coordinator.offsets.forget(group, partitions).map_err(|error| commit_error(&error))
        };
        result.with_error_code(deleted.map_or_else(|error| error.code(), |()| 0))
    });
    DeleteGroupsResponse::default().with_results(results.collect())
}

pub(in crate::requests) fn delete_offsets(
    server: &Server,
    request: &OffsetDeleteRequest,
) -> OffsetDeleteResponse {
    let group: &str = &request.group_id;
    let offsets = &server.coordinator.offsets;
    let has_members = server.coordinator.inspect(|groups| groups.has_members(group));
    if !has_members && offsets.all(group).is_empty() {
        return OffsetDeleteResponse::default().with_error_code(ResponseError::GroupIdNotFound.code());
    }
    let named = request.topics.iter().flat_map(|topic| {
        let partitions = topic.partitions.iter();
        partitions.map(|partition| (topic.name.to_string(), KafkaPartition(partition.partition_index)))
    });
    // Only in a group without members are the offsets certainly not in use.
    let error = if has_members {
        ResponseError::GroupSubscribedToTopic.code()
    } else {
        offsets.forget(group, named.collect()).map_or_else(|error| commit_error(&error).code(), |()| 0)
    };
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetDeleteResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error)
        });
        OffsetDeleteResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}

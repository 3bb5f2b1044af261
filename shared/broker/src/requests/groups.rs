//! Requests of the members of consumer groups: joining, leaving, committing offsets.
//!
//! [`crate::groups`] decides what happens in a group; [`crate::offsets`] stores the offsets.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    FindCoordinatorRequest, FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, OffsetCommitRequest, OffsetCommitResponse,
    SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use tracing::error;
use wye_domain::place::{KafkaPartition, Offset};

use super::{Client, NODE, blocking, string};
use crate::groups::{Admission, Answer, Identity, Input, Join, Membership, Sync};
use crate::offsets::{CommitError, Committed};
use crate::server::Server;

pub(super) use admin::{delete, delete_offsets, describe, fetch_offsets, list};

mod admin;

/// The first version of JoinGroup in which a new member receives its id before it joins (KIP-394).
const TWO_STEPS_SINCE: i16 = 4;
/// The first version of LeaveGroup in which several members leave at once.
const MEMBERS_SINCE: i16 = 3;
/// Bytes of metadata that a client may store with an offset: Kafka's default.
const MOST_OFFSET_METADATA: usize = 4096;

/// This node coordinates all groups. Requests for a transaction coordinator are refused.
pub(super) fn find_coordinator(server: &Server, request: &FindCoordinatorRequest) -> FindCoordinatorResponse {
    const GROUP: i8 = 0;
    const TRANSACTION: i8 = 1;
    let refused = match request.key_type {
        GROUP => None,
        TRANSACTION => Some((
            ResponseError::TransactionalIdAuthorizationFailed,
            "the embedded broker has no transactions; use Apache Kafka",
        )),
        _ => Some((
            ResponseError::InvalidRequest,
            "the embedded broker coordinates only classic consumer groups",
        )),
    };
    match refused {
        None => FindCoordinatorResponse::default()
            .with_node_id(NODE)
            .with_host(string(&server.address.ip().to_string()))
            .with_port(i32::from(server.address.port())),
        Some((error, reason)) => FindCoordinatorResponse::default()
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(reason)))
            .with_node_id((-1).into())
            .with_port(-1),
    }
}

pub(super) async fn join(
    server: &Server,
    request: JoinGroupRequest,
    version: i16,
    client: &Client,
) -> JoinGroupResponse {
    let member_id = request.member_id.to_string();
    let session_timeout = milliseconds(request.session_timeout_ms);
    let join = Join {
        identity: identity(&request.member_id, request.group_instance_id.as_ref()),
        new_member_id: server.coordinator.new_member_id(&client.id),
        admission: if version >= TWO_STEPS_SINCE { Admission::InTwoSteps } else { Admission::AtOnce },
        client_id: client.id.clone(),
        client_host: format!("/{}", client.peer.ip()),
        session_timeout,
        // Version 0 has one timeout for both.
        rebalance_timeout: if version == 0 {
            session_timeout
        } else {
            milliseconds(request.rebalance_timeout_ms)
        },
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .iter()
            // A copy, so that the memory of the whole request is freed.
            .map(|protocol| (protocol.name.to_string(), Bytes::copy_from_slice(&protocol.metadata)))
            .collect(),
    };
    let group = request.group_id.to_string();
    drop(request);
    let answer = server.coordinator.ask(|caller| Input::Join { caller, group, join }).await;
    let response =
        JoinGroupResponse::default().with_generation_id(-1).with_protocol_name(Some(StrBytes::default()));
    match answer {
        Some(Answer::Joined(joined)) => {
            let members = joined.members.into_iter().map(|(identity, metadata)| {
                JoinGroupResponseMember::default()
                    .with_member_id(identity.member_id.into())
                    .with_group_instance_id(identity.instance_id.map(StrBytes::from))
                    .with_metadata(metadata)
            });
            response
                .with_generation_id(joined.generation)
                .with_protocol_type(Some(joined.protocol_type.into()))
                .with_protocol_name(Some(joined.protocol.into()))
                .with_leader(joined.leader.into())
                .with_member_id(joined.member_id.into())
                .with_members(members.collect())
        }
        Some(Answer::Admitted { member_id }) => {
            response.with_error_code(ResponseError::MemberIdRequired.code()).with_member_id(member_id.into())
        }
        other => response.with_error_code(code(other)).with_member_id(member_id.into()),
    }
}

pub(super) async fn sync(server: &Server, request: SyncGroupRequest) -> SyncGroupResponse {
    let sync = Sync {
        member: Membership {
            identity: identity(&request.member_id, request.group_instance_id.as_ref()),
            generation: request.generation_id,
        },
        protocol_type: request.protocol_type.as_ref().map(ToString::to_string),
        protocol: request.protocol_name.as_ref().map(ToString::to_string),
        assignments: request
            .assignments
            .iter()
            .map(|part| (part.member_id.to_string(), part.assignment.clone()))
            .collect(),
    };
    let group = request.group_id.to_string();
    drop(request);
    match server.coordinator.ask(|caller| Input::Sync { caller, group, sync }).await {
        Some(Answer::Synced { protocol_type, protocol, assignment }) => SyncGroupResponse::default()
            .with_protocol_type(Some(protocol_type.into()))
            .with_protocol_name(Some(protocol.into()))
            .with_assignment(assignment),
        other => SyncGroupResponse::default().with_error_code(code(other)),
    }
}

pub(super) async fn heartbeat(server: &Server, request: HeartbeatRequest) -> HeartbeatResponse {
    let member = Membership {
        identity: identity(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id,
    };
    let group = request.group_id.to_string();
    let answer = server.coordinator.ask(|caller| Input::Heartbeat { caller, group, member }).await;
    HeartbeatResponse::default().with_error_code(code(answer))
}

pub(super) async fn leave(server: &Server, request: LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let members = if version < MEMBERS_SINCE {
        vec![identity(&request.member_id, None)]
    } else {
        let members = request.members.iter();
        members.map(|member| identity(&member.member_id, member.group_instance_id.as_ref())).collect()
    };
    let named = members.clone();
    let group = request.group_id.to_string();
    let answer = server.coordinator.ask(|caller| Input::Leave { caller, group, members }).await;
    let left = match answer {
        Some(Answer::Left(left)) => left,
        other => return LeaveGroupResponse::default().with_error_code(code(other)),
    };
    if version < MEMBERS_SINCE {
        let refused = left.into_iter().find_map(Result::err);
        return LeaveGroupResponse::default().with_error_code(refused.map_or(0, |error| error.code()));
    }
    let members = named.into_iter().zip(left).map(|(member, left)| {
        MemberResponse::default()
            .with_member_id(member.member_id.into())
            .with_group_instance_id(member.instance_id.map(StrBytes::from))
            .with_error_code(left.map_or_else(|error| error.code(), |()| 0))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

pub(super) async fn commit(
    server: &Server,
    request: OffsetCommitRequest,
) -> io::Result<OffsetCommitResponse> {
    let member = Membership {
        identity: identity(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id_or_member_epoch,
    };
    let group = request.group_id.to_string();
    let answer = server.coordinator.ask(|caller| Input::Commit { caller, group, member }).await;
    match answer {
        Some(Answer::Done) => blocking(server, move |server| store(server, &request)).await,
        other => Ok(committed(&request, || code(other.clone()))),
    }
}

/// Stores the offsets of the Kafka partitions that exist.
fn store(server: &Server, request: &OffsetCommitRequest) -> OffsetCommitResponse {
    let mut offsets = Vec::new();
    let mut errors = Vec::new();
    for topic in &request.topics {
        let found = server.catalog.topic(&topic.name);
        for partition in &topic.partitions {
            let kafka_partition = KafkaPartition(partition.partition_index);
            let exists = found.as_ref().is_some_and(|topic| topic.partition(kafka_partition).is_some());
            let metadata = partition.committed_metadata.as_ref().map(ToString::to_string).unwrap_or_default();
            errors.push(if !exists {
                ResponseError::UnknownTopicOrPartition.code()
            } else if metadata.len() > MOST_OFFSET_METADATA {
                ResponseError::OffsetMetadataTooLarge.code()
            } else {
                let committed = Committed {
                    offset: Offset(partition.committed_offset),
                    leader_epoch: partition.committed_leader_epoch,
                    metadata,
                };
                offsets.push((topic.name.to_string(), kafka_partition, committed));
                0
            });
        }
    }
    let stored = if offsets.is_empty() {
        Ok(())
    } else {
        server.coordinator.offsets.commit(&request.group_id, offsets)
    };
    let stored = stored.map_or_else(|error| commit_error(&error).code(), |()| 0);
    let mut errors = errors.into_iter();
    committed(request, || errors.next().filter(|error| *error != 0).unwrap_or(stored))
}

/// The response to a commit. `next_code` gives the error code of each Kafka partition, in the order of the request.
fn committed(request: &OffsetCommitRequest, mut next_code: impl FnMut() -> i16) -> OffsetCommitResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(next_code())
        });
        let partitions = partitions.collect();
        topics.push(
            OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions),
        );
    }
    OffsetCommitResponse::default().with_topics(topics)
}

/// The error of the protocol for offsets that are not stored. Failures of the disk are logged.
fn commit_error(error: &CommitError) -> ResponseError {
    match error {
        CommitError::TooManyGroups => ResponseError::GroupMaxSizeReached,
        CommitError::Io(cause) => {
            error!(error = %cause, "embedded broker: cannot store committed offsets on the disk");
            // Clients retry this one.
            ResponseError::CoordinatorNotAvailable
        }
    }
}

fn identity(member_id: &StrBytes, instance_id: Option<&StrBytes>) -> Identity {
    Identity { member_id: member_id.to_string(), instance_id: instance_id.map(ToString::to_string) }
}

fn milliseconds(number: i32) -> Duration {
    Duration::from_millis(u64::try_from(number).unwrap_or(0))
}

/// The error code of an answer without data; `None` is the answer of a broker that stops.
fn code(answer: Option<Answer>) -> i16 {
    match answer {
        Some(Answer::Done) => 0,
        Some(Answer::Refused(error)) => error.code(),
        Some(Answer::Joined(_) | Answer::Admitted { .. } | Answer::Synced { .. } | Answer::Left(_)) => {
            ResponseError::UnknownServerError.code()
        }
        None => ResponseError::CoordinatorNotAvailable.code(),
    }
}

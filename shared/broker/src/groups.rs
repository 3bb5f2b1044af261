//! Classic consumer groups: the members of each group and their assignments. A state machine without I/O or clock.
//!
//! [`Groups::step`] takes one input and the time, and returns the answers that are due. An input that must wait (a join
//! waits for the other members, a sync for the leader) is answered by a later step; each is answered exactly once. The
//! leader of a group assigns the Kafka partitions; subscriptions and assignments are bytes here.
//!
//! Source: Apache Kafka's `GroupCoordinator` and `ClassicGroup` (KIP-62, KIP-345, KIP-394), with two differences. A
//! rebalance does not wait for clients that have a member id but have not joined yet. And only committed offsets survive a
//! restart of the broker (see [`crate::offsets`]): members get the error that they are unknown, and join again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use group::Group;

mod group;

/// The shortest and the longest session timeout: Kafka's defaults.
const SESSION_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(6)..=Duration::from_secs(1800);
/// The longest rebalance timeout.
const LONGEST_REBALANCE: Duration = Duration::from_secs(1800);
/// Members of all groups together, including clients that have a member id but have not joined yet.
const MOST_MEMBERS: usize = 1000;
/// Bytes of a group's name.
const LONGEST_NAME: usize = 1024;
/// Bytes of the names and the metadata of one member's assignors.
const MOST_METADATA: usize = 256 * 1024;

/// All groups that have members.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: BTreeMap<String, Group>,
}

/// The request that an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Caller(pub(crate) u64);

/// An event for the group `group`.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Join {
        caller: Caller,
        group: String,
        join: Join,
    },
    Sync {
        caller: Caller,
        group: String,
        sync: Sync,
    },
    Heartbeat {
        caller: Caller,
        group: String,
        member: Membership,
    },
    /// Members leave.
    Leave {
        caller: Caller,
        group: String,
        members: Vec<Identity>,
    },
    /// A member wants to store offsets.
    Commit {
        caller: Caller,
        group: String,
        member: Membership,
    },
    /// Time has passed.
    Tick,
}

/// A client wants to become a member, or to take part in the next rebalance.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) identity: Identity,
    /// The id of a new member: never used before.
    pub(crate) new_member_id: String,
    /// How a client without a member id gets one.
    pub(crate) admission: Admission,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout: Duration,
    pub(crate) rebalance_timeout: Duration,
    pub(crate) protocol_type: String,
    /// The assignors that it supports, the preferred one first, each with metadata for the leader.
    pub(crate) protocols: Vec<(String, Bytes)>,
}

/// How a client without a member id gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It becomes a member at once.
    AtOnce,
    /// It receives its id and joins again with it, so that a lost response leaves no member behind (KIP-394).
    InTwoSteps,
}

/// The ids that a client sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Assigned by the coordinator; empty before that.
    pub(crate) member_id: String,
    /// Assigned by the operator, for a static member, which keeps its assignment across a restart (KIP-345).
    pub(crate) instance_id: Option<String>,
}

/// A member of one generation of a group.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) identity: Identity,
    pub(crate) generation: i32,
}

/// A member asks for its assignment; the leader sends those of all members.
#[derive(Clone, Debug)]
pub(crate) struct Sync {
    pub(crate) member: Membership,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignments: Vec<(String, Bytes)>,
}

/// The answer to a caller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Joined(Joined),
    /// Only after [`Admission::InTwoSteps`]: join again with this identity.
    Admitted {
        member_id: String,
    },
    Synced {
        protocol_type: String,
        protocol: String,
        assignment: Bytes,
    },
    /// The outcome for each member that leaves.
    Left(Vec<Result<(), ResponseError>>),
    Done,
    Refused(ResponseError),
}

/// Membership in a new generation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Joined {
    pub(crate) generation: i32,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) leader: String,
    pub(crate) member_id: String,
    /// For the leader: all members with their metadata. Empty for the others.
    pub(crate) members: Vec<(Identity, Bytes)>,
}

/// The answers of a step.
pub(crate) type Answers = Vec<(Caller, Answer)>;

/// A group, for operators.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) state: &'static str,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) members: Vec<DescribedMember>,
}

/// A member, for operators.
#[derive(Clone, Debug)]
pub(crate) struct DescribedMember {
    pub(crate) identity: Identity,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) metadata: Bytes,
    pub(crate) assignment: Bytes,
}

impl Groups {
    /// Processes one input at the time `now`, which counts from any fixed moment.
    pub(crate) fn step(&mut self, input: Input, now: Duration) -> Answers {
        let mut answers = Vec::new();
        match input {
            Input::Join { caller, group, join } => match self.check_join(&group, &join) {
                Ok(()) => self.groups.entry(group).or_default().join(caller, join, now, &mut answers),
                Err(error) => answers.push((caller, Answer::Refused(error))),
            },
            Input::Sync { caller, group, sync } => match self.groups.get_mut(&group) {
                Some(group) => group.sync(caller, sync, now, &mut answers),
                None => answers.push((caller, Answer::Refused(ResponseError::UnknownMemberId))),
            },
            Input::Heartbeat { caller, group, member } => {
                let group = self.groups.get_mut(&group);
                let outcome =
                    group.map_or(Err(ResponseError::UnknownMemberId), |group| group.heartbeat(&member, now));
                answers.push((caller, outcome.map_or_else(Answer::Refused, |()| Answer::Done)));
            }
            Input::Leave { caller, group, members } => {
                let left = match self.groups.get_mut(&group) {
                    Some(group) => {
                        members.iter().map(|member| group.leave(member, now, &mut answers)).collect()
                    }
                    None => members.iter().map(|_| Err(ResponseError::UnknownMemberId)).collect(),
                };
                answers.push((caller, Answer::Left(left)));
            }
            Input::Commit { caller, group, member } => {
                let allowed = match self.groups.get_mut(&group) {
                    Some(group) => group.may_commit(&member, now),
                    // A consumer that assigns its Kafka partitions itself commits without being a member.
                    None if member.generation < 0 => Ok(()),
                    None => Err(ResponseError::IllegalGeneration),
                };
                answers.push((caller, allowed.map_or_else(Answer::Refused, |()| Answer::Done)));
            }
            Input::Tick => {
                for group in self.groups.values_mut() {
                    group.tick(now, &mut answers);
                }
            }
        }
        self.groups.retain(|_, group| !group.is_unused());
        answers
    }

    /// The next time at which a tick changes something.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.groups.values().filter_map(Group::next_deadline).min()
    }

    /// Whether a group has members.
    pub(crate) fn has_members(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(Group::has_members)
    }

    /// The description of a group; `None` if it has no members.
    pub(crate) fn describe(&self, group: &str) -> Option<Description> {
        self.groups.get(group).map(Group::describe)
    }

    /// All groups with name, protocol type and state.
    pub(crate) fn list(&self) -> Vec<(String, String, &'static str)> {
        let groups = self.groups.iter();
        groups.map(|(name, group)| (name.clone(), group.protocol_type().to_owned(), group.state())).collect()
    }

    fn check_join(&self, group: &str, join: &Join) -> Result<(), ResponseError> {
        if group.is_empty() || group.len() > LONGEST_NAME {
            return Err(ResponseError::InvalidGroupId);
        }
        if !SESSION_TIMEOUTS.contains(&join.session_timeout) || join.rebalance_timeout > LONGEST_REBALANCE {
            return Err(ResponseError::InvalidSessionTimeout);
        }
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        if join.protocols.iter().map(|(name, metadata)| name.len() + metadata.len()).sum::<usize>()
            > MOST_METADATA
        {
            return Err(ResponseError::InvalidRequest);
        }
        let members: usize = self.groups.values().map(Group::size).sum();
        let is_new = !self.groups.get(group).is_some_and(|group| group.has(&join.identity));
        if members >= MOST_MEMBERS && is_new {
            return Err(ResponseError::GroupMaxSizeReached);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

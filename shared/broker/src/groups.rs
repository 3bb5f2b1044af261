//! Classic consumer groups: who belongs to a group, and which member reads what. A state machine without I/O or clock.
//!
//! [`Groups::step`] takes one input and the time and returns the answers that are due. An input that has to wait (a
//! join waits for the other members, a sync for the leader) is answered by a later step; each is answered exactly once.
//! The members themselves share out the Kafka partitions; what they tell each other is bytes here.
//!
//! Source: Apache Kafka's `GroupCoordinator` and `ClassicGroup` (KIP-62, KIP-345, KIP-394). It differs in two points: a
//! rebalance does not wait for members that were only given an identity yet, and nothing is remembered across a restart
//! of the broker but committed offsets (see [`crate::offsets`]): members are told that they are unknown, and join again.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use group::Group;

mod group;

/// The shortest and the longest session timeout: Kafka's defaults.
const SESSION_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(6)..=Duration::from_secs(1800);
/// The longest time that a rebalance waits for members.
const LONGEST_REBALANCE: Duration = Duration::from_secs(1800);
/// Members of all groups together, those included that were only given an identity.
const MOST_MEMBERS: usize = 1000;
/// Bytes of a group's name.
const LONGEST_NAME: usize = 1024;
/// Bytes that one member may tell about itself.
const MOST_METADATA: usize = 256 * 1024;

/// All groups that have members.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    groups: BTreeMap<String, Group>,
}

/// Where an answer belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Caller(pub(crate) u64);

/// What happens to the group `group`.
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
    /// Members that leave, by identity.
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

/// A client asks to be a member, or to take part in the next rebalance.
#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) identity: Identity,
    /// The identity that a new member gets: never given before.
    pub(crate) new_member_id: String,
    /// How a client that has no identity yet gets one.
    pub(crate) admission: Admission,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout: Duration,
    pub(crate) rebalance_timeout: Duration,
    pub(crate) protocol_type: String,
    /// The assignors that it knows, the preferred one first, each with what it tells the leader.
    pub(crate) protocols: Vec<(String, Bytes)>,
}

/// How a client that has no identity yet gets one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It becomes a member at once.
    AtOnce,
    /// It is told its identity and asks again with it, so that a lost answer leaves no member behind (KIP-394).
    InTwoSteps,
}

/// Who a client says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Given by the coordinator; empty before that.
    pub(crate) member_id: String,
    /// Given by the operator, for a member that keeps its place over a restart (KIP-345).
    pub(crate) instance_id: Option<String>,
}

/// A member of one generation of a group.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) identity: Identity,
    pub(crate) generation: i32,
}

/// A member asks for its assignment; the leader brings those of all.
#[derive(Clone, Debug)]
pub(crate) struct Sync {
    pub(crate) member: Membership,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignments: Vec<(String, Bytes)>,
}

/// What a caller is told.
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
    /// For each member that was to leave.
    Left(Vec<Result<(), ResponseError>>),
    Done,
    Refused(ResponseError),
}

/// A place in a new generation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Joined {
    pub(crate) generation: i32,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) leader: String,
    pub(crate) member_id: String,
    /// For the leader: all members, with what they tell it.
    pub(crate) members: Vec<(Identity, Bytes)>,
}

/// What a step has to say, and to whom.
pub(crate) type Answers = Vec<(Caller, Answer)>;

/// A group as an operator sees it.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) state: &'static str,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    pub(crate) members: Vec<DescribedMember>,
}

/// A member as an operator sees it.
#[derive(Clone, Debug)]
pub(crate) struct DescribedMember {
    pub(crate) identity: Identity,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) metadata: Bytes,
    pub(crate) assignment: Bytes,
}

impl Groups {
    /// Takes one input at the time `now`, counted from any fixed moment.
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
                let beat =
                    group.map_or(Err(ResponseError::UnknownMemberId), |group| group.heartbeat(&member, now));
                answers.push((caller, beat.map_or_else(Answer::Refused, |()| Answer::Done)));
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
                    // A consumer with assigned Kafka partitions commits without being a member.
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
        self.groups.retain(|_, group| !group.is_abandoned());
        answers
    }

    /// When time alone will change something next.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.groups.values().filter_map(Group::next_deadline).min()
    }

    /// Whether a group has members.
    pub(crate) fn has_members(&self, group: &str) -> bool {
        self.groups.get(group).is_some_and(Group::has_members)
    }

    /// A group as an operator sees it; `None` if it has no members.
    pub(crate) fn describe(&self, group: &str) -> Option<Description> {
        self.groups.get(group).map(Group::describe)
    }

    /// All groups: name, protocol type, state.
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
        if members >= MOST_MEMBERS && !self.groups.get(group).is_some_and(|group| group.knows(&join.identity))
        {
            return Err(ResponseError::GroupMaxSizeReached);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! One consumer group: its members and its state.
//!
//! `Empty` → `Joining` (members are gathered) → `Syncing` (the leader assigns) → `Stable`, and back to `Joining` whenever a
//! member joins, leaves or changes. It has no clock and does no I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::error::ResponseError;

use super::{
    Admission, Answer, Answers, Caller, DescribedMember, Description, Identity, Join, Joined, Membership,
    Sync,
};
use member::Member;

mod member;
mod rebalance;

#[derive(Debug, Default)]
pub(super) struct Group {
    state: State,
    /// Counts rebalances; requests of an older generation are refused.
    generation: i32,
    protocol_type: String,
    /// The assignor of this generation, which all members support.
    protocol: String,
    /// The member id of the leader.
    leader: String,
    /// By member id.
    members: BTreeMap<String, Member>,
    /// Member ids of clients that have not joined yet, with the time at which they expire.
    admitted: BTreeMap<String, Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Empty,
    /// Members are gathered; those that have not joined by then are removed.
    Joining {
        until: Duration,
    },
    /// The leader assigns; members that have not asked for their assignment by then are removed.
    Syncing {
        until: Duration,
    },
    Stable,
}

impl Group {
    pub(super) fn join(&mut self, caller: Caller, join: Join, now: Duration, answers: &mut Answers) {
        if let Err(error) = self.admit(caller, join, now, answers) {
            answers.push((caller, Answer::Refused(error)));
        }
    }

    fn admit(
        &mut self,
        caller: Caller,
        join: Join,
        now: Duration,
        answers: &mut Answers,
    ) -> Result<(), ResponseError> {
        let member_id = join.identity.member_id.clone();
        let same_instance = self.member_of_instance(join.identity.instance_id.as_deref());
        if member_id.is_empty() {
            if let Some(former) = same_instance {
                return self.replace(&former, caller, join, now, answers);
            }
            self.check_protocols(&join, None)?;
            if join.admission == Admission::InTwoSteps && join.identity.instance_id.is_none() {
                self.admitted.insert(join.new_member_id.clone(), now + join.session_timeout);
                answers.push((caller, Answer::Admitted { member_id: join.new_member_id }));
                return Ok(());
            }
            self.add(join.new_member_id.clone(), caller, join, now, answers);
            return Ok(());
        }
        if join.identity.instance_id.is_none() && self.admitted.contains_key(&member_id) {
            self.check_protocols(&join, None)?;
            self.admitted.remove(&member_id);
            self.add(member_id, caller, join, now, answers);
            return Ok(());
        }
        self.identify(&join.identity)?;
        self.check_protocols(&join, Some(&member_id))?;
        let member = self.members.get(&member_id).ok_or(ResponseError::UnknownMemberId)?;
        let unchanged = member.protocols == join.protocols;
        let settled = match self.state {
            State::Empty | State::Joining { .. } => false,
            State::Syncing { .. } => unchanged,
            // When the leader joins again, it wants to assign again.
            State::Stable => unchanged && self.leader != member_id,
        };
        self.update(&member_id, join, now);
        if settled {
            answers.push((caller, Answer::Joined(self.joined(&member_id))));
        } else {
            self.wait_for_join(&member_id, caller, answers);
            self.rebalance(now, answers);
        }
        Ok(())
    }

    /// A static member joins again under a new member id; the former id is fenced. If nothing else has changed, the group
    /// keeps its generation.
    fn replace(
        &mut self,
        former: &str,
        caller: Caller,
        join: Join,
        now: Duration,
        answers: &mut Answers,
    ) -> Result<(), ResponseError> {
        self.check_protocols(&join, Some(former))?;
        let member_id = join.new_member_id.clone();
        let mut member = self.members.remove(former).ok_or(ResponseError::UnknownMemberId)?;
        for waiting in [member.joining.take(), member.syncing.take()].into_iter().flatten() {
            answers.push((waiting, Answer::Refused(ResponseError::FencedInstanceId)));
        }
        let unchanged = member.protocols == join.protocols;
        self.members.insert(member_id.clone(), member);
        let former_leader = std::mem::take(&mut self.leader);
        self.leader = if former_leader == former { member_id.clone() } else { former_leader.clone() };
        self.update(&member_id, join, now);
        if self.state == State::Stable && unchanged {
            // It must not learn that it is the leader: it would assign again, although no other member joins.
            let joined = Joined { leader: former_leader, members: Vec::new(), ..self.joined(&member_id) };
            answers.push((caller, Answer::Joined(joined)));
        } else {
            self.wait_for_join(&member_id, caller, answers);
            self.rebalance(now, answers);
        }
        Ok(())
    }

    fn add(&mut self, member_id: String, caller: Caller, join: Join, now: Duration, answers: &mut Answers) {
        if self.members.is_empty() {
            self.protocol_type.clone_from(&join.protocol_type);
        }
        self.members.insert(member_id, Member::new(join, caller, now));
        self.rebalance(now, answers);
    }

    fn update(&mut self, member_id: &str, join: Join, now: Duration) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.update(join, now);
        }
    }

    fn wait_for_join(&mut self, member_id: &str, caller: Caller, answers: &mut Answers) {
        if let Some(member) = self.members.get_mut(member_id)
            && let Some(former) = member.joining.replace(caller)
        {
            // It joins again over another connection; the first answer is not read.
            answers.push((former, Answer::Refused(ResponseError::RebalanceInProgress)));
        }
    }

    pub(super) fn sync(&mut self, caller: Caller, sync: Sync, now: Duration, answers: &mut Answers) {
        if let Err(error) = self.accept_sync(caller, sync, now, answers) {
            answers.push((caller, Answer::Refused(error)));
        }
    }

    fn accept_sync(
        &mut self,
        caller: Caller,
        sync: Sync,
        now: Duration,
        answers: &mut Answers,
    ) -> Result<(), ResponseError> {
        self.check_member(&sync.member)?;
        if sync.protocol_type.is_some_and(|named| named != self.protocol_type)
            || sync.protocol.is_some_and(|named| named != self.protocol)
        {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        let member_id = sync.member.identity.member_id;
        match self.state {
            State::Empty => return Err(ResponseError::UnknownMemberId),
            State::Joining { .. } => return Err(ResponseError::RebalanceInProgress),
            State::Stable => {
                self.renew_session(&member_id, now);
                answers.push((caller, self.synced(&member_id)));
            }
            State::Syncing { .. } => {
                self.renew_session(&member_id, now);
                let member = self.members.get_mut(&member_id).ok_or(ResponseError::UnknownMemberId)?;
                if let Some(former) = member.syncing.replace(caller) {
                    answers.push((former, Answer::Refused(ResponseError::RebalanceInProgress)));
                }
                if member_id == self.leader {
                    self.assign(sync.assignments, now, answers);
                }
            }
        }
        Ok(())
    }

    pub(super) fn heartbeat(&mut self, member: &Membership, now: Duration) -> Result<(), ResponseError> {
        self.check_member(member)?;
        self.renew_session(&member.identity.member_id, now);
        match self.state {
            State::Joining { .. } => Err(ResponseError::RebalanceInProgress),
            State::Empty | State::Syncing { .. } | State::Stable => Ok(()),
        }
    }

    /// Whether a member may store offsets now. A group without members accepts offsets from any client.
    pub(super) fn may_commit(&mut self, member: &Membership, now: Duration) -> Result<(), ResponseError> {
        if member.generation < 0 && member.identity == Identity::default() {
            return if self.members.is_empty() { Ok(()) } else { Err(ResponseError::UnknownMemberId) };
        }
        self.check_member(member)?;
        self.renew_session(&member.identity.member_id, now);
        match self.state {
            State::Syncing { .. } => Err(ResponseError::RebalanceInProgress),
            State::Empty | State::Joining { .. } | State::Stable => Ok(()),
        }
    }

    pub(super) fn leave(
        &mut self,
        identity: &Identity,
        now: Duration,
        answers: &mut Answers,
    ) -> Result<(), ResponseError> {
        if self.admitted.remove(&identity.member_id).is_some() {
            return Ok(());
        }
        // An operator names a static member only by its instance id.
        let member_id = match self.member_of_instance(identity.instance_id.as_deref()) {
            Some(member_id) if identity.member_id.is_empty() => member_id,
            _ => {
                self.identify(identity)?;
                identity.member_id.clone()
            }
        };
        self.remove(&member_id, now, answers);
        Ok(())
    }

    pub(super) fn tick(&mut self, now: Duration, answers: &mut Answers) {
        self.admitted.retain(|_, expires| *expires > now);
        let expired = self.members.iter().filter(|(_, member)| member.is_expired(now));
        let expired: Vec<String> = expired.map(|(id, _)| id.clone()).collect();
        for member_id in expired {
            self.remove(&member_id, now, answers);
        }
        match self.state {
            State::Joining { until } if until <= now => self.complete_join(now, answers),
            State::Syncing { until } if until <= now => {
                let missing: Vec<String> = self
                    .members
                    .iter()
                    .filter(|(_, member)| member.syncing.is_none())
                    .map(|(id, _)| id.clone())
                    .collect();
                for member_id in missing {
                    self.remove(&member_id, now, answers);
                }
                // The leader is among them: had it asked, the state would have changed.
            }
            _ => {}
        }
    }

    fn remove(&mut self, member_id: &str, now: Duration, answers: &mut Answers) {
        let Some(member) = self.members.remove(member_id) else { return };
        for caller in [member.joining, member.syncing].into_iter().flatten() {
            answers.push((caller, Answer::Refused(ResponseError::UnknownMemberId)));
        }
        if self.members.is_empty() {
            self.state = State::Empty;
        } else {
            self.rebalance(now, answers);
        }
    }

    /// Checks the ids that a client sends.
    fn identify(&self, identity: &Identity) -> Result<(), ResponseError> {
        if let Some(instance_id) = &identity.instance_id {
            return match self.member_of_instance(Some(instance_id)) {
                None => Err(ResponseError::UnknownMemberId),
                Some(member_id) if member_id != identity.member_id => Err(ResponseError::FencedInstanceId),
                Some(_) => Ok(()),
            };
        }
        if self.members.contains_key(&identity.member_id) {
            Ok(())
        } else {
            Err(ResponseError::UnknownMemberId)
        }
    }

    fn check_member(&self, member: &Membership) -> Result<(), ResponseError> {
        self.identify(&member.identity)?;
        if member.generation == self.generation { Ok(()) } else { Err(ResponseError::IllegalGeneration) }
    }

    fn renew_session(&mut self, member_id: &str, now: Duration) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.renew_session(now);
        }
    }

    fn member_of_instance(&self, instance_id: Option<&str>) -> Option<String> {
        let instance_id = instance_id?;
        let found =
            self.members.iter().find(|(_, member)| member.instance_id.as_deref() == Some(instance_id));
        found.map(|(id, _)| id.clone())
    }

    /// The next time at which a tick changes something.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let sessions =
            self.members.values().filter(|member| !member.is_waiting()).map(|member| member.expires);
        let phase = match self.state {
            State::Joining { until } | State::Syncing { until } => Some(until),
            State::Empty | State::Stable => None,
        };
        sessions.chain(self.admitted.values().copied()).chain(phase).min()
    }

    /// Whether it can be forgotten.
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.admitted.is_empty()
    }

    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether a client has joined, or has a member id.
    pub(super) fn has(&self, identity: &Identity) -> bool {
        self.members.contains_key(&identity.member_id)
            || self.admitted.contains_key(&identity.member_id)
            || self.member_of_instance(identity.instance_id.as_deref()).is_some()
    }

    pub(super) fn size(&self) -> usize {
        self.members.len() + self.admitted.len()
    }

    pub(super) fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    /// The name of the state in Kafka's protocol.
    pub(super) fn state(&self) -> &'static str {
        match self.state {
            State::Empty => "Empty",
            State::Joining { .. } => "PreparingRebalance",
            State::Syncing { .. } => "CompletingRebalance",
            State::Stable => "Stable",
        }
    }

    pub(super) fn describe(&self) -> Description {
        let members = self.members.iter().map(|(id, member)| DescribedMember {
            identity: member.identity(id),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: member.metadata(&self.protocol).unwrap_or_default(),
            assignment: member.assignment.clone(),
        });
        Description {
            state: self.state(),
            protocol_type: self.protocol_type.clone(),
            protocol: if self.state == State::Stable { self.protocol.clone() } else { String::new() },
            members: members.collect(),
        }
    }
}

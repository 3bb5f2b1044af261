//! One consumer group: its members and the steps of a rebalance.
//!
//! `Empty` → `Joining` (members are gathered) → `Syncing` (the leader shares out) → `Stable`, and back to `Joining`
//! whenever a member comes, goes or changes. This file has no clock and does no I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use super::{
    Admission, Answer, Answers, Caller, DescribedMember, Description, Identity, Join, Joined, Membership,
    Sync,
};

#[derive(Debug, Default)]
pub(super) struct Group {
    state: State,
    /// Counts rebalances; what an older generation says is refused.
    generation: i32,
    protocol_type: String,
    /// The assignor that all members of this generation know.
    protocol: String,
    leader: String,
    members: BTreeMap<String, Member>,
    /// Identities that were given away and not used yet, with the time at which they lapse.
    admitted: BTreeMap<String, Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Empty,
    /// Members are gathered; those that have not joined by then are out.
    Joining {
        until: Duration,
    },
    /// The leader shares out; those that have not asked for their part by then are out.
    Syncing {
        until: Duration,
    },
    Stable,
}

#[derive(Debug)]
struct Member {
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    protocols: Vec<(String, Bytes)>,
    assignment: Bytes,
    /// When it counts as gone, unless it is heard of before or waits for an answer.
    expires: Duration,
    joining: Option<Caller>,
    syncing: Option<Caller>,
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
            self.check_protocols(&join, "")?;
            if join.admission == Admission::InTwoSteps && join.identity.instance_id.is_none() {
                self.admitted.insert(join.new_member_id.clone(), now + join.session_timeout);
                answers.push((caller, Answer::Admitted { member_id: join.new_member_id }));
                return Ok(());
            }
            self.add(join.new_member_id.clone(), caller, join, now, answers);
            return Ok(());
        }
        if join.identity.instance_id.is_none() && self.admitted.contains_key(&member_id) {
            self.check_protocols(&join, "")?;
            self.admitted.remove(&member_id);
            self.add(member_id, caller, join, now, answers);
            return Ok(());
        }
        self.identify(&join.identity)?;
        self.check_protocols(&join, &member_id)?;
        let member = self.members.get(&member_id).ok_or(ResponseError::UnknownMemberId)?;
        let unchanged = member.protocols == join.protocols;
        let settled = match self.state {
            State::Empty | State::Joining { .. } => false,
            State::Syncing { .. } => unchanged,
            // The leader joins again to say that it sees a reason to share out afresh.
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

    /// A static member is back under a new identity. The former one is fenced. Where nothing else has changed, the group
    /// keeps its generation.
    fn replace(
        &mut self,
        former: &str,
        caller: Caller,
        join: Join,
        now: Duration,
        answers: &mut Answers,
    ) -> Result<(), ResponseError> {
        self.check_protocols(&join, former)?;
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
            // It is not told that it leads, since it would share out afresh, while nobody else joins.
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
        let member = Member {
            instance_id: join.identity.instance_id,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout: join.session_timeout,
            rebalance_timeout: join.rebalance_timeout,
            protocols: join.protocols,
            assignment: Bytes::new(),
            expires: now + join.session_timeout,
            joining: Some(caller),
            syncing: None,
        };
        self.members.insert(member_id, member);
        self.rebalance(now, answers);
    }

    fn update(&mut self, member_id: &str, join: Join, now: Duration) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.client_id = join.client_id;
            member.client_host = join.client_host;
            member.session_timeout = join.session_timeout;
            member.rebalance_timeout = join.rebalance_timeout;
            member.protocols = join.protocols;
            member.expires = now + member.session_timeout;
        }
    }

    fn wait_for_join(&mut self, member_id: &str, caller: Caller, answers: &mut Answers) {
        if let Some(member) = self.members.get_mut(member_id)
            && let Some(former) = member.joining.replace(caller)
        {
            // It asks again over another connection; nobody reads the first answer.
            answers.push((former, Answer::Refused(ResponseError::RebalanceInProgress)));
        }
    }

    /// Starts a rebalance, if none is under way, and ends it if nobody is missing.
    fn rebalance(&mut self, now: Duration, answers: &mut Answers) {
        if !matches!(self.state, State::Joining { .. }) {
            for member in self.members.values_mut() {
                if let Some(caller) = member.syncing.take() {
                    member.expires = now + member.session_timeout;
                    answers.push((caller, Answer::Refused(ResponseError::RebalanceInProgress)));
                }
            }
            self.state = State::Joining { until: now + self.rebalance_timeout() };
        }
        if self.members.values().all(|member| member.joining.is_some()) {
            self.complete_join(now, answers);
        }
    }

    /// Starts the next generation with those that have joined. Static members keep their place until their session ends.
    fn complete_join(&mut self, now: Duration, answers: &mut Answers) {
        self.members.retain(|_, member| member.joining.is_some() || member.instance_id.is_some());
        if self.members.is_empty() {
            self.state = State::Empty;
            return;
        }
        let joined: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| member.joining.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        let Some(first) = joined.first() else {
            // Only static members that are away: they come back, or their sessions end.
            self.state = State::Joining { until: now + self.rebalance_timeout() };
            return;
        };
        if !joined.contains(&self.leader) {
            self.leader.clone_from(first);
        }
        self.generation += 1;
        self.protocol = self.vote();
        self.state = State::Syncing { until: now + self.rebalance_timeout() };
        for member_id in &joined {
            let answer = Answer::Joined(self.joined(member_id));
            if let Some(member) = self.members.get_mut(member_id) {
                member.expires = now + member.session_timeout;
                answers.extend(member.joining.take().map(|caller| (caller, answer)));
            }
        }
    }

    pub(super) fn sync(&mut self, caller: Caller, sync: Sync, now: Duration, answers: &mut Answers) {
        if let Err(error) = self.take_sync(caller, sync, now, answers) {
            answers.push((caller, Answer::Refused(error)));
        }
    }

    fn take_sync(
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
                self.touch(&member_id, now);
                answers.push((caller, self.synced(&member_id)));
            }
            State::Syncing { .. } => {
                self.touch(&member_id, now);
                let member = self.members.get_mut(&member_id).ok_or(ResponseError::UnknownMemberId)?;
                if let Some(former) = member.syncing.replace(caller) {
                    answers.push((former, Answer::Refused(ResponseError::RebalanceInProgress)));
                }
                if member_id == self.leader {
                    self.share_out(sync.assignments, now, answers);
                }
            }
        }
        Ok(())
    }

    fn share_out(&mut self, assignments: Vec<(String, Bytes)>, now: Duration, answers: &mut Answers) {
        let mut assignments: BTreeMap<_, _> = assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            // Copied, so that it does not hold on to the whole request.
            member.assignment =
                assignments.remove(id).map(|bytes| Bytes::copy_from_slice(&bytes)).unwrap_or_default();
        }
        self.state = State::Stable;
        let waiting: Vec<String> = self.members.keys().cloned().collect();
        for member_id in waiting {
            let answer = self.synced(&member_id);
            if let Some(caller) = self.members.get_mut(&member_id).and_then(|member| member.syncing.take()) {
                self.touch(&member_id, now);
                answers.push((caller, answer));
            }
        }
    }

    pub(super) fn heartbeat(&mut self, member: &Membership, now: Duration) -> Result<(), ResponseError> {
        self.check_member(member)?;
        self.touch(&member.identity.member_id, now);
        match self.state {
            State::Joining { .. } => Err(ResponseError::RebalanceInProgress),
            State::Empty | State::Syncing { .. } | State::Stable => Ok(()),
        }
    }

    /// Whether a member (or, while there are none, anybody) may store offsets now.
    pub(super) fn may_commit(&mut self, member: &Membership, now: Duration) -> Result<(), ResponseError> {
        if member.generation < 0 && member.identity == Identity::default() {
            return if self.members.is_empty() { Ok(()) } else { Err(ResponseError::UnknownMemberId) };
        }
        self.check_member(member)?;
        self.touch(&member.identity.member_id, now);
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
        // An operator names a static member by its instance alone.
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
        self.admitted.retain(|_, lapses| *lapses > now);
        let gone: Vec<String> =
            self.members.iter().filter(|(_, member)| member.is_gone(now)).map(|(id, _)| id.clone()).collect();
        for member_id in gone {
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
                // All have asked and the leader with them: then it is not in this state any more.
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

    /// Who a client says it is, and that it is who it says.
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

    /// Whether the members, `but` aside, and the one that joins have an assignor in common.
    fn check_protocols(&self, join: &Join, but: &str) -> Result<(), ResponseError> {
        let mut others =
            self.members.iter().filter(|(id, _)| *id != but).map(|(_, member)| member).peekable();
        if others.peek().is_none() {
            return Ok(());
        }
        let others: Vec<&Member> = others.collect();
        let common = |name: &String| others.iter().all(|member| member.metadata(name).is_some());
        if join.protocol_type != self.protocol_type || !join.protocols.iter().any(|(name, _)| common(name)) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        Ok(())
    }

    /// The assignor that all know and most prefer; the first by name among equals.
    fn vote(&self) -> String {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let known = |name: &str| self.members.values().all(|member| member.metadata(name).is_some());
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| known(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max();
        votes
            .into_iter()
            .find(|(_, count)| Some(*count) == most)
            .map_or_else(String::new, |(name, _)| name.to_owned())
    }

    fn joined(&self, member_id: &str) -> Joined {
        let members = if member_id == self.leader {
            let members = self.members.iter();
            members
                .map(|(id, member)| {
                    (member.identity(id), member.metadata(&self.protocol).unwrap_or_default())
                })
                .collect()
        } else {
            Vec::new()
        };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            member_id: member_id.to_owned(),
            members,
        }
    }

    fn synced(&self, member_id: &str) -> Answer {
        Answer::Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: self
                .members
                .get(member_id)
                .map(|member| member.assignment.clone())
                .unwrap_or_default(),
        }
    }

    fn touch(&mut self, member_id: &str, now: Duration) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.expires = now + member.session_timeout;
        }
    }

    fn member_of_instance(&self, instance_id: Option<&str>) -> Option<String> {
        let instance_id = instance_id?;
        let found =
            self.members.iter().find(|(_, member)| member.instance_id.as_deref() == Some(instance_id));
        found.map(|(id, _)| id.clone())
    }

    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default()
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let sessions =
            self.members.values().filter(|member| !member.is_waiting()).map(|member| member.expires);
        let phase = match self.state {
            State::Joining { until } | State::Syncing { until } => Some(until),
            State::Empty | State::Stable => None,
        };
        sessions.chain(self.admitted.values().copied()).chain(phase).min()
    }

    /// Whether there is nothing left to know about it.
    pub(super) fn is_abandoned(&self) -> bool {
        self.members.is_empty() && self.admitted.is_empty()
    }

    pub(super) fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    pub(super) fn knows(&self, identity: &Identity) -> bool {
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

    /// Kafka's name of the state.
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

impl Member {
    /// What it tells the leader for the assignor `name`; `None` if it does not know that one.
    fn metadata(&self, name: &str) -> Option<Bytes> {
        self.protocols.iter().find(|(known, _)| known == name).map(|(_, metadata)| metadata.clone())
    }

    fn identity(&self, member_id: &str) -> Identity {
        Identity { member_id: member_id.to_owned(), instance_id: self.instance_id.clone() }
    }

    /// Who waits for an answer cannot send heartbeats.
    fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    fn is_gone(&self, now: Duration) -> bool {
        !self.is_waiting() && self.expires <= now
    }
}

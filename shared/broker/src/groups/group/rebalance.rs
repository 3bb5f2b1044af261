//! The steps of a rebalance: members are gathered, an assignor is chosen, the leader's assignments are handed out.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;

use super::member::Member;
use super::{Group, State};
use crate::groups::{Answer, Answers, Join, Joined};

impl Group {
    /// Starts a rebalance if there is none, and completes it if all members have joined.
    pub(super) fn rebalance(&mut self, now: Duration, answers: &mut Answers) {
        if !matches!(self.state, State::Joining { .. }) {
            for member in self.members.values_mut() {
                if let Some(caller) = member.syncing.take() {
                    member.renew_session(now);
                    answers.push((caller, Answer::Refused(ResponseError::RebalanceInProgress)));
                }
            }
            self.state = State::Joining { until: now + self.rebalance_timeout() };
        }
        if self.members.values().all(|member| member.joining.is_some()) {
            self.complete_join(now, answers);
        }
    }

    /// Starts the next generation with the members that have joined. Static members remain until their sessions end.
    pub(super) fn complete_join(&mut self, now: Duration, answers: &mut Answers) {
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
            // Only absent static members are left: they join again, or their sessions end.
            self.state = State::Joining { until: now + self.rebalance_timeout() };
            return;
        };
        if !joined.contains(&self.leader) {
            self.leader.clone_from(first);
        }
        self.generation += 1;
        self.protocol = self.choose_assignor();
        self.state = State::Syncing { until: now + self.rebalance_timeout() };
        for member_id in &joined {
            let answer = Answer::Joined(self.joined(member_id));
            if let Some(member) = self.members.get_mut(member_id) {
                member.renew_session(now);
                answers.extend(member.joining.take().map(|caller| (caller, answer)));
            }
        }
    }

    /// Stores the leader's assignments, and answers the members that wait for them.
    pub(super) fn assign(&mut self, assignments: Vec<(String, Bytes)>, now: Duration, answers: &mut Answers) {
        let mut assignments: BTreeMap<_, _> = assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            // A copy, so that the memory of the whole request is freed.
            member.assignment =
                assignments.remove(id).map(|bytes| Bytes::copy_from_slice(&bytes)).unwrap_or_default();
        }
        self.state = State::Stable;
        let members: Vec<String> = self.members.keys().cloned().collect();
        for member_id in members {
            let answer = self.synced(&member_id);
            if let Some(caller) = self.members.get_mut(&member_id).and_then(|member| member.syncing.take()) {
                self.renew_session(&member_id, now);
                answers.push((caller, answer));
            }
        }
    }

    /// Checks that a client that joins has an assignor in common with all members except `excluded`.
    pub(super) fn check_protocols(&self, join: &Join, excluded: Option<&str>) -> Result<(), ResponseError> {
        let others: Vec<&Member> = self
            .members
            .iter()
            .filter(|(id, _)| Some(id.as_str()) != excluded)
            .map(|(_, member)| member)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        let mut names = join.protocols.iter().map(|(name, _)| name);
        let in_common = names.any(|name| others.iter().all(|member| member.metadata(name).is_some()));
        if join.protocol_type != self.protocol_type || !in_common {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        Ok(())
    }

    /// The assignor that all members support and most prefer; the first by name if several are preferred equally.
    fn choose_assignor(&self) -> String {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| self.all_support(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max();
        votes
            .into_iter()
            .find(|(_, count)| Some(*count) == most)
            .map_or_else(String::new, |(name, _)| name.to_owned())
    }

    fn all_support(&self, assignor: &str) -> bool {
        self.members.values().all(|member| member.metadata(assignor).is_some())
    }

    /// The answer to the join of a member.
    pub(super) fn joined(&self, member_id: &str) -> Joined {
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

    /// The answer to the sync of a member.
    pub(super) fn synced(&self, member_id: &str) -> Answer {
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

    /// The longest rebalance timeout of the members.
    fn rebalance_timeout(&self) -> Duration {
        self.members.values().map(|member| member.rebalance_timeout).max().unwrap_or_default()
    }
}

//! One member of a consumer group.

use std::time::Duration;

use bytes::Bytes;

use crate::groups::{Caller, Identity, Join};

#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    /// Its assignors, the preferred one first, each with metadata for the leader.
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) assignment: Bytes,
    /// The end of its session, unless it sends a request before or waits for an answer.
    pub(super) expires: Duration,
    /// Its join that is not answered yet.
    pub(super) joining: Option<Caller>,
    /// Its sync that is not answered yet.
    pub(super) syncing: Option<Caller>,
}

impl Member {
    /// A new member, whose join waits for an answer.
    pub(super) fn new(join: Join, caller: Caller, now: Duration) -> Self {
        Self {
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
        }
    }

    /// Takes over the properties in a new join.
    pub(super) fn update(&mut self, join: Join, now: Duration) {
        self.client_id = join.client_id;
        self.client_host = join.client_host;
        self.session_timeout = join.session_timeout;
        self.rebalance_timeout = join.rebalance_timeout;
        self.protocols = join.protocols;
        self.renew_session(now);
    }

    /// Starts its session timeout again.
    pub(super) fn renew_session(&mut self, now: Duration) {
        self.expires = now + self.session_timeout;
    }

    /// Its metadata for an assignor; `None` if it does not support that one.
    pub(super) fn metadata(&self, assignor: &str) -> Option<Bytes> {
        self.protocols.iter().find(|(name, _)| name == assignor).map(|(_, metadata)| metadata.clone())
    }

    pub(super) fn identity(&self, member_id: &str) -> Identity {
        Identity { member_id: member_id.to_owned(), instance_id: self.instance_id.clone() }
    }

    /// Whether it waits for an answer; it cannot send heartbeats meanwhile.
    pub(super) fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    /// Whether its session has ended.
    pub(super) fn is_expired(&self, now: Duration) -> bool {
        !self.is_waiting() && self.expires <= now
    }
}

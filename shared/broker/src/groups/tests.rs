//! The rules of a group, tested one by one and over random histories.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use proptest::prelude::*;

use super::{Admission, Answer, Caller, Groups, Identity, Input, Join, Joined, Membership, Sync};

const SESSION: Duration = Duration::from_secs(10);
const REBALANCE: Duration = Duration::from_secs(60);

/// Groups with a clock and numbered callers.
#[derive(Default)]
struct Bench {
    groups: Groups,
    now: Duration,
    callers: u64,
    answers: BTreeMap<u64, Answer>,
}

fn name(member_id: &str) -> Identity {
    Identity { member_id: member_id.to_owned(), instance_id: None }
}

fn fixed(member_id: &str, instance_id: &str) -> Identity {
    Identity { member_id: member_id.to_owned(), instance_id: Some(instance_id.to_owned()) }
}

fn member(joined: &Joined) -> Membership {
    Membership { identity: name(&joined.member_id), generation: joined.generation }
}

impl Bench {
    /// Processes one input; the caller's number.
    fn step(&mut self, input: impl FnOnce(Caller) -> Input) -> u64 {
        self.callers += 1;
        let answers = self.groups.step(input(Caller(self.callers)), self.now);
        for (caller, answer) in answers {
            assert!(self.answers.insert(caller.0, answer).is_none(), "each caller is answered once");
        }
        self.callers
    }

    fn join(&mut self, identity: Identity) -> u64 {
        self.join_with(identity, &["range"])
    }

    fn join_with(&mut self, identity: Identity, protocols: &[&str]) -> u64 {
        let new_member_id = format!("m{}", self.callers + 1);
        let join = Join {
            identity,
            new_member_id,
            admission: Admission::AtOnce,
            client_id: "client".into(),
            client_host: "host".into(),
            session_timeout: SESSION,
            rebalance_timeout: REBALANCE,
            protocol_type: "consumer".into(),
            protocols: protocols
                .iter()
                .map(|name| ((*name).to_owned(), Bytes::from((*name).to_owned())))
                .collect(),
        };
        self.step(|caller| Input::Join { caller, group: "g".into(), join })
    }

    fn sync(&mut self, member: Membership, assignments: &[(&str, &str)]) -> u64 {
        let assignments = assignments.iter();
        let assignments = assignments.map(|(id, own)| ((*id).to_owned(), Bytes::from((*own).to_owned())));
        let sync = Sync { member, protocol_type: None, protocol: None, assignments: assignments.collect() };
        self.step(|caller| Input::Sync { caller, group: "g".into(), sync })
    }

    fn heartbeat(&mut self, member: Membership) -> Answer {
        let caller = self.step(|caller| Input::Heartbeat { caller, group: "g".into(), member });
        self.answers[&caller].clone()
    }

    fn commit(&mut self, member: Membership) -> Answer {
        let caller = self.step(|caller| Input::Commit { caller, group: "g".into(), member });
        self.answers[&caller].clone()
    }

    fn leave(&mut self, identity: Identity) -> Answer {
        let caller = self.step(|caller| Input::Leave { caller, group: "g".into(), members: vec![identity] });
        self.answers[&caller].clone()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.step(|_| Input::Tick);
    }

    fn joined(&self, caller: u64) -> Joined {
        match self.answers.get(&caller) {
            Some(Answer::Joined(joined)) => joined.clone(),
            other => panic!("caller {caller} has {other:?}"),
        }
    }

    /// The assignment that a caller has received.
    fn assignment(&self, caller: u64) -> &[u8] {
        match self.answers.get(&caller) {
            Some(Answer::Synced { assignment, .. }) => assignment,
            other => panic!("caller {caller} has {other:?}"),
        }
    }

    /// A stable group of one member.
    fn one(&mut self) -> Joined {
        let first = self.join(Identity::default());
        let first = self.joined(first);
        self.sync(member(&first), &[(&first.member_id, "all")]);
        first
    }

    /// A stable group of two members.
    fn two(&mut self) -> (Joined, Joined) {
        let one = self.one();
        let second = self.join(Identity::default());
        let first = self.join(name(&one.member_id));
        let (first, second) = (self.joined(first), self.joined(second));
        self.sync(member(&second), &[]);
        self.sync(member(&first), &[(&first.member_id, "left"), (&second.member_id, "right")]);
        (first, second)
    }
}

fn refused(error: ResponseError) -> Answer {
    Answer::Refused(error)
}

#[test]
fn one_member_joins_syncs_and_commits() {
    let mut bench = Bench::default();
    let joined = bench.one();
    assert_eq!((joined.generation, joined.leader.as_str(), joined.protocol.as_str()), (1, "m1", "range"));
    assert_eq!(joined.members, [(name("m1"), Bytes::from("range"))]);
    assert_eq!(bench.assignment(2), b"all");
    assert_eq!(bench.heartbeat(member(&joined)), Answer::Done);
    assert_eq!(bench.commit(member(&joined)), Answer::Done);
    let non_member = Membership { identity: Identity::default(), generation: -1 };
    assert_eq!(bench.commit(non_member.clone()), refused(ResponseError::UnknownMemberId));
    assert_eq!(bench.leave(name("m1")), Answer::Left(vec![Ok(())]));
    assert_eq!(
        bench.commit(non_member),
        Answer::Done,
        "a group without members accepts offsets of any client"
    );
    assert_eq!(bench.groups.next_deadline(), None);
}

#[test]
fn a_second_member_starts_a_new_generation_with_the_first() {
    let mut bench = Bench::default();
    let one = bench.one();
    let second = bench.join(Identity::default());
    assert!(!bench.answers.contains_key(&second), "it waits for the first member");
    assert_eq!(bench.heartbeat(member(&one)), refused(ResponseError::RebalanceInProgress));
    let first = bench.join(name(&one.member_id));
    let (first, second) = (bench.joined(first), bench.joined(second));
    assert_eq!((first.generation, second.generation), (2, 2));
    assert_eq!((first.members.len(), second.members.len()), (2, 0), "only the leader assigns");
    let waiting = bench.sync(member(&second), &[]);
    assert!(!bench.answers.contains_key(&waiting), "it waits for the leader");
    assert_eq!(bench.commit(member(&second)), refused(ResponseError::RebalanceInProgress));
    let leading = bench.sync(member(&first), &[(&first.member_id, "left"), (&second.member_id, "right")]);
    assert_eq!((bench.assignment(leading), bench.assignment(waiting)), (&b"left"[..], &b"right"[..]));
    assert_eq!(
        bench.commit(member(&one)),
        refused(ResponseError::IllegalGeneration),
        "an old generation is fenced"
    );
    assert_eq!(bench.heartbeat(member(&first)), Answer::Done);
}

#[test]
fn a_silent_member_is_removed_after_its_session_timeout() {
    let mut bench = Bench::default();
    let (first, second) = bench.two();
    bench.wait(SESSION / 2);
    assert_eq!(bench.heartbeat(member(&first)), Answer::Done);
    bench.wait(SESSION / 2 + Duration::from_secs(1));
    assert_eq!(bench.heartbeat(member(&first)), refused(ResponseError::RebalanceInProgress));
    assert_eq!(bench.heartbeat(member(&second)), refused(ResponseError::UnknownMemberId));
    let again = bench.join(name(&first.member_id));
    assert_eq!(bench.joined(again).members.len(), 1);
}

#[test]
fn a_rebalance_does_not_wait_longer_than_its_timeout() {
    let mut bench = Bench::default();
    let one = bench.one();
    let second = bench.join(Identity::default());
    for _ in 0..REBALANCE.as_secs() / 5 {
        // The first member sends heartbeats but does not join, since it still processes what it has read.
        bench.wait(Duration::from_secs(5));
        let _ = bench.heartbeat(member(&one));
    }
    let joined = bench.joined(second);
    assert_eq!((joined.leader.as_str(), joined.members.len()), (joined.member_id.as_str(), 1));
    assert_eq!(bench.heartbeat(member(&one)), refused(ResponseError::UnknownMemberId));
}

#[test]
fn a_leader_that_does_not_assign_is_removed() {
    let mut bench = Bench::default();
    let (first, second) = bench.two();
    let leading = bench.join(name(&first.member_id));
    let following = bench.join(name(&second.member_id));
    let (first, second) = (bench.joined(leading), bench.joined(following));
    let waiting = bench.sync(member(&second), &[]);
    for _ in 0..REBALANCE.as_secs() / 5 {
        bench.wait(Duration::from_secs(5));
        let _ = bench.heartbeat(member(&first));
    }
    assert_eq!(bench.answers[&waiting], refused(ResponseError::RebalanceInProgress));
    assert_eq!(bench.heartbeat(member(&first)), refused(ResponseError::UnknownMemberId));
    let again = bench.join(name(&second.member_id));
    assert_eq!(bench.joined(again).leader, second.member_id);
}

#[test]
fn a_static_member_keeps_its_assignment_across_a_restart() {
    let mut bench = Bench::default();
    let caller = bench.join(fixed("", "rack-1"));
    let first = bench.joined(caller);
    let own = Membership { identity: fixed(&first.member_id, "rack-1"), generation: 1 };
    bench.sync(own.clone(), &[(&first.member_id, "all")]);
    let caller = bench.join(fixed("", "rack-1"));
    let back = bench.joined(caller);
    assert_eq!(back.generation, 1, "no rebalance");
    assert_ne!(back.member_id, first.member_id);
    assert_ne!(back.leader, back.member_id, "it must not assign again");
    let caller = bench.sync(Membership { identity: fixed(&back.member_id, "rack-1"), generation: 1 }, &[]);
    assert_eq!(bench.assignment(caller), b"all");
    assert_eq!(bench.heartbeat(own), refused(ResponseError::FencedInstanceId));
    assert_eq!(
        bench.leave(fixed("", "rack-1")),
        Answer::Left(vec![Ok(())]),
        "an operator may remove it by its instance id"
    );
    assert!(!bench.groups.has_members("g"));
}

#[test]
fn members_need_an_assignor_in_common() {
    let mut bench = Bench::default();
    let first = bench.join_with(Identity::default(), &["range", "sticky"]);
    let first = bench.joined(first);
    let other = bench.join_with(Identity::default(), &["own"]);
    assert_eq!(bench.answers[&other], refused(ResponseError::InconsistentGroupProtocol));
    let second = bench.join_with(Identity::default(), &["own", "sticky"]);
    let again = bench.join_with(name(&first.member_id), &["range", "sticky"]);
    assert_eq!(
        (bench.joined(second).protocol, bench.joined(again).protocol),
        ("sticky".into(), "sticky".into())
    );
}

#[test]
fn a_member_id_expires_after_the_session_timeout() {
    let mut bench = Bench::default();
    let join = Join {
        identity: Identity::default(),
        new_member_id: "new".into(),
        admission: Admission::InTwoSteps,
        client_id: String::new(),
        client_host: String::new(),
        session_timeout: SESSION,
        rebalance_timeout: REBALANCE,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::new())],
    };
    for round in 0..2 {
        let first = join.clone();
        let caller = bench.step(|caller| Input::Join { caller, group: "g".into(), join: first });
        assert_eq!(bench.answers[&caller], Answer::Admitted { member_id: "new".into() });
        if round == 0 {
            bench.wait(SESSION);
        }
        let second = Join { identity: name("new"), ..join.clone() };
        let caller = bench.step(|caller| Input::Join { caller, group: "g".into(), join: second });
        if round == 0 {
            assert_eq!(bench.answers[&caller], refused(ResponseError::UnknownMemberId));
        } else {
            assert_eq!(bench.joined(caller).member_id, "new");
        }
    }
}

#[test]
fn the_number_of_members_is_bounded() {
    let mut bench = Bench::default();
    for _ in 0..super::MOST_MEMBERS {
        bench.join(Identity::default());
    }
    let caller = bench.join(Identity::default());
    assert_eq!(bench.answers[&caller], refused(ResponseError::GroupMaxSizeReached));
}

/// The next request of a client, valid or not.
#[derive(Clone, Debug)]
enum Act {
    JoinNew,
    JoinStatic(u8),
    JoinAgain(usize),
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Commit(usize),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => Just(Act::JoinNew),
        1 => (0..3_u8).prop_map(Act::JoinStatic),
        4 => any::<usize>().prop_map(Act::JoinAgain),
        6 => any::<usize>().prop_map(Act::Sync),
        2 => any::<usize>().prop_map(Act::Heartbeat),
        1 => any::<usize>().prop_map(Act::Leave),
        2 => any::<usize>().prop_map(Act::Commit),
        2 => (1..30_u64).prop_map(Act::Wait),
    ]
}

/// A membership that a client has received.
struct Seen {
    instance_id: Option<String>,
    joined: Joined,
}

impl Seen {
    fn identity(&self) -> Identity {
        Identity { member_id: self.joined.member_id.clone(), instance_id: self.instance_id.clone() }
    }

    fn membership(&self) -> Membership {
        Membership { identity: self.identity(), generation: self.joined.generation }
    }
}

fn pick(known: &[Seen], at: usize) -> Option<&Seen> {
    known.get(at % known.len().max(1))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever clients do, each request is answered once, and each member receives the assignment from the leader of its
    /// own generation.
    #[test]
    fn rebalances_are_correct(acts in prop::collection::vec(act(), 1..80)) {
        let mut bench = Bench::default();
        let mut known: Vec<Seen> = Vec::new();
        let mut syncs: BTreeMap<u64, Joined> = BTreeMap::new();
        let mut joins: BTreeMap<u64, Option<String>> = BTreeMap::new();
        for act in acts {
            match act {
                Act::JoinNew => {
                    joins.insert(bench.join(Identity::default()), None);
                }
                Act::JoinStatic(instance) => {
                    let instance_id = format!("i{instance}");
                    joins.insert(bench.join(fixed("", &instance_id)), Some(instance_id));
                }
                Act::JoinAgain(at) => if let Some(one) = pick(&known, at) {
                    joins.insert(bench.join(one.identity()), one.instance_id.clone());
                }
                Act::Sync(at) => if let Some(one) = pick(&known, at) {
                    let parts: Vec<(String, String)> = one.joined.members.iter()
                        .map(|(member, _)| (member.member_id.clone(), format!("{}/{}", one.joined.generation, member.member_id)))
                        .collect();
                    let parts: Vec<(&str, &str)> = parts.iter().map(|(id, part)| (id.as_str(), part.as_str())).collect();
                    syncs.insert(bench.sync(one.membership(), &parts), one.joined.clone());
                }
                Act::Heartbeat(at) => if let Some(one) = pick(&known, at) {
                    bench.heartbeat(one.membership());
                }
                Act::Leave(at) => if let Some(one) = pick(&known, at) {
                    bench.leave(one.identity());
                }
                Act::Commit(at) => if let Some(one) = pick(&known, at) {
                    bench.commit(one.membership());
                }
                Act::Wait(seconds) => bench.wait(Duration::from_secs(seconds)),
            }
            for (caller, instance_id) in &joins {
                if let Some(Answer::Joined(joined)) = bench.answers.get(caller)
                    && !known.iter().any(|other| other.joined == *joined)
                {
                    known.push(Seen { instance_id: instance_id.clone(), joined: joined.clone() });
                }
            }
        }
        while let Some(deadline) = bench.groups.next_deadline() {
            prop_assert!(deadline < bench.now + Duration::from_secs(10_000));
            bench.now = bench.now.max(deadline);
            bench.step(|_| Input::Tick);
        }
        for caller in joins.keys().chain(syncs.keys()) {
            prop_assert!(bench.answers.contains_key(caller), "caller {caller} was never answered");
        }
        for (caller, joined) in &syncs {
            if let Answer::Synced { assignment, .. } = &bench.answers[caller] {
                // A static member takes over the assignment of its former member id.
                let moved = known.iter().any(|other| other.joined == *joined && other.instance_id.is_some());
                let part = std::str::from_utf8(assignment).unwrap();
                let own = if moved { joined.generation.to_string() } else { format!("{}/{}", joined.generation, joined.member_id) };
                prop_assert!(part.is_empty() || part.starts_with(&own), "{part} for {own}");
            }
        }
    }
}

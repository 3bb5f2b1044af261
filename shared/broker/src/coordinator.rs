//! Runs the consumer groups: gives the state machine ([`crate::groups`]) the time, and its answers to those who wait.
//!
//! This file decides nothing about groups and does not know the Kafka protocol.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::groups::{Answer, Answers, Caller, Groups, Input};
use crate::offsets::Offsets;

/// The groups and their committed offsets.
#[derive(Debug)]
pub(crate) struct Coordinator {
    running: Mutex<Running>,
    pub(crate) offsets: Arc<Offsets>,
    /// What the groups' time counts from.
    started: Instant,
    /// Tells the clock that there may be an earlier deadline.
    changed: Notify,
    /// Makes identities of members differ from those of an earlier process.
    origin: u128,
}

#[derive(Debug, Default)]
struct Running {
    groups: Groups,
    waiting: HashMap<Caller, oneshot::Sender<Answer>>,
    callers: u64,
    members: u64,
}

impl Coordinator {
    pub(crate) fn new(offsets: Offsets) -> Self {
        let origin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self {
            running: Mutex::default(),
            offsets: Arc::new(offsets),
            started: Instant::now(),
            changed: Notify::new(),
            origin,
        }
    }

    /// Asks the groups something and waits for the answer; `None` if the broker stops before.
    pub(crate) async fn ask(&self, question: impl FnOnce(Caller) -> Input) -> Option<Answer> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut running = self.lock();
            running.callers += 1;
            let caller = Caller(running.callers);
            running.waiting.insert(caller, sender);
            running.step(question(caller), self.started);
        }
        self.changed.notify_one();
        receiver.await.ok()
    }

    /// Looks at the groups.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Groups) -> T) -> T {
        at(&self.lock().groups)
    }

    /// An identity that no member had before.
    pub(crate) fn new_member_id(&self, client_id: &str) -> String {
        let mut running = self.lock();
        running.members += 1;
        let name: String = client_id.chars().take(100).collect();
        format!("{name}-{:x}-{}", self.origin, running.members)
    }

    /// Tells the groups when time has passed that matters to them, until `cancel`.
    pub(crate) async fn run(self: Arc<Self>, cancel: CancellationToken) {
        loop {
            let deadline = self.look(Groups::next_deadline).map(|deadline| self.started + deadline);
            let reached = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.changed.notified() => {}
                () = reached => self.lock().step(Input::Tick, self.started),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn step(&mut self, input: Input, started: Instant) {
        let answers: Answers = self.groups.step(input, started.elapsed());
        for (caller, answer) in answers {
            if let Some(waiting) = self.waiting.remove(&caller) {
                // Whoever has gone meanwhile needs no answer.
                let _ = waiting.send(answer);
            }
        }
    }
}

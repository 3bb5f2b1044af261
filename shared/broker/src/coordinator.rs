//! Runs the consumer groups: passes the time to the state machine ([`crate::groups`]), and its answers to the callers
//! that wait for them.
//!
//! It decides nothing about groups, and must not know the Kafka protocol.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::groups::{Answer, Answers, Caller, Groups, Input};
use crate::offsets::Offsets;

/// The groups and their committed offsets.
#[derive(Debug)]
pub(crate) struct Coordinator {
    running: Mutex<Running>,
    pub(crate) offsets: Arc<Offsets>,
    /// The zero of the groups' time.
    started: Instant,
    /// Wakes the timer up: there may be an earlier deadline.
    changed: Notify,
    /// A part of member ids that differs from that of earlier processes.
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
        Self {
            running: Mutex::default(),
            offsets: Arc::new(offsets),
            started: clock::monotonic(),
            changed: Notify::new(),
            origin: clock::since_1970().as_nanos(),
        }
    }

    /// Passes an input to the groups and waits for the answer; `None` if the broker stops before.
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

    /// Calls `on` with the groups as they are now.
    pub(crate) fn inspect<T>(&self, on: impl FnOnce(&Groups) -> T) -> T {
        on(&self.lock().groups)
    }

    /// A member id that was never used before.
    pub(crate) fn new_member_id(&self, client_id: &str) -> String {
        let mut running = self.lock();
        running.members += 1;
        let name: String = client_id.chars().take(100).collect();
        format!("{name}-{:x}-{}", self.origin, running.members)
    }

    /// Passes the groups a tick at each of their deadlines, until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            let deadline = self.inspect(Groups::next_deadline).map(|deadline| self.started + deadline);
            let reached = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
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
        let answers: Answers = self.groups.step(input, clock::monotonic() - started);
        for (caller, answer) in answers {
            if let Some(waiting) = self.waiting.remove(&caller) {
                // The caller may have disconnected.
                let _ = waiting.send(answer);
            }
        }
    }
}

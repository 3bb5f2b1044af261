//! Which connections there are, and which of them may be closed to make room for another one.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use tokio_util::sync::CancellationToken;

/// All connections of a server.
pub(super) struct Connections {
    most: usize,
    open: Mutex<Open>,
    turns: Arc<AtomicU64>,
}

#[derive(Default)]
struct Open {
    by_number: BTreeMap<u64, Arc<State>>,
    next: u64,
}

/// One connection; its place is free again when this is dropped.
pub(super) struct Connection {
    number: u64,
    all: Arc<Connections>,
    state: Arc<State>,
}

struct State {
    /// The turn in which it became idle; `None` while a request is in progress.
    idle_since: Mutex<Option<u64>>,
    /// The next turn, shared by all connections: of two idle ones, the one with the lower turn has been idle longer.
    turns: Arc<AtomicU64>,
    leave: CancellationToken,
}

/// A request is in progress until this is dropped.
pub(super) struct Busy(Arc<State>);

impl Connections {
    pub(super) fn new(most: usize) -> Self {
        Self { most, open: Mutex::default(), turns: Arc::default() }
    }

    /// A place for a new connection, if necessary that of the connection that has been idle longest, which is asked to
    /// leave. `None` when all places are taken and none is idle.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Connection> {
        let mut open = self.open();
        if open.by_number.len() >= self.most {
            let idle =
                open.by_number.iter().filter_map(|(number, state)| Some((state.idle_since()?, *number)));
            let (_, longest) = idle.min()?;
            if let Some(state) = open.by_number.remove(&longest) {
                state.leave.cancel();
            }
        }
        let number = open.next;
        open.next += 1;
        let state = Arc::new(State {
            idle_since: Mutex::default(),
            turns: Arc::clone(&self.turns),
            leave: CancellationToken::new(),
        });
        state.becomes_idle();
        open.by_number.insert(number, Arc::clone(&state));
        Some(Connection { number, all: Arc::clone(self), state })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Notes that a request is in progress, until what is returned is dropped.
    pub(super) fn begin_request(&self) -> Busy {
        *self.state.lock() = None;
        Busy(Arc::clone(&self.state))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state.idle_since().is_some()
    }

    /// Waits until another connection gets the place, or the whole server stops.
    pub(super) async fn must_leave(&self, shutdown: &CancellationToken) {
        tokio::select! {
            () = self.state.leave.cancelled() => {}
            () = shutdown.cancelled() => {}
        }
    }
}

impl State {
    fn idle_since(&self) -> Option<u64> {
        *self.lock()
    }

    fn becomes_idle(&self) {
        *self.lock() = Some(self.turns.fetch_add(1, Ordering::Relaxed));
    }

    fn lock(&self) -> MutexGuard<'_, Option<u64>> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.open().by_number.remove(&self.number);
    }
}

impl Busy {
    /// The body of the answer; the request is in progress until it was sent.
    pub(super) fn during(self, body: Body) -> impl HttpBody<Data = Bytes, Error = axum::Error> {
        BusyBody { body, _busy: self }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.becomes_idle();
    }
}

struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl HttpBody for BusyBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_one_makes_room_and_busy_ones_stay() {
        let all = Arc::new(Connections::new(3));
        let [a, b, c] = [(); 3].map(|()| all.admit().unwrap());
        let busy = a.begin_request();
        let d = all.admit().unwrap();
        assert!(b.state.leave.is_cancelled());
        assert!(!a.state.leave.is_cancelled() && !c.state.leave.is_cancelled());
        let _busy = (c.begin_request(), d.begin_request());
        assert!(all.admit().is_none());
        drop(busy);
        assert!(all.admit().is_some());
        assert!(a.state.leave.is_cancelled());
        drop((a, b));
        assert!(all.admit().is_some(), "the place of the connection before is free");
    }
}

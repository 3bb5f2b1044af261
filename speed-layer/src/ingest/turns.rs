//! One request at a time for each idempotency key: later ones wait for their turn. A turn ends when it is dropped, so that
//! a request frees its key however it ends.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The keys that requests work on. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Turns {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    busy: Mutex<HashSet<String>>,
    ended: Notify,
}

impl Inner {
    fn busy(&self) -> MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to work on a key.
pub(super) struct Turn {
    turns: Turns,
    key: String,
}

impl Turns {
    /// Waits until no other request works on `key`.
    pub(super) async fn take(&self, key: &str) -> Turn {
        loop {
            // Enabled before the check, so that a turn that ends right after it is not missed.
            let mut ended = std::pin::pin!(self.inner.ended.notified());
            ended.as_mut().enable();
            if self.inner.busy().insert(key.to_owned()) {
                return Turn { turns: self.clone(), key: key.to_owned() };
            }
            ended.await;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.inner.busy().remove(&self.key);
        self.turns.inner.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_turn_ends_however_the_request_ends() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let _other = turns.take("b").await;
        let second = tokio::time::timeout(Duration::from_millis(20), turns.take("a"));
        assert!(second.await.is_err(), "two at once");
        let (second, ()) = tokio::join!(turns.take("a"), async { drop(first) });
        drop(second);
        let abandoned = async {
            let _turn = turns.take("a").await;
            std::future::pending::<()>().await;
        };
        assert!(tokio::time::timeout(Duration::from_millis(20), abandoned).await.is_err());
        turns.take("a").await;
    }
}

//! Slots in which queries run: many for short queries and few for long ones, so that a short query never waits for long
//! ones. Must not know SQL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{Limits, SHORT_QUERIES};
use crate::ServingError;

/// All slots. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    short: Lane,
    long: Lane,
    accounts: Arc<Mutex<Accounts>>,
    limits: Arc<Limits>,
}

/// Which slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotKind {
    Short,
    Long,
}

/// The slots of one kind.
#[derive(Clone, Debug)]
struct Lane {
    free: Arc<Semaphore>,
    /// How many queries wait for one.
    waiting: Arc<AtomicUsize>,
}

/// The slot of a query; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    /// Given back after the account, so that there are never more accounts than slots.
    permit: Mutex<OwnedSemaphorePermit>,
    /// Counts the query's memory; no other slot in use has it.
    pub(super) account: usize,
    accounts: Arc<Mutex<Accounts>>,
}

/// The numbers of memory accounts: 0 and up, as few as are used at a time.
#[derive(Debug, Default)]
struct Accounts {
    free: Vec<usize>,
    created: usize,
}

impl Slots {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            short: Lane::of(SHORT_QUERIES),
            long: Lane::of(limits.long_queries),
            accounts: Arc::default(),
            limits,
        }
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// [`ServingError::Busy`] when too many queries wait already, or when no slot gets free in time.
    pub(super) async fn acquire(&self, kind: SlotKind) -> Result<Slot, ServingError> {
        let lane = match kind {
            SlotKind::Short => &self.short,
            SlotKind::Long => &self.long,
        };
        let permit = match Arc::clone(&lane.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait(lane).await?,
        };
        let account = self.accounts.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(Slot { permit: Mutex::new(permit), account, accounts: Arc::clone(&self.accounts) })
    }

    async fn wait(&self, lane: &Lane) -> Result<OwnedSemaphorePermit, ServingError> {
        let _waiting = Waiting::enter(&lane.waiting, self.limits.waiting).ok_or(ServingError::Busy)?;
        let permit = tokio::time::timeout(self.limits.patience, Arc::clone(&lane.free).acquire_owned()).await;
        permit.map_err(|_| ServingError::Busy)?.map_err(|_| ServingError::Stopping)
    }

    /// Exchanges the short slot of a query for a long one. Returns whether one was free.
    pub(super) fn try_make_long(&self, slot: &Slot) -> bool {
        let Ok(permit) = Arc::clone(&self.long.free).try_acquire_owned() else { return false };
        *slot.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        true
    }

    /// Whether all slots are free.
    #[cfg(test)]
    pub(super) fn idle(&self) -> bool {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.free.len() == accounts.created
    }
}

impl Lane {
    fn of(slots: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(slots)), waiting: Arc::default() }
    }
}

impl Accounts {
    fn take(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.created += 1;
            self.created - 1
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).free.push(self.account);
    }
}

/// A query that waits, as long as this exists.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// `None` where `most` wait already.
    fn enter(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::AcqRel) < most).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn slots(long_queries: usize, waiting: usize, patience: Duration) -> Slots {
        Slots::new(Arc::new(Limits { long_queries, waiting, patience, ..Limits::default() }))
    }

    #[tokio::test]
    async fn a_short_query_has_a_slot_while_long_ones_wait() {
        let slots = slots(1, 1, Duration::from_secs(60));
        let long = slots.acquire(SlotKind::Short).await.unwrap();
        assert!(slots.try_make_long(&long));
        let other = slots.acquire(SlotKind::Short).await.unwrap();
        assert!(!slots.try_make_long(&other));
        drop(other);
        let waiting = slots.acquire(SlotKind::Long);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        // One query waits, which is the limit.
        assert!(matches!(slots.acquire(SlotKind::Long).await, Err(ServingError::Busy)));
        let mut short = Vec::new();
        for _ in 0..SHORT_QUERIES {
            short.push(slots.acquire(SlotKind::Short).await.unwrap());
        }
        let mut accounts: Vec<usize> = short.iter().map(|slot| slot.account).chain([long.account]).collect();
        accounts.sort_unstable();
        // Every account is used once, and there are no more than slots in use.
        assert_eq!(accounts, (0..=SHORT_QUERIES).collect::<Vec<_>>());
        assert!(!slots.idle());
        drop(long);
        drop((short, waiting.await.unwrap()));
        assert!(slots.idle());
    }

    #[tokio::test]
    async fn a_query_that_waits_too_long_is_rejected() {
        let slots = slots(1, 10, Duration::from_millis(1));
        let _long = slots.acquire(SlotKind::Long).await.unwrap();
        assert!(matches!(slots.acquire(SlotKind::Long).await, Err(ServingError::Busy)));
        assert_eq!(slots.long.waiting.load(Ordering::Acquire), 0);
    }
}

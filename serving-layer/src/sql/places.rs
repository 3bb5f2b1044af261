//! Places for queries: many for short ones, few for long ones, so that a small question never waits behind big ones.
//! It knows no SQL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{Limits, SHORT_QUERIES};
use crate::ServingError;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Places {
    short: Lane,
    long: Lane,
    free_accounts: Arc<Mutex<Vec<usize>>>,
    limits: Arc<Limits>,
}

/// Places of one kind.
#[derive(Clone, Debug)]
struct Lane {
    free: Arc<Semaphore>,
    /// How many wait for one.
    waiting: Arc<AtomicUsize>,
}

/// A place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    permit: Mutex<OwnedSemaphorePermit>,
    /// The account of the query's memory; no other place has it.
    pub(super) account: usize,
    free_accounts: Arc<Mutex<Vec<usize>>>,
}

/// Which places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Short,
    Long,
}

impl Places {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        Self {
            short: Lane::of(SHORT_QUERIES),
            long: Lane::of(limits.long_queries),
            free_accounts: Arc::new(Mutex::new((0..limits.places()).collect())),
            limits,
        }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`ServingError::Busy`] when too many wait already, or when none gets free in time.
    pub(super) async fn take(&self, kind: Kind) -> Result<Place, ServingError> {
        let lane = match kind {
            Kind::Short => &self.short,
            Kind::Long => &self.long,
        };
        let permit = match Arc::clone(&lane.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait(lane).await?,
        };
        let account = self.free_accounts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let account = account.expect("there is an account for each place");
        Ok(Place { permit: Mutex::new(permit), account, free_accounts: Arc::clone(&self.free_accounts) })
    }

    async fn wait(&self, lane: &Lane) -> Result<OwnedSemaphorePermit, ServingError> {
        let _waiting = Waiting::enter(&lane.waiting, self.limits.waiting).ok_or(ServingError::Busy)?;
        let permit = tokio::time::timeout(self.limits.patience, Arc::clone(&lane.free).acquire_owned()).await;
        permit.map_err(|_| ServingError::Busy)?.map_err(|_| ServingError::Stopping)
    }

    /// Whether all places are free.
    #[cfg(test)]
    pub(super) fn idle(&self) -> bool {
        self.free_accounts.lock().unwrap_or_else(PoisonError::into_inner).len() == self.limits.places()
    }

    /// Makes a short place a long one, if one of these is free.
    pub(super) fn lengthen(&self, place: &Place) -> bool {
        let Ok(permit) = Arc::clone(&self.long.free).try_acquire_owned() else { return false };
        *place.permit.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        true
    }
}

impl Lane {
    fn of(places: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(places)), waiting: Arc::default() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the permit, so that whoever gets the permit finds an account.
        self.free_accounts.lock().unwrap_or_else(PoisonError::into_inner).push(self.account);
    }
}

/// One of those who wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
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

    fn places(long_queries: usize, waiting: usize, patience: Duration) -> Places {
        Places::new(Arc::new(Limits { long_queries, waiting, patience, ..Limits::default() }))
    }

    #[tokio::test]
    async fn a_short_query_has_a_place_while_long_ones_wait() {
        let places = places(1, 1, Duration::from_secs(60));
        let long = places.take(Kind::Short).await.unwrap();
        assert!(places.lengthen(&long));
        let other = places.take(Kind::Short).await.unwrap();
        assert!(!places.lengthen(&other));
        drop(other);
        let waiting = places.take(Kind::Long);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        // One waits, which is as many as may.
        assert!(matches!(places.take(Kind::Long).await, Err(ServingError::Busy)));
        let mut short = Vec::new();
        for _ in 0..SHORT_QUERIES {
            short.push(places.take(Kind::Short).await.unwrap());
        }
        let mut accounts: Vec<usize> =
            short.iter().map(|place| place.account).chain([long.account]).collect();
        accounts.sort_unstable();
        accounts.dedup();
        assert_eq!(accounts.len(), SHORT_QUERIES + 1);
        drop(long);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_too_long_is_told_to_come_again() {
        let places = places(1, 10, Duration::from_millis(1));
        let _long = places.take(Kind::Long).await.unwrap();
        assert!(matches!(places.take(Kind::Long).await, Err(ServingError::Busy)));
        assert_eq!(places.long.waiting.load(Ordering::Acquire), 0);
    }
}

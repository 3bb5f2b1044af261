//! How many tests of the whole program run at the same time. Most of their time they wait, so two may; a test that measures
//! how long something takes runs alone.

use std::sync::{Condvar, Mutex, PoisonError};

/// How many tests may run at the same time.
const PLACES: usize = 2;

static FREE: Mutex<usize> = Mutex::new(PLACES);
static FREED: Condvar = Condvar::new();

/// A test's permission to run. Others get its places when it is dropped.
#[derive(Debug)]
pub struct Turn {
    places: usize,
}

impl Turn {
    /// Waits until fewer than two tests run.
    #[must_use]
    pub fn shared() -> Self {
        Self::of(1)
    }

    /// Waits until no other test runs. None starts before this is dropped.
    #[must_use]
    pub fn alone() -> Self {
        Self::of(PLACES)
    }

    fn of(places: usize) -> Self {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREED.wait_while(free, |free| *free < places).unwrap_or_else(PoisonError::into_inner);
        *free -= places;
        Self { places }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.places;
        FREED.notify_all();
    }
}

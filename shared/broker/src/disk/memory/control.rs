//! The faults of a [`MemoryDisk`](super::MemoryDisk): failing operations, little space, syncs that wait.

use std::io;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::lock;

/// Longer than any wait in a test takes.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
pub(super) struct Control {
    faults: Mutex<Vec<Fault>>,
    /// Free bytes; `None` for any number.
    free: Mutex<Option<u64>>,
    held: Mutex<Held>,
    changed: Condvar,
    syncs: Mutex<u64>,
}

/// Syncs of files that wait.
#[derive(Debug, Default)]
struct Held {
    /// Whether syncs wait.
    on: bool,
    /// How many wait now.
    waiting: usize,
    /// How many of them may continue.
    passes: usize,
}

/// An operation that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Open,
    Read,
    Write,
    SetLength,
    Sync,
    Rename,
    Remove,
    CreateDirectory,
    SyncDirectory,
}

#[derive(Debug)]
struct Fault {
    operation: Operation,
    /// How many calls succeed before the one that fails.
    after: usize,
    kind: io::ErrorKind,
}

impl Control {
    pub(super) fn fail(&self, operation: Operation, after: usize, kind: io::ErrorKind) {
        lock(&self.faults).push(Fault { operation, after, kind });
    }

    pub(super) fn fail_no_more(&self) {
        lock(&self.faults).clear();
    }

    /// Fails if this call of the operation must.
    pub(super) fn check(&self, operation: Operation) -> io::Result<()> {
        let mut faults = lock(&self.faults);
        let due = faults.iter_mut().position(|fault| {
            let now = fault.operation == operation && fault.after == 0;
            if fault.operation == operation {
                fault.after = fault.after.saturating_sub(1);
            }
            now
        });
        due.map_or(Ok(()), |at| Err(io::Error::from(faults.remove(at).kind)))
    }

    pub(super) fn set_free(&self, bytes: Option<u64>) {
        *lock(&self.free) = bytes;
    }

    /// Takes free bytes; as many as there are.
    pub(super) fn take(&self, bytes: usize) -> usize {
        match &mut *lock(&self.free) {
            None => bytes,
            Some(free) => {
                let granted = bytes.min(*free as usize);
                *free -= granted as u64;
                granted
            }
        }
    }

    pub(super) fn give_back(&self, bytes: usize) {
        if let Some(free) = &mut *lock(&self.free) {
            *free += bytes as u64;
        }
    }

    pub(super) fn hold_syncs(&self) {
        lock(&self.held).on = true;
    }

    pub(super) fn release_one_sync(&self) {
        let mut held = lock(&self.held);
        held.passes += 1;
        self.changed.notify_all();
        while held.passes > 0 {
            held = self.changed.wait(held).unwrap();
        }
    }

    pub(super) fn release_syncs(&self) {
        lock(&self.held).on = false;
        self.changed.notify_all();
    }

    pub(super) fn until_held(&self, number: usize) {
        let held = lock(&self.held);
        let wait = self.changed.wait_timeout_while(held, DEADLINE, |held| held.waiting < number);
        let (mut held, waited) = wait.unwrap();
        if waited.timed_out() {
            held.on = false;
            drop(held);
            self.changed.notify_all();
            panic!("fewer than {number} syncs");
        }
    }

    /// Counts a sync, and waits while syncs are held.
    pub(super) fn begin_sync(&self) {
        let mut held = lock(&self.held);
        held.waiting += 1;
        self.changed.notify_all();
        held = self.changed.wait_while(held, |held| held.on && held.passes == 0).unwrap();
        held.passes = held.passes.saturating_sub(1);
        held.waiting -= 1;
        self.changed.notify_all();
        drop(held);
        *lock(&self.syncs) += 1;
    }

    pub(super) fn syncs(&self) -> u64 {
        *lock(&self.syncs)
    }
}

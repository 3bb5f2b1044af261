//! What the program knows of the machine that a library cannot: whose memory is whose, and which thread goes first.

use std::fmt::Debug;

/// Counts what threads allocate, account by account, and lets threads step back behind others.
pub trait Host: Debug + Send + Sync {
    /// From now on, what the calling thread allocates is on this account, whoever frees it. Returns the number by which
    /// [`Host::step_back`] knows the thread.
    fn join(&self, account: usize) -> i32;

    /// Bytes that were allocated on each account and are not freed yet; an account beyond the end has none.
    fn in_use(&self) -> Vec<usize>;

    /// From now on, the threads of everybody else go first.
    fn step_back(&self, thread: i32);
}

/// Nothing is known: memory is bounded by what operators say of themselves, and all threads are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnknownHost;

impl Host for UnknownHost {
    fn join(&self, _account: usize) -> i32 {
        0
    }

    fn in_use(&self) -> Vec<usize> {
        Vec::new()
    }

    fn step_back(&self, _thread: i32) {}
}

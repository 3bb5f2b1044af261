//! What queries need of the allocator and the operating system, as a component of the program.

use std::fmt::Debug;

/// Counts the memory that threads allocate by account, and lowers the priority of threads.
pub trait Host: Debug + Send + Sync {
    /// Counts on an account what the calling thread allocates from now on, whichever thread frees it. Returns the number of
    /// the thread, for [`Host::lower_priority`].
    fn join(&self, account: usize) -> i32;

    /// Bytes that were allocated on each account and are not freed yet; an account past the end has none.
    fn in_use(&self) -> Vec<usize>;

    /// Lowers the priority of a thread, so that all other threads run first.
    fn lower_priority(&self, thread: i32);
}

/// A host that can do neither: only memory that operators reserve is counted, and all threads have the same priority.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnknownHost;

impl Host for UnknownHost {
    fn join(&self, _account: usize) -> i32 {
        0
    }

    fn in_use(&self) -> Vec<usize> {
        Vec::new()
    }

    fn lower_priority(&self, _thread: i32) {}
}

//! The machine that queries run on. jemalloc counts memory by arena, so each query has its own arena. On Linux a thread can
//! lower its priority by its niceness.

use std::sync::{OnceLock, PoisonError, RwLock};

use tikv_jemalloc_ctl::{epoch, raw};
use wye_serving::sql::Host;

/// The niceness of threads with a low priority: a tenth of the processor time of others, or all that the others do not use.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The arenas by account. Arenas are never deleted, so the process has one for each account.
static ARENAS: RwLock<Vec<OnceLock<u32>>> = RwLock::new(Vec::new());

/// This machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine;

impl Host for Machine {
    fn join(&self, account: usize) -> i32 {
        if let Some(arena) = arena(account) {
            enter(arena);
        }
        thread_number()
    }

    fn in_use(&self) -> Vec<usize> {
        // If this fails, the figures are those of the previous call.
        let _ = epoch::advance();
        let arenas = ARENAS.read().unwrap_or_else(PoisonError::into_inner);
        arenas.iter().map(|arena| arena.get().map_or(0, |arena| allocated(*arena))).collect()
    }

    fn lower_priority(&self, thread: i32) {
        lower_priority(thread);
    }
}

/// The arena of an account; `None` where jemalloc cannot create it. Then the memory of the account is not counted.
fn arena(account: usize) -> Option<u32> {
    if let Some(arena) =
        ARENAS.read().unwrap_or_else(PoisonError::into_inner).get(account).and_then(OnceLock::get)
    {
        return Some(*arena);
    }
    let mut arenas = ARENAS.write().unwrap_or_else(PoisonError::into_inner);
    if arenas.len() <= account {
        arenas.resize_with(account + 1, OnceLock::new);
    }
    if arenas[account].get().is_none() {
        // It is set only here, under the lock.
        let _ = arenas[account].set(create()?);
    }
    arenas[account].get().copied()
}

#[expect(unsafe_code, reason = "jemalloc is called by name; an arena's number is an unsigned int")]
fn create() -> Option<u32> {
    unsafe { raw::read::<u32>(b"arenas.create\0") }.ok()
}

#[expect(unsafe_code, reason = "jemalloc is called by name; an arena's number is an unsigned int")]
fn enter(arena: u32) {
    // If this fails, the thread's memory is not counted.
    let _ = unsafe { raw::write::<u32>(b"thread.arena\0", arena) };
}

/// Bytes allocated in an arena.
fn allocated(arena: u32) -> usize {
    allocated_of_class(arena, "small") + allocated_of_class(arena, "large")
}

#[expect(unsafe_code, reason = "jemalloc is called by name; sizes are a size_t")]
fn allocated_of_class(arena: u32, class: &str) -> usize {
    let name = format!("stats.arenas.{arena}.{class}.allocated\0");
    unsafe { raw::read::<usize>(name.as_bytes()) }.unwrap_or_default()
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call without arguments")]
fn thread_number() -> i32 {
    unsafe { libc::gettid() }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call with plain numbers; a thread that has ended is not found")]
fn lower_priority(thread: i32) {
    if let Ok(thread) = libc::id_t::try_from(thread) {
        // Every thread may lower its priority; for one that has ended the call has no effect.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, NICE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn thread_number() -> i32 {
    0
}

#[cfg(not(target_os = "linux"))]
fn lower_priority(_thread: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_for_the_thread_that_allocated_it() {
        let account = 40;
        let before = Machine.in_use().get(account).copied().unwrap_or_default();
        let held = std::thread::spawn(move || {
            Machine.join(account);
            vec![1_u8; 8 << 20]
        })
        .join()
        .unwrap();
        let during = Machine.in_use()[account];
        assert!(during - before >= 8 << 20, "{before} {during}");
        drop(held);
        let after = Machine.in_use()[account];
        assert!(after < before + (1 << 20), "{before} {after}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_lowers_its_priority() {
        std::thread::spawn(|| {
            Machine.lower_priority(thread_number());
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let nice = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap();
            assert_eq!(nice, NICE.to_string());
        })
        .join()
        .unwrap();
    }
}

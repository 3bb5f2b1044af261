//! What this program knows of its machine for queries: jemalloc counts by arena, so each query gets an arena of its own; Linux
//! lets a thread step back by its niceness.

use std::sync::{OnceLock, PoisonError, RwLock};

use tikv_jemalloc_ctl::{epoch, raw};
use wye_serving::sql::Host;

/// The niceness of threads that step back: they get a tenth of what others get, and everything when nobody else wants it.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The arenas by account. Arenas are never given back, so there is one of each in a process.
static ARENAS: RwLock<Vec<OnceLock<u32>>> = RwLock::new(Vec::new());

/// See the module.
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
        // Stale figures are those of the last time.
        let _ = epoch::advance();
        let arenas = ARENAS.read().unwrap_or_else(PoisonError::into_inner);
        arenas.iter().map(|arena| arena.get().map_or(0, |arena| allocated(*arena))).collect()
    }

    fn lower_priority(&self, thread: i32) {
        step_back(thread);
    }
}

/// The arena of an account; `None` where jemalloc gives none, so that its memory is not counted.
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
        // Set only here, under the lock.
        let _ = arenas[account].set(create()?);
    }
    arenas[account].get().copied()
}

#[expect(unsafe_code, reason = "jemalloc is asked by name; an arena's number is an unsigned int")]
fn create() -> Option<u32> {
    unsafe { raw::read::<u32>(b"arenas.create\0") }.ok()
}

#[expect(unsafe_code, reason = "jemalloc is asked by name; an arena's number is an unsigned int")]
fn enter(arena: u32) {
    // Where it fails, the thread's memory is not counted.
    let _ = unsafe { raw::write::<u32>(b"thread.arena\0", arena) };
}

#[expect(unsafe_code, reason = "jemalloc is asked by name; sizes are a size_t")]
fn allocated(arena: u32) -> usize {
    let size = |class: &str| {
        let name = format!("stats.arenas.{arena}.{class}.allocated\0");
        unsafe { raw::read::<usize>(name.as_bytes()) }.unwrap_or_default()
    };
    size("small") + size("large")
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call without arguments")]
fn thread_number() -> i32 {
    unsafe { libc::gettid() }
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a system call with plain numbers; a thread that has ended is not found")]
fn step_back(thread: i32) {
    if let Ok(thread) = libc::id_t::try_from(thread) {
        // Every thread may step back; one that has ended need not.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread, NICE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn thread_number() -> i32 {
    0
}

#[cfg(not(target_os = "linux"))]
fn step_back(_thread: i32) {}

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
    fn a_thread_steps_back() {
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

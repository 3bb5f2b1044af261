//! The allocator of the program and of its C libraries: jemalloc, which returns free memory to the system.
//!
//! Realtime views grow until a batch run, and are deleted after it. The system's allocator kept most of that memory in the
//! process.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Memory is returned in the background, a second after it was freed. Huge pages make it cheap to request it again.
#[expect(unsafe_code, reason = "jemalloc reads its settings from a symbol of this name, which is its own")]
#[unsafe(export_name = "malloc_conf")]
pub(crate) static SETTINGS: &[u8] =
    b"background_thread:true,thp:always,metadata_thp:auto,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

//! The allocator of the program, of the C libraries in it too: jemalloc, which gives memory back.
//!
//! Realtime views grow until a batch run and are gone after it. With the system's allocator most of that memory stayed with
//! the process for good.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Memory goes back in the background, a second after it was freed; huge pages make up for asking for it again.
#[expect(unsafe_code, reason = "jemalloc reads its settings from a symbol of this name, which is its own")]
#[unsafe(export_name = "malloc_conf")]
pub(crate) static SETTINGS: &[u8] =
    b"background_thread:true,thp:always,metadata_thp:auto,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

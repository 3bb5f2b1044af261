//! The fuzzing program: gives what libFuzzer makes up to the decoder that `WYE_FUZZ_DECODER` names.
#![no_main]

use std::panic;
use std::sync::LazyLock;

use wye_fuzz::{DECODERS, Decoder};

static CHOSEN: LazyLock<&Decoder> = LazyLock::new(|| {
    let name = std::env::var("WYE_FUZZ_DECODER").unwrap_or_default();
    let known = || DECODERS.iter().map(|decoder| decoder.name).collect::<Vec<_>>().join(", ");
    DECODERS
        .iter()
        .find(|decoder| decoder.name == name)
        .unwrap_or_else(|| panic!("WYE_FUZZ_DECODER is {name:?}; it must be one of {}", known()))
});

/// Panics of the Arrow crates are caught by the decoder, so that they must not end the fuzzer: any other does.
static CAUGHT: LazyLock<()> = LazyLock::new(|| {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        let place = panicked.location().map_or("", |location| location.file());
        if !place.contains("/arrow-") && !place.contains("/flatbuffers-") {
            abort(panicked);
        }
    }));
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    LazyLock::force(&CAUGHT);
    (CHOSEN.run)(bytes);
});

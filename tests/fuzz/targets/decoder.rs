//! The fuzzing program: runs the decoder that `WYE_FUZZ_DECODER` names on the bytes of libFuzzer.
#![no_main]

use std::panic;
use std::sync::LazyLock;

use wye_fuzz::{DECODERS, Decoder};

static CHOSEN: LazyLock<&Decoder> = LazyLock::new(|| {
    let name = std::env::var("WYE_FUZZ_DECODER").unwrap_or_default();
    DECODERS.iter().find(|decoder| decoder.name == name).unwrap_or_else(|| {
        let names = DECODERS.each_ref().map(|decoder| decoder.name).join(", ");
        panic!("WYE_FUZZ_DECODER is {name:?}; it must be one of {names}")
    })
});

/// Every panic ends the fuzzer, except those of the Arrow crates, which the decoder catches.
static CAUGHT: LazyLock<()> = LazyLock::new(|| {
    let abort = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        let file = panicked.location().map_or("", |location| location.file());
        if !file.contains("/arrow-") && !file.contains("/flatbuffers-") {
            abort(panicked);
        }
    }));
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    LazyLock::force(&CAUGHT);
    if let Err(error) = (CHOSEN.run)(bytes) {
        panic!("{error}");
    }
});

//! Runs every decoder on its seeds: examples of its format, and bytes that once broke it.

use std::fs;
use std::panic;
use std::path::Path;
use std::process;

use wye_fuzz::DECODERS;

#[test]
fn decoders_accept_their_seeds() {
    // A panic in a thread of the broker must fail the test as well. The decoder catches those of the Arrow crates.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        let file = panicked.location().map_or("", |location| location.file());
        if !file.contains("/arrow-") && !file.contains("/flatbuffers-") {
            report(panicked);
            process::abort();
        }
    }));
    for decoder in &DECODERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(decoder.name);
        let mut seeds = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            (decoder.run)(&bytes).unwrap();
            // Hundreds of variants: each seed cut off, and with each byte changed.
            for at in 0..bytes.len().min(300) {
                (decoder.run)(&bytes[..at]).unwrap();
                let mut changed = bytes.clone();
                changed[at] ^= 0xFF;
                (decoder.run)(&changed).unwrap();
            }
            seeds += 1;
        }
        assert!(seeds > 0, "{} has no seeds", decoder.name);
    }
}

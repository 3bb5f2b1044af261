//! Every decoder takes its seeds: examples of what it reads, and bytes that once broke it.

use std::fs;
use std::panic;
use std::path::Path;
use std::process;

use wye_fuzz::DECODERS;

#[test]
fn decoders_take_their_seeds() {
    // A panic in a thread of the broker counts as well. Those of the Arrow crates are caught by the decoder.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panicked| {
        let place = panicked.location().map_or("", |location| location.file());
        if !place.contains("/arrow-") && !place.contains("/flatbuffers-") {
            report(panicked);
            process::abort();
        }
    }));
    for decoder in &DECODERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(decoder.name);
        let mut seeds = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            (decoder.run)(&bytes);
            // A few thousand bytes more that nobody wrote: each seed cut off and with each byte changed.
            for at in 0..bytes.len().min(300) {
                (decoder.run)(&bytes[..at]);
                let mut changed = bytes.clone();
                changed[at] ^= 0xFF;
                (decoder.run)(&changed);
            }
            seeds += 1;
        }
        assert!(seeds > 0, "{} has no seeds", decoder.name);
    }
}

//! Every decoder of bytes from outside, as a function that accepts any bytes. No decoder may panic, run without end or
//! allocate much memory, and what it accepts must be the same after it is encoded and decoded again.
//!
//! - `scripts/fuzz.sh` runs libFuzzer to find bytes that break these rules.
//! - `tests/seeds.rs` runs each decoder on the bytes in `seeds/`, in every run of the tests.
//!
//! Bytes that have broken a decoder are added to `seeds/` once it is repaired.

use std::error::Error;
use std::fmt::Debug;

mod broker;
mod files;
mod messages;
mod records;
mod settings;

/// An error if a decoder has broken a rule, or cannot be run.
pub type Outcome = Result<(), Box<dyn Error>>;

/// A decoder that accepts any bytes.
#[derive(Debug)]
pub struct Decoder {
    /// Its name, and that of the folder with its seeds.
    pub name: &'static str,
    /// Decodes. A panic means a broken rule as well as an error.
    pub run: fn(&[u8]) -> Outcome,
}

/// All decoders.
pub const DECODERS: [Decoder; 18] = [
    Decoder { name: "readings_json", run: messages::json },
    Decoder { name: "readings_arrow", run: messages::arrow },
    Decoder { name: "control_record", run: records::control },
    Decoder { name: "realtime_record", run: records::realtime },
    Decoder { name: "dead_letter_context", run: records::dead_letter_context },
    Decoder { name: "ledger_record", run: records::ledger },
    Decoder { name: "sketches", run: records::sketches },
    Decoder { name: "device_counts", run: records::device_counts },
    Decoder { name: "series_key", run: records::series_key },
    Decoder { name: "position", run: records::position },
    Decoder { name: "time", run: records::time },
    Decoder { name: "config", run: settings::config },
    Decoder { name: "registry", run: settings::registry },
    Decoder { name: "mapping", run: settings::mapping },
    Decoder { name: "csv", run: files::csv },
    Decoder { name: "csv_guess", run: files::guess },
    Decoder { name: "broker_request", run: broker::request },
    Decoder { name: "broker_batch", run: broker::batch },
];

/// Checks that a value is the same after it was encoded and decoded again.
fn same<T: PartialEq + Debug, E: Error + 'static>(value: &T, decoded: Result<T, E>) -> Outcome {
    assert_eq!(decoded?, *value, "a value differs after it was encoded and decoded again");
    Ok(())
}

//! Every decoder of bytes that come from outside, as a function that any bytes may be given to. None may panic, run
//! without end or make much room; what one accepts must survive being stored and read again.
//!
//! - `scripts/fuzz.sh` lets libFuzzer look for bytes that break this rule.
//! - `tests/seeds.rs` gives each decoder the bytes below `seeds/`, in every run of the tests.
//!
//! Bytes that were found to break a decoder are kept below `seeds/` once it is repaired.

mod broker;
mod files;
mod messages;
mod records;
mod settings;

/// A decoder that may be given any bytes.
#[derive(Debug)]
pub struct Decoder {
    /// Also the name of the folder with its seeds.
    pub name: &'static str,
    /// Decodes, and panics where that goes wrong otherwise than by an error.
    pub run: fn(&[u8]),
}

/// All of them.
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

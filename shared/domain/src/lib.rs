//! The words and laws of Wye: what a reading, a window, a summary, a series and an epoch are, and how they combine.
//!
//! Everything here is pure: values in, values out. This crate does not know tokio, Kafka, HTTP, storage or a clock;
//! whoever calls it brings the facts.

pub mod place;
pub mod time;

mod arrow_stream;

pub mod assemble;
pub mod dead_letter;
pub mod reading;
pub mod tags;
pub mod wire;

pub mod fingerprint;
pub mod series;

pub mod device_counts;
pub mod sketches;
pub mod summary;
pub mod summary_columns;

pub mod identity;
pub mod registry;

pub mod control;
pub mod epoch;
pub mod horizon;
pub mod position;
pub mod realtime_row;

mod error;
pub use error::{DomainError, ErrorKind};

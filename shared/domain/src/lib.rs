//! The words and laws of Wye: what a reading, a window, a summary, a series and an epoch are, and how they combine.
//!
//! Everything here is pure: values in, values out. This crate does not know tokio, Kafka, HTTP, storage or a clock; the
//! caller passes the facts.
//!
//! | question | module |
//! |---|---|
//! | What are the nouns: times, offsets, Kafka partitions, generations? | [`time`], [`place`] |
//! | What is a reading, and how does a message become readings? | [`reading`], [`tags`], [`wire`], [`assemble`] |
//! | What becomes of a message that is not accepted? | [`dead_letter`] |
//! | When is a reading a duplicate of another? | [`identity`] |
//! | What does the registry say of a device, and when does it report? | [`registry`], [`schedule`] |
//! | What is a series, and what is the summary of its readings? | [`series`], [`summary`], [`sketches`], [`device_counts`] |
//! | How are summaries stored and sent? | [`summary_columns`], [`realtime_row`] |
//! | Who owns a Kafka partition, and where do epochs start? | [`control`], [`epoch`] |
//! | Which requests are in the log already? | [`ledger`] |
//! | How far do an answer and a batch view reach? | [`position`], [`horizon`] |
//! | Were stored numbers computed by the same rules? | [`fingerprint`] |

pub mod place;
pub mod time;

mod arrow_stream;
pub mod batch;
mod json;

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
pub mod schedule;

pub mod control;
pub mod epoch;
pub mod horizon;
pub mod position;
pub mod realtime_row;

pub mod ledger;

mod error;
pub use error::{DomainError, ErrorKind, error_chain, first_cause};

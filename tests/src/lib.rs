//! Support for the tests that cross layers: the real program as a process, a real Kafka, data sets (public and
//! generated), the independent oracle.
//!
//! It uses the program from outside only (command line, HTTP, files), and must not use its crates.

#![expect(clippy::disallowed_methods, reason = "these tests wait for processes, in real time")]

pub mod api;
pub mod beside;
pub mod datasets;
pub mod faults;
pub mod generated;
pub mod hostile;
pub mod kafka;
pub mod oracle;
pub mod process;
pub mod s3;
pub mod setting;
pub mod site;
pub mod turn;
pub mod wait;

//! Support for the tests that cross layers: the real program as a process, a real Kafka, data sets (public and
//! generated), the independent oracle.
//! It knows the program from outside only (command line, HTTP, files) and nothing of its crates.

pub mod api;
pub mod beside;
pub mod datasets;
pub mod generated;
pub mod hostile;
pub mod kafka;
pub mod oracle;
pub mod process;
pub mod setting;
pub mod site;
pub mod wait;

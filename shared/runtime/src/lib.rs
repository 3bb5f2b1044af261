//! What every process of Wye needs around its work: configuration, telemetry, the clock, shutdown, and what all HTTP
//! paths have in common.
//!
//! This crate must not know Kafka, tables or an HTTP library.

pub mod config;

pub mod clock;
pub mod http_error;
pub mod memory;
pub mod shutdown;
pub mod telemetry;
pub mod unique;

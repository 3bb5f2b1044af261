//! What every process of Wye needs around its work: configuration, telemetry, the clock, an orderly end, and what all HTTP paths have in common.
//!
//! This crate knows no Kafka and no tables, and serves no HTTP.

pub mod config;

pub mod clock;
pub mod http_error;
pub mod memory;
pub mod shutdown;
pub mod telemetry;

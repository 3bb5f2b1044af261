//! What every process of Wye needs around its work: configuration, telemetry, the clock, an orderly end.
//!
//! This crate knows no Kafka, no tables and no HTTP.

pub mod config;

pub mod clock;
pub mod memory;
pub mod shutdown;
pub mod telemetry;

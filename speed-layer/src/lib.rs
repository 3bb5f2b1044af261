//! The speed layer: turns the log of readings into realtime views within milliseconds. And ingest, which puts readings
//! into that log.
//!
//! Two components, each with one entry point, and common settings:
//!
//! - [`ingest`]: [`ingest::start`]. It accepts readings over HTTP and writes them to the log. Both layers read what it
//!   writes; it uses nothing of the speed layer.
//! - [`layer`]: [`layer::start`]. Threads that own Kafka partitions. An [`owner`] is a state machine without I/O; the
//!   layer feeds it and carries out its effects. [`takeover`] decides where a new owner resumes.
//!
//! This crate does not know the batch and serving layers; they exchange data through topics only.

pub mod settings;

pub mod ingest;

pub mod layer;
pub mod owner;
pub mod takeover;

pub mod telemetry;

mod error;
pub use error::SpeedError;

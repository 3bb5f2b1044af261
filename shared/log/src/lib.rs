//! The log: the only crate of Wye that uses a Kafka client.
//!
//! Reading order: the topics ([`topics`], `topic_settings`), the connection ([`client`], `properties`, `access`),
//! writing ([`producer`], [`partitioner`]), reading ([`reader`]), the ends of a topic ([`end_offsets`]). The embedded
//! broker, for machines without Kafka, is in the crate `wye-broker`. The same client connects to it over loopback, so
//! there is one code path.
//!
//! This crate transports bytes: it must not know what a payload means.

pub mod client;
pub mod topics;

pub mod partitioner;
pub mod producer;

pub mod end_offsets;
pub mod reader;

mod access;
mod error;
mod kafka_logs;
mod properties;
mod real_time;
mod topic_settings;

pub use error::LogError;

#[cfg(test)]
mod conformance;

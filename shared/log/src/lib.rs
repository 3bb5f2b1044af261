//! The log: the only crate of Wye that knows Kafka.
//!
//! Reading order: what topics there are ([`topics`], `topic_settings`), the connection ([`client`], `properties`,
//! `doorman`), writing ([`producer`], [`partitioner`]), reading ([`reader`]), how far there is something to read
//! ([`ends`]). The broker for machines without Kafka is a crate of its own, `wye-broker`; the same client talks to it
//! over loopback, so that there is one code path.
//!
//! This crate carries bytes: what a payload means is for others to know.

pub mod client;
pub mod topics;

pub mod partitioner;
pub mod producer;

pub mod ends;
pub mod reader;

mod doorman;
mod error;
mod kafka_logs;
mod properties;
mod topic_settings;

pub use error::LogError;

#[cfg(test)]
mod conformance;

//! The tables of Wye as Delta Lake tables, in a local directory or on S3: accepted readings (the master dataset), dead letters, and
//! batch views.
//!
//! This is the only crate that uses `deltalake`. It must not know a Kafka client, HTTP or the meaning of a metric; offsets
//! and horizons come from its callers.

pub mod store;

pub mod amendments;
pub mod append;
pub mod columns;
pub mod dead_letters;
pub mod event_times;
pub mod readings;
pub mod restatements;
pub mod run_record;
pub mod s3;
pub mod scan;
pub mod views;

mod delta;
mod error;
mod file_writer;
#[cfg(test)]
mod foreign_tests;
mod parquet_plan;
mod parquet_properties;
mod real_time;
#[cfg(test)]
mod s3_tests;
mod sort;
#[cfg(test)]
mod testing;
mod unique;

pub use delta::cleaning::Cleaned;
pub use delta::replacement::Compacted;
pub use error::TablesError;
pub use readings::compaction::CompactionPolicy;

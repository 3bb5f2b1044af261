//! The tables of Wye as Delta Lake tables on an object store: what was read (the master dataset), what was refused,
//! and what the batch layer computed from it.
//!
//! This is the only crate that knows `deltalake`. It knows no Kafka client, no HTTP and no metric's meaning; offsets
//! and horizons are numbers that its callers bring.

pub mod store;

pub mod append;
pub mod columns;
pub mod dead_letters;
pub mod readings;
pub mod run_record;
pub mod scan;
pub mod views;

mod delta;
mod error;
mod file_writer;
#[cfg(test)]
mod foreign_tests;
mod parquet_plan;
mod parquet_properties;
mod sort;
#[cfg(test)]
mod testing;

pub use delta::cleaning::Cleaned;
pub use delta::replacement::Compacted;
pub use error::TablesError;
pub use readings::compaction::CompactionPolicy;

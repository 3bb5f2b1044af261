//! The batch layer: keeps every reading for good, and recomputes every metric from that record.
//!
//! Reading order: the [`archiver`] brings the log into the master dataset; a [`run`] chooses a horizon ([`horizon`]),
//! reads the readings below it once ([`recompute`]: [`dedup`] marks copies, [`fold`] makes summaries, and
//! [`wye_metrics::view_rows`] scores them) and commits views and horizon together; the [`schedule`] says when.
//!
//! This layer does not know the speed and serving layers: they meet in topics and tables.

pub mod archiver;

pub mod schedule;

pub mod run;

pub mod horizon;

pub mod recompute;

pub mod dedup;
pub mod fold;

pub mod compute;

pub mod telemetry;

#[cfg(test)]
mod testing;

mod error;
pub use error::BatchError;

//! The batch layer: stores every reading permanently, and recomputes every metric from that record.
//!
//! Reading order: the [`layer`] starts everything, by its [`settings`]; [`once`] does one piece of work for a command. The [`archiver`] stores the log in the master
//! dataset. The [`schedule`] says when a batch run starts; a [`run`] decides what it does, as a state machine, and the
//! [`runner`] carries that out. [`cells`] chooses the stretches of time whose rows have changed, and [`recompute`]
//! computes them: [`dedup`] marks repeated readings, [`fold`] makes summaries, and [`wye_metrics::view_rows`] scores them.
//! A [`file_job`] is apart from all that: it cleans and queries files.
//!
//! This layer must not know the speed and serving layers: they share only topics and tables.

pub mod amend;
pub mod dry_run;
pub mod layer;
pub mod once;
pub mod settings;

pub mod archiver;

pub mod schedule;

pub mod control_log;
pub mod report;
pub mod run;
pub mod runner;

pub mod cells;
pub mod recompute;
pub mod restate;

pub mod dedup;
pub mod fold;

pub mod file_job;

pub mod compute;
pub mod telemetry;

#[cfg(test)]
mod testing;

mod error;
pub use error::BatchError;

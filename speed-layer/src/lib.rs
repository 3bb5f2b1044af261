//! The speed layer: takes readings in, and turns the log into realtime views within milliseconds.
//!
//! Reading order: [`ingest`] puts accepted readings into the log; [`layer`] runs owners of Kafka partitions; an
//! [`owner`] is a state machine that feeds its [`operator`] and says what to write; [`execute`] writes it; `acquire`
//! finds out when a Kafka partition may be taken, and [`takeover`] where its new owner resumes; [`duplicates`] knows
//! which readings were there before; [`placement`] watches where producers put their devices.
//!
//! This layer does not know the batch and serving layers: they meet in topics.

pub mod ingest;
pub mod layer;

mod acquire;
pub mod duplicates;
pub mod execute;
pub mod operator;
pub mod owner;
pub mod placement;
pub mod takeover;

pub mod telemetry;

mod error;
mod letter;
pub use error::SpeedError;

//! What is computed, defined once: metric definitions, how readings become summaries of windows, how summaries of both
//! layers merge, how they are scored, and what they answer.
//!
//! The speed layer, the batch layer and the serving layer all compute by this crate; they only decide when and where.
//! It knows DataFusion's expressions and Arrow. It does not know Kafka, tables, HTTP or a clock.

pub mod definition;

pub mod contribution;
pub mod failures;
pub mod plan;
pub mod window_table;

pub mod confidence;
pub mod expectation;

pub mod finish;
pub mod merge;
pub mod view_rows;

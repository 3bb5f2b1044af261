//! What is computed, defined once: metric definitions, how readings become summaries of windows, how summaries of both
//! layers merge, how they are scored, and what they answer.
//!
//! The speed, batch and serving layers all compute with this crate; they only decide when and where. It uses DataFusion's
//! expressions and Arrow. It must not know Kafka, tables, HTTP or a clock.
//!
//! | question | module |
//! |---|---|
//! | What is a metric, and what is wrong with a definition? | [`definition`] |
//! | Which value does a reading add to which series and window? | [`plan`], [`contribution`] |
//! | How do readings become summaries? | [`fold`], [`window_table`] |
//! | Which readings cannot be computed? | [`failures`] |
//! | Which readings are left out or changed afterwards? | [`amendment`] |
//! | How many readings should there be, and how far can a number be trusted? | [`expectation`], [`confidence`] |
//! | How do the layers' summaries become one answer? | [`merge`] |
//! | What does a summary answer? | [`finish`] |
//! | What does the batch view hold? | [`view_rows`] |
//! | Which tables does SQL have? | [`sql_tables`] |
//! | What does an error of DataFusion mean? | [`sql_messages`] |

pub mod definition;

pub mod amendment;
pub mod contribution;
pub mod failures;
pub mod fold;
pub mod plan;
pub mod window_table;

pub mod confidence;
pub mod expectation;

pub mod finish;
pub mod merge;
pub mod sql_messages;
pub mod sql_tables;
pub mod view_rows;

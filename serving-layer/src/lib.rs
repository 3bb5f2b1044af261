//! The serving layer: the exact merge of the batch views with the realtime views, over SQL and HTTP.
//!
//! Reading order: which series there are ([`directory`]); what the realtime-views topic adds up to ([`realtime`]) and
//! how it is followed (`tail`); one batch view ([`snapshot`]) and how a new one takes over (`watch`); what an answer
//! covers of the log ([`coverage`]); all of it as one state, from which answers are taken in one step ([`hub`]); windows
//! over a range of time ([`windows`]; the merge itself is [`wye_metrics::merge`]), and those that lack readings ([`gaps`]); SQL ([`sql`]) and HTTP ([`http`]) over
//! it; the whole as one running part ([`layer`]) with its [`settings`].
//!
//! This crate computes no summary from readings: it only merges what the other layers computed.

pub mod settings;

pub mod layer;

pub mod directory;

pub mod realtime;
mod tail;

mod log_ends;

pub mod snapshot;
mod watch;

pub mod coverage;
pub mod gaps;
pub mod hub;
pub mod windows;

pub mod http;
pub mod sql;

mod error;
mod suggest;
mod telemetry;
mod units;
mod view_runs;

pub use error::ServingError;

#[cfg(test)]
mod testing;

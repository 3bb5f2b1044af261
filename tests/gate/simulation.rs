//! A deterministic simulation of all layers, for `equivalence.rs`: the layers' own decisions and computations run, and only
//! the log, the tables and the clock are in memory. Nothing runs at the same time; which process takes the next step, how far it
//! gets, and whether it crashes then, is a step of a history.
//!
//! Reading order: a seed makes a history ([`steps`]); the world carries it out ([`world`]) on a log ([`log`]) with the
//! messages of [`readings`], by processes of the layers ([`speed`], [`batch`], [`serving`]) that are configured in
//! [`versions`]; answers are compared ([`comparison`]) with the oracle ([`oracle`], [`confidence`], [`exact`]). Only
//! [`layers`] knows the types of the layers. What happens is counted ([`events`]) and noted ([`notes`]). A history that fails
//! is made short by [`shrink`].

pub(crate) mod steps;

pub(crate) mod world;

pub(crate) mod events;
pub(crate) mod log;
pub(crate) mod notes;
pub(crate) mod readings;

pub(crate) mod batch;
pub(crate) mod open_flush;
pub(crate) mod serving;
pub(crate) mod speed;

pub(crate) mod versions;

pub(crate) mod comparison;
pub(crate) mod confidence;
pub(crate) mod exact;
pub(crate) mod oracle;

pub(crate) mod layers;

pub(crate) mod shrink;

//! Readings from outside the platform: public wide CSV files read by a mapping, and simulations whose truth is known.
//!
//! Everything here is pure or reads one file; it knows no log, no store, no HTTP and no clock. What comes out is
//! always an Arrow batch of the reading schema, ready to be handed to whoever sends it on.

pub mod csv_source;
pub mod file_id;
pub mod guess;
pub mod mapping;

pub mod city;
pub mod plant;
pub mod simulation;
pub mod truth;

pub mod error;

mod columns;
mod number;

#[cfg(test)]
mod real_files_tests;

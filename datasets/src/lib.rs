//! Readings from outside the platform: public wide CSV files, read by a mapping, and simulations with known correct results.
//!
//! Everything here is pure or reads one file. It must not know the log, storage, HTTP or clocks. The result is always Arrow
//! batches in the reading schema.

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

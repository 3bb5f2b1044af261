//! The tests that cross layers.

#![expect(
    clippy::disallowed_methods,
    reason = "these tests wait for processes in real time, and print their random seeds"
)]

mod alone;
mod amend;
mod answers;
mod attack;
mod bounded;
mod chaos;
mod clients;
mod commands;
mod coverage;
mod crash;
mod damage;
mod deploy;
mod equivalence;
mod file_jobs;
mod foreign;
mod intake;
mod mistakes;
mod open_tables;
mod s3;
mod simulation;
mod structure;

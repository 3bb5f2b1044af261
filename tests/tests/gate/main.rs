//! The tests that cross layers, in one binary.

mod answers;
mod attack;
mod bounded;
mod clients;
mod chaos;
mod commands;
mod coverage;
mod crash;
mod equivalence;
mod foreign;
mod intake;
mod mistakes;
mod structure;

//! The tests that cross layers, in one binary.

mod answers;
mod attack;
mod bounded;
mod chaos;
mod clients;
mod commands;
mod coverage;
mod crash;
mod damage;
mod equivalence;
mod foreign;
mod intake;
mod mistakes;
mod simulation;
mod structure;

//! The tests that cross layers, in one binary.

mod answers;
mod bounded;
mod commands;
mod crash;
mod equivalence;
mod mistakes;
mod structure;

//! The tests that cross layers, in one binary.

mod answers;
mod bounded;
mod crash;
mod equivalence;
mod mistakes;
mod structure;

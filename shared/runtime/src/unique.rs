//! Names that no other process has made. Must not be used for decisions: those must be the same in each run.

/// A random name of 16 hexadecimal digits.
#[expect(clippy::disallowed_methods, reason = "this is the component")]
pub fn name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

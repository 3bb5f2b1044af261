//! Names of stored objects that no other process has made.

/// A random name of 32 hexadecimal digits.
#[expect(clippy::disallowed_methods, reason = "a random name decides nothing")]
pub(crate) fn name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

//! Settings of tests: numbers in environment variables, such as `WYE_TEST_SEED`.

use anyhow::{Context, Result};

/// The number in an environment variable; `None` where it is not set.
///
/// # Errors
/// When it is not a number.
pub fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    Ok(Some(text.parse().with_context(|| format!("{name}={text} is not a number"))?))
}

//! Waits for a condition, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const PAUSE: Duration = Duration::from_millis(20);

/// Calls `ready` repeatedly until it returns a value, and returns that.
///
/// # Errors
/// The first error of `ready`; or that there was no `what` within `patience`.
pub fn until<T>(what: &str, patience: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = ready().with_context(|| format!("waiting for {what}"))? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("no {what} within {} s", patience.as_secs_f32());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Like [`until`]; `None` when the deadline has passed.
///
/// # Errors
/// The first error of `ready`.
pub fn at_most<T>(patience: Duration, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        let value = ready()?;
        if value.is_some() || Instant::now() >= deadline {
            return Ok(value);
        }
        std::thread::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now())));
    }
}

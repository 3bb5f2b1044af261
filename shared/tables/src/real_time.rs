//! Real time: the only file of this crate that reads a clock. For the times that Delta's log stores with each action, and
//! for how long this process has held files.
//!
//! Which files are removed is decided by the time of the store ([`crate::delta::hold::store_time`]).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wye_domain::time::{Micros, Span};

/// The time of this machine's clock.
#[expect(clippy::disallowed_methods, reason = "Delta's log stores the time of the writer's clock")]
pub(crate) fn now() -> Micros {
    Micros::EPOCH + Span::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Measures how long something has lasted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "this is the only place where this crate measures time")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

//! Time as a component: the program brings the clocks of the system, tests and simulations their own.

use std::fmt;
use std::time::{Duration, Instant};

use wye_domain::time::Micros;
use wye_runtime::clock::now_micros;

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time of day. It may jump, since machines set their clocks.
    fn now(&self) -> Micros;

    /// The time since a fixed moment in the past. It never goes back, so it is what durations are measured with.
    fn monotonic(&self) -> Duration;
}

/// The clocks of the system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Micros {
        Micros(now_micros())
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

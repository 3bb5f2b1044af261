//! Time as a component: the program uses the clocks of the system, tests and simulations their own.
//!
//! `clippy.toml` bans the clocks of the libraries everywhere else.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wye_domain::time::{Micros, Span};

/// Gives the time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The current time. It may jump, since machines adjust their clocks.
    fn now(&self) -> Micros;

    /// The time since a fixed moment in the past. It never goes back, so durations and deadlines are measured with it.
    fn monotonic(&self) -> Duration;
}

/// The clocks of the system. The monotonic time is 0 when this is made.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the component")]
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the component")]
    fn now(&self) -> Micros {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Micros::EPOCH + Span::from(since_1970)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stops until it is advanced.
#[derive(Debug)]
pub struct ManualClock {
    start: Micros,
    elapsed: Mutex<Duration>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Micros) -> Self {
        Self { start, elapsed: Mutex::default() }
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        *self.elapsed.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Micros {
        self.start + Span::from(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        *self.elapsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Real time: the only file of this crate that reads a clock. For limits of waits on the network, and for records that no
//! broker has given a time.
//!
//! No answer may depend on these times: the layers decide by the `Clock` of `wye-runtime`, which this crate does not see.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use wye_domain::time::{Micros, Span};

/// The end of a wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    /// The deadline of a wait that starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the only place where this crate measures time")]
    pub(crate) fn after(wait: Duration) -> Self {
        Self(Instant::now() + wait)
    }

    /// How long the wait may continue; zero when it is over.
    #[expect(clippy::disallowed_methods, reason = "this is the only place where this crate measures time")]
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether the wait is over.
    pub(crate) fn has_passed(self) -> bool {
        self.left().is_zero()
    }
}

/// The time of this machine's clock.
#[expect(clippy::disallowed_methods, reason = "the record has no time that a broker has set")]
pub(crate) fn now() -> Micros {
    Micros::EPOCH + Span::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

//! Kafka's timestamps, and the clocks of the machine: no other file of the broker reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A point in time in milliseconds since 1970, as in Kafka's protocol. It is not [`wye_domain::time::Micros`], which
/// cannot hold every number of milliseconds that a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp(pub(crate) i64);

/// The time of the day.
pub(crate) fn now() -> Timestamp {
    Timestamp(i64::try_from(since_1970().as_millis()).unwrap_or(i64::MAX))
}

/// The time of the day since 1970; zero on a machine whose clock shows an earlier year.
#[expect(clippy::disallowed_methods, reason = "the broker's clock")]
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A moment that never goes back: durations and deadlines are measured with it.
#[expect(clippy::disallowed_methods, reason = "the broker's clock")]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

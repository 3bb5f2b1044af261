//! Times and windows in microseconds since the Unix epoch, the unit of every stored time in Wye.

use std::ops::{Add, Sub};

use chrono::Datelike;
use serde::{Deserialize, Serialize};

use crate::DomainError;

/// Microseconds in a second.
pub const SECOND: i64 = 1_000_000;

/// A point in time: microseconds since 1970-01-01T00:00:00 UTC, negative before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// A length of time in microseconds; negative where it goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(pub i64);

impl Micros {
    /// 1970-01-01T00:00:00 UTC.
    pub const EPOCH: Self = Self(0);

    /// The point of a time in milliseconds, as Kafka has them.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(SECOND)
    }
}

impl Span {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The longest.
    pub const MAX: Self = Self(i64::MAX);

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }
}

/// The longest where the duration is longer.
impl From<std::time::Duration> for Span {
    fn from(duration: std::time::Duration) -> Self {
        Self(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
    }
}

/// All sums and differences stop at the ends of what can be expressed, since devices send any time.
impl Add<Span> for Micros {
    type Output = Self;
    #[inline]
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub<Span> for Micros {
    type Output = Self;
    #[inline]
    fn sub(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

impl Sub for Micros {
    type Output = Span;
    #[inline]
    fn sub(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// The length of a tumbling window in microseconds; always positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowSize(i64);

impl WindowSize {
    /// A window of `micros` microseconds; `None` unless positive.
    pub fn from_micros(micros: i64) -> Option<Self> {
        (micros > 0).then_some(Self(micros))
    }

    /// Reads a duration such as `"1m"`, `"15s"`, `"1h"` or `"1d"`.
    ///
    /// # Errors
    /// [`DomainError::Parse`] when the text is no duration, is zero, or is finer than a microsecond.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let refuse = || DomainError::Parse {
            text: text.to_owned(),
            expected: "a window length such as \"1m\" or \"1h\"",
        };
        let duration = humantime::parse_duration(text).map_err(|_| refuse())?;
        i64::try_from(duration.as_micros()).ok().and_then(Self::from_micros).ok_or_else(refuse)
    }

    /// The length in microseconds.
    pub fn micros(self) -> i64 {
        self.0
    }

    /// The start of the window that holds `event_time` (µs): aligned to the epoch, right before 1970 too.
    #[inline]
    pub fn start_of(self, event_time: i64) -> i64 {
        event_time.saturating_sub(event_time.rem_euclid(self.0))
    }

    /// Whether every window of `self` is made of whole windows of `finer`.
    pub fn is_multiple_of(self, finer: Self) -> bool {
        self.0 % finer.0 == 0
    }
}

impl std::fmt::Display for WindowSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (day, hour, minute) = (86_400 * SECOND, 3_600 * SECOND, 60 * SECOND);
        for (unit, name) in [(day, "d"), (hour, "h"), (minute, "m"), (SECOND, "s"), (1_000, "ms")] {
            if self.0 % unit == 0 {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}us", self.0)
    }
}

/// Reads an RFC 3339 time into microseconds.
///
/// # Errors
/// [`DomainError::Parse`] when the text is not RFC 3339, or the year in UTC is not one that RFC 3339 can write.
pub fn parse_rfc3339(text: &str) -> Result<i64, DomainError> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
    match time.filter(|time| (0..=9999).contains(&time.year())) {
        Some(time) => Ok(time.timestamp_micros()),
        None => Err(DomainError::Parse {
            text: text.to_owned(),
            expected: "an RFC 3339 time such as 2026-01-31T12:00:00Z",
        }),
    }
}

/// Writes microseconds as RFC 3339 in UTC, with as many fraction digits as are needed (none, 3 or 6).
pub fn format_rfc3339(micros: i64) -> String {
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        None => format!("{micros}us"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_before_1970_too() {
        let minute = WindowSize::parse("1m").unwrap();
        assert_eq!(minute.start_of(61 * SECOND), 60 * SECOND);
        assert_eq!(minute.start_of(-1), -60 * SECOND);
        assert_eq!(minute.start_of(-60 * SECOND), -60 * SECOND);
    }

    #[test]
    fn years_that_cannot_be_written_are_refused() {
        for text in ["0000-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"] {
            assert!(parse_rfc3339(text).is_err(), "{text}");
        }
        for text in ["0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z"] {
            assert_eq!(format_rfc3339(parse_rfc3339(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_print_as_they_are_written() {
        for text in ["1m", "90s", "1h", "1d", "250ms"] {
            assert_eq!(WindowSize::parse(text).unwrap().to_string(), text);
        }
        assert!(WindowSize::parse("0s").is_err());
        assert!(WindowSize::parse("soon").is_err());
    }
}

//! Times and windows in microseconds since the Unix epoch, the unit of every stored time in Wye.

use std::ops::{Add, Div, Mul, Sub};

use chrono::Datelike;
use serde::{Deserialize, Serialize};

use crate::DomainError;

/// Microseconds in a second.
const SECOND: i64 = 1_000_000;

/// A point in time: microseconds since 1970-01-01T00:00:00 UTC, negative before.
///
/// Sums and differences with a [`Span`] saturate at the ends of the range, since devices send any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// A length of time in microseconds; negative where it goes back. Arithmetic saturates as that of [`Micros`] does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Span(pub i64);

impl Micros {
    /// 1970-01-01T00:00:00 UTC.
    pub const EPOCH: Self = Self(0);
    /// The earliest point.
    pub const MIN: Self = Self(i64::MIN);
    /// The latest point.
    pub const MAX: Self = Self(i64::MAX);

    /// The point that many seconds after 1970.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }

    /// The point that many milliseconds after 1970, the unit of Kafka's timestamps.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(SECOND)
    }

    /// Whole milliseconds since 1970, rounded down.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// The longest.
    pub const MAX: Self = Self(i64::MAX);

    /// That many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// That many seconds.
    #[must_use]
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }

    /// That many minutes.
    #[must_use]
    pub const fn from_mins(minutes: i64) -> Self {
        Self(minutes.saturating_mul(60 * SECOND))
    }

    /// That many hours.
    #[must_use]
    pub const fn from_hours(hours: i64) -> Self {
        Self(hours.saturating_mul(3_600 * SECOND))
    }

    /// That many days of 24 hours.
    #[must_use]
    pub const fn from_days(days: i64) -> Self {
        Self(days.saturating_mul(86_400 * SECOND))
    }

    /// Whole milliseconds, rounded down.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Seconds with their fraction, for telemetry and people.
    #[must_use]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / SECOND as f64
    }
}

/// [`Span::MAX`] where the duration is longer.
impl From<std::time::Duration> for Span {
    fn from(duration: std::time::Duration) -> Self {
        Self(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX))
    }
}

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

impl Add for Span {
    type Output = Self;
    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl Sub for Span {
    type Output = Self;
    #[inline]
    fn sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Mul<i64> for Span {
    type Output = Self;
    #[inline]
    fn mul(self, times: i64) -> Self {
        Self(self.0.saturating_mul(times))
    }
}

/// Rounds toward zero.
///
/// # Panics
/// When the divisor is 0.
impl Div<i64> for Span {
    type Output = Self;
    #[inline]
    fn div(self, parts: i64) -> Self {
        Self(self.0.saturating_div(parts))
    }
}

/// A stretch of event time, `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// The first point in it.
    pub start: Micros,
    /// The first point after it.
    pub end: Micros,
}

impl Window {
    /// How long it is.
    #[must_use]
    pub fn length(self) -> Span {
        self.end - self.start
    }
}

/// The length of a tumbling window; always positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowSize(Span);

impl WindowSize {
    /// One minute.
    pub const MINUTE: Self = Self(Span::from_mins(1));
    /// One hour.
    pub const HOUR: Self = Self(Span::from_hours(1));
    /// One day of 24 hours.
    pub const DAY: Self = Self(Span::from_days(1));

    /// A window of this length; `None` unless positive.
    #[must_use]
    pub fn new(length: Span) -> Option<Self> {
        (length > Span::ZERO).then_some(Self(length))
    }

    /// Reads a duration such as `"1m"`, `"15s"`, `"1h"` or `"1d"`.
    ///
    /// # Errors
    /// [`DomainError::Parse`] when the text is not a duration, is zero, or is finer than a microsecond.
    pub fn parse(text: &str) -> Result<Self, DomainError> {
        let duration = humantime::parse_duration(text).ok();
        let length = duration.and_then(|duration| i64::try_from(duration.as_micros()).ok());
        length.and_then(|micros| Self::new(Span(micros))).ok_or_else(|| DomainError::Parse {
            text: text.to_owned(),
            expected: "a window length such as \"1m\" or \"1h\"",
        })
    }

    /// The length.
    #[must_use]
    pub const fn span(self) -> Span {
        self.0
    }

    /// The start of the window that holds an event time: aligned to the epoch, right before 1970 too.
    #[inline]
    #[must_use]
    pub const fn start_of(self, event_time: Micros) -> Micros {
        Micros(event_time.0.saturating_sub(event_time.0.rem_euclid(self.0.0)))
    }

    /// The window of this length that starts at a point.
    #[inline]
    #[must_use]
    pub fn window_at(self, start: Micros) -> Window {
        Window { start, end: start + self.0 }
    }

    /// Whether every window of `self` is made of whole windows of `finer`.
    #[must_use]
    pub const fn is_multiple_of(self, finer: Self) -> bool {
        self.0.0 % finer.0.0 == 0
    }
}

impl std::fmt::Display for WindowSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (day, hour, minute) = (86_400 * SECOND, 3_600 * SECOND, 60 * SECOND);
        let micros = self.0.0;
        for (unit, name) in [(day, "d"), (hour, "h"), (minute, "m"), (SECOND, "s"), (1_000, "ms")] {
            if micros % unit == 0 {
                return write!(f, "{}{name}", micros / unit);
            }
        }
        write!(f, "{micros}us")
    }
}

/// Reads an RFC 3339 time.
///
/// # Errors
/// [`DomainError::Parse`] when the text is not RFC 3339, or the year in UTC is not one that RFC 3339 can write.
pub fn parse_rfc3339(text: &str) -> Result<Micros, DomainError> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc());
    match time.filter(|time| (0..=9999).contains(&time.year())) {
        Some(time) => Ok(Micros(time.timestamp_micros())),
        None => Err(DomainError::Parse {
            text: text.to_owned(),
            expected: "an RFC 3339 time such as 2026-01-31T12:00:00Z",
        }),
    }
}

/// Writes a time as RFC 3339 in UTC, with as many fraction digits as are needed (none, 3 or 6); as plain microseconds
/// where the year does not fit.
pub fn format_rfc3339(time: Micros) -> String {
    match chrono::DateTime::from_timestamp_micros(time.0) {
        Some(time) => time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        None => format!("{}us", time.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_before_1970_too() {
        let minute = WindowSize::parse("1m").unwrap();
        assert_eq!(minute.start_of(Micros::from_secs(61)), Micros::from_secs(60));
        assert_eq!(minute.start_of(Micros(-1)), Micros::from_secs(-60));
        assert_eq!(minute.start_of(Micros::from_secs(-60)), Micros::from_secs(-60));
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

//! The time of a row: parsed from text or from integer columns, in a zone. It must not know rows or columns, only the texts
//! in them.

use chrono::format::{Item, Parsed, StrftimeItems, parse};
use chrono::{DateTime, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use wye_domain::time::{Micros, Span};

use crate::number::parse_number;

/// The columns of the time, and their format.
#[derive(Clone, Debug)]
pub(crate) enum TimeRule {
    Text { columns: Vec<String>, format: TextFormat },
    Parts { parts: Parts, zone: Zone },
}

/// The columns of a time that consists of several integers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parts {
    pub(crate) year: String,
    pub(crate) month: String,
    pub(crate) day: String,
    pub(crate) hour: Option<String>,
    pub(crate) minute: Option<String>,
    pub(crate) second: Option<String>,
}

#[derive(Clone, Debug)]
pub(crate) enum TextFormat {
    Rfc3339,
    /// Seconds since 1970, with or without a fraction.
    UnixSeconds,
    UnixMillis,
    /// A format with a zone.
    WithOffset(Vec<Item<'static>>),
    Local {
        items: Vec<Item<'static>>,
        zone: Zone,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Zone {
    Fixed(FixedOffset),
    Named(Tz),
}

/// Why a text is not a valid time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimeProblem {
    Unreadable,
    /// The local time does not exist, because of a clock change.
    InGap,
}

/// The key of the mapping, and what is wrong with it.
type KeyProblem = (&'static str, String);

impl TimeRule {
    pub(crate) fn text(columns: Vec<String>, format: &str, zone: Option<&str>) -> Result<Self, KeyProblem> {
        let fixed = match format {
            "rfc3339" => Some(TextFormat::Rfc3339),
            "unix_seconds" => Some(TextFormat::UnixSeconds),
            "unix_millis" => Some(TextFormat::UnixMillis),
            _ => None,
        };
        let format = match fixed {
            Some(format) => {
                no_zone(zone)?;
                format
            }
            None => strftime(format, zone)?,
        };
        Ok(Self::Text { columns, format })
    }

    pub(crate) fn parts(parts: Parts, zone: Option<&str>) -> Result<Self, KeyProblem> {
        Ok(Self::Parts { parts, zone: needed_zone(zone)? })
    }
}

fn strftime(format: &str, zone: Option<&str>) -> Result<TextFormat, KeyProblem> {
    let items = StrftimeItems::new(format).parse_to_owned().map_err(|_| {
        let text = format!("`{format}` is not a strftime format; write for example \"%Y-%m-%d %H:%M:%S\"");
        ("time.format", text)
    })?;
    // To find out which fields a format has, an example (in 2001) is formatted and parsed with it.
    let example = (DateTime::UNIX_EPOCH + TimeDelta::seconds(981_173_106)).fixed_offset();
    let mut parsed = Parsed::new();
    let written = example.format_with_items(items.iter()).to_string();
    if parse(&mut parsed, &written, items.iter()).is_err() || parsed.to_naive_date().is_err() {
        let text = format!("`{format}` is not a complete date; write year, month and day, such as %Y-%m-%d");
        return Err(("time.format", text));
    }
    if parsed.hour_mod_12().is_some() && parsed.to_naive_time().is_err() {
        let text = format!("`{format}` is not a complete time; write %H:%M:%S, or %I:%M:%S %p");
        return Err(("time.format", text));
    }
    if parsed.offset().is_some() || parsed.timestamp().is_some() {
        no_zone(zone)?;
        return Ok(TextFormat::WithOffset(items));
    }
    Ok(TextFormat::Local { items, zone: needed_zone(zone)? })
}

fn no_zone(zone: Option<&str>) -> Result<(), KeyProblem> {
    match zone {
        Some(_) => Err(("time.zone", "the format has a zone already; leave this key out".into())),
        None => Ok(()),
    }
}

fn needed_zone(zone: Option<&str>) -> Result<Zone, KeyProblem> {
    let advice = "write an IANA name such as \"Europe/Rome\", an offset such as \"+08:00\", or \"UTC\"";
    let text = zone.ok_or_else(|| ("time.zone", format!("it is missing; {advice}")))?;
    Zone::parse(text).ok_or_else(|| ("time.zone", format!("`{text}` is not a zone; {advice}")))
}

impl TextFormat {
    /// The time in `text`.
    pub(crate) fn parse(&self, text: &[u8]) -> Result<Micros, TimeProblem> {
        let text = std::str::from_utf8(text).map_err(|_| TimeProblem::Unreadable)?;
        match self {
            Self::Rfc3339 => {
                let time = DateTime::parse_from_rfc3339(text).map_err(|_| TimeProblem::Unreadable)?;
                Ok(Micros(time.timestamp_micros()))
            }
            // Multiplied here with a check, since `Micros::from_secs` saturates.
            Self::UnixSeconds => match text.parse::<i64>() {
                Ok(seconds) => seconds.checked_mul(1_000_000).map(Micros).ok_or(TimeProblem::Unreadable),
                Err(_) => fractional_seconds(text),
            },
            Self::UnixMillis => {
                let millis = text.parse::<i64>().map_err(|_| TimeProblem::Unreadable)?;
                millis.checked_mul(1000).map(Micros).ok_or(TimeProblem::Unreadable)
            }
            Self::WithOffset(items) => {
                let time = parsed(text, items)?.to_datetime().map_err(|_| TimeProblem::Unreadable)?;
                Ok(Micros(time.timestamp_micros()))
            }
            Self::Local { items, zone } => {
                let parsed = parsed(text, items)?;
                let date = parsed.to_naive_date().map_err(|_| TimeProblem::Unreadable)?;
                // A format without an hour means the start of the day.
                let time = match parsed.hour_mod_12() {
                    Some(_) => parsed.to_naive_time().map_err(|_| TimeProblem::Unreadable)?,
                    None => NaiveTime::MIN,
                };
                zone.to_utc(date.and_time(time))
            }
        }
    }
}

fn parsed(text: &str, items: &[Item<'static>]) -> Result<Parsed, TimeProblem> {
    let mut parsed = Parsed::new();
    parse(&mut parsed, text, items.iter()).map_err(|_| TimeProblem::Unreadable)?;
    Ok(parsed)
}

/// Seconds with a fraction, to the nearest microsecond; a double is exact to the microsecond until the year 2255.
fn fractional_seconds(text: &str) -> Result<Micros, TimeProblem> {
    let seconds = parse_number(text.as_bytes(), b'.').ok_or(TimeProblem::Unreadable)?;
    let micros = (seconds * 1e6).round();
    if micros.abs() < 9e18 { Ok(Micros(micros as i64)) } else { Err(TimeProblem::Unreadable) }
}

impl Zone {
    fn parse(text: &str) -> Option<Self> {
        if text == "Z" {
            return Self::parse("UTC");
        }
        if text.starts_with(['+', '-']) {
            // The parser ignores what follows the offset.
            return text.parse().ok().filter(|_| text.len() == "+08:00".len()).map(Self::Fixed);
        }
        text.parse().ok().map(Self::Named)
    }

    /// A local time in UTC. One that exists twice is the earlier of the two.
    fn to_utc(self, local: NaiveDateTime) -> Result<Micros, TimeProblem> {
        match self {
            Self::Fixed(offset) => {
                let ahead = Span::from_secs(i64::from(offset.local_minus_utc()));
                Ok(Micros(local.and_utc().timestamp_micros()) - ahead)
            }
            Self::Named(zone) => {
                let time = zone.from_local_datetime(&local).earliest().ok_or(TimeProblem::InGap)?;
                Ok(Micros(time.timestamp_micros()))
            }
        }
    }

    /// The time of year, month, day, hour, minute and second, in this order.
    pub(crate) fn time_of_parts(self, parts: [i32; 6]) -> Result<Micros, TimeProblem> {
        let [year, rest @ ..] = parts;
        let mut unsigned = [0_u32; 5];
        for (target, part) in unsigned.iter_mut().zip(rest) {
            *target = u32::try_from(part).map_err(|_| TimeProblem::Unreadable)?;
        }
        let [month, day, hour, minute, second] = unsigned;
        let local = NaiveDate::from_ymd_opt(year, month, day)
            .and_then(|date| date.and_hms_opt(hour, minute, second))
            .ok_or(TimeProblem::Unreadable)?;
        self.to_utc(local)
    }
}

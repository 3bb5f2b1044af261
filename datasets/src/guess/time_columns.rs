//! Finds the columns of the time of a row, and their format.

use super::column::{Column, Kind};
use super::quoted;
use crate::mapping::time::TimeRule;

/// The most rows that are compared with a format.
const COMPARED_ROWS: usize = 500;
/// Formats of dates, the most likely first.
const DATES: [&str; 8] =
    ["%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d"];
/// Formats of the time of day.
const TIMES: [&str; 6] = ["%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%H.%M.%S", "%H%M%S"];
/// Separators of date and time of day.
const BETWEEN: [&str; 3] = [" ", "T", "  "];
/// Formats of a zone at the end.
const ZONES: [&str; 3] = ["", "%:z", " %z"];
/// Seconds since 1970 in the years 2001 to 2096.
const UNIX_SECONDS: std::ops::RangeInclusive<f64> = 1e9..=4e9;
/// Names of columns with parts of a time, in the order of the mapping.
const PARTS: [&str; 6] = ["year", "month", "day", "hour", "minute", "second"];

/// A time that was found.
pub(super) struct TimeGuess {
    /// Its columns.
    pub(super) columns: Vec<String>,
    /// The lines of the mapping in section `[time]`.
    pub(super) settings: String,
}

/// The time of a row. Columns whose names suggest a time come before others.
pub(super) fn find(columns: &[Column]) -> Option<TimeGuess> {
    let mut likely: Vec<&Column> = columns.iter().filter(|column| column.filled().next().is_some()).collect();
    likely.sort_by_key(|column| !has_time_name(column));
    parts(columns)
        .or_else(|| likely.iter().find_map(|column| text(&[column])))
        .or_else(|| likely.iter().find_map(|column| unix(column)))
        .or_else(|| {
            let of_date = likely.iter().filter(|column| is_date(column));
            of_date
                .flat_map(|date| likely.iter().map(move |time| [*date, *time]))
                .find_map(|both| text(&both))
        })
        .or_else(|| likely.iter().filter(|column| has_time_name(column)).find_map(|column| date_only(column)))
}

fn has_time_name(column: &Column) -> bool {
    let name = column.plain_name();
    ["time", "date", "stamp", "epoch", "zeit", "datum"].iter().any(|word| name.contains(word)) || name == "ts"
}

/// A time in columns of integers: at least year, month and day.
fn parts(columns: &[Column]) -> Option<TimeGuess> {
    let found: Vec<(&str, &Column)> =
        PARTS.into_iter().map_while(|part| Some((part, numbers_named(columns, part)?))).collect();
    if found.len() < 3 {
        return None;
    }
    let list: Vec<String> =
        found.iter().map(|(part, column)| format!("{part} = {}", quoted(&column.name))).collect();
    Some(TimeGuess {
        columns: found.iter().map(|(_, column)| column.name.clone()).collect(),
        settings: format!("parts = {{ {} }}\n{}", list.join(", "), zone_line("")),
    })
}

fn numbers_named<'a>(columns: &'a [Column], name: &str) -> Option<&'a Column> {
    columns.iter().find(|column| column.plain_name() == name && column.kind == Kind::Numbers)
}

/// A date with a time of day, in one column or two.
fn text(columns: &[&Column]) -> Option<TimeGuess> {
    let rows = rows_of(columns);
    if fits(&rows, "rfc3339") {
        return Some(guess(columns, "rfc3339", ""));
    }
    let formats = ZONES.iter().flat_map(|zone| {
        BETWEEN.iter().flat_map(move |between| {
            DATES
                .iter()
                .flat_map(move |date| TIMES.iter().map(move |time| format!("{date}{between}{time}{zone}")))
        })
    });
    first_fitting(columns, &rows, formats)
}

fn is_date(column: &Column) -> bool {
    date_only(column).is_some()
}

fn date_only(column: &Column) -> Option<TimeGuess> {
    first_fitting(&[column], &rows_of(&[column]), DATES.iter().map(ToString::to_string))
}

fn first_fitting(
    columns: &[&Column],
    rows: &[String],
    mut formats: impl Iterator<Item = String>,
) -> Option<TimeGuess> {
    let first = formats.find(|format| fits(rows, format))?;
    let swapped = swapped(&first).filter(|other| fits(rows, other));
    let comment =
        swapped.map_or_else(String::new, |other| format!("# check: {} fits as well\n", quoted(&other)));
    Some(guess(columns, &first, &comment))
}

/// The format with day and month swapped.
fn swapped(format: &str) -> Option<String> {
    let starts_with_year = format.starts_with("%Y");
    (!starts_with_year).then(|| format.replace("%d", "%\0").replace("%m", "%d").replace("%\0", "%m"))
}

fn guess(columns: &[&Column], format: &str, comment: &str) -> TimeGuess {
    let columns: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let list: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    let settings = format!(
        "columns = [{}]\n{comment}format = {}\n{}",
        list.join(", "),
        quoted(format),
        zone_line(format)
    );
    TimeGuess { columns, settings: settings.trim_end().to_owned() }
}

/// The line of the mapping with the zone; empty where the format has a zone.
fn zone_line(format: &str) -> &'static str {
    if format == "rfc3339" || format.starts_with("unix") || format.ends_with('z') {
        ""
    } else {
        "zone = \"UTC\"   # check: the file has no zone; write an IANA name such as \"Europe/Rome\", or \"+01:00\""
    }
}

/// Seconds or milliseconds since 1970.
fn unix(column: &Column) -> Option<TimeGuess> {
    let (low, high) = column.range().filter(|_| column.kind == Kind::Numbers && has_time_name(column))?;
    let (_, format) =
        [(1.0, "unix_seconds"), (1000.0, "unix_millis")].into_iter().find(|(per_second, _)| {
            UNIX_SECONDS.contains(&(low / per_second)) && UNIX_SECONDS.contains(&(high / per_second))
        })?;
    Some(guess(&[column], format, ""))
}

/// The cells of the columns in the first rows, joined as by the mapping.
fn rows_of(columns: &[&Column]) -> Vec<String> {
    let rows = columns.iter().map(|column| column.cells.len()).min().unwrap_or(0).min(COMPARED_ROWS);
    (0..rows)
        .map(|row| columns.iter().map(|column| column.cells[row].as_str()).collect::<Vec<_>>().join(" "))
        .filter(|text| !text.trim().is_empty())
        .collect()
}

/// Whether at most one row in a hundred does not match the format.
fn fits(rows: &[String], format: &str) -> bool {
    let zone = if zone_line(format).is_empty() { None } else { Some("UTC") };
    let Ok(TimeRule::Text { format, .. }) = TimeRule::text(vec![String::new()], format, zone) else {
        return false;
    };
    let most = rows.len() / 100;
    !rows.is_empty() && rows.iter().filter(|row| format.parse(row.as_bytes()).is_err()).nth(most).is_none()
}

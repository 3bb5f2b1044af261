//! Which columns make the time of a row, and how they are read.

use super::column::{Column, Kind};
use super::quoted;
use crate::mapping::time::TimeRule;

/// So many rows must agree with a format.
const LOOKED_AT: usize = 500;
/// Dates as people and programs write them, the likeliest first.
const DATES: [&str; 8] =
    ["%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y%m%d"];
/// Times of day.
const TIMES: [&str; 6] = ["%H:%M:%S%.f", "%H:%M", "%I:%M:%S %p", "%I:%M %p", "%H.%M.%S", "%H%M%S"];
/// What may be between the two.
const BETWEEN: [&str; 3] = [" ", "T", "  "];
/// Zones at the end.
const ZONES: [&str; 3] = ["", "%:z", " %z"];
/// Seconds since 1970 from 2001 to 2096.
const UNIX_SECONDS: std::ops::RangeInclusive<f64> = 1e9..=4e9;
/// Parts of a time as columns of their own, in the mapping's order.
const PARTS: [&str; 6] = ["year", "month", "day", "hour", "minute", "second"];

/// A time that was found.
pub(super) struct TimeGuess {
    /// The columns that it is made of.
    pub(super) columns: Vec<String>,
    /// The lines under `[time]`.
    pub(super) settings: String,
}

/// The time of a row, from columns that are called like one before all others.
pub(super) fn find(columns: &[Column]) -> Option<TimeGuess> {
    let mut likely: Vec<&Column> = columns.iter().filter(|column| column.filled().next().is_some()).collect();
    likely.sort_by_key(|column| !is_called_time(column));
    parts(columns)
        .or_else(|| likely.iter().find_map(|column| text(&[column])))
        .or_else(|| likely.iter().find_map(|column| unix(column)))
        .or_else(|| {
            let of_date = likely.iter().filter(|column| is_date(column));
            of_date
                .flat_map(|date| likely.iter().map(move |time| [*date, *time]))
                .find_map(|both| text(&both))
        })
        .or_else(|| {
            likely.iter().filter(|column| is_called_time(column)).find_map(|column| date_only(column))
        })
}

fn is_called_time(column: &Column) -> bool {
    let name = column.plain_name();
    ["time", "date", "stamp", "epoch", "zeit", "datum"].iter().any(|word| name.contains(word)) || name == "ts"
}

/// Year, month and day as integers.
fn parts(columns: &[Column]) -> Option<TimeGuess> {
    let find = |part: &&str| {
        columns.iter().find(|column| column.plain_name() == **part && column.kind == Kind::Numbers)
    };
    let found: Vec<(&str, &Column)> =
        PARTS.iter().map_while(|part| find(part).map(|column| (*part, column))).collect();
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
    let remark =
        swapped.map_or_else(String::new, |other| format!("# check: {} fits as well\n", quoted(&other)));
    Some(guess(columns, &first, &remark))
}

/// The format with day and month in the other order.
fn swapped(format: &str) -> Option<String> {
    let starts_with_year = format.starts_with("%Y");
    (!starts_with_year).then(|| format.replace("%d", "%\0").replace("%m", "%d").replace("%\0", "%m"))
}

fn guess(columns: &[&Column], format: &str, remark: &str) -> TimeGuess {
    let columns: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let list: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    let settings = format!(
        "columns = [{}]\n{remark}format = {}\n{}",
        list.join(", "),
        quoted(format),
        zone_line(format)
    );
    TimeGuess { columns, settings: settings.trim_end().to_owned() }
}

fn zone_line(format: &str) -> &'static str {
    if format == "rfc3339" || format.starts_with("unix") || format.ends_with('z') {
        ""
    } else {
        "zone = \"UTC\"   # check: the file does not say; an IANA name such as \"Europe/Rome\", or \"+01:00\""
    }
}

/// Seconds or milliseconds since 1970.
fn unix(column: &Column) -> Option<TimeGuess> {
    let (low, high) = column.range().filter(|_| column.kind == Kind::Numbers && is_called_time(column))?;
    let both =
        |divisor: f64| UNIX_SECONDS.contains(&(low / divisor)) && UNIX_SECONDS.contains(&(high / divisor));
    match (both(1.0), both(1000.0)) {
        (true, _) => Some(guess(&[column], "unix_seconds", "")),
        (_, true) => Some(guess(&[column], "unix_millis", "")),
        _ => None,
    }
}

/// The cells of the columns as the mapping joins them, of the first rows.
fn rows_of(columns: &[&Column]) -> Vec<String> {
    let rows = columns.iter().map(|column| column.cells.len()).min().unwrap_or(0).min(LOOKED_AT);
    (0..rows)
        .map(|row| columns.iter().map(|column| column.cells[row].as_str()).collect::<Vec<_>>().join(" "))
        .filter(|text| !text.trim().is_empty())
        .collect()
}

/// Whether all rows but one in a hundred can be read by the format.
fn fits(rows: &[String], format: &str) -> bool {
    let zone = if zone_line(format).is_empty() { None } else { Some("UTC") };
    let Ok(TimeRule::Text { format, .. }) = TimeRule::text(vec![String::new()], format, zone) else {
        return false;
    };
    let most = rows.len() / 100;
    !rows.is_empty() && rows.iter().filter(|row| format.micros(row.as_bytes()).is_err()).nth(most).is_none()
}

//! Valid and invalid mappings, the messages of the errors, and the times of formats.

use std::path::Path;

use wye_domain::time::format_rfc3339;

use super::Mapping;
use super::time::{TextFormat, TimeProblem, TimeRule};

const GOOD: &str = r#"
[device]
column = "station"
[time]
columns = ["t"]
format = "%Y-%m-%d %H:%M:%S"
zone = "UTC"
[[metric]]
column = "x"
"#;

fn refused(text: &str) -> String {
    Mapping::parse(text, Path::new("m.toml")).unwrap_err().to_string()
}

#[test]
fn defaults_are_filled_in() {
    let mapping = Mapping::parse(GOOD, Path::new("m.toml")).unwrap();
    let [metric] = mapping.metrics() else { panic!("one metric") };
    assert_eq!(
        (metric.name.as_str(), metric.unit.as_deref(), metric.scale, metric.offset),
        ("x", None, 1.0, 0.0)
    );
    assert!(mapping.missing.is_word(b""));
    assert!(!mapping.missing.is_word(b"NA"));
}

#[test]
fn the_canonical_form_is_the_meaning() {
    let same = format!("# a comment\ndelimiter = \",\"\n{GOOD}name = \"x\"\nscale = 1\n");
    assert_eq!(canonical(GOOD), canonical(&same));
    assert_ne!(canonical(GOOD), canonical(&format!("{GOOD}scale = 2")));
    assert_ne!(canonical(GOOD), canonical(&format!("missing = [\"NA\"]\n{GOOD}")));
}

fn canonical(text: &str) -> String {
    Mapping::parse(text, Path::new("m.toml")).unwrap().canonical().to_owned()
}

#[test]
fn errors_name_file_and_key() {
    let cases = [
        (format!("delimter = \";\"\n{GOOD}"), "delimter"),
        (format!("delimiter = \";;\"\n{GOOD}"), "m.toml: delimiter: it must be one ASCII character"),
        (format!("decimal_comma = true\n{GOOD}"), "m.toml: decimal_comma: numbers with a comma need another"),
        (GOOD.replace("zone = \"UTC\"", ""), "m.toml: time.zone: it is missing; write an IANA name"),
        (GOOD.replace("\"UTC\"", "\"Europe/Roma\""), "m.toml: time.zone: `Europe/Roma` is not a zone"),
        (GOOD.replace("\"UTC\"", "\"+01:00x\""), "m.toml: time.zone: `+01:00x` is not a zone"),
        (GOOD.replace("%Y-%m-%d %H:%M:%S", "%H:%M"), "m.toml: time.format: `%H:%M` is not a complete date"),
        (GOOD.replace("%H:%M:%S", "%I:%M:%S"), "is not a complete time"),
        (GOOD.replace("%S", "%Q"), "is not a strftime format"),
        (GOOD.replace("%S", "%S%z"), "m.toml: time.zone: the format has a zone already"),
        (GOOD.replace("%Y-%m-%d %H:%M:%S", "rfc3339"), "m.toml: time.zone: the format has a zone already"),
        (
            GOOD.replace("columns", "parts = { year = \"y\", month = \"m\", day = \"d\" }\ncolumns"),
            "m.toml: time: write",
        ),
        (GOOD.replace("column = \"station\"", ""), "m.toml: device: write exactly one of"),
        (GOOD.replace("column = \"station\"", "constant = \"a\"\nprefix = \"b\""), "m.toml: device.prefix"),
        (format!("{GOOD}scale = 0"), "m.toml: metric[0].scale"),
        (format!("{GOOD}offset = nan"), "m.toml: metric[0].offset"),
        (
            format!("{GOOD}[[metric]]\ncolumn = \"y\"\nname = \"x\""),
            "m.toml: metric[1].name: `x` is the name of another metric",
        ),
        (format!("{GOOD}unti = \"Cel\""), "unti"),
    ];
    for (text, expected) in cases {
        let error = refused(&text);
        assert!(error.starts_with("m.toml: ") && error.contains(expected), "{error}\nfor {text}");
    }
}

fn local(format: &str, zone: Option<&str>) -> TextFormat {
    match TimeRule::text(vec!["t".into()], format, zone).unwrap() {
        TimeRule::Text { format, .. } => format,
        TimeRule::Parts { .. } => panic!("this is a format of text"),
    }
}

fn utc(format: &TextFormat, text: &str) -> Result<String, TimeProblem> {
    format.parse(text.as_bytes()).map(format_rfc3339)
}

#[test]
fn clock_changes() {
    let rome = local("%Y-%m-%d %H:%M:%S", Some("Europe/Rome"));
    assert_eq!(utc(&rome, "2004-03-28 01:59:59").unwrap(), "2004-03-28T00:59:59Z");
    assert_eq!(utc(&rome, "2004-03-28 02:00:00"), Err(TimeProblem::InGap));
    assert_eq!(utc(&rome, "2004-03-28 02:59:59"), Err(TimeProblem::InGap));
    assert_eq!(utc(&rome, "2004-03-28 03:00:00").unwrap(), "2004-03-28T01:00:00Z");
    // 02:30 exists twice, at 00:30 and at 01:30 UTC; the earlier one counts.
    assert_eq!(utc(&rome, "2004-10-31 02:30:00").unwrap(), "2004-10-31T00:30:00Z");
    assert_eq!(utc(&rome, "2004-10-31 03:00:00").unwrap(), "2004-10-31T02:00:00Z");
}

#[test]
fn formats() {
    let cases = [
        ("%Y-%m-%d %H:%M:%S", Some("+08:00"), "2013-03-01 0:00:00", "2013-02-28T16:00:00Z"),
        ("%d/%m/%Y", Some("UTC"), "31/12/1969", "1969-12-31T00:00:00Z"),
        ("%d/%m/%Y %I:%M %p", Some("-05:00"), "01/02/2020 03:04 PM", "2020-02-01T20:04:00Z"),
        ("%Y-%m-%dT%H:%M:%S%z", None, "2020-01-01T00:00:00+0130", "2019-12-31T22:30:00Z"),
        ("rfc3339", None, "2020-01-01T00:00:00.25+01:00", "2019-12-31T23:00:00.250Z"),
        ("unix_seconds", None, "-1", "1969-12-31T23:59:59Z"),
        ("unix_seconds", None, "1.000001", "1970-01-01T00:00:01.000001Z"),
        ("unix_millis", None, "1500", "1970-01-01T00:00:01.500Z"),
    ];
    for (format, zone, text, expected) in cases {
        assert_eq!(utc(&local(format, zone), text).as_deref(), Ok(expected), "{format}");
    }
    for (format, text) in
        [("unix_seconds", "inf"), ("unix_millis", "9e9"), ("rfc3339", "2020-01-01"), ("rfc3339", "")]
    {
        assert_eq!(utc(&local(format, None), text), Err(TimeProblem::Unreadable), "{format} {text}");
    }
}

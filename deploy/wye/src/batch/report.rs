//! The report of a batch run on the terminal.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::terminal::{grouped, say, seconds};

/// Prints a report, as JSON or as lines.
///
/// # Errors
/// When it cannot be written.
pub(super) fn print(report: &Value, as_json: bool) -> Result<()> {
    if as_json { say(report) } else { print_lines(report) }
}

fn print_lines(report: &Value) -> Result<()> {
    let outcome = report.get("outcome").and_then(Value::as_str).unwrap_or_default();
    say(format!("outcome        {:>12}", outcome.replace('_', " ")))?;
    for key in ["readings", "duplicates", "conflicts", "windows", "series"] {
        let number = report.get(key).and_then(Value::as_u64).unwrap_or_default();
        say(format!("{key:<14} {:>12}", grouped(number)))?;
    }
    let duration = report.get("duration_ms").and_then(Value::as_f64).unwrap_or_default();
    say(format!("duration       {:>12}", seconds(Duration::from_secs_f64(duration / 1e3))))?;
    if let Some(version) = report.get("version").and_then(Value::as_u64) {
        let served = match report.get("served").and_then(Value::as_bool) {
            Some(true) => "in the answers",
            Some(false) => "not in the answers yet",
            None => "",
        };
        say(format!("view version   {:>12}   {served}", grouped(version)).trim_end())?;
    }
    if let Some(horizon) = report.get("horizon").and_then(Value::as_object) {
        let parts: Vec<String> =
            horizon.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
        say(format!("horizon        {} (Kafka partition:offset)", parts.join(",")))?;
    }
    if let Some(silent) =
        report.get("unanswered").and_then(Value::as_array).filter(|silent| !silent.is_empty())
    {
        let silent: Vec<String> = silent.iter().map(ToString::to_string).collect();
        say(format!(
            "the speed layer did not answer for Kafka partition {}: the run covers what was archived",
            silent.join(", ")
        ))?;
    }
    let left: i64 = report
        .get("not_covered")
        .and_then(Value::as_object)
        .map_or(0, |left| left.values().filter_map(Value::as_i64).sum());
    if left > 0 {
        say(format!(
            "not covered    {left:>12} messages from before the run: the archiver has not reached them; run it again later"
        ))?;
    }
    Ok(())
}
